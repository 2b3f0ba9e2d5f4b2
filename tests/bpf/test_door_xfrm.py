# SPDX-License-Identifier: Apache-2.0
"""The door of the kernel's IPsec: which SA a packet is marked for, and what goes nowhere.

A test run has Ethernet around its packet, and the device has none. So the program stands where it
will stand, at the egress of a device without Ethernet, and real packets are sent out of that.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pellicle.kernel import netns
from pellicle.kernel.bpf import attach_tc, ensure_bpffs
from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    OVER4,
    PEERS,
    POD4,
    POD6,
    SAS,
    SELF4,
    SELF6,
    SHARED,
    WORLD4,
    Peer,
    furnish,
    pod,
    put_outbound,
    sa_out,
)  # fmt: skip
from tests.bpf.node import BPF, SHOT, XFRM, Node, loaded_node, text_of
from tests.bpf.tun import Tun
from tests.bpf.tunnel import ANSWER, ASK, families, outers, probe

NAME = f"door-xfrm-{os.getpid()}"
PINS = Path(f"/sys/fs/bpf/{NAME}")
UDP_SEGMENT = 103


@dataclass(frozen=True)
class Door:
    """The device, and the datapath behind it."""

    node: Node
    device: Tun

    def take(self, packet: bytes, **how: int) -> Taken:
        """One packet, out of the device."""
        try:
            self.device.send(packet, **how)  # type: ignore[arg-type]
        except OSError as error:
            assert error.errno == 105, "ENOBUFS: a program dropped it"  # noqa: PT017
        left = self.device.left()
        assert len(left) <= 1
        reasons, size = self.node.counted()
        assert len(reasons) <= 1
        mark = left[0].mark if left else None
        return Taken(left[0].packet if left else b"", mark, reasons[0] if reasons else "", size)


@dataclass(frozen=True)
class Taken:
    """What came of a packet."""

    packet: bytes
    mark: int | None
    """None: it did not leave."""
    reason: str
    size: int


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    ensure_bpffs(PINS)
    with ExitStack() as stack:
        stack.callback(PINS.rmdir)
        netns.create(NAME)
        stack.callback(netns.delete, NAME)
        with netns.inside(NAME):
            node = stack.enter_context(loaded_node(tmp_path_factory.mktemp("bpf")))
        furnish(node)
        device = stack.enter_context(Tun(NAME, "pellicle_xfrm"))
        pin, program = PINS / "door", node.object.program("door_xfrm")
        stack.callback(pin.unlink, missing_ok=True)
        with netns.inside(NAME):
            attach_tc(device.ifindex, program, "egress", pin=pin, mode=request.param)
        yield Door(node, device)


@pytest.fixture
def door(made: Door) -> Door:
    """With SAs of the kernel's to each peer, and nothing reported."""
    made.node.clear("encrypt", "sa_out", "flows")
    made.node.put_door(0)
    for peer in PEERS.values():
        put_outbound(made.node, peer, engine=XFRM)
    made.node.forget()
    return made


def datagram(inner: int, peer: Peer, port: int = 53, *, tos: int = 0) -> bytes:
    body = packets.udp(4000, port, b"words")
    return packets.ip(pod(inner), peer.pod(inner), body, protocol=packets.UDP, tos=tos)


# --- which SA ------------------------------------------------------------------------------------


@families
def test_a_flow_keeps_its_sa_and_flows_use_all_of_them(door: Door, inner: int, outer: int) -> None:
    peer, marks = PEERS[outer], []
    for port in range(400):
        packet = datagram(inner, peer, port)
        seen = [door.take(packet, mark=0xE00) for _ in range(2)]
        assert [(each.packet, each.reason, each.size) for each in seen] == [
            (packet, "SEALED", len(packet))
        ] * 2
        assert seen[0].mark == seen[1].mark
        marks.append(seen[0].mark)
    counts = [marks.count(peer.mark_out(number)) for number in range(SAS)]
    assert sum(counts) == 400, "slot, number and 0xe, and no other bit"
    assert all(60 <= count <= 140 for count in counts), "about equally"


@families
def test_a_pair_with_one_sa_has_all_flows_on_it(door: Door, inner: int, outer: int) -> None:
    peer = PEERS[outer]
    door.node.put_encrypt(peer.address, peer.pair, XFRM, sas=1)
    marks = {door.take(datagram(inner, peer, port), mark=0xE00).mark for port in range(64)}
    assert marks == {peer.mark_out(0)}


@families
def test_what_a_shared_state_will_encrypt_is_counted_here(
    door: Door, inner: int, outer: int
) -> None:
    """For the state counts for everybody."""
    peer = PEERS[outer]
    door.node.put_encrypt(peer.address, peer.pair, XFRM, sas=1)
    door.node.put_sa_out(
        peer.keys_out(0), pair=peer.pair, number=0, source=peer.own, destination=peer.address,
        node=peer.address, engine=XFRM, mark=peer.mark_out(2) | SHARED,
    )  # fmt: skip
    packet = datagram(inner, peer, tos=1)
    for number in range(1, 4):
        seen = door.take(packet, mark=0xE00)
        assert (seen.mark, seen.reason) == (peer.mark_out(2) | SHARED | 1, "SEALED")
        row = sa_out(door.node, peer)
        assert (row["packets"], row["bytes"]) == (number, number * len(packet))
    put_outbound(door.node, peer, engine=XFRM)
    door.take(packet, mark=0xE00)
    assert not any(sa_out(door.node, peer, number)["packets"] for number in range(SAS))


