# SPDX-License-Identifier: Apache-2.0
"""Frames between the cluster's nodes: what a door must have sent, taken apart; what a peer's door
would send, made by hand; and what the pod must get of it.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import pytest

from tests.bpf import esp, packets
from tests.bpf.cluster import HOST_MAC, OUT, OVER6, POD_MAC, SAS, Peer, pod, sa_in
from tests.bpf.node import REDIRECT, Node, Seen

HEAD = {4: 20, 6: 40}
NEXT = {4: esp.IPV4, 6: esp.IPV6}
FAMILIES = [(inner, outer) for inner in (4, 6) for outer in (4, 6)]
families = pytest.mark.parametrize(("inner", "outer"), FAMILIES, ids=lambda v: f"IPv{v}")
outers = pytest.mark.parametrize("outer", [4, 6], ids=lambda v: f"IPv{v}")

ASK, ANSWER = 1, 2
"""`enum probe_kind`."""


def probe(source: str, destination: str, pair: int, number: int, kind: int = ASK) -> bytes:
    """What one node's agent asks or answers another's."""
    body = struct.pack(">QII", pair, number, kind)
    return packets.ip(source, destination, body, protocol=packets.PROBE)


# --- sent ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """A frame that the door made, taken apart."""

    peer: Peer
    number: int
    """The SA's."""
    tos: int
    label: int
    opened: esp.Opened


def take_apart(frame: bytes, peer: Peer, high: int = 0) -> Sealed:
    """Opens a frame, whose headers must be exactly what they should be."""
    version = 6 if peer is OVER6 else 4
    start = 14 + (40 if version == 6 else 20)
    word = struct.unpack_from(">I", frame, 14)[0]
    tos, label = (word >> 20 & 0xFF, word & 0xFFFFF) if version == 6 else (word >> 16 & 0xFF, 0)
    body = frame[start:]
    more = {"label": label} if version == 6 else {"identifier": 0}
    outer = packets.ip(peer.own, peer.address, body, protocol=packets.ESP, tos=tos, **more)
    assert frame == packets.frame(outer)
    spi = struct.unpack_from(">I", body)[0]
    number = [peer.keys_out(each).spi for each in range(SAS)].index(spi)
    return Sealed(peer, number, tos, label, esp.unseal(peer.keys_out(number), body, high))


def assert_sealed(seen: Seen, inner: bytes, peer: Peer, high: int = 0) -> Sealed:
    """The packet left for this peer with this inside, padded as it must be."""
    assert (seen.action, seen.reason, seen.size) == (REDIRECT, "SEALED", len(inner))
    assert seen.mark == OUT
    sealed = take_apart(seen.frame, peer, high)
    assert sealed.opened.payload == inner
    assert sealed.opened.padding == esp.padding(len(inner))
    assert sealed.opened.next_header == (esp.IPV6 if inner[0] >> 4 == 6 else esp.IPV4)
    assert sealed.opened.iv == struct.pack(">Q", sealed.opened.sequence)
    return sealed


# --- received ------------------------------------------------------------------------------------


def outside(peer: Peer, body: bytes, **fields: int) -> bytes:
    """A frame from the wire around ESP from a peer."""
    return packets.frame(
        packets.ip(peer.address, peer.own, body, **{"protocol": packets.ESP, **fields})
    )


def sealed(peer: Peer, sequence: int, inner: bytes, *, tos: int = 0, **odd: bytes | int) -> bytes:
    """A frame that the peer sealed on its SA 0."""
    next_header = esp.IPV6 if inner[:1] and inner[0] >> 4 == 6 else esp.IPV4
    words = {"next_header": next_header, **odd}
    return outside(peer, esp.seal(peer.keys_in(0), sequence, inner, **words), tos=tos)  # type: ignore[arg-type]


def datagram(version: int, peer: Peer, size: int, **fields: int) -> bytes:
    """An inner packet of exactly `size` bytes from a pod there to the pod here."""
    payload = random.Random(size).randbytes(size - HEAD[version])
    return packets.ip(peer.pod(version), pod(version), payload, **fields)


def delivered(inner: bytes, *, tos: int | None = None, ttl: int = 63) -> bytes:
    """The frame in which the pod gets it: one hop older, its header's sum right."""
    packet = bytearray(inner)
    if inner[0] >> 4 == 6:
        packet[7] = ttl
        if tos is not None:
            packet[:2] = (0x6000 | tos << 4 | packet[1] & 0xF).to_bytes(2, "big")
    else:
        packet[8] = ttl
        packet[1] = packet[1] if tos is None else tos
        head = (packet[0] & 0xF) * 4
        packet[10:12] = bytes(2)
        packet[10:12] = packets.checksum(bytes(packet[:head])).to_bytes(2, "big")
    return packets.frame(bytes(packet), source=HOST_MAC, destination=POD_MAC)


def assert_delivered(seen: Seen, inner: bytes, **changed: int) -> None:
    assert (seen.action, seen.reason, seen.size) == (REDIRECT, "OPENED", len(inner))
    assert seen.frame == delivered(inner, **changed)


def state(node: Node, peer: Peer) -> dict[str, object]:
    """All of the SA that only an authentic packet may change."""
    row: dict[str, object] = dict(sa_in(node, peer))
    return {name: value for name, value in row.items() if name not in ("auth_failed", "replayed")}
