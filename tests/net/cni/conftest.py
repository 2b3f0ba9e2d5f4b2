# SPDX-License-Identifier: Apache-2.0
"""A node's namespace, and pods to connect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.serve import CallError, Request, listen, serve
from pellicle.sources.cni_spec import CniError
from pellicle.wire.link import LinkAddress
from tests import pace
from tests.net.cni.node import NODE, P1, P2, PREFIX, World


@pytest.fixture
def node() -> Iterator[str]:
    """The node's namespace, entered; as the door makes it, with a gateway and forwarding."""
    made = []
    try:
        for name in (NODE, P1, P2):
            netns.create(name)
            made.append(name)
        with netns.inside(NODE):
            with Netlink() as here:
                here.change_link(1, is_up=True)
                here.put_addresses([LinkAddress(1, IPv4Interface("10.244.1.1/32"))])
            netns.write_sysctl("net/ipv4/ip_forward", 1)
            netns.write_sysctl("net/ipv6/conf/all/forwarding", 1)
            yield NODE
    finally:
        for name in made:
            netns.delete(name)


@pytest.fixture
async def world(node: str, tmp_path: Path) -> World:
    made = World(tmp_path / "cluster")
    await made.start()
    return made


@pytest.fixture
async def socket_path(world: World, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "agent.sock"

    async def answer(request: Request) -> AsyncIterator[Any]:
        try:
            yield await world.cni.call(request.arguments, request.descriptor)
        except CniError as error:
            raise CallError(error.code, error.message, error.hint) from error

    with listen(path) as listener:
        serving = asyncio.ensure_future(serve(listener, {"cni": answer}))
        yield path
        serving.cancel()
        await asyncio.wait([serving])


@pytest.fixture
def pods(node: str) -> Iterator[list[str]]:
    names = [f"{PREFIX}-many{number}" for number in range(pace.amount(50, 10))]
    try:
        for name in names:
            netns.create(name)
        yield names
    finally:
        for name in names:
            netns.delete(name)