@families
def test_the_choice_is_the_other_engines_too(door: Door, inner: int, outer: int) -> None:
    """A pair that changes its engine changes nothing else."""
    peer, packet = PEERS[outer], datagram(inner, PEERS[outer], 777)
    marked = door.take(packet).mark
    put_outbound(door.node, peer)
    door.node.run("door", packets.frame(packet))
    used = [
        number for number in range(SAS)
        if door.node.row("sa_out", {"pair": peer.pair, "number": number})["packets"]
    ]  # fmt: skip
    assert [peer.mark_out(number) for number in used] == [marked]


@families
def test_the_mark_bears_the_inner_ecn(door: Door, inner: int, outer: int) -> None:
    peer = PEERS[outer]
    number = (door.take(datagram(inner, peer)).mark or 0) >> 12 & 3
    for tos in range(256):
        packet = datagram(inner, peer, tos=tos)
        seen = door.take(packet, mark=0xFFFF_FFFF)
        assert (seen.mark, seen.packet) == (peer.mark_out(number) | tos & 3, packet)


@outers
def test_a_node_itself_is_reached_by_its_first_sa(door: Door, outer: int) -> None:
    """The kernel's policies know its addresses for that one only."""
    peer, numbers = PEERS[outer], set()
    for port in range(60):
        before = door.take(datagram(4, peer, port))
        numbers.add((before.mark or 0) >> 12 & 3)
        body = packets.udp(4000, port)
        packet = packets.ip(peer.own, peer.address, body, protocol=packets.UDP)
        seen = door.take(packet, mark=0xE00)
        assert (seen.mark, seen.reason) == (peer.mark_out(0), "SEALED")
    assert numbers == set(range(SAS)), "whatever SA the packet before it took"


def test_of_the_bpf_engine_a_node_is_reached_by_all(door: Door) -> None:
    put_outbound(door.node, OVER4)
    for port in range(60):
        body = packets.udp(4000, port)
        packet = packets.ip(SELF4, OVER4.address, body, protocol=packets.UDP)
        door.node.run("door", packets.frame(packet))
    rows = [door.node.row("sa_out", {"pair": OVER4.pair, "number": n}) for n in range(SAS)]
    assert all(row["packets"] > 3 for row in rows)


@outers
def test_a_probe_takes_the_sa_that_it_names(door: Door, outer: int) -> None:
    peer = PEERS[outer]
    door.node.clear("encrypt")
    for number in range(SAS):
        for kind in (ASK, ANSWER):
            packet = probe(peer.own, peer.address, peer.pair, number, kind)
            seen = door.take(packet, mark=0xE00)
            assert (seen.packet, seen.mark) == (packet, peer.mark_out(number))
            assert (seen.reason, seen.size) == ("PROBE_SENT", len(packet))


def test_a_pod_cannot_choose_its_sa(door: Door) -> None:
    packets_seen = [door.take(probe(POD4, OVER4.pod4, OVER4.pair, named)) for named in range(SAS)]
    assert {each.reason for each in packets_seen} == {"SEALED"}
    assert len({each.mark for each in packets_seen}) == 1


@pytest.mark.parametrize("peer", PEERS.values(), ids=["over IPv4", "over IPv6"])
def test_the_flow_tells_its_keys_and_engine(door: Door, peer: Peer) -> None:
    number = (door.take(datagram(4, peer)).mark or 0) >> 12 & 3
    (flow,) = [e for e in door.node.seen_events() if e["kind"] == "EVENT_FLOW"]
    key, row = flow["key"], flow["row"]
    assert (key["hook"], door.node.reason_names[key["reason"]]) == (2, "SEALED")
    assert text_of(key["destination"]["bytes"]) == peer.pod4
    assert (row["engine"], row["pair"], row["epoch"]) == (XFRM, peer.pair, 5)
    assert row["spi"] == peer.keys_out(number).spi
    assert row["destination_identity"] == peer.identity


def test_what_comes_in_one_leaves_in_segments_that_bear_the_mark(door: Door) -> None:
    """The device has no segmentation offload, so the kernel cuts behind the program."""
    door.node.put_peer("198.51.100.1", node=OVER4.address)
    for command in ("addr add 192.0.2.1/32 dev lo", "route add 198.51.100.1 dev pellicle_xfrm"):
        netns.run_in(NAME, f"ip {command}".split(), check=True)
    try:
        with netns.socket_in(NAME, socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((SELF4, 0))
            sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 1000)
            sender.sendto(bytes(4500), ("198.51.100.1", 9))
        assert door.node.counted() == (("SEALED",) * 5, 4500 + 5 * 28)
        left = door.device.left()
        assert [len(each.packet) for each in left] == [1028] * 4 + [528]
        assert {each.mark for each in left} <= {OVER4.mark_out(number) for number in range(SAS)}
        assert len({each.mark for each in left}) == 1
    finally:
        for command in ("addr del 192.0.2.1/32 dev lo", "route del 198.51.100.1"):
            netns.run_in(NAME, f"ip {command}".split(), check=True)


