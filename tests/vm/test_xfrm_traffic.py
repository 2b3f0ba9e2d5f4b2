# SPDX-License-Identifier: Apache-2.0
"""Packets through our states and policies, between two namespaces, and how they are counted.

    left                                              right
    10.244.1.1, fd00:244:1::1                         10.244.2.1, fd00:244:2::1
    pellicle_xfrm                                     pellicle_xfrm
      │ policy: to right's pods, mark 0x70e00           ▲ policy: in, any
      ▼ state to 192.0.2.2, SPI 0x100                   │ state with mark 0x70d00
    va 192.0.2.1 ────────────── ESP ──────────────────▶ vb 192.0.2.2  (tc: mark 0x70d00)

and the same the other way round.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm, XfrmChanges, probe_device, probe_esp
from pellicle.wire.link import LinkAddress, VethEnd
from pellicle.wire.netlink import Route
from pellicle.wire.xfrm import (
    Action,
    Mark,
    Policy,
    PolicyDirection,
    State,
    StateCounts,
    StateFlags,
    StateKey,
    Template,
)

LEFT, RIGHT = (f"pellicle-t{os.getpid()}-{side}" for side in ("left", "right"))
IF_ID, REQID, PORT = 0x70656C6C, 0x70650007, 9000
ANY = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
OUT_MARK, IN_MARK = 0x70E00, 0x70D00
ESP, TUNNEL_4 = 50, 20 + 8 + 8 + 16
"""Outer header, SPI and sequence number, IV, ICV."""


@dataclass(frozen=True)
class Side:
    namespace: str
    outer: str
    inner: tuple[str, str]
    device: str
    mac: str
    spi: int
    """Of what is sent to this side."""


LEFT_SIDE = Side(
    LEFT, "192.0.2.1", ("10.244.1.1", "fd00:244:1::1"), "va", "02:00:00:00:00:01", 0x200
)
RIGHT_SIDE = Side(
    RIGHT, "192.0.2.2", ("10.244.2.1", "fd00:244:2::1"), "vb", "02:00:00:00:00:02", 0x100
)


def state_to(here: Side, there: Side, **changes: object) -> State:
    """What `here` needs to send to `there`."""
    key = StateKey(ip_address(here.outer), ip_address(there.outer), there.spi)
    flags = StateFlags.ESN | StateFlags.AF_UNSPEC
    state = State(key, REQID, IF_ID, CHACHA, 288, flags, 1, secret=there.spi.to_bytes(36))
    return replace(state, **changes)  # type: ignore[arg-type]


def state_from(there: Side, here: Side) -> State:
    """What `here` needs to receive from `there`."""
    state = state_to(there, here)
    key = replace(state.key, mark=Mark(IN_MARK, 0xFFFF0F00))
    return replace(state, key=key, flags=state.flags | StateFlags.NOECN, replay_window=1024)


CHACHA = "rfc7539esp(chacha20,poly1305)"


def policies(here: Side, there: Side) -> list[Policy]:
    tunnel = Template(ip_address(here.outer), ip_address(there.outer), there.spi, REQID)
    any_tunnel = Template(ip_address("0.0.0.0"), ip_address("0.0.0.0"), 0, 0)
    rows = []
    for to in map(ip_network, there.inner):
        every = ANY[to.version]
        mark, drop = Mark(OUT_MARK, 0xFFFF3F00), Mark(0xE00, 0xF00)
        rows += [
            Policy(PolicyDirection.OUT, every, to, mark, IF_ID, 100, template=tunnel),
            Policy(PolicyDirection.IN, every, every, None, IF_ID, 100, template=any_tunnel),
            Policy(PolicyDirection.OUT, every, every, drop, IF_ID, 2**32 - 1, Action.BLOCK),
        ]
    return rows


@dataclass(frozen=True)
class End:
    """One side as it stands."""

    side: Side
    xfrm: Xfrm

    def counts(self, spi: int) -> StateCounts:
        (found,) = [counts for state, counts in self.xfrm.states() if state.key.spi == spi]
        return found

    def troubles(self) -> dict[str, int]:
        return {name: count for name, count in self.xfrm.errors().items() if count}


@pytest.fixture(scope="module", autouse=True)
def kernel_with_esp() -> None:
    for error in (probe_esp(CHACHA, 288), probe_device()):
        assert error is None, f"this needs a kernel with IPsec, `make vm` boots one: {error}"


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    try:
        netns.create(LEFT)
        netns.create(RIGHT)
        with netns.opened(RIGHT) as fd, Netlink(LEFT) as netlink:
            left, right = LEFT_SIDE, RIGHT_SIDE
            netlink.add_veth(
                VethEnd(left.device, left.mac), VethEnd(right.device, right.mac, netns_fd=fd)
            )
        connect(LEFT_SIDE, RIGHT_SIDE)
        connect(RIGHT_SIDE, LEFT_SIDE)
        with Xfrm(LEFT) as left_xfrm, Xfrm(RIGHT) as right_xfrm:
            yield End(LEFT_SIDE, left_xfrm), End(RIGHT_SIDE, right_xfrm)
    finally:
        netns.delete(LEFT)
        netns.delete(RIGHT)


def connect(here: Side, there: Side) -> None:
    """Addresses, routes, the device, and the mark of what comes in, which BPF sets in real life."""
    with Netlink(here.namespace) as netlink:
        wire = netlink.link(here.device).index
        netlink.add_xfrm("pellicle_xfrm", IF_ID, wire)
        tunnel = netlink.link("pellicle_xfrm").index
        for index in (1, wire, tunnel):
            netlink.change_link(index, is_up=True)
        own = [LinkAddress(tunnel, ip_interface(each)) for each in here.inner]
        netlink.put_addresses([LinkAddress(wire, ip_interface(f"{here.outer}/24")), *own])
        sources = map(ip_address, here.inner)
        to = zip(there.inner, sources, strict=True)
        assert netlink.put_routes([Route(ip_network(d), tunnel, source=s) for d, s in to]) == {}
    for words in (
        f"qdisc add dev {here.device} clsact",
        f"filter add dev {here.device} ingress matchall action skbedit mark {IN_MARK:#x}",
    ):
        netns.run_in(here.namespace, ["tc", *words.split()], check=True)
    with Xfrm(here.namespace) as xfrm:
        assert xfrm.put_states([state_to(here, there), state_from(there, here)]) == {}
        assert xfrm.put_policies(policies(here, there)) == {}


def opened(side: Side, version: int, mark: int = OUT_MARK) -> socket.socket:
    """A UDP socket of a pod, whose packets carry the mark that the door would set."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    made = netns.socket_in(side.namespace, family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    made.settimeout(5)
    made.bind((side.inner[version == 6], PORT))
    return made


