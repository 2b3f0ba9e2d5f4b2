# SPDX-License-Identifier: Apache-2.0
"""Pods in real namespaces: what ADD makes, and that DEL, GC and every failure leave nothing.

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
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from pellicle.facts import Endpoint, EndpointName, NodeName
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.serve import CallError, Request, listen, serve
from pellicle.sources import resources, veth
from pellicle.sources.cni import Cni, Datapath, Records
from pellicle.sources.cni_spec import CniError, Code, Mtu, Plug
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.netlink import MAIN_TABLE, Route, Scope

PLUGIN = Path(__file__).parents[2] / "cni" / "pellicle-cni"
PREFIX = f"pellicle-cni{os.getpid()}"
NODE, P1, P2 = f"{PREFIX}-node", f"{PREFIX}-p1", f"{PREFIX}-p2"
CIDRS = (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64"))
MTU = Mtu(device=1500, v4=1446, v6=1426)
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
GATEWAY6 = ip_address("fe80::1")


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


@pytest.fixture
async def world(node: str, tmp_path: Path) -> World:
    made = World(tmp_path / "cluster")
    await made.start()
    return made


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
    with netns.inside(pod):
        done = await asyncio.create_subprocess_exec(
            "ping", "-n", "-c1", "-W2", *options, address, stdout=asyncio.subprocess.DEVNULL
        )
    return await done.wait() == 0


# ADD.


async def test_add_makes_device_addresses_and_routes_in_both_families(world: World) -> None:
    await add(world)
    plug = Plug("c1", "eth0")
    with Netlink() as here, Netlink(P1) as there:
        host, pod = here.link(plug.host_device), there.link("eth0")
        assert (host.peer, pod.peer) == (pod.index, host.index)
        assert (host.is_up, pod.is_up, pod.mtu, host.mtu) == (True, True, 1500, 1500)
        assert (host.mac, pod.mac) == (plug.host_mac, plug.pod_mac)
        assert host.alias == "pellicle: default/p1 eth0"
        assert here.addresses(host.index) == [LinkAddress(host.index, IPv6Interface("fe80::1/64"))]
        own = {
            row.interface
            for row in there.addresses(pod.index)
            if not row.interface.ip.is_link_local
        }
        assert own == {IPv4Interface("10.244.1.2/32"), IPv6Interface("fd00:244:0:1::2/128")}
        assert set(here.routes(MAIN_TABLE)) == {
            Route(ip_network("10.244.1.2/32"), host.index),
            Route(ip_network("fd00:244:0:1::2/128"), host.index),
        }
        gateway4 = ip_address("10.244.1.1")
        assert set(there.routes(MAIN_TABLE)) == {
            Route(ip_network("10.244.1.1/32"), pod.index, scope=Scope.LINK),
            Route(EVERYWHERE[0], pod.index, via=gateway4, mtu=1446),
            Route(EVERYWHERE[1], pod.index, via=GATEWAY6, mtu=1426),
        }
    assert await ping(P1, "10.244.1.1")
    assert await ping(P1, "fe80::1%eth0")


async def test_mac_addresses_are_local_unicast_and_differ() -> None:
    for number in range(200):
        plug = Plug(f"c{number}", "eth0")
        for mac in (plug.pod_mac, plug.host_mac):
            assert int(mac[:2], 16) & 0x03 == 0x02
        assert plug.pod_mac != plug.host_mac
        assert veth.is_host_device(plug.host_device)


async def test_pods_of_a_node_reach_each_other_and_the_node_reaches_them(world: World) -> None:
    await add(world)
    await add(world, P2, "c2", "p2")
    for address in ("10.244.1.3", "fd00:244:0:1::3"):
        assert await ping(P1, address)
        assert await ping(NODE, address)


async def test_a_pod_reaches_its_node_where_arp_is_kept_quiet(world: World) -> None:
    netns.write_sysctl("net/ipv4/conf/all/arp_ignore", 1)  # as kube-proxy's IPVS mode does
    await add(world)
    assert await ping(P1, "10.244.1.1")


async def test_routes_carry_the_exact_mtu_and_the_device_takes_more(world: World) -> None:
    await add(world)
    assert await ping(P1, "10.244.1.1", "-M", "do", "-s", str(1472))  # on link: the device's
    with netns.inside(P1):
        answer = await asyncio.create_subprocess_exec(
            "ip", "-j", "route", "get", "192.0.2.1", stdout=asyncio.subprocess.PIPE
        )
    out, _ = await answer.communicate()
    (row,) = json.loads(out)
    assert (row["gateway"], row["dev"]) == ("10.244.1.1", "eth0")
    with Netlink(P1) as there:
        mtus = {row.destination: row.mtu for row in there.routes(MAIN_TABLE)}
    assert [mtus[each] for each in EVERYWHERE] == [1446, 1426]


async def test_when_add_attaches_nothing_can_be_sent_yet(world: World) -> None:
    seen = []

    def look(name: str, index: int) -> None:
        with Netlink() as here, Netlink(P1) as there:
            host, pod = here.link(name), there.link("eth0")
            seen.append((host.index == index, host.is_up, pod.is_up))

    world.on_attach = look
    await add(world)
    assert seen == [(True, False, False)]


async def test_when_add_waits_for_the_datapath_everything_else_is_done(world: World) -> None:
    seen: list[tuple[Endpoint, int]] = []
    world.on_ready = lambda endpoint, index: seen.append((endpoint, index))
    with netns.opened(P1) as fd:
        await world.cni.call(
            arguments("ADD", "c1", "p1", labels={"app": "web", "tier": "front"}), fd
        )
    ((endpoint, index),) = seen
    assert world.endpoints() == [endpoint]
    assert endpoint.name == EndpointName("default", "p1")
    assert endpoint.labels == {"app": "web", "tier": "front"}
    assert endpoint.identity >= 256
    assert [str(each) for each in endpoint.addresses] == ["10.244.1.2", "fd00:244:0:1::2"]
    assert endpoint.attachment is not None
    assert devices()[endpoint.attachment.host_device].index == index
    assert len(list(world.directory.glob("identities/*.yaml"))) == 1


async def test_labels_of_the_container_win_over_those_of_the_network(world: World) -> None:
    request = arguments(
        "ADD", "c1", "p1", labels={"a": "1", "b": "1", "c": "1"},
        runtimeConfig={"labels": {"b": "2", "c": "2"}},
    )  # fmt: skip
    request["args"]["labels"] = "c=3,d=3"
    with netns.opened(P1) as fd:
        await world.cni.call(request, fd)
    assert world.endpoints()[0].labels == {"a": "1", "b": "2", "c": "3", "d": "3"}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
async def test_the_result_has_the_shape_of_its_version(world: World, version: str) -> None:
    with netns.opened(P1) as fd:
        request = arguments("ADD", "c1", "p1", cniVersion=version, dns={"nameservers": ["1.1.1.1"]})
        result = await world.cni.call(request, fd)
    plug, newest = Plug("c1", "eth0"), version == "1.1.0"
    mtu = {"mtu": 1500} if newest else {}
    four = {"version": "4"} if version == "0.4.0" else {}
    six = {"version": "6"} if version == "0.4.0" else {}
    gateway4 = {"gateway": "10.244.1.1", "interface": 1}
    assert result == {
        "cniVersion": version,
        "interfaces": [
            {"name": plug.host_device, "mac": plug.host_mac, **mtu},
            {"name": "eth0", "mac": plug.pod_mac, "sandbox": "/run/netns/x", **mtu},
        ],
        "ips": [
            {"address": "10.244.1.2/32", **gateway4, **four},
            {"address": "fd00:244:0:1::2/128", "gateway": "fe80::1", "interface": 1, **six},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.244.1.1", **({"mtu": 1446} if newest else {})},
            {"dst": "::/0", "gw": "fe80::1", **({"mtu": 1426} if newest else {})},
        ],
        "dns": {"nameservers": ["1.1.1.1"]},
    }


@pytest.mark.parametrize("family", [0, 1])
async def test_a_node_of_one_family_gives_pods_one_family(
    node: str, tmp_path: Path, family: int
) -> None:
    world = World(tmp_path / "cluster", cidrs=(CIDRS[family],))
    await world.start()
    result = await add(world)
    assert [row["gateway"] for row in result["ips"]] == [("10.244.1.1", "fe80::1")[family]]
    assert await ping(P1, ("10.244.1.1", "fe80::1%eth0")[family])
    assert not await check(world)
    await delete(world)
    assert world.left() == NOTHING


async def test_a_container_without_kubernetes_is_named_by_itself(world: World) -> None:
    await add(world, name="", container="c0ffee")
    await add(world, P2, name="", container="Under_Score")
    names = {str(each.name) for each in world.endpoints()}
    assert names == {"default/c0ffee", f"default/{Plug('Under_Score', 'eth0').host_device}"}


# ADD again.


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


def lose_host_route(world: World) -> None:
    with Netlink() as here:
        assert not here.remove_routes(here.routes(MAIN_TABLE)[:1])


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


# ADD that fails.


def refuse(*_: object) -> Any:
    raise OSError(28, "No space left on device")


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
    ({"command": "UPDATE"}, Code.UNDECODABLE),
    ({"container_id": "../../etc"}, Code.INVALID_ENVIRONMENT),
    ({"ifname": "a/b"}, Code.INVALID_ENVIRONMENT),
    ({"args": {"K8S_POD_NAME": "../x"}}, Code.INVALID_ENVIRONMENT),
    ({"args": {"K8S_POD_NAMESPACE": "a.b"}}, Code.INVALID_ENVIRONMENT),
    ({"args": {"labels": "nonsense"}}, Code.INVALID_ENVIRONMENT),
    ({"args": {"labels": "-=x"}}, Code.INVALID_CONFIG),
    ({"config": {"cniVersion": "1.1.0", "labels": ["a"]}}, Code.INVALID_CONFIG),
    ({"config": {"cniVersion": "1.1.0", "runtimeConfig": {"labels": 1}}}, Code.INVALID_CONFIG),
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


# DEL.


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
    deadline = time.monotonic() + 10
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


# One pod, several containers.


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
        async with asyncio.timeout(20):
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


# GC and restarts.


def valid(*containers: str) -> dict[str, Any]:
    rows = [{"containerID": each, "ifname": "eth0"} for each in containers]
    return {"cni.dev/valid-attachments": rows}


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


# All of it, with the plugin, the socket and many pods at once.


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
    names = [f"{PREFIX}-many{number}" for number in range(50)]
    try:
        for name in names:
            netns.create(name)
        yield names
    finally:
        for name in names:
            netns.delete(name)


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
    out, _ = await started.communicate(json.dumps({**row, **config}).encode())
    assert (started.returncode == 0) == (b'"code"' not in out), out
    return json.loads(out) if out else None


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


async def test_fifty_pods_come_and_go_at_once_and_leave_nothing(
    world: World, socket_path: Path, pods: list[str]
) -> None:
    world.cni = world.fresh(seconds=10)
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

    world.cni = world.fresh(seconds=10)
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
    assert adding < 1000
