# SPDX-License-Identifier: Apache-2.0
"""Pods with tunnels of their own, as overlays in virtual machines or nested clusters have them.

pod 1: tunnel0 ═ eth0 ═ [node 1] ════ ESP ════ [node 2] ═ eth0 ═ tunnel0 :pod 2

The kernel marks what such a tunnel sends (`skb->encapsulation`), and refuses then what it allows
for any other packet; the mark travels over veth pairs to whoever gets the packet.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pellicle.kernel import netns
from pellicle.kernel.bpf import ensure_bpffs
from tests.bpf.wire import MTU, PINS, Side, Wire, connect, counted, run_lines, stream, versions

ROOM = 70
"""What VXLAN adds, with IPv6 outside and Ethernet inside."""
TUNNELS = {
    "VXLAN": "local {here} remote {there} noudpcsum",
    "VXLAN with checksums": "local {here} remote {there} udpcsum",
    "VXLAN over IPv6": "local {here6} remote {there6}",
}


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def wire(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wire]:
    ensure_bpffs(PINS)
    with ExitStack() as stack:
        stack.callback(PINS.rmdir)
        yield connect(stack, request.param, "tcx", tmp_path_factory.mktemp("bpf"))


class Inside(Side):
    """A pod at the far side of its own tunnel."""

    def address(self, version: int) -> str:
        return f"fd00:7::{self.i}" if version == 6 else f"198.18.0.{self.i}"


TUNNEL_SETUP = """
ip link add tunnel0 mtu {mtu} type vxlan id 7 dstport 4789 dev eth0 {ends}
ip link set tunnel0 up
ip addr add 198.18.0.{i}/24 dev tunnel0
ip addr add fd00:7::{i}/64 dev tunnel0 nodad
"""


def dig(stack: ExitStack, here: Side, there: Side, kind: str, mtu: int) -> Inside:
    """The end of a tunnel in the pod `here`."""
    ends = kind.format(
        here=here.address(4), here6=here.address(6), there=there.address(4), there6=there.address(6)
    )
    run_lines(here.pod, TUNNEL_SETUP, i=here.i, mtu=mtu, ends=ends)
    stack.callback(netns.run_in, here.pod, ["ip", "link", "del", "tunnel0"], check=True)
    return Inside(here.i, here.namespace, here.pod, here.node)


@versions
@pytest.mark.parametrize("kind", TUNNELS.values(), ids=TUNNELS)
def test_streams_arrive_whole_through_a_tunnel_of_the_pods(
    wire: Wire, version: int, kind: str
) -> None:
    payload = os.urandom(300_000)
    for side in (wire.one, wire.two):
        counted(side.node)
    with ExitStack() as stack:
        mtu = MTU[wire.outer] - ROOM
        one = dig(stack, wire.one, wire.two, kind, mtu)
        two = dig(stack, wire.two, wire.one, kind, mtu)
        for source, sink in ((one, two), (two, one)):
            assert stream(source, sink, version, payload) == hashlib.sha256(payload).digest()
    for side in (wire.one, wire.two):
        assert counted(side.node).keys() <= {"SEALED", "OPENED", "CLEAR_LINK"}
