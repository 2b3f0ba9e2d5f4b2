# SPDX-License-Identifier: Apache-2.0
"""What ADD makes, and what it answers."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from pathlib import Path

import pytest

from pellicle.facts import Endpoint, EndpointName
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources.cni_spec import Plug
from pellicle.wire.link import LinkAddress
from pellicle.wire.netlink import MAIN_TABLE, Route, Scope
from tests.net.cni.node import (
    CIDRS,
    EVERYWHERE,
    GATEWAY6,
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
    ping,
)


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


async def test_the_node_reaches_a_pod_without_asking_for_its_mac_address(world: World) -> None:
    netns.write_sysctl("net/ipv4/conf/all/arp_ignore", 8, P1)  # answers nobody
    await add(world)
    assert await ping(NODE, "10.244.1.2")


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


async def test_no_router_but_the_node_is_believed_and_no_address_waits(world: World) -> None:
    await add(world)
    host = Plug("c1", "eth0").host_device
    pod_wants = {"accept_ra": "0", "accept_dad": "0"}
    host_wants = {"accept_ra": "0", "accept_redirects": "0", "forwarding": "1"}
    for namespace, device, wanted in ((P1, "eth0", pod_wants), (NODE, host, host_wants)):
        for name, value in wanted.items():
            assert netns.read_sysctl(f"net/ipv6/conf/{device}/{name}", namespace) == value
    assert netns.read_sysctl(f"net/ipv4/conf/{host}/rp_filter") == "0"
    assert netns.read_sysctl(f"net/ipv4/conf/{host}/forwarding") == "1"
    done = netns.run_in(P1, ["ip", "addr", "show", "tentative"], capture_output=True, check=True)
    assert b"inet" not in done.stdout


async def test_a_namespace_in_which_the_runtime_forbade_ipv6_gets_it(world: World) -> None:
    for which in ("all", "default"):
        netns.write_sysctl(f"net/ipv6/conf/{which}/disable_ipv6", 1, P1)
    await add(world)
    assert await ping(P1, "fe80::1%eth0")
    assert not await check(world)


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
