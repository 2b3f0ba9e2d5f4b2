# SPDX-License-Identifier: Apache-2.0
"""What is asked of the kernel in netlink's words reads back as the same rows."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.wire import link, netlink, nlmsg, tc
from pellicle.wire.link import LinkAddress, VethEnd
from pellicle.wire.netlink import Network, Route, RouteKind, Rule, Scope

ADDRESSES_4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ADDRESSES_6 = st.integers(0, 2**128 - 1).map(IPv6Address)
NETWORKS_4: st.SearchStrategy[Network] = st.builds(
    lambda address, bits: IPv4Network((int(address), bits), strict=False),
    ADDRESSES_4,
    st.integers(0, 32),
)
NETWORKS_6: st.SearchStrategy[Network] = st.builds(
    lambda address, bits: IPv6Network((int(address), bits), strict=False),
    ADDRESSES_6,
    st.integers(0, 128),
)
INDEXES = st.integers(1, 2**31 - 1)
TABLES = st.integers(1, 2**32 - 1)


def routes(networks: st.SearchStrategy[Network], addresses: Any) -> st.SearchStrategy[Route]:
    return st.builds(
        Route,
        destination=networks,
        device=INDEXES,
        via=st.none() | ADDRESSES_6 | addresses,
        source=st.none() | addresses,
        table=TABLES,
        kind=st.sampled_from([RouteKind.UNICAST, RouteKind.LOCAL]),
        metric=st.integers(0, 2**32 - 1),
        mtu=st.none() | st.integers(1, 2**32 - 1),
        scope=st.none() | st.sampled_from(Scope),
        is_onlink=st.booleans(),
        protocol=st.integers(0, 255),
    )


ROUTES = routes(NETWORKS_4, ADDRESSES_4) | routes(NETWORKS_6, ADDRESSES_6)
RULES = st.integers(0, 1).flatmap(
    lambda six: st.builds(
        Rule,
        family=st.just(6 if six else 4),
        priority=st.integers(0, 2**32 - 1),
        table=TABLES,
        mark=st.integers(0, 2**32 - 1),
        mask=st.integers(1, 2**32 - 1),
        source=st.none() | (NETWORKS_6 if six else NETWORKS_4),
        destination=st.none() | (NETWORKS_6 if six else NETWORKS_4),
        protocol=st.integers(0, 255),
    )
)


def echoed(request: nlmsg.Request) -> nlmsg.Reply:
    """The request as if the kernel had said it."""
    (reply,) = nlmsg.replies(request.pack(7))
    assert (reply.kind, reply.sequence) == (request.kind, 7)
    return reply


@given(ROUTES)
def test_a_route_survives(route: Route) -> None:
    assert netlink.read_route(echoed(netlink.put_route(route))) == route


@given(NETWORKS_4 | NETWORKS_6, st.sampled_from([RouteKind.BLACKHOLE, RouteKind.THROW]))
def test_a_route_to_nowhere_survives(to: Network, kind: RouteKind) -> None:
    route = Route(to, kind=kind, table=200)
    assert netlink.read_route(echoed(netlink.put_route(route))) == route


@given(RULES)
def test_a_rule_survives(rule: Rule) -> None:
    assert netlink.read_rule(echoed(netlink.put_rule(rule))) == rule


def test_a_rule_for_any_address_says_none() -> None:
    assert Rule(4, 1, 200, source=IPv4Network("0.0.0.0/0")) == Rule(4, 1, 200)


def test_a_mark_needs_its_mask() -> None:
    with pytest.raises(ValueError, match="mask"):
        Rule(4, 1, 200, mark=0xE00)


@given(
    INDEXES,
    st.builds(IPv4Interface, st.tuples(ADDRESSES_4, st.integers(0, 32)))
    | st.builds(IPv6Interface, st.tuples(ADDRESSES_6, st.integers(0, 128))),
)
def test_an_address_survives(index: int, interface: IPv4Interface | IPv6Interface) -> None:
    address = LinkAddress(index, interface)
    assert link.read_address(echoed(link.put_address(address))) == address


def test_a_change_of_a_device_reads_back_as_its_state() -> None:
    request = link.change_link(
        5, is_up=True, is_noarp=True, mtu=1446, mac="02:00:00:00:00:01", name="door"
    )
    info = link.read_link(echoed(request))
    assert (info.index, info.name, info.mtu) == (5, "door", 1446)
    assert (info.mac, info.is_up, info.is_noarp) == ("02:00:00:00:00:01", True, True)


def test_a_mac_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a MAC"):
        link.add_veth(VethEnd("a", mac="02:00"), VethEnd("b"))


def test_a_filter_reads_back_with_its_place() -> None:
    place = tc.Filter(3, "egress", 2, 0x70)
    found = tc.read_filter(echoed(tc.put_filter(place, 9, "to_net")))
    assert found == place


@pytest.mark.parametrize(
    ("route", "scope"),
    [
        (Route(IPv4Network("10.0.0.0/8"), 2), Scope.LINK),
        (Route(IPv4Network("10.0.0.0/8"), 2, via=IPv4Address("192.0.2.1")), Scope.UNIVERSE),
        (Route(IPv4Network("10.0.0.1/32"), 2, kind=RouteKind.LOCAL), Scope.HOST),
        (Route(IPv4Network("0.0.0.0/0"), kind=RouteKind.BLACKHOLE), Scope.UNIVERSE),
        (Route(IPv6Network("fd00::/64"), 2, scope=Scope.HOST), Scope.UNIVERSE),
    ],
)
def test_a_scope_is_what_the_kernel_will_say(route: Route, scope: Scope) -> None:
    assert route.scope is scope


def test_an_ipv6_metric_of_1024_is_the_default() -> None:
    to = IPv6Network("fd00::/64")
    assert Route(to, 2, metric=1024) == Route(to, 2)
    assert Route(to, 2, metric=7).key == (to, netlink.MAIN_TABLE, 7)


def test_the_bytes_of_a_route_are_those_of_rtnetlink() -> None:
    """10.250.0.0/16 dev 4 table 200 mtu 1423: struct rtmsg, then the attributes."""
    route = Route(IPv4Network("10.250.0.0/16"), 4, table=200, mtu=1423)
    expected = """
        40000000 1800 0105 01000000 00000000
        02 10 00 00 c8 50 fd 01 00000000
        0800 0f00 c8000000
        0800 0100 0afa0000
        0800 0400 04000000
        0c00 0880 0800 0200 8f050000
    """
    assert netlink.put_route(route).pack(1) == bytes.fromhex(expected)


def test_an_error_keeps_its_number_and_the_kernels_words() -> None:
    words = nlmsg.text(1, "Nexthop has invalid gateway")
    request = netlink.put_route(Route(IPv4Network("10.0.0.0/8"), 2)).pack(9)
    for flags, quoted in ((0x300, request[:16]), (0x200, request)):
        body = struct.pack("=i", -errno.ENETUNREACH) + quoted + words
        header = struct.pack("=IHHII", 16 + len(body), nlmsg.ERROR, flags, 9, 0)
        (reply,) = nlmsg.replies(header + body)
        assert reply.error == (errno.ENETUNREACH, "Nexthop has invalid gateway")


READERS: list[Callable[[nlmsg.Reply], object]] = [
    netlink.read_route,
    netlink.read_rule,
    link.read_link,
    link.read_address,
    tc.read_filter,
    lambda reply: reply.error,
]


@given(
    st.sampled_from(READERS),
    st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: bytes(16) + tail),
    st.sampled_from([0, 0x200, 0x300]),
)
def test_noise_is_malformed_and_nothing_worse(
    read: Callable[[nlmsg.Reply], object], body: bytes, flags: int
) -> None:
    with contextlib.suppress(nlmsg.Malformed):
        read(nlmsg.Reply(nlmsg.ERROR, flags, 1, body))


@given(ROUTES | RULES, st.data())
def test_a_damaged_row_is_malformed_and_nothing_worse(
    row: Route | Rule, data: st.DataObject
) -> None:
    request = netlink.put_route(row) if isinstance(row, Route) else netlink.put_rule(row)
    body = bytearray(request.body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    reply = nlmsg.Reply(request.kind, 0, 1, bytes(body))
    with contextlib.suppress(nlmsg.Malformed):
        read = netlink.read_route(reply) if isinstance(row, Route) else netlink.read_rule(reply)
        assert read is None or isinstance(read, type(row))


@given(st.binary(max_size=64))
def test_a_damaged_datagram_is_malformed_and_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(nlmsg.Malformed):
        assert all(isinstance(each, nlmsg.Reply) for each in nlmsg.replies(data))
