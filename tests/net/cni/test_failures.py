# SPDX-License-Identifier: Apache-2.0
"""An ADD that fails or is cancelled, wherever it is, leaves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources.cni import Records
from pellicle.sources.cni_spec import CniError, Code
from pellicle.wire.link import VethEnd
from pellicle.wire.netlink import Route
from tests.net.cni.node import (
    CIDRS,
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
    refuse,
    refused,
)


def put_foreign_device(world: World) -> None:
    with netns.opened(P1) as fd, Netlink() as here:
        here.add_veth(VethEnd("foreign"), VethEnd("eth0", netns_fd=fd))


def put_foreign_route(world: World) -> None:
    with netns.opened(P1) as fd, Netlink() as here:
        here.add_veth(VethEnd("foreign"), VethEnd("net1", netns_fd=fd))
    with Netlink(P1) as there:
        index = there.link("net1").index
        there.change_link(index, is_up=True)
        assert not there.put_routes([Route(EVERYWHERE[0], index, protocol=4)])


def break_claim(world: World) -> None:
    kept = Records.in_directory(world.directory)
    world.cni = world.fresh(replace(kept, claim=refuse))


def break_write(world: World) -> None:
    kept = Records.in_directory(world.directory)
    world.cni = world.fresh(replace(kept, write=refuse))


def break_attach(world: World) -> None:
    world.on_attach = refuse


def break_ready(world: World) -> None:
    world.is_never_ready = True


def break_ready_at_once(world: World) -> None:
    world.on_ready = refuse


@dataclass(frozen=True)
class Failure:
    cause: Callable[[World], None]
    code: Code
    words: str


FAILURES = (
    Failure(break_claim, Code.IO_FAILURE, "No space left"),
    Failure(put_foreign_device, Code.IO_FAILURE, "already has a device eth0"),
    Failure(break_attach, Code.IO_FAILURE, "No space left"),
    Failure(put_foreign_route, Code.IO_FAILURE, "already has a route to 0.0.0.0/0"),
    Failure(break_write, Code.IO_FAILURE, "No space left"),
    Failure(break_ready_at_once, Code.IO_FAILURE, "No space left"),
    Failure(break_ready, Code.TRY_AGAIN_LATER, "default/p1: not in the datapath within 0.3 s"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: each.cause.__name__)
async def test_an_add_that_fails_leaves_nothing(world: World, failure: Failure) -> None:
    failure.cause(world)
    await world.start()
    error = await refused(add(world))
    assert (error.code, failure.words in error.message) == (failure.code, True), error.message
    assert world.left() == NOTHING
    with Netlink(P1) as there:
        foreign = {each.name for each in there.links().values()} - {"lo"}
    expected = {put_foreign_device: {"eth0"}, put_foreign_route: {"net1"}}
    assert foreign == expected.get(failure.cause, set())


@pytest.mark.parametrize("step", ["claim", "attach", "write", "ready"])
async def test_an_add_that_is_cancelled_leaves_nothing(world: World, step: str) -> None:
    loop = asyncio.get_running_loop()
    running: list[asyncio.Task[Any]] = []

    def cancel(*_: object) -> Any:
        loop.call_soon_threadsafe(running[0].cancel)
        time.sleep(0.05)
        raise OSError(5, "was cancelled meanwhile")

    kept = Records.in_directory(world.directory)
    if step in ("claim", "write"):
        world.cni = world.fresh(replace(kept, **{step: cancel}))
    else:
        setattr(world, f"on_{step}", cancel)
    await world.start()
    running.append(asyncio.ensure_future(add(world)))
    with pytest.raises((asyncio.CancelledError, CniError)):
        await running[0]
    assert world.left() == NOTHING


async def test_what_no_pod_can_live_in_is_refused(world: World, tmp_path: Path) -> None:
    request = arguments("ADD", "c1", "p1")
    assert (await refused(world.cni.call(request, None))).code is Code.INVALID_ENVIRONMENT
    with netns.opened(NODE) as fd:
        error = await refused(world.cni.call(request, fd))
    assert "it is the node's own namespace" in error.message
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        error = await refused(world.cni.call(request, file.fileno()))
    assert "is no network namespace" in error.message
    assert world.left() == NOTHING


BAD_REQUESTS = (
    ({"ifname": "a/b"}, Code.INVALID_ENVIRONMENT),
    ({"args": {"K8S_POD_NAME": "../x"}}, Code.INVALID_ENVIRONMENT),
    ({"args": {"labels": "-=x"}}, Code.INVALID_CONFIG),
    ({"config": {"cniVersion": "9"}}, Code.INCOMPATIBLE_VERSION),
)


@pytest.mark.parametrize(("change", "code"), BAD_REQUESTS, ids=str)
async def test_a_bad_request_is_refused_and_a_running_pod_stays(
    world: World, change: dict[str, Any], code: Code
) -> None:
    await add(world)
    before = world.left()
    with netns.opened(P1) as fd:
        error = await refused(world.cni.call({**arguments("ADD", "c1", "p1"), **change}, fd))
    assert error.code is code
    assert world.left() == before
    assert not await check(world)


async def test_an_exhausted_pool_is_named_and_status_says_so_before(
    node: str, tmp_path: Path
) -> None:
    world = World(tmp_path / "cluster", cidrs=(ip_network("10.244.1.0/30"), CIDRS[1]))
    await world.start()
    assert await world.cni.call(arguments("STATUS", ""), None) == {}
    await add(world)
    error = await refused(world.cni.call(arguments("STATUS", ""), None))
    assert (error.code, "10.244.1.0/30 is exhausted: 1 in use" in error.message) == (50, True)
    error = await refused(add(world, P2, "c2", "p2"))
    assert (error.code, "10.244.1.0/30 is exhausted: 1 in use" in error.message) == (100, True)
    await delete(world)
    assert await world.cni.call(arguments("STATUS", ""), None) == {}
    await add(world, P2, "c2", "p2")
    assert len(world.cni._pools) == 2


async def test_trouble_of_the_datapath_keeps_pods_away_in_words(world: World) -> None:
    world.trouble = "the uplink is gone"
    error = await refused(add(world))
    assert (error.code, "the uplink is gone" in error.message) == (Code.TRY_AGAIN_LATER, True)
    error = await refused(world.cni.call(arguments("STATUS", ""), None))
    assert (error.code, "the uplink is gone" in error.message) == (Code.UNAVAILABLE, True)