# --- what goes nowhere ---------------------------------------------------------------------------

NOWHERE = {
    "another node's pod without keys": ("DROP_NO_KEY", packets.ip(POD4, KEYLESS.pod4)),
    "another node without keys": ("DROP_NO_KEY", packets.ip(SELF4, KEYLESS.address)),
    "a cluster address nobody has": ("DROP_UNKNOWN_PEER", packets.ip(POD4, "10.244.9.9")),
    "the world": ("DROP_UNKNOWN_PEER", packets.ip(POD4, WORLD4)),
    "this node's own pod": ("DROP_UNKNOWN_PEER", packets.ip(OVER4.pod4, POD4)),
    "this node itself": ("DROP_UNKNOWN_PEER", packets.ip(OVER4.pod6, SELF6)),
    "multicast on the link": ("CLEAR_LINK", packets.ip("fe80::1", "ff02::16")),
    "multicast on the link, IPv4": ("CLEAR_LINK", packets.ip(SELF4, "224.0.0.22")),
    "a probe for an unknown pair": ("DROP_NO_KEY", probe(SELF4, OVER4.address, 99, 0)),
    "a probe for an unknown number": ("DROP_NO_KEY", probe(SELF4, OVER4.address, OVER4.pair, SAS)),
    "a probe for nobody": ("DROP_UNKNOWN_PEER", probe(SELF4, "192.0.2.77", OVER4.pair, 0)),
    "a probe that says too little": (
        "DROP_MALFORMED", packets.ip(SELF4, OVER4.address, bytes(15), protocol=packets.PROBE)),
    "longer than it is": ("DROP_MALFORMED", packets.ip(POD4, OVER4.pod4, bytes(9))[:-1]),
    "an IPv4 header of 16 bytes": ("DROP_MALFORMED", b"\x44" + packets.ip(POD4, OVER4.pod4)[1:]),
    "half an IPv4 header": ("DROP_MALFORMED", packets.ip(POD4, OVER4.pod4)[:19]),
    "half an IPv6 header": ("DROP_MALFORMED", packets.ip(POD6, OVER4.pod6)[:39]),
    "a mapped address in IPv6": (
        "DROP_MALFORMED", packets.ipv6(POD6, f"::ffff:{OVER4.pod4}")),
}  # fmt: skip


@pytest.mark.parametrize("says", NOWHERE)
def test_what_has_no_sa_goes_nowhere(door: Door, says: str) -> None:
    reason, packet = NOWHERE[says]
    seen = door.take(packet, mark=0xE00)
    assert (seen.mark, seen.reason, seen.size) == (None, reason, len(packet))


def test_what_is_not_ip_goes_nowhere(door: Door) -> None:
    for ethertype in (packets.ETH_ARP, 0x88CC):
        seen = door.take(packets.ip(POD4, OVER4.pod4), ethertype=ethertype)
        assert (seen.mark, seen.reason) == (None, "DROP_NOT_IP")


def test_the_family_is_the_one_that_the_kernel_says(door: Door) -> None:
    """Not the one that the first byte says: the two must agree."""
    for packet, other in (
        (packets.ip(POD4, OVER4.pod4, bytes(40)), packets.ETH_IPV6),
        (packets.ip(POD6, OVER4.pod6), packets.ETH_IPV4),
    ):
        assert door.take(packet, ethertype=other).reason == "DROP_MALFORMED"


def test_a_missing_sa_of_a_standing_pair_is_no_key(door: Door) -> None:
    door.node.clear("sa_out")
    seen = door.take(datagram(4, OVER4))
    assert (seen.mark, seen.reason) == (None, "DROP_NO_KEY")


@families
def test_without_the_other_door_its_packets_are_dropped(door: Door, inner: int, outer: int) -> None:
    """Of a pair of the bpf engine, and others' ESP: never in the clear, never for the kernel."""
    peer = PEERS[outer]
    put_outbound(door.node, peer, engine=BPF)
    others = packets.ip(peer.own, peer.address, bytes(40), protocol=packets.ESP)
    for packet in (datagram(inner, peer), others):
        seen = door.take(packet, mark=0xE00)
        assert (seen.mark, seen.reason) == (None, "DROP_WRONG_DOOR")


@outers
def test_the_other_engines_door_seals_nothing_for_the_kernel(door: Door, outer: int) -> None:
    peer, before = PEERS[outer], door.node.rows("sa_out")
    for packet in (datagram(4, peer), probe(peer.own, peer.address, peer.pair, 2)):
        seen = door.node.run("door", packets.frame(packet))
        assert (seen.action, seen.reason) == (SHOT, "DROP_WRONG_DOOR")
        assert seen.frame == packets.frame(packet)
    assert door.node.rows("sa_out") == before
