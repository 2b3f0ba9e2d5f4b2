# SPDX-License-Identifier: Apache-2.0
"""Paths that are narrower than a sender thinks: it is told, and nothing is swallowed.

                 1446                    1500                     1400 from now on
n1/p1 ──────────────────────── n1 ═════════════════ router ═════════════════ n2 ── n2/p1
       ◀── ICMP: 1346 ──          ◀── ICMP: 1400 ──
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pellicle import lab
from pellicle.encryption.routes import inner_mtu
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import UPLINK, WIRE, LabNode, pod_named
from tests import pace
from tests.net.engines import of
from tests.net.loaded import MARKER, assert_private, load, until
from tests.net.parcels import INNER, IP_UDP, PROBE_PATH, SECRET, content, parcels
from tests.net.streams import connected, exchange, segment

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
N1, N2 = LabNode(1), LabNode(2)
NARROW = 1400
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4-outside", "IPv6-outside"])
def outer(make_lab: MakeLab, request: pytest.FixtureRequest) -> int:
    lab.down()  # a pod keeps the MTU that it was made with
    make_lab(2, 1, settings={"outer_family": str(request.param)})
    return int(request.param)


@both
def test_routes_of_pods_say_the_mtu_to_the_byte(outer: int, family: int) -> None:
    with parcels(A, B, family) as post:
        assert post.mtu == INNER[outer]


@both
def test_pods_that_know_nothing_are_told(outer: int, family: int) -> None:
    """Their devices carry 1500 and no route says otherwise: ICMP does."""
    with _ignorant(A, family, outer), _ignorant(B, family, outer):
        with Sniffer(markers=[SECRET]) as wire, connected(A, B, family) as (here, there):
            assert segment(here) == 1500 - IP_UDP[family] - 24
            assert exchange(here, there) == [True, True]
            assert [segment(each) for each in (here, there)] == [
                INNER[outer] - IP_UDP[family] - 24
            ] * 2
            assert_private(wire)
        with parcels(A, B, family) as post:
            assert post.mtu == INNER[outer], "learnt"
            assert post.carries(1500), "by now in pieces"


@both
def test_a_cable_gets_narrower_under_a_connection(outer: int, family: int) -> None:
    inner = inner_mtu(NARROW, outer, 1 << 20)
    with Sniffer(markers=[MARKER]) as wire, load(A, B, family, pps=500) as run:
        time.sleep(pace.patient(1))
        with _narrow_cable(N2):
            until(lambda: _route_mtus(N1) == {inner}, "n1 has heard it from the router")
            until(lambda: _route_mtus(N2) == {inner}, "n2 has seen its device", 5)
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
    assert _route_mtus(N1) == {INNER[outer]}, "a new agent believes nobody yet"


@contextmanager
def _ignorant(pod: str, family: int, outer: int) -> Iterator[None]:
    """The pod's default route without an MTU, as another plugin would make it."""
    place = pod_named(pod)
    via = str(place.node.pod_cidrs[0][1]) if family == 4 else "fe80::1"
    ip = ["ip", f"-{family}", "route", "replace", "default", "via", via, "dev", "eth0"]
    ip += ["proto", "80"] + ["metric", "1024"] * (family == 6)
    netns.run_in(place.namespace, ip, check=True)
    try:
        yield
    finally:
        netns.run_in(place.namespace, [*ip, "mtu", str(INNER[outer])], check=True)
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


def _route_mtus(node: LabNode) -> set[int | None]:
    """Of all that leads to the door."""
    with Netlink(node.namespace) as netlink:
        door = netlink.link(of(node).door).index
        return {route.mtu for route in netlink.routes(200) if route.device == door}
