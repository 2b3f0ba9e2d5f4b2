# SPDX-License-Identifier: Apache-2.0
"""Large things: TCP both ways at once, and what pods leave to their devices to cut and to sum.

A pod hands its device 64 KB at a time, without checksums. The door makes packets of that.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import ALL_TRANSMIT, Offload, switch_off, switch_on
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode, pod_named
from tests.net.loaded import assert_private
from tests.net.parcels import INNER, IP_UDP, SECRET, content, parcels
from tests.net.streams import connected, exchange, segment

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
UDP_SEGMENT = 103
"""linux/udp.h: the device cuts what was sent at once into datagrams of this size."""
OFF = {
    "all offloads": (),
    "no segmentation": (Offload.SEGMENTATION, Offload.TCP_SEGMENTATION),
    "no checksums either": ALL_TRANSMIT,
}
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4-outside", "IPv6-outside"])
def outer(make_lab: MakeLab, request: pytest.FixtureRequest) -> int:
    lab.down()  # a pod keeps the MTU that it was made with
    make_lab(2, 1, settings={"outer_family": str(request.param)})
    return int(request.param)


@both
@pytest.mark.parametrize("off", OFF)
def test_tcp_is_intact_both_ways_at_once(outer: int, family: int, off: str) -> None:
    before = _drops()
    with Sniffer(markers=[SECRET], nonces=True) as wire, _without(OFF[off]):
        with connected(A, B, family) as (here, there), _longest(A) as longest:
            for each in (here, there):
                assert segment(each) == INNER[outer] - IP_UDP[family] - 24, "MTU, less headers"
            assert exchange(here, there) == [True, True]
            if off == "all offloads":
                assert longest() > 4 * INNER[outer], "cut by the door, not by the pod"
            else:
                assert longest() <= INNER[outer] + 14
        assert_private(wire)
        assert wire.reuses() == ()
    assert _drops() == before


@both
def test_a_node_and_a_remote_pod_are_no_other(outer: int, family: int) -> None:
    """What the node itself sends is cut by the door too."""
    before = _drops()
    with Sniffer(markers=[SECRET]) as wire, connected("n1", B, family) as (here, there):
        assert segment(here) == INNER[outer] - IP_UDP[family] - 24
        assert exchange(here, there) == [True, True]
        assert_private(wire)
    assert _drops() == before


@both
@pytest.mark.parametrize("size", [1, 100, 1000, None], ids=["1", "100", "1000", "longest"])
def test_udp_that_is_cut_by_the_device_arrives(outer: int, family: int, size: int | None) -> None:
    size = size or INNER[outer] - IP_UDP[family]
    number = min(40, 60_000 // size)
    with Sniffer(markers=[SECRET]) as wire, parcels(A, B, family) as post:
        post.sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        whole = content(number * size + size // 2)
        post.send(whole)
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [post.receive().content for _ in pieces] == pieces
        assert post.is_silent
        assert_private(wire)


@contextmanager
def _without(offloads: tuple[Offload, ...]) -> Iterator[None]:
    """In both pods."""
    places = [pod_named(pod).namespace for pod in (A, B)]
    for place in places:
        switch_off("eth0", offloads, place)
    try:
        yield
    finally:
        for place in places:
            switch_on("eth0", offloads, place)


@contextmanager
def _longest(pod: str) -> Iterator[Callable[[], int]]:
    """The longest frame that the pod's host device has received so far."""
    place = pod_named(pod)
    # However long a round trip takes, TCP shall hand on as much at once as it may.
    netns.write_sysctl("net/ipv4/tcp_tso_rtt_log", 30, place.namespace)
    with Netlink(place.namespace) as inside, Netlink(place.node.namespace) as node:
        peer = inside.link("eth0").peer
        name = next(link.name for link in node.links().values() if link.index == peer)
    lengths = [0]

    def drain() -> int:
        tap.setblocking(False)
        try:
            while True:
                size, (_, _, kind, *_) = tap.recvfrom_into(room, 0, socket.MSG_TRUNC)
                if kind != socket.PACKET_OUTGOING:  # what is delivered to the pod is seen, too
                    lengths[0] = max(lengths[0], size)
        except BlockingIOError:
            return lengths[0]

    room = bytearray(64)
    with netns.socket_in(place.node.namespace, socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
        tap.bind((name, 0x0003))
        yield drain


def _drops() -> list[dict[str, int]]:
    statuses = [agents.status(LabNode(number)) for number in (1, 2)]
    return [{row["reason"]: row["packets"] for row in status["drops"]} for status in statuses]
