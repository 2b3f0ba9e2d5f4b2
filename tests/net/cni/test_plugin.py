# SPDX-License-Identifier: Apache-2.0
"""All of it: the plugin's process, the agent's socket, many pods at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests import pace
from tests.net.cni.node import (
    NOTHING,
    P1,
    World,
    add,
    delete,
    devices,
    lose_host_route,
    ping,
    plugin,
    valid,
)


async def test_the_plugin_connects_checks_and_removes_a_pod(
    world: World, socket_path: Path
) -> None:
    assert await plugin("STATUS", socket_path, P1) is None
    result = await plugin("ADD", socket_path, P1, labels={"app": "web"})
    assert result["interfaces"][1]["sandbox"] == f"/run/netns/{P1}"
    assert await ping(P1, "10.244.1.1")
    assert await plugin("CHECK", socket_path, P1, prevResult=result) is None
    lose_host_route(world)
    found = await plugin("CHECK", socket_path, P1, prevResult=result)
    assert (found["code"], "route 10.244.1.2/32" in found["msg"]) == (101, True)
    assert await plugin("GC", socket_path, P1, **valid(P1)) is None
    assert await plugin("DEL", socket_path, P1, prevResult=result) is None
    assert await plugin("DEL", socket_path, P1) is None
    assert world.left() == NOTHING


async def test_many_pods_come_and_go_at_once_and_leave_nothing(
    world: World, socket_path: Path, pods: list[str]
) -> None:
    world.cni = world.fresh(seconds=pace.patient(10))
    await world.start()
    for _ in range(2):
        started = time.perf_counter()
        added = await asyncio.gather(*(plugin("ADD", socket_path, pod) for pod in pods))
        middle = time.perf_counter()
        addresses = [row["address"] for result in added for row in result["ips"]]
        assert len(set(addresses)) == 2 * len(pods)
        assert len(world.left()["files"]) == len(devices()) == len(pods)
        assert await ping(pods[0], addresses[-2].partition("/")[0])
        assert await ping(pods[0], addresses[-1].partition("/")[0])
        before = time.perf_counter()
        assert set(await asyncio.gather(*(plugin("DEL", socket_path, pod) for pod in pods))) == {
            None
        }
        print(
            f"\n{len(pods)} ADD at once {middle - started:.2f} s,"
            f" {len(pods)} DEL {time.perf_counter() - before:.2f} s"
        )
        assert world.left() == NOTHING


async def test_adds_and_dels_of_the_same_pods_in_any_order_leave_nothing(
    world: World, pods: list[str]
) -> None:
    async def come_and_go(pod: str) -> None:
        both = (add(world, pod, pod, pod), delete(world, pod), add(world, pod, pod, pod))
        await asyncio.gather(*both)
        await delete(world, pod)

    world.cni = world.fresh(seconds=pace.patient(10))
    await world.start()
    await asyncio.gather(*(come_and_go(pod) for pod in pods[:20]))
    assert world.left() == NOTHING


async def test_one_add_and_one_del_are_quick(world: World) -> None:
    times = []
    for _ in range(10):
        started = time.perf_counter()
        await add(world)
        middle = time.perf_counter()
        await delete(world)
        times.append((middle - started, time.perf_counter() - middle))
    adding, deleting = (sorted(each)[5] * 1e3 for each in zip(*times, strict=True))
    print(f"\ninside the agent: ADD {adding:.1f} ms, DEL {deleting:.1f} ms (medians)")
    assert adding < pace.patient(1000)
