# SPDX-License-Identifier: Apache-2.0
"""Scapy, a third implementation: it opens what either engine sealed, and seals what that opens.

n1/p1 ══ n1: agent ══ ESP ══╤══ n2: silent
                            └── Scapy, with n2's keys
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.all import IP, UDP, Ether, IPv6, Packet, rdpcap
from scapy.layers import ipsec

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import UPLINK, WIRE
from tests import pace
from tests.interop.byhand import BEYOND, CHACHA, LAST_LOW, N1, Pair, Sa, rows
from tests.net.loaded import address_of
from tests.net.parcels import INNER, IP_UDP, content, parcels, udp_in

pytestmark = pytest.mark.usefixtures("all_is_understood")
A, B = "n1/p1", "n2/p1"
inners = pytest.mark.parametrize("inner", [4, 6], ids=lambda version: f"IPv{version} inside")
FOR_SCAPY = {4: 3, 6: 0}
"""Of n1's inbound SAs: n2 itself sends on the two others."""


@inners
def test_scapy_opens_what_pellicle_sealed(pair: Pair, inner: int, tmp_path: Path) -> None:
    judges = {sa.spi: judge(sa) for sa in pair.sent.values()}
    begun = {row["spi"]: row["sequence"] for row in rows(N1, "sa_out")}
    sizes = pace.sizes(INNER[pair.case.outer] - IP_UDP[inner])
    with Sniffer(write=tmp_path / "wire.pcap") as wire, parcels(A, B, inner) as post:
        for size in sizes:
            post.send(content(size))
            post.receive()
        wire.settle()
    frames = [frame for frame in rdpcap(str(tmp_path / "wire.pcap")) if ipsec.ESP in frame]
    seen = [
        judges[esp.spi].decrypt(frame.payload, esn_en=True, esn=upper_half(esp.seq, begun[esp.spi]))
        for frame in frames
        if (esp := frame[ipsec.ESP]).spi in judges
    ]
    sent = [packet for packet in seen if UDP in packet and packet.src == address_of(A, inner)]
    assert [bytes(packet[UDP].payload) for packet in sent] == [content(size) for size in sizes]


@inners
def test_pellicle_opens_what_scapy_sealed_past_2_to_the_32(pair: Pair, inner: int) -> None:
    """A receiver infers the upper half from the lower one: no step may be too far."""
    version = IPv6 if inner == 6 else IP
    header = version(src=address_of(B, inner), dst=address_of(A, inner))
    sealer = judge(pair.received[FOR_SCAPY[inner]])
    steps = (0x4000_0000, 0x8000_0000, 0xC000_0000)
    edge = range(LAST_LOW - BEYOND, LAST_LOW + 1 + BEYOND)
    with udp_in(A, inner) as receiver, wire_to_n1() as send:
        port = receiver.getsockname()[1]
        for size, sequence in enumerate((*steps, *edge), 100):
            packet = version(bytes(header / UDP(sport=4000, dport=port) / content(size)))
            high, low = divmod(sequence, 1 << 32)
            sealer.seq_num = low  # as an argument, 0 would be none
            send(sealer.encrypt(packet, esn_en=True, esn=high))
            assert receiver.recv(2048) == content(size)


def upper_half(low: int, before: int) -> int:
    """Of a number that came soon after another."""
    return (before >> 32) + (low < before & LAST_LOW)


def judge(sa: Sa) -> ipsec.SecurityAssociation:
    """What Scapy makes of an SA."""
    return ipsec.SecurityAssociation(
        ipsec.ESP, sa.spi, crypt_algo="CHACHA20-POLY1305" if sa.algorithm == CHACHA else "AES-GCM",
        crypt_key=sa.key, esn_en=True,
        tunnel_header=(IPv6 if ":" in sa.source else IP)(src=sa.source, dst=sa.destination),
    )  # fmt: skip


@contextmanager
def wire_to_n1() -> Iterator[Callable[[Packet], None]]:
    """Puts packets on n1's cable, at the wire's end of it."""
    with Netlink(WIRE) as wire, Netlink(N1.namespace) as node:
        own, there = wire.link(N1.wire_device), node.link(UPLINK)
    with netns.socket_in(WIRE, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((N1.wire_device, 0))

        def send(packet: Packet) -> None:
            link.send(bytes(Ether(src=own.mac, dst=there.mac) / packet))

        yield send
