# SPDX-License-Identifier: Apache-2.0
"""Paths that are narrower than a sender thinks: it is told, and nothing is swallowed.

                 1446                    1500                     1400 from now on
n1/p1 ──────────────────────── n1 ═════════════════ router ═════════════════ n2 ── n2/p1
       ◀── ICMP: 1346 ──          ◀── ICMP: 1400 ──

From pods and nodes, to pods and nodes, in either routing; whether the router's address is the
world's or lies among the nodes' own (`node_cidrs`).
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from pellicle import lab
from pellicle.encryption.routes import inner_mtu, overlay_mtu
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import UPLINK, WIRE, LabNode, pod_named
from tests import pace
from tests.net.engines import of
from tests.net.loaded import MARKER, assert_private, load, until
from tests.net.parcels import (
    IP_UDP,
    MAY_FRAGMENT,
    MUST_NOT_FRAGMENT,
    PROBE_PATH,
    SECRET,
    Post,
    content,
    parcels,
    refusal,
)
from tests.net.streams import connected, exchange, segment

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
N1, N2 = LabNode(1), LabNode(2)
NARROW = 1400
NARROWER = 1388
PATHS = ((A, B), (A, "n2"), ("n1", B), ("n1", "n2"))
ENOUGH = 1 << 20
"""More than any engine must seal here."""
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@dataclass(frozen=True)
class Way:
    """Between the nodes."""

    outer: int
    routing: str = "direct"

    @property
    def settings(self) -> Mapping[str, Any]:
        """With routers among the nodes, or beyond the cluster."""
        routers = {"node_cidrs": ["192.168.0.0/16", "fd00:168::/32"]} if self.outer == 4 else {}
        return {"outer_family": str(self.outer), "routing": self.routing, **routers}

    def mtu(self, source: str, sink: str, wire: int = 1500) -> int:
        """The longest packet through such a wire. A pod has one MTU for all from its ADD."""
        found = inner_mtu(wire, self.outer, ENOUGH)
        if self.routing == "overlay" and "/" in sink:
            found = overlay_mtu(found, self.outer)
        return min(found, self.mtu("n1", B)) if "/" in source else found


WAYS = (Way(4), Way(6), Way(4, "overlay"))


@pytest.fixture(
    scope="module", params=WAYS, ids=lambda way: f"IPv{way.outer}-outside-{way.routing}"
)
def way(make_lab: MakeLab, request: pytest.FixtureRequest) -> Way:
    lab.down()  # a pod keeps the MTU that it was made with
    found: Way = request.param
    make_lab(2, 1, settings=found.settings)
    return found


@both
@pytest.mark.parametrize(("source", "sink"), PATHS, ids=lambda where: where.replace("/", "-"))
def test_the_mtu_is_exact_to_the_byte(way: Way, source: str, sink: str, family: int) -> None:
    """What fits arrives whole, the rest is refused or cut, never lost."""
    with Sniffer(markers=[SECRET]) as wire:
        with parcels(source, sink, family) as post:
            assert post.mtu == way.mtu(source, sink), "a route says so"
        _assert_exact(source, sink, family, way.mtu(source, sink))
        assert_private(wire)


@both
def test_pods_that_know_nothing_are_told(way: Way, family: int) -> None:
    """Their devices carry 1500 and no route says otherwise: ICMP does."""
    with _ignorant(A, family, way), _ignorant(B, family, way):
        with Sniffer(markers=[SECRET]) as wire, connected(A, B, family) as (here, there):
            assert segment(here) == 1500 - IP_UDP[family] - 24
            assert exchange(here, there) == [True, True]
            assert [segment(each) for each in (here, there)] == [
                way.mtu(A, B) - IP_UDP[family] - 24
            ] * 2
            assert_private(wire)
        with parcels(A, B, family) as post:
            assert post.mtu == way.mtu(A, B), "learnt"
            assert post.carries(1500), "by now in pieces"


@both
def test_a_cable_gets_narrower_under_a_connection(way: Way, family: int) -> None:
    inner, between = way.mtu(A, B, NARROW), way.mtu("n1", "n2", NARROW)
    with Sniffer(markers=[MARKER]) as wire, load(A, B, family, pps=500) as run:
        time.sleep(pace.patient(1))
        with _narrow_cable(N2):
            until(partial(_has_mtu, N1, between), "n1 has heard it from the router")
            until(partial(_has_mtu, N2, between), "n2 has seen its device", 5)
            with parcels(A, B, family) as post:
                post.discover(PROBE_PATH)
                post.send(content(inner + 1 - IP_UDP[family]))
                error = post.error()
                assert error is not None
                assert error.mtu == inner, "what the pod is told"
                assert post.carries(inner - IP_UDP[family])
            time.sleep(pace.patient(1))
            outcome = run.stop()
            assert_private(wire)
    assert outcome.is_intact
    assert outcome.stream_bytes == outcome.stream_sent
    assert outcome.lost == 0
    lab.restart_agent("n1")
    assert _has_mtu(N1, way.mtu("n1", "n2")), "a new agent believes nobody yet"


@both
@pytest.mark.parametrize(("source", "sink"), PATHS, ids=lambda where: where.replace("/", "-"))
def test_a_router_gets_narrower_under_a_connection(
    way: Way, source: str, sink: str, family: int
) -> None:
    """Twice; the cables and devices stay as they are."""
    for pod in (A, B):
        _forget_paths(pod, family)
    with Sniffer(markers=[MARKER]) as wire, load(source, sink, family, pps=500) as run:
        time.sleep(pace.patient(1))
        for mtu in (NARROW, NARROWER):
            between = way.mtu("n1", "n2", mtu)
            with _narrow_router(way.outer, mtu):
                until(partial(_has_mtu, N1, between), "n1 has heard it from the router")
                _assert_exact(source, sink, family, way.mtu(source, sink, mtu))
                time.sleep(pace.patient(1))
        outcome = run.stop()
        assert_private(wire)
    assert outcome.is_intact
    assert outcome.stream_bytes == outcome.stream_sent
    assert outcome.lost == 0
    assert _has_mtu(N2, way.mtu("n1", "n2")), "nobody has complained of what n2 says"
    lab.restart_agent("n1")
    assert _has_mtu(N1, way.mtu("n1", "n2")), "a new agent believes nobody yet"


@both
def test_pods_that_were_made_for_another_family_outside_lose_nothing_for_good(
    make_lab: MakeLab, way: Way, family: int
) -> None:
    """Their routes say what fitted then. What is too long now, their node cuts, or tells them."""
    other = Way(10 - way.outer, way.routing)
    make_lab(2, 1, settings=other.settings)
    try:
        with Sniffer(markers=[SECRET]) as wire:
            with connected(A, B, family) as (here, there):
                assert exchange(here, there) == [True, True]
            with parcels(A, B, family) as post:
                post.discover(PROBE_PATH)
                longest = min(way.mtu(A, B), other.mtu(A, B)) - IP_UDP[family]
                assert post.carries(longest)
                if other.outer == 6:
                    post.send(content(longest + 1))
                    error = post.error()
                    assert error is not None
                    assert error.mtu == other.mtu(A, B)
                post.discover(MAY_FRAGMENT)
                assert all(post.carries(size) for size in (longest + 1, 3000))
            assert_private(wire)
    finally:
        make_lab(2, 1, settings=way.settings)


def _assert_exact(source: str, sink: str, family: int, inner: int) -> None:
    """The last byte that fits arrives, the next is refused; or it is cut, where it may be."""
    longest = inner - IP_UDP[family]
    with parcels(source, sink, family) as post:
        post.discover(MUST_NOT_FRAGMENT)
        until(lambda: _knows(post, inner), "the sender knows")
        for size in range(longest - 4, longest + 1):
            assert post.carries(size), size
        assert refusal(lambda: post.send(content(longest + 1))) == errno.EMSGSIZE
        post.discover(MAY_FRAGMENT)
        for size in (longest + 1, longest + 2, 2 * longest, 5000):
            assert post.carries(size), size


def _knows(post: Post, inner: int) -> bool:
    """A pod has to be told, by a packet that is too long; then its own kernel refuses such."""
    refused = refusal(lambda: post.send(content(inner + 1 - IP_UDP[post.family])))
    post.sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # what came back meanwhile
    return refused == errno.EMSGSIZE and post.mtu == inner


def _forget_paths(pod: str, family: int) -> None:
    """What its kernel has heard of narrow paths goes with the default route; that is put back."""
    ip, place = ["ip", f"-{family}", "route"], pod_named(pod).namespace
    argv = [*ip, "show", "default"]
    done = netns.run_in(place, argv, capture_output=True, text=True, check=True)
    default = done.stdout.replace("pref medium", "").split()
    for verb in ("del", "add"):
        netns.run_in(place, [*ip, verb, *default], check=True)


@contextmanager
def _narrow_router(outer: int, mtu: int) -> Iterator[None]:
    """Its routes to both nodes; frames of all sizes still reach it."""

    def route(node: LabNode, *more: str) -> None:
        to = next(str(each.network) for each in node.uplinks if each.version == outer)
        argv = ["ip", f"-{outer}", "route", "replace", to, "dev", node.wire_device]
        argv += ["proto", "kernel"] + ["metric", "256"] * (outer == 6)
        netns.run_in(WIRE, [*argv, *more], check=True)

    for node in (N1, N2):
        route(node, "mtu", "lock", str(mtu))
    try:
        yield
    finally:
        for node in (N1, N2):
            route(node)


@contextmanager
def _ignorant(pod: str, family: int, way: Way) -> Iterator[None]:
    """The pod's default route without an MTU, as another plugin would make it."""
    place = pod_named(pod)
    via = str(place.node.pod_cidrs[0][1]) if family == 4 else "fe80::1"
    ip = ["ip", f"-{family}", "route", "replace", "default", "via", via, "dev", "eth0"]
    ip += ["proto", "80"] + ["metric", "1024"] * (family == 6)
    netns.run_in(place.namespace, ip, check=True)
    try:
        yield
    finally:
        netns.run_in(place.namespace, [*ip, "mtu", str(way.mtu(A, B))], check=True)
        netns.run_in(place.namespace, ["ip", f"-{family}", "route", "flush", "cache"], check=True)


@contextmanager
def _narrow_cable(node: LabNode) -> Iterator[None]:
    """Both ends of it."""

    def set_mtu(mtu: int) -> None:
        for place, device in ((WIRE, node.wire_device), (node.namespace, UPLINK)):
            with Netlink(place) as netlink:
                netlink.change_link(netlink.link(device).index, mtu=mtu)

    set_mtu(NARROW)
    try:
        yield
    finally:
        set_mtu(1500)


def _has_mtu(node: LabNode, inner: int) -> bool:
    return _route_mtus(node) == {inner}


def _route_mtus(node: LabNode) -> set[int | None]:
    """Of all that leads to the door; what is for pods may go by the overlay."""
    with Netlink(node.namespace) as netlink:
        door = netlink.link(of(node).door).index
        return {route.mtu for route in netlink.routes(200) if route.device == door}
