# SPDX-License-Identifier: Apache-2.0
"""What the datapath's maps should hold, planned from facts alone."""

from __future__ import annotations

from contextlib import nullcontext
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.datapath import endpoints as endpoints_map
from pellicle.datapath import ipcache, overlay, programs
from pellicle.datapath.address import from_bytes, from_cidr, to_bytes, to_cidr
from pellicle.datapath.endpoints import EndpointRow
from pellicle.datapath.ipcache import CidrFlags, CidrRow, Peer, PeerFlags
from pellicle.datapath.overlay import OverlayDevice
from pellicle.datapath.programs import Hook, HookName
from pellicle.facts import (
    IDENTITY_HOST,
    IDENTITY_REMOTE_NODE,
    Attachment,
    Endpoint,
    EndpointName,
    IdentityNumber,
    Link,
    Node,
    NodeName,
    Overlay,
    gateway,
)
from pellicle.kernel import Unsupported
from pellicle.wire.btf import Btf

N1, N2 = NodeName("n1"), NodeName("n2")
NODES = {
    N1: Node(
        N1,
        (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
        (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")),
    ),
    N2: Node(N2, (ip_address("192.0.2.2"),), (ip_network("10.244.2.0/24"),)),
}


def pod(name: str, node: NodeName, *addresses: str, device: str | None = None) -> Endpoint:
    plug = Attachment("c0", "eth0", device, "02:00:00:00:00:01") if device else None
    return Endpoint(
        EndpointName("default", name),
        node,
        tuple(map(ip_address, addresses)),
        IdentityNumber(300),
        attachment=plug,
    )


@given(st.ip_addresses())
def test_addresses_survive_the_maps_form(address) -> None:  # type: ignore[no-untyped-def]
    # ::ffff:a.b.c.d written as IPv6 means the IPv4 address, and comes back as one.
    mapped = getattr(address, "ipv4_mapped", None)
    assert from_bytes(to_bytes(address)) == (mapped or address)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_cidrs_survive_the_maps_form(address, length: int) -> None:  # type: ignore[no-untyped-def]
    network = ip_network((address, length), strict=False)
    assert from_cidr(*to_cidr(network)) == network
    assert to_cidr(network)[0] == 96 + length


def test_ipv4_is_written_mapped() -> None:
    assert to_bytes(ip_address("10.1.2.3")).hex() == "00000000000000000000ffff0a010203"
    assert to_cidr(ip_network("fd00::/16"))[0] == 16


def test_the_ipcache_holds_pods_nodes_and_gateways() -> None:
    pods = [
        pod("a", N1, "10.244.1.2", "fd00:244:1::2"),
        pod("b", N2, "10.244.2.2"),
        pod("lost", NodeName("n9"), "10.244.9.2"),
    ]
    rows = ipcache.plan(N1, NODES, {each.name: each for each in pods}, {})
    here, there = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    local_pod = Peer(IdentityNumber(300), PeerFlags.LOCAL, here)
    host = Peer(IDENTITY_HOST, PeerFlags.LOCAL | PeerFlags.NODE, here)
    remote_node = Peer(IDENTITY_REMOTE_NODE, PeerFlags.NODE, there)
    assert rows == {
        ip_address("10.244.1.2"): local_pod,
        ip_address("fd00:244:1::2"): local_pod,
        ip_address("10.244.2.2"): Peer(IdentityNumber(300), PeerFlags(0), there),
        here: host,
        ip_address("2001:db8::1"): host,
        ip_address("10.244.1.1"): host,
        ip_address("fd00:244:1::1"): host,
        there: remote_node,
        ip_address("10.244.2.1"): remote_node,
    }


def test_cluster_cidrs_are_the_configured_ones_and_the_nodes_own() -> None:
    rows = ipcache.plan_cidrs({ip_network("10.244.0.0/16"): CidrRow()}, NODES, {})
    assert rows == {
        ip_network("10.244.0.0/16"): CidrRow(),
        ip_network("10.244.1.0/24"): CidrRow(),
        ip_network("fd00:244:1::/64"): CidrRow(),
        ip_network("10.244.2.0/24"): CidrRow(),
        **{
            ip_network(address): CidrRow(CidrFlags.NODE)
            for node in NODES.values()
            for address in node.addresses
        },
    }


def test_networks_of_nodes_are_the_clusters_but_for_what_is_left_out() -> None:
    pods = [ip_network("10.244.0.0/16")]
    nodes = [ip_network("192.0.2.0/30"), ip_network("2001:db8::/64"), ip_network("10.9.0.0/24")]
    but = [ip_network("192.0.2.1/32"), ip_network("10.9.0.0/16"), ip_network("2001:db9::/64")]
    own = NODES[N1].addresses
    rows = ipcache.configured_cidrs(pods, nodes, but, own)
    is_node = CidrRow(CidrFlags.NODE)
    assert rows == {
        ip_network("10.244.0.0/16"): CidrRow(),
        ip_network("192.0.2.0/32"): is_node,
        ip_network("192.0.2.2/31"): is_node,
        ip_network("2001:db8::/64"): is_node,
        **{ip_network(address): is_node for address in own},
    }
    known = ipcache.plan_cidrs(rows, NODES, {})
    assert rows.items() <= known.items()
    assert known[ip_network("192.0.2.1/32")] == is_node, "a record says otherwise"


def test_endpoints_are_the_plugged_in_pods_of_this_node() -> None:
    pods = [
        pod("a", N1, "10.244.1.2", "fd00:244:1::2", device="pel00000000001"),
        pod("unplugged", N1, "10.244.1.3"),
        pod("vanished", N1, "10.244.1.4", device="pel00000000002"),
        pod("remote", N2, "10.244.2.2", device="pel00000000001"),
    ]
    links = {"pel00000000001": Link("pel00000000001", 7, "02:00:00:00:00:02", 1500, is_up=True)}
    row = EndpointRow(7, IdentityNumber(300), "02:00:00:00:00:01", "02:00:00:00:00:02")
    assert endpoints_map.plan(N1, {each.name: each for each in pods}, links) == {
        ip_address("10.244.1.2"): row,
        ip_address("fd00:244:1::2"): row,
    }


def test_programs_go_where_they_belong_and_nowhere_else() -> None:
    names = ["lo", "eth0", "pellicle_host", "pellicle_net", "pel0123456789a", "pelican", "veth1"]
    links = {name: Link(name, i, "", 1500, is_up=True) for i, name in enumerate(names, 1)}
    assert programs.plan("eth0", links) == {
        HookName("eth0", "ingress"): Hook(2, "from_net"),
        HookName("eth0", "egress"): Hook(2, "to_net"),
        HookName("eth0", "egress", is_backstop=True): Hook(2, "backstop"),
        HookName("pellicle_net", "ingress"): Hook(4, "door"),
        HookName("pel0123456789a", "ingress"): Hook(5, "from_pod"),
    }


def test_the_overlays_programs_sit_on_both_sides_of_its_device() -> None:
    links = {"pellicle_tunnel": Link("pellicle_tunnel", 7, "", 1500, is_up=True)}
    assert programs.plan("eth0", links) == {
        HookName("pellicle_tunnel", "egress"): Hook(7, "to_overlay"),
        HookName("pellicle_tunnel", "ingress"): Hook(7, "from_overlay"),
    }


@pytest.mark.parametrize(
    ("kind", "uplink", "rows"),
    [
        (Overlay.GENEVE, 1500, {"pellicle_tunnel": OverlayDevice(Overlay.GENEVE, 1500)}),
        (Overlay.VXLAN, 65535, {"pellicle_tunnel": OverlayDevice(Overlay.VXLAN, 65000)}),
        (None, 1500, {}),
        (Overlay.VXLAN, None, {}),
    ],
)
def test_the_overlays_device_is_there_when_it_is_wanted(
    kind: Overlay | None, uplink: int | None, rows: dict[str, OverlayDevice]
) -> None:
    links = {"eth0": Link("eth0", 2, "", uplink, is_up=True)} if uplink else {}
    assert overlay.plan(kind, "eth0", links) == rows


@pytest.mark.parametrize(
    ("family", "remotes"),
    [("auto", {"192.0.2.2": "192.0.2.2", "2001:db8::3": "2001:db8::3"}),
     ("4", {"192.0.2.2": "192.0.2.2"}),
     ("6", {"2001:db8::3": "2001:db8::3"})],
)  # fmt: skip
def test_the_tunnel_ends_where_esp_does(family: str, remotes: dict[str, str]) -> None:
    six = Node(NodeName("n3"), (ip_address("2001:db8::3"),), ())
    nodes = NODES | {six.name: six, NodeName("n4"): Node(NodeName("n4"), (), ())}
    rows = overlay.plan_remotes(N1, family, nodes)
    assert {str(node): str(outer) for node, outer in rows.items()} == remotes
    assert overlay.plan_remotes(NodeName("n9"), family, nodes) == {}


def test_the_datapath_calls_other_nodes_what_the_agents_do() -> None:
    built = Btf.parse(programs.object_path().read_bytes())
    assert built.enum("exported")["EXPORT_IDENTITY_REMOTE_NODE"] == IDENTITY_REMOTE_NODE


def test_the_gateway_is_the_first_address() -> None:
    assert gateway(ip_network("10.244.1.0/24")) == ip_address("10.244.1.1")
    assert gateway(ip_network("fd00::/64")) == ip_address("fd00::1")
    assert gateway(ip_network("10.0.0.7/32")) == ip_address("10.0.0.7")


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.48-1 (2025-09-20)", False),
        ("#1 SMP PREEMPT_DYNAMIC @0", False),
        ("#1 SMP Debian 5.10.223-1", False),
        ("#1 SMP PREEMPT_RT Debian 6.12.48-1 (2025-09-20)", True),
    ],
)
def test_no_packet_is_sealed_where_programs_interrupt_each_other(
    version: str, is_refused: bool
) -> None:
    with pytest.raises(Unsupported) if is_refused else nullcontext():
        programs.refuse_realtime(version)
