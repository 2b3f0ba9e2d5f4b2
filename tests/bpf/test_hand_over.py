# SPDX-License-Identifier: Apache-2.0
"""A route leads to the door of the kernel's IPsec still, but the pair in use is the bpf engine's.

pod 1 ═ from_pod … pellicle_xfrm: door_xfrm ─▶ pellicle_host ═ pellicle_net: door … up0 ═ … pod 2

Nothing of it may leave by pellicle_xfrm, and nothing of it may be lost.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from pellicle.kernel import netns
from pellicle.kernel.bpf import attach_tc, ensure_bpffs
from pellicle.kernel.bpf.attach import Mode
from tests.bpf import packets
from tests.bpf.tun import Tun
from tests.bpf.tunnel import ASK
from tests.bpf.wire import (
    MTU,
    PAIR,
    PINS,
    Side,
    Wire,
    connect,
    counted,
    stream,
    versions,
    wait_for,
)  # fmt: skip


@dataclass(frozen=True)
class Astray:
    """Two nodes, and the devices that nothing may leave by."""

    wire: Wire
    devices: tuple[Tun, ...]


@pytest.fixture(
    scope="module",
    params=[(4, "tcx"), (6, "tcx"), (4, "clsact")],
    ids=["over IPv4, tcx", "over IPv6, tcx", "over IPv4, clsact"],
)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Astray]:
    outer, mode = request.param
    ensure_bpffs(PINS)
    with ExitStack() as stack:
        stack.callback(PINS.rmdir)
        wire = connect(stack, outer, mode, tmp_path_factory.mktemp("bpf"))
        sides = (wire.one, wire.two)
        yield Astray(wire, tuple(led_astray(stack, side, mode, MTU[outer]) for side in sides))


def led_astray(stack: ExitStack, side: Side, mode: Mode, mtu: int) -> Tun:
    """Table 200 of the node leads to door_xfrm."""
    device = stack.enter_context(Tun(side.namespace, "pellicle_xfrm"))
    pin, program = PINS / f"{side.i}-door_xfrm", side.node.object.program("door_xfrm")
    with netns.inside(side.namespace):
        side.node.put_door(socket.if_nametoindex("pellicle_host"))
        attach_tc(device.ifindex, program, "egress", pin=pin, mode=mode)
    stack.callback(pin.unlink, missing_ok=True)
    for family in ("-4", "-6"):
        change = f"ip {family} route replace default dev pellicle_xfrm mtu {mtu} table 200"
        netns.run_in(side.namespace, change.split(), check=True)
    device.left()  # before the program was there
    return device


@pytest.fixture
def wire(made: Astray) -> Iterator[Wire]:
    for side in (made.wire.one, made.wire.two):
        counted(side.node)
    yield made.wire
    assert [device.left() for device in made.devices] == [[], []]


def assert_nothing_dropped(*sides: Side) -> None:
    for side in sides:
        assert counted(side.node).keys() <= {"SEALED", "OPENED", "CLEAR_LINK"}


@versions
def test_datagrams_of_every_kind_of_size_arrive(wire: Wire, version: int) -> None:
    largest = MTU[wire.outer] - (48 if version == 6 else 28)
    with wire.one.socket(version, socket.SOCK_DGRAM) as sender, wire.two.socket(
        version, socket.SOCK_DGRAM
    ) as receiver:  # fmt: skip
        for size in (*range(1, 70), *range(largest - 40, largest + 1)):
            payload = os.urandom(size)
            sender.sendto(payload, receiver.getsockname())
            got, source = receiver.recvfrom(2000)
            assert got == payload
            receiver.sendto(got, source)
            assert sender.recv(2000) == payload
    assert_nothing_dropped(wire.one, wire.two)


@versions
def test_streams_arrive_whole_both_ways(wire: Wire, version: int) -> None:
    """They come to door_xfrm in segments of up to 64 KB, and to door as packets."""
    payload = os.urandom(4_000_000)
    for source, sink in ((wire.one, wire.two), (wire.two, wire.one)):
        assert stream(source, sink, version, payload) == hashlib.sha256(payload).digest()
    assert_nothing_dropped(wire.one, wire.two)


@versions
def test_fragments_are_handed_over_one_by_one(wire: Wire, version: int) -> None:
    payload = os.urandom(4000)
    with wire.one.socket(version, socket.SOCK_DGRAM) as sender, wire.two.socket(
        version, socket.SOCK_DGRAM
    ) as receiver:  # fmt: skip
        sender.sendto(payload, receiver.getsockname())
        assert receiver.recv(5000) == payload
    assert counted(wire.one.node)["SEALED"] == 3


@versions
def test_a_probe_of_a_pair_of_the_bpf_engine_goes_by_its_door(wire: Wire, version: int) -> None:
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with netns.socket_in(wire.one.namespace, family, socket.SOCK_RAW, packets.PROBE) as agent:
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xE00)
        agent.bind((wire.one.own(version), 0))
        agent.sendto(struct.pack(">QII", PAIR, 3, ASK), (wire.two.own(version), 0))
        wait_for("probe", lambda: counted(wire.two.node).get("PROBE_RECEIVED", 0) == 1)
    assert counted(wire.one.node)["PROBE_SENT"] == 1


@versions
def test_a_tunnel_of_others_leaves_by_the_other_door_as_it_is(wire: Wire, version: int) -> None:
    """Nobody there has its SA."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with netns.socket_in(wire.one.namespace, family, socket.SOCK_RAW, packets.ESP) as others:
        others.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xE00)
        others.bind((wire.one.own(version), 0))
        others.sendto(bytes(40), (wire.two.own(version), 0))
        wait_for("it", lambda: counted(wire.two.node).get("DROP_UNKNOWN_SPI", 0) == 1)
    assert counted(wire.one.node).keys() <= {"CLEAR_LINK"}
