# SPDX-License-Identifier: Apache-2.0
"""ADD again, and CHECK: what is damaged is named, and repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Interface

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources import veth
from pellicle.sources.cni_spec import Code, Plug
from pellicle.wire.link import LinkAddress, VethEnd
from pellicle.wire.netlink import MAIN_TABLE
from tests.net.cni.node import (
    EVERYWHERE,
    NODE,
    NOTHING,
    P1,
    P2,
    World,
    add,
    arguments,
    check,
    delete,
    devices,
    lose_host_route,
    ping,
    refused,
)


async def test_add_again_answers_the_same_and_changes_nothing(world: World) -> None:
    first = await add(world)
    before = devices()
    assert await add(world) == first
    assert devices() == before
    assert len(world.cni._pools) == 2


def lose_pod_routes(world: World) -> None:
    with Netlink(P1) as there:
        assert not there.remove_routes(there.routes(MAIN_TABLE))


def lose_pod_address(world: World) -> None:
    with Netlink(P1) as there:
        index = there.link("eth0").index
        row = LinkAddress(index, IPv6Interface("fd00:244:0:1::2/128"))
        assert not there.remove_addresses([row])


def lose_neighbour(world: World) -> None:
    netns.run_in(P1, ["ip", "neigh", "del", "10.244.1.1", "dev", "eth0"], check=True)


def lose_host_neighbour(world: World) -> None:
    device = next(iter(devices()))
    argv = ["ip", "-6", "neigh", "del", "fd00:244:0:1::2", "dev", device]
    netns.run_in(NODE, argv, check=True)


def lose_host_gateway(world: World) -> None:
    with Netlink() as here:
        index = next(iter(devices().values())).index
        assert not here.remove_addresses([LinkAddress(index, IPv6Interface("fe80::1/64"))])


def lose_device(world: World) -> None:
    assert veth.remove(next(iter(devices())))


def lose_host_link(world: World) -> None:
    with Netlink() as here:
        here.change_link(next(iter(devices().values())).index, is_up=False)


def lose_pod_link(world: World) -> None:
    with Netlink(P1) as there:
        there.change_link(there.link("eth0").index, is_up=False)


def change_pod_mac(world: World) -> None:
    with Netlink(P1) as there:
        there.change_link(there.link("eth0").index, mac="02:00:00:00:00:99")


def change_route_mtu(world: World) -> None:
    with Netlink(P1) as there:
        (row,) = (each for each in there.routes(MAIN_TABLE) if each.destination == EVERYWHERE[0])
        assert not there.put_routes([replace(row, mtu=1500)])


def swap_pod_end(world: World) -> None:
    lose_device(world)
    plug = Plug("c1", "eth0")
    with Netlink() as here, netns.opened(P1) as fd:
        here.add_veth(VethEnd("else"), VethEnd("eth0", plug.pod_mac, netns_fd=fd))
        here.add_veth(VethEnd(plug.host_device, plug.host_mac), VethEnd("other"))


@dataclass(frozen=True)
class Damage:
    inflict: Callable[[World], None]
    words: str
    """CHECK says them."""


DAMAGES = (
    Damage(lose_pod_routes, "in the pod: route 0.0.0.0/0 via 10.244.1.1"),
    Damage(lose_pod_address, "in the pod: address fd00:244:0:1::2/128"),
    Damage(lose_neighbour, "in the pod: neighbour 10.244.1.1 at"),
    Damage(lose_host_neighbour, "neighbour fd00:244:0:1::2 at"),
    Damage(lose_host_route, "route 10.244.1.2/32"),
    Damage(lose_host_gateway, "address fe80::1/64"),
    Damage(lose_device, "the host device pel"),
    Damage(lose_host_link, "is down"),
    Damage(lose_pod_link, "in the pod: eth0 is down"),
    Damage(change_pod_mac, "eth0 has the MAC address 02:00:00:00:00:99, not"),
    Damage(change_route_mtu, "route 0.0.0.0/0 via 10.244.1.1 (device"),
    Damage(swap_pod_end, "eth0 is not the other end of pel"),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.inflict.__name__)
async def test_check_names_the_damage_and_add_repairs_it(world: World, damage: Damage) -> None:
    first = await add(world)
    assert not await check(world, prevResult=first)
    damage.inflict(world)
    found = await check(world)
    assert damage.words in found
    assert found.startswith("default/p1: ")
    if damage.inflict is swap_pod_end:
        veth.remove("else")
    assert await add(world) == first
    assert not await check(world)
    assert await ping(P1, "10.244.1.1")
    assert await ping(P1, "fe80::1%eth0")
    await delete(world)
    assert world.left() == NOTHING


async def test_check_names_what_only_the_agent_knows(world: World) -> None:
    result = await add(world)
    result["ips"][0]["address"] = "10.244.1.77/32"
    assert "prevResult does not have the address 10.244.1.2/32" in await check(
        world, prevResult=result
    )
    world.is_never_ready = True
    assert "the datapath does not know the pod" in await check(world)
    assert "network namespace is gone" in await check(world, None)
    with netns.opened(P2) as fd:
        error = await refused(world.cni.call(arguments("CHECK", "other"), fd))
    assert error.code is Code.UNKNOWN_CONTAINER


async def test_a_container_that_moved_to_another_namespace_is_connected_there(world: World) -> None:
    first = await add(world)
    assert await add(world, P2) == first
    assert await ping(P2, "10.244.1.1")
    with Netlink(P1) as there:
        assert "eth0" not in there.links()
