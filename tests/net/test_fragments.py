# SPDX-License-Identifier: Apache-2.0
"""Fragments that no stack would make: shuffled, tiny, overlapping, endless. From pod to pod.

What can be put together arrives; what cannot is the receiving pod's business, as on any network.
The nodes carry each piece, sealed, and stay well.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import pytest
from scapy.all import IP, UDP, IPv6, IPv6ExtHdrFragment, Raw

from pellicle import lab
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.loaded import assert_private
from tests.net.parcels import SECRET, Post, content, parcels, raw_link

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
NODES = (LabNode(1), LabNode(2))
NAMES = count(1)


@dataclass(frozen=True, slots=True)
class Piece:
    at: int
    """Byte offset, a multiple of 8."""
    data: bytes
    is_last: bool = False


def cut(datagram: bytes, size: int) -> list[Piece]:
    return [
        Piece(at, datagram[at : at + size], is_last=at + size >= len(datagram))
        for at in range(0, len(datagram), size)
    ]


def shuffled(pieces: Sequence[Piece]) -> list[Piece]:
    return random.Random(6040).sample(pieces, len(pieces))


Cut = Callable[[bytes], Sequence[Piece]]
WHOLE: dict[str, tuple[int, Cut]] = {
    "in order": (4000, lambda d: cut(d, 1360)),
    "backwards": (4000, lambda d: cut(d, 1360)[::-1]),
    "shuffled": (4000, lambda d: shuffled(cut(d, 512))),
    "eight bytes each, shuffled": (400, lambda d: shuffled(cut(d, 8))),
    "in one piece, with a fragment header (RFC 6946)": (400, lambda d: cut(d, 1360)),
}
BROKEN: dict[str, Cut] = {
    "the second overlaps the first": lambda d: [
        Piece(0, d[:1024]), Piece(512, bytes(1024)), Piece(1536, d[1536:2048], is_last=True),
    ],
    "inside another (teardrop)": lambda d: [
        Piece(0, d[:1024]), Piece(24, bytes(4), is_last=True),
    ],
    "two ends": lambda d: [
        Piece(0, d[:512]), Piece(512, d[512:600], is_last=True), Piece(1024, d[:512], is_last=True),
    ],
    "beyond 64 KB": lambda d: [Piece(0, d[:512]), Piece(65528, bytes(1000), is_last=True)],
    "no first": lambda d: cut(d, 512)[1:],
    "no last": lambda d: cut(d, 512)[:-1],
    "a first too short for ports": lambda d: [Piece(0, d[:4]), Piece(8, d[8:512], is_last=True)],
    "nothing in them": lambda _: [Piece(0, b""), Piece(8, b""), Piece(16, b"", is_last=True)],
}  # fmt: skip


@pytest.fixture(scope="module")
def two(make_lab: MakeLab) -> Iterator[None]:
    make_lab(2, 1)
    yield
    assert all(agents.status(node)["healthy"] for node in NODES)


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("says", WHOLE)
def test_what_can_be_put_together_arrives(two: None, says: str, family: int) -> None:
    with Sniffer(markers=[SECRET]) as wire, parcels(A, B, family) as post, raw_link(A) as send:
        size, pieces = WHOLE[says]
        for packet in packets(post, pieces(datagram(post, size))):
            send(packet)
        arrived = post.receive()
        assert arrived.content == content(size)
        assert arrived.ttl == 62, "both nodes counted"
        assert post.is_silent
        assert_private(wire)


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("says", BROKEN)
def test_what_cannot_does_no_harm(two: None, says: str, family: int) -> None:
    before = [_drops(node) for node in NODES]
    with Sniffer(markers=[SECRET]) as wire, parcels(A, B, family) as post, raw_link(A) as send:
        pieces = BROKEN[says](datagram(post, 4000))
        for _ in range(20):
            for packet in packets(post, pieces):
                send(packet)
        assert all(post.carries(size) for size in (1, 1000, 8000)), "and only these"
        assert post.is_silent
        assert_private(wire)
    assert [_drops(node) for node in NODES] == before, "carrying them is all that nodes do"


def datagram(post: Post, size: int) -> bytes:
    """UDP with its checksum, from the sender's own port."""
    source, port = post.sender.getsockname()[:2]
    destination, to = post.sender.getpeername()[:2]
    header = IP if post.family == 4 else IPv6
    whole = header(src=source, dst=destination) / UDP(sport=port, dport=to) / Raw(content(size))
    return bytes(header(bytes(whole)).payload)


def packets(post: Post, pieces: Sequence[Piece]) -> Iterator[bytes]:
    """One datagram's, under an identification that no other has."""
    name = next(NAMES)
    source, destination = post.sender.getsockname()[0], post.sender.getpeername()[0]
    for piece in pieces:
        more, offset = not piece.is_last, piece.at // 8
        if post.family == 4:
            header = IP(
                src=source, dst=destination, id=name, proto=17, flags=int(more), frag=offset
            )
        else:
            extension = IPv6ExtHdrFragment(nh=17, id=name, m=int(more), offset=offset)
            header = IPv6(src=source, dst=destination) / extension
        yield bytes(header / Raw(piece.data))


def _drops(node: LabNode) -> dict[str, int]:
    return {row["reason"]: int(row["packets"]) for row in agents.status(node)["drops"]}