def send(here: Side, there: Side, version: int, payload: bytes, count: int) -> None:
    """Sends packets and awaits each."""
    with opened(here, version) as sender, opened(there, version) as receiver:
        for _ in range(count):
            sender.sendto(payload, (there.inner[version == 6], PORT))
            assert receiver.recv(2048) == payload


@pytest.mark.parametrize("version", [4, 6])
def test_both_ends_count_the_same_packets(ends: tuple[End, End], version: int) -> None:
    left, right = ends
    send(left.side, right.side, version, bytes(100), 5)
    send(right.side, left.side, version, bytes(100), 3)
    for spi, packets in ((RIGHT_SIDE.spi, 5), (LEFT_SIDE.spi, 3)):
        for end in ends:
            counts = end.counts(spi)
            assert (counts.packets, counts.sequence) == (packets, packets)
            assert packets * 100 < counts.octets <= packets * (100 + 48 + 4 + TUNNEL_4)
            assert counts.integrity_failed == counts.replayed == counts.replay_window_errors == 0
    assert left.troubles() == right.troubles() == {}


def test_what_has_no_state_of_its_own_is_dropped_and_counted(ends: tuple[End, End]) -> None:
    left, right = ends
    with opened(left.side, 4, mark=0x80E00) as sender:
        sender.sendto(b"of another pair", (RIGHT_SIDE.inner[0], PORT))
    assert left.troubles() == {"XfrmOutPolBlock": 1}
    assert right.counts(RIGHT_SIDE.spi).packets == 0


def test_replayed_and_forged_packets_are_counted(ends: tuple[End, End]) -> None:
    left, right = ends
    eth_p_ip = 0x0800
    wires = [
        netns.socket_in(
            end.side.namespace, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(eth_p_ip)
        )
        for end in ends
    ]
    with wires[0] as at_left, wires[1] as at_right:
        at_left.bind((LEFT_SIDE.device, 0))
        at_right.bind((RIGHT_SIDE.device, eth_p_ip))
        at_right.settimeout(5)
        send(left.side, right.side, 4, b"once", 1)
        frame = at_right.recv(2048)
        while frame[23] != ESP:
            frame = at_right.recv(2048)
        at_left.send(frame)
        forged = bytearray(frame)
        forged[14 + 20 + 4 : 14 + 20 + 8] = (2).to_bytes(4)  # the next sequence number
        at_left.send(forged)
        send(left.side, right.side, 4, b"after", 1)
    counts = right.counts(RIGHT_SIDE.spi)
    assert (counts.packets, counts.replayed, counts.integrity_failed) == (2, 1, 1)
    assert right.troubles() == {"XfrmInStateSeqError": 1, "XfrmInStateProtoError": 1}


def test_a_state_ends_at_its_limit_and_is_heard_to(ends: tuple[End, End]) -> None:
    left, right = ends
    limited = state_to(left.side, right.side, packet_limit=4)
    assert left.xfrm.remove_states([limited.key]) == {}
    assert left.xfrm.put_states([limited]) == {}

    async def watch(changes: XfrmChanges) -> None:
        send(left.side, right.side, 4, b"counted", 4)
        assert left.counts(RIGHT_SIDE.spi).packets == 4
        with opened(left.side, 4) as sender:
            sender.sendto(b"one too many", (RIGHT_SIDE.inner[0], PORT))
        await asyncio.wait_for(anext(changes), 10)

    with XfrmChanges(LEFT, own=[left.xfrm.port]) as changes:
        asyncio.run(watch(changes))
    assert limited not in {state for state, _ in left.xfrm.states()}
    assert right.counts(RIGHT_SIDE.spi).packets == 4
    assert "XfrmOutStateExpired" in left.troubles()
