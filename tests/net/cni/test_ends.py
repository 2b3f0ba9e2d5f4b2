# SPDX-License-Identifier: Apache-2.0
"""DEL, GC and restarts: what has ended leaves nothing, what goes on stays."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

from pellicle.facts import Endpoint, EndpointName, NodeName
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources import veth
from pellicle.sources.cni import Cni, Records
from pellicle.sources.cni_spec import Code, Plug
from pellicle.wire.link import VethEnd
from tests import pace
from tests.net.cni.node import (
    CIDRS,
    NOTHING,
    P1,
    P2,
    World,
    add,
    arguments,
    check,
    delete,
    devices,
    refuse,
    refused,
    valid,
)


async def test_del_leaves_nothing_and_can_be_repeated(world: World) -> None:
    await add(world)
    assert world.left()["devices"]
    for _ in range(3):
        await delete(world)
        assert world.left() == NOTHING
    with Netlink(P1) as there:
        assert list(there.links()) == ["lo"]


async def test_del_of_what_never_was_is_success(world: World) -> None:
    await delete(world, "never")


async def test_del_after_the_namespace_has_gone(world: World) -> None:
    await add(world)
    netns.delete(P1)
    deadline = time.monotonic() + pace.patient(10)
    while devices():
        assert time.monotonic() < deadline, "the kernel takes the veth with the namespace"
        await asyncio.sleep(0.02)
    await delete(world)
    assert world.left() == NOTHING


async def test_a_del_that_fails_can_be_repeated_and_keeps_the_addresses(world: World) -> None:
    kept = Records.in_directory(world.directory)
    fails = [True]

    def remove(endpoint: Endpoint) -> object:
        return refuse() if fails[0] else kept.remove(endpoint)

    world.cni = world.fresh(replace(kept, remove=remove))
    await world.start()
    await add(world)
    error = await refused(delete(world))
    assert error.code is Code.IO_FAILURE
    assert len(world.cni._pools) == 2
    fails[0] = False
    await delete(world)
    assert world.left() == NOTHING


async def test_a_pod_in_a_new_container_takes_the_place_of_the_old(world: World) -> None:
    await add(world, P1, "old")
    await add(world, P2, "new")
    assert world.left()["files"] == ["default/p1"]
    assert list(devices()) == [Plug("new", "eth0").host_device]
    await delete(world, "old")
    assert not await check(world, P2, "new")
    assert world.left()["files"] == ["default/p1"]
    await delete(world, "new")
    assert world.left() == NOTHING


async def test_two_containers_that_want_to_be_the_same_pod_at_once(world: World) -> None:
    for _ in range(5):
        calls = [add(world, P1, "c1"), add(world, P2, "c2"), add(world, P1, "c1")]
        async with asyncio.timeout(pace.patient(20)):
            await asyncio.gather(*calls)
        (left,) = devices()
        assert world.left()["files"] == ["default/p1"]
        assert len(world.cni._pools) == 2
        assert left in {Plug(each, "eth0").host_device for each in ("c1", "c2")}
        await delete(world, "c1")
        await delete(world, "c2")
        assert world.left() == NOTHING


async def test_a_second_interface_of_a_container_is_refused(world: World) -> None:
    await add(world)
    request = {**arguments("ADD", "c1", "p1"), "ifname": "net1"}
    with netns.opened(P1) as fd:
        error = await refused(world.cni.call(request, fd))
    assert error.code is Code.SECOND_INTERFACE
    assert not await check(world)


async def test_gc_removes_what_the_runtime_does_not_know(world: World) -> None:
    await add(world, P1, "c1", "p1")
    await add(world, P2, "c2", "p2")
    assert await world.cni.call(arguments("GC", "", **valid("c2")), None) == {}
    assert world.left()["files"] == ["default/p2"]
    assert not await check(world, P2, "c2")
    with Netlink() as here:  # a device that nobody claims
        here.add_veth(VethEnd("pelffffffffff0"), VethEnd("other"))
    await world.cni.call(arguments("GC", "", **valid()), None)
    assert world.left() == NOTHING


async def test_gc_of_another_network_leaves_this_one_alone(world: World) -> None:
    await add(world)
    request = arguments("GC", "", **valid())
    request["config"]["name"] = "other"
    await world.cni.call(request, None)
    assert not await check(world)


async def test_gc_without_its_list_removes_nothing(world: World) -> None:
    await add(world)
    for config in ({}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": [{}]}):
        error = await refused(world.cni.call(arguments("GC", "", **config), None))
        assert error.code is Code.INVALID_CONFIG
    assert not await check(world)


async def test_gc_goes_on_after_a_failure_and_names_it(world: World) -> None:
    kept = Records.in_directory(world.directory)

    def remove(endpoint: Endpoint) -> object:
        return refuse() if endpoint.name.name == "p1" else kept.remove(endpoint)

    world.cni = world.fresh(replace(kept, remove=remove))
    await world.start()
    await add(world, P1, "c1", "p1")
    await add(world, P2, "c2", "p2")
    error = await refused(world.cni.call(arguments("GC", "", **valid()), None))
    assert (error.code, "c1/eth0: No space left" in error.message) == (Code.IO_FAILURE, True)
    assert world.left()["files"] == ["default/p1"]


async def test_gc_spares_an_add_that_is_under_way(world: World) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def ready(endpoint: Endpoint, index: int) -> None:
        entered.set()
        await go_on.wait()

    datapath = replace(world.cni._datapath, ready=ready)
    world.cni = Cni(NodeName("n1"), CIDRS, Records.in_directory(world.directory), datapath)
    await world.start()
    adding = asyncio.ensure_future(add(world))
    await entered.wait()
    await world.cni.call(arguments("GC", "", **valid()), None)
    go_on.set()
    await adding
    assert not await check(world)


async def test_nothing_is_answered_before_the_pods_are_known(world: World) -> None:
    world.cni = world.fresh()
    for command, code in (("ADD", 11), ("DEL", 11), ("STATUS", 50)):
        assert (await refused(world.cni.call(arguments(command, "c1"), None))).code == code


async def test_a_restarted_agent_knows_its_pods_and_their_addresses(world: World) -> None:
    first = await add(world)
    world.cni = world.fresh()
    await world.start()
    assert await add(world) == first
    assert not await check(world)
    second = await add(world, P2, "c2", "p2")
    assert second["ips"][0]["address"] == "10.244.1.3/32"
    await delete(world)
    await delete(world, "c2")
    assert world.left() == {**NOTHING, "attached": []}


async def test_a_restarted_agent_removes_what_is_half_there(world: World) -> None:
    await add(world, P1, "c1", "p1")  # its device goes while the agent is away
    await add(world, P2, "c2", "p2")  # its resource goes
    static = Endpoint(
        EndpointName("default", "static"),
        NodeName("n1"),
        (ip_address("10.244.1.9"),),
        world.endpoints()[0].identity,
        {},
    )
    elsewhere = replace(static, name=EndpointName("default", "far"), node=NodeName("n2"))
    veth.remove(Plug("c1", "eth0").host_device)
    gone = next(each for each in world.endpoints() if each.name.name == "p2")
    Records.in_directory(world.directory).remove(gone)
    for each in (static, elsewhere):
        Records.in_directory(world.directory).write(each)
    world.attached.clear()
    world.cni = world.fresh()
    await world.start()
    assert world.left()["devices"] == []
    assert world.left()["files"] == ["default/static", "default/far"]
    assert ip_address("10.244.1.9") in world.cni._pools
    await delete(world, "c1")


async def test_a_pod_cidr_that_changed_gives_a_pod_that_comes_again_new_addresses(
    world: World,
) -> None:
    await add(world)
    world.cidrs = (ip_network("10.244.7.0/24"), CIDRS[1])
    world.cni = world.fresh()
    await world.start()
    assert "not in the node's pod CIDRs" in await check(world)
    result = await add(world)
    assert result["ips"][0]["address"] == "10.244.7.2/32"
    await delete(world)
    assert world.left() == NOTHING
