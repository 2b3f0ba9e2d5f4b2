# SPDX-License-Identifier: Apache-2.0
"""A node without its agent's other rooms: the CNI calls, a directory, the kernel.

    +------------- node --------------+          +------ pod ------+
    | lo 10.244.1.1/32    pel0123…    ══════veth══════ eth0        |
    +---------------------------------+          +-----------------+

The test process lives in the node's namespace while a test runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from pellicle.facts import Endpoint, NodeName
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources import resources, veth
from pellicle.sources.cni import Cni, Datapath, Records
from pellicle.sources.cni_spec import CniError, Code, Mtu
from pellicle.wire.link import LinkInfo
from pellicle.wire.netlink import MAIN_TABLE
from tests import pace

PLUGIN = Path(__file__).parents[3] / "cni" / "pellicle-cni"
PREFIX = f"pellicle-cni{os.getpid()}"
NODE, P1, P2 = f"{PREFIX}-node", f"{PREFIX}-p1", f"{PREFIX}-p2"
CIDRS = (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64"))
PLUGIN_SECONDS = 20.0
MTU = Mtu(device=1500, v4=1446, v6=1426)
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
GATEWAY6 = ip_address("fe80::1")


@dataclass
class World:
    """A node's directory, its CNI and what the CNI asked of the datapath."""

    directory: Path
    cni: Cni = field(init=False)
    attached: dict[str, int] = field(default_factory=dict)
    on_attach: Callable[[str, int], None] = lambda _name, _index: None
    on_ready: Callable[[Endpoint, int], None] = lambda _endpoint, _index: None
    is_never_ready: bool = False
    trouble: str = ""
    cidrs: tuple[Any, ...] = CIDRS

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.cni = self.fresh()

    def fresh(self, records: Records | None = None, seconds: float = 0.3) -> Cni:
        """An agent that has just started."""
        datapath = Datapath(
            self._attach, self._detach, self._ready, lambda: MTU, lambda: self.trouble
        )
        kept = records or Records.in_directory(self.directory)
        return Cni(NodeName("n1"), self.cidrs, kept, datapath, ready_seconds=seconds)

    async def start(self) -> None:
        await self.cni.adopt(self.endpoints(), devices())

    def endpoints(self) -> list[Endpoint]:
        found = []
        for path in sorted(self.directory.glob("endpoints/*/*.yaml")):
            sheet = resources.read(str(path), path.read_bytes())
            assert not sheet.rejected
            found += [each.resource for each in sheet.documents]
        assert all(isinstance(each, Endpoint) for each in found)
        return found  # type: ignore[return-value]

    def left(self) -> dict[str, Any]:
        """All that pods can leave on a node."""
        with Netlink() as here:
            routes = [str(row.destination) for row in here.routes(MAIN_TABLE)]
        return {
            "devices": sorted(devices()),
            "routes": sorted(routes),
            "files": [str(each.name) for each in self.endpoints()],
            "addresses": len(self.cni._pools),
            "attached": sorted(self.attached),
            "plugs": len(self.cni._endpoints),
        }

    def _attach(self, name: str, index: int) -> None:
        self.on_attach(name, index)
        self.attached[name] = index

    def _detach(self, name: str) -> None:
        assert name not in devices(), "the program goes after the device, never before"
        self.attached.pop(name, None)

    async def _ready(self, endpoint: Endpoint, index: int) -> None:
        self.on_ready(endpoint, index)
        if self.is_never_ready:
            await asyncio.Event().wait()


NOTHING = {"devices": [], "routes": [], "files": [], "addresses": 0, "attached": [], "plugs": 0}


def devices() -> dict[str, LinkInfo]:
    return {name: link for name, link in veth.devices().items() if veth.is_host_device(name)}


def arguments(command: str, container: str, name: str = "", **config: Any) -> dict[str, Any]:
    args = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": name} if name else {}
    return {
        "command": command,
        "container_id": container,
        "ifname": "eth0",
        "netns": "/run/netns/x",
        "args": args,
        "config": {"cniVersion": "1.1.0", "name": "pellicle", **config},
    }


async def add(world: World, pod: str = P1, container: str = "c1", name: str = "p1") -> Any:
    with netns.opened(pod) as fd:
        return await world.cni.call(arguments("ADD", container, name), fd)


async def delete(world: World, container: str = "c1") -> None:
    assert await world.cni.call(arguments("DEL", container), None) == {}


async def check(world: World, pod: str | None = P1, container: str = "c1", **config: Any) -> str:
    """What CHECK finds; empty when all is well."""
    request = arguments("CHECK", container, **config)
    with contextlib.ExitStack() as opened:
        fd = None if pod is None else opened.enter_context(netns.opened(pod))
        try:
            assert await world.cni.call(request, fd) == {}
        except CniError as error:
            return error.message if error.code is Code.DIFFERENT else repr(error)
    return ""


async def refused(answer: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        await answer
    return caught.value


async def ping(pod: str, address: str, *options: str) -> bool:
    """Whether any of some echoes comes back; neighbours may have to be found first."""
    with netns.inside(pod):
        done = await asyncio.create_subprocess_exec(
            "ping",
            "-n",
            "-c1",
            f"-w{pace.patient(8):.0f}",
            *options,
            address,
            stdout=asyncio.subprocess.DEVNULL,
        )
    return await done.wait() == 0


def refuse(*_: object) -> Any:
    raise OSError(28, "No space left on device")


def lose_host_route(world: World) -> None:
    with Netlink() as here:
        assert not here.remove_routes(here.routes(MAIN_TABLE)[:1])


def valid(*containers: str) -> dict[str, Any]:
    rows = [{"containerID": each, "ifname": "eth0"} for each in containers]
    return {"cni.dev/valid-attachments": rows}


async def plugin(command: str, path: Path, pod: str, **config: Any) -> Any:
    """What the plugin prints, as JSON; None for nothing."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}",
    }
    row = {"cniVersion": "1.1.0", "name": "pellicle", "type": "pellicle-cni", "socket": str(path)}
    started = await asyncio.create_subprocess_exec(
        PLUGIN, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    limit = {"timeout": pace.patient(PLUGIN_SECONDS)}
    out, _ = await started.communicate(json.dumps({**row, **limit, **config}).encode())
    assert (started.returncode == 0) == (b'"code"' not in out), out
    return json.loads(out) if out else None
