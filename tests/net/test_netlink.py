# SPDX-License-Identifier: Apache-2.0
"""rtnetlink in real namespaces.

+--- left ---+            +--- right --+
|        va  ======veth======  vb      |
+------------+            +------------+
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Any

import pytest

from pellicle.kernel import netns
from pellicle.kernel.changes import Change, Changes, Group, Missed, RouteChanges
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import ALL_TRANSMIT, Offload, is_on, switch_off, switch_on
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.netlink import Route, RouteKind, Rule
from tests import pace

LEFT, RIGHT = (f"pellicle-t{os.getpid()}-{side}" for side in ("left", "right"))
ADDRESSES = (IPv4Interface("10.1.0.1/24"), IPv6Interface("fd00:1::1/64"))


@dataclass(frozen=True)
class Pair:
    left: Netlink
    right: Netlink

    @property
    def va(self) -> LinkInfo:
        return self.left.link("va")


@pytest.fixture
def pair() -> Iterator[Pair]:
    try:
        netns.create(LEFT)
        netns.create(RIGHT)
        with Netlink(LEFT) as left, Netlink(RIGHT) as right, netns.opened(RIGHT) as fd:
            left.change_link(1, is_up=True)
            va_end = VethEnd("va", "02:00:00:00:00:01", 1446, index=10)
            left.add_veth(va_end, VethEnd("vb", netns_fd=fd, index=20))
            left.change_link(left.link("va").index, is_up=True, has_link_local=False)
            right.change_link(right.link("vb").index, is_up=True, has_link_local=False)
            va = left.link("va").index
            assert left.put_addresses([LinkAddress(va, each) for each in ADDRESSES]) == {}
            yield Pair(left, right)
    finally:
        netns.delete(LEFT)
        netns.delete(RIGHT)


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    """The kernel takes notice of a carrier in its own time."""
    end = time.monotonic() + pace.patient(seconds)
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def ip(*words: str) -> Any:
    """What iproute2 sees in the left namespace."""
    ran = netns.run_in(LEFT, ["ip", "-j", *words], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout or "[]")


ROUTES = (
    "10.250.0.0/16 dev", "fd00:250::/32 dev", "0.0.0.0/0 blackhole", "::/0 blackhole",
    "10.9.0.1/32 local", "10.8.0.0/16 via 10.1.0.9", "10.7.0.0/16 via fd00:1::9",
    "fd00:7::/64 via fd00:1::9", "fd00:6::/64 unreachable", "10.6.0.0/16 onlink 192.0.2.1",
)  # fmt: skip


def route(words: str, device: int) -> Route:
    destination, how, *rest = words.split()
    network = IPv6Network(destination) if ":" in destination else IPv4Network(destination)
    kinds = {each.name.lower(): each for each in RouteKind}
    kind = kinds.get(how, RouteKind.UNICAST)
    return Route(
        network,
        device if how in {"dev", "via", "onlink", "local"} else None,
        via=ip_address(rest[0]) if rest else None,
        kind=kind,
        table=200,
        mtu=1423 if how == "dev" else None,
        is_onlink=how == "onlink",
    )


def test_every_kind_of_route_reads_back_as_it_was_put(pair: Pair) -> None:
    wanted = [route(words, pair.va.index) for words in ROUTES]
    for _ in range(2):  # putting again changes nothing
        assert pair.left.put_routes(wanted) == {}
        assert set(pair.left.routes(200)) == set(wanted)
        assert len(pair.left.routes(200)) == len(wanted)


def test_iproute2_sees_the_same_route(pair: Pair) -> None:
    pair.left.put_routes([route("10.250.0.0/16 dev", pair.va.index)])
    (seen,) = ip("route", "show", "table", "200")
    assert (seen["dst"], seen["dev"], seen["protocol"]) == ("10.250.0.0/16", "va", "80")
    assert seen["metrics"] == [{"mtu": 1423}]


def test_a_route_is_replaced_by_its_key(pair: Pair) -> None:
    first = route("10.250.0.0/16 dev", pair.va.index)
    other = replace(first, mtu=1300, source=IPv4Address("10.1.0.1"))
    blackhole = Route(first.destination, kind=RouteKind.BLACKHOLE, table=200)
    for each in (first, other, blackhole, first):
        assert pair.left.put_routes([each]) == {}
        assert pair.left.routes(200) == [each]


def test_a_route_is_removed_by_its_key_and_absent_is_success(pair: Pair) -> None:
    wanted = [route(words, pair.va.index) for words in ROUTES]
    pair.left.put_routes(wanted)
    changed = [replace(each, mtu=1234) for each in wanted]
    assert pair.left.remove_routes(changed) == {}
    assert pair.left.routes(200) == []
    assert pair.left.remove_routes(changed) == {}


def test_routes_of_others_are_left_alone(pair: Pair) -> None:
    ours = route("10.250.0.0/16 dev", pair.va.index)
    theirs = replace(ours, destination=IPv4Network("10.251.0.0/16"), protocol=4)
    assert pair.left.put_routes([ours, theirs]) == {}
    assert pair.left.routes(200) == [ours]
    assert set(pair.left.routes(200, protocol=0)) == {ours, theirs}
    pair.left.remove_routes([replace(theirs, protocol=80)])
    assert theirs in pair.left.routes(200, protocol=0)


def test_each_failure_keeps_its_own_errno_and_the_rest_goes_on(pair: Pair) -> None:
    va = pair.va.index
    good = [Route(IPv4Network((10 << 24 | n << 8, 24)), va, table=300) for n in range(2000)]
    no_device = [replace(each, device=9999) for each in good[::100]]
    no_way = Route(IPv4Network("10.99.0.0/16"), va, via=IPv4Address("203.0.113.1"), table=300)
    bad = {each.destination: each for each in no_device}
    mixed = [bad.get(each.destination, each) for each in good] + [no_way]
    errors = pair.left.put_routes(mixed)
    assert {each: errors[each].errno for each in no_device} == dict.fromkeys(
        no_device, errno.ENODEV
    )
    assert errors[no_way].errno == errno.ENETUNREACH
    assert "invalid gateway" in str(errors[no_way])
    assert len(errors) == len(no_device) + 1
    assert len(pair.left.routes(300)) == len(good) - len(no_device)


def test_thousands_of_failures_are_all_told(pair: Pair) -> None:
    bad = [Route(IPv4Network((10 << 24 | n << 8, 24)), 9999, table=300) for n in range(5000)]
    assert len(pair.left.put_routes(bad)) == 5000
    assert pair.left.link("va").mtu == 1446, "the socket must be in step afterwards"


def test_a_table_that_is_not_there_is_empty(pair: Pair) -> None:
    assert pair.left.routes(4711) == []


RULES = [
    Rule(4, 1, 200, mark=0xE00, mask=0xF00),
    Rule(6, 1, 200, mark=0xE00, mask=0xF00),
    Rule(4, 2, 70000, source=IPv4Network("10.0.0.0/8"), destination=IPv4Network("10.2.0.0/16")),
    Rule(6, 2, 200, source=IPv6Network("fd00::/16")),
]


def test_rules_read_back_and_are_there_once(pair: Pair) -> None:
    for _ in range(2):
        assert pair.left.put_rules(RULES) == {}
        assert sorted(pair.left.rules(), key=str) == sorted(RULES, key=str)
    (seen,) = [each for each in ip("rule", "show") if each["priority"] == 1]
    assert (seen["fwmark"], seen["fwmask"], seen["table"]) == ("0xe00", "0xf00", "200")


def test_rules_are_removed_and_absent_is_success(pair: Pair) -> None:
    pair.left.put_rules(RULES)
    foreign = len(pair.left.rules(protocol=0)) - len(RULES)
    for _ in range(2):
        assert pair.left.remove_rules(RULES) == {}
        assert pair.left.rules() == []
    assert len(pair.left.rules(protocol=0)) == foreign > 0


def test_a_veth_pair_spans_two_namespaces(pair: Pair) -> None:
    vb = pair.right.link("vb")
    assert (pair.va.mac, pair.va.mtu, pair.va.kind) == ("02:00:00:00:00:01", 1446, "veth")
    assert (pair.va.index, pair.va.peer, vb.index, vb.peer) == (10, 20, 20, 10)
    assert pair.va.is_up
    until(lambda: pair.va.is_running)
    pair.right.change_link(vb.index, is_up=False)
    until(lambda: not pair.va.is_running)
    with pytest.raises(FileExistsError):
        pair.left.add_veth(VethEnd("va"), VethEnd("other"))


def test_a_device_is_changed_as_told(pair: Pair) -> None:
    index = pair.va.index
    pair.left.change_link(index, mtu=1300, is_noarp=True, mac="02:00:00:00:00:09")
    assert (pair.va.mtu, pair.va.is_noarp, pair.va.mac) == (1300, True, "02:00:00:00:00:09")
    assert pair.va.is_up, "what is not named stays"
    pair.left.change_link(index, is_up=False, is_noarp=False)
    assert (pair.va.is_up, pair.va.is_noarp) == (False, False)
    pair.left.change_link(index, name="renamed")
    assert pair.left.link("renamed").index == index
    with pytest.raises(OSError, match="mtu") as caught:
        pair.left.change_link(index, mtu=10)
    assert caught.value.errno == errno.EINVAL


def test_a_device_makes_no_address_of_its_own(pair: Pair) -> None:
    assert {each.interface for each in pair.left.addresses(pair.va.index)} == set(ADDRESSES)


def test_addresses_are_usable_at_once_and_removed(pair: Pair) -> None:
    rows = [LinkAddress(pair.va.index, each) for each in ADDRESSES]
    shown = ip("-6", "address", "show", "dev", "va")[0]["addr_info"]
    assert [each.get("tentative") for each in shown] == [None]
    assert pair.left.put_addresses(rows) == {}
    for _ in range(2):
        assert pair.left.remove_addresses(rows) == {}
        assert pair.left.addresses(pair.va.index) == []


def test_a_removed_device_takes_its_other_end_along(pair: Pair) -> None:
    assert pair.left.remove_link("va") is True
    assert pair.left.remove_link("va") is False
    assert set(pair.right.links()) == {"lo"}
    with pytest.raises(OSError, match="no device va") as caught:
        pair.left.link("va")
    assert caught.value.errno == errno.ENODEV


def test_offloads_are_switched_off(pair: Pair) -> None:
    assert pair.left is not None
    off = [
        Offload.TRANSMIT_CHECKSUM, Offload.SCATTER_GATHER, Offload.TCP_SEGMENTATION,
        Offload.SEGMENTATION, Offload.RECEIVE_MERGING,
    ]  # fmt: skip
    assert is_on("va", Offload.TCP_SEGMENTATION, LEFT)
    switch_off("va", namespace=LEFT)
    assert [each for each in off if is_on("va", each, LEFT)] == []
    assert is_on("vb", Offload.TCP_SEGMENTATION, RIGHT)


def test_offloads_are_switched_on_again(pair: Pair) -> None:
    switch_off("va", namespace=LEFT)
    switch_on("va", namespace=LEFT)
    assert [each for each in ALL_TRANSMIT if not is_on("va", each, LEFT)] == []
    assert not is_on("va", Offload.RECEIVE_MERGING, LEFT)


def test_changes_come_as_they_happen(pair: Pair) -> None:
    va = pair.va.index
    extra = LinkAddress(va, IPv4Interface("10.5.0.1/24"))
    new_route = Route(IPv4Network("10.6.0.0/16"), va)

    async def until(changes: Changes, wanted: Change) -> None:
        async for change in changes:
            if change == wanted:
                return

    async def watch(changes: Changes) -> None:
        pair.left.put_addresses([extra])
        await until(changes, Change(extra, is_gone=False))
        pair.left.put_routes([new_route])
        await until(changes, Change(new_route, is_gone=False))
        pair.left.remove_routes([new_route])
        await until(changes, Change(new_route, is_gone=True))
        pair.left.change_link(va, is_up=False)
        async for change in changes:
            if isinstance(change, Change) and isinstance(change.thing, LinkInfo):
                assert (change.thing.name, change.thing.is_up) == ("va", False)
                return

    with Changes(LEFT) as changes:
        asyncio.run(asyncio.wait_for(watch(changes), pace.patient(10)))


def test_lost_changes_are_admitted(pair: Pair) -> None:
    va = pair.va.index
    many = [Route(IPv4Network((10 << 24 | n << 8, 24)), va, table=300) for n in range(20000)]

    async def first_word(changes: Changes) -> list[type]:
        return [type(await anext(changes)) for _ in range(2)]

    with Changes(LEFT, [Group.IPV4_ROUTE], queue=64 * 1024) as changes:
        pair.left.put_routes(many)
        seen = asyncio.run(asyncio.wait_for(first_word(changes), 10))
    assert Missed in seen


@pytest.mark.parametrize("table", [201, 7000])
def test_only_others_changes_to_these_tables_are_heard(pair: Pair, table: int) -> None:
    """By the kernel's own filter: thousands of routes of others wake nobody."""
    va = pair.va.index
    others = [Route(IPv4Network((10 << 24 | n << 8, 24)), va, table=254) for n in range(3000)]
    own = Route(IPv4Network("10.9.0.0/24"), va, table=table)
    rule = Rule(4, 5, table, 0xE00, 0xF00)

    async def heard(alarm: RouteChanges) -> bool:
        try:
            await asyncio.wait_for(anext(alarm), 0.2)
        except TimeoutError:
            return False
        return True

    async def watch(alarm: RouteChanges) -> None:
        with Netlink(LEFT) as stranger:
            stranger.put_routes(others)
            stranger.put_rules([Rule(6, 5, 99, 0xE00, 0xF00)])
            pair.left.put_routes([own])
            pair.left.put_rules([rule])
            assert not await heard(alarm)
            for act in (
                lambda: stranger.remove_rules([rule]),
                lambda: stranger.put_rules([rule]),
                lambda: stranger.put_routes([replace(own, mtu=1300)]),
                lambda: stranger.remove_routes([own]),
            ):
                assert act() == {}
                assert await heard(alarm)
            assert not await heard(alarm), "once"
            stranger.put_routes([Route(IPv6Network("fd00:9::/64"), va, table=table)])
            assert await heard(alarm)

    with RouteChanges((table, table + 1), own=[pair.left.port], namespace=LEFT) as alarm:
        asyncio.run(asyncio.wait_for(watch(alarm), pace.patient(20)))
