# SPDX-License-Identifier: Apache-2.0
"""Names and addresses of a lab follow from numbers alone, and never collide."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pellicle.lab.topology import (
    MOST_NODES,
    LabNode,
    LabPod,
    Shape,
    cluster_cidrs,
    is_cluster_address,
    is_ours,
    namespace_of,
    nodes_of,
    owner_of,
)


def test_the_first_node_is_where_the_documentation_says() -> None:
    node = LabNode(1)
    assert node.namespace == "pellicle-n1"
    assert [str(address) for address in node.addresses] == ["192.168.1.2", "fd00:168:1::2"]
    assert [str(gateway.ip) for gateway in node.gateways] == ["192.168.1.1", "fd00:168:1::1"]
    assert [str(cidr) for cidr in node.pod_cidrs] == ["10.244.1.0/24", "fd00:244:1::/64"]
    assert str(node.socket) == "/run/pellicle-lab/n1/agent.sock"
    assert str(node.bpffs) == "/sys/fs/bpf/pellicle-lab/n1"


def test_no_two_nodes_share_a_network_and_every_address_finds_its_owner() -> None:
    seen: set[object] = set()
    for node in nodes_of(MOST_NODES):
        networks = {*node.pod_cidrs, *(gateway.network for gateway in node.gateways)}
        assert not seen & networks
        seen |= networks
        pods = [cidr[7] for cidr in node.pod_cidrs]
        assert {owner_of(address) for address in (*node.addresses, *pods)} == {node.name}
        assert not any(is_cluster_address(address) for address in node.addresses)
        assert all(is_cluster_address(address) for address in pods)


@pytest.mark.parametrize("count", [1, 3, 250, 251, MOST_NODES])
def test_cluster_cidrs_cover_the_pods_of_all_nodes(count: int) -> None:
    covered = cluster_cidrs(count)
    for cidr in LabNode(count).pod_cidrs:
        assert any(cidr.version == wide.version and cidr[9] in wide for wide in covered), (
            f"{cidr} of node {count}"
        )


def test_a_small_lab_has_the_usual_cluster_cidrs() -> None:
    assert [str(cidr) for cidr in cluster_cidrs(3)] == ["10.244.0.0/16", "fd00:244::/32"]


@pytest.mark.parametrize(
    "address", ["10.243.1.1", "10.248.1.1", "10.244.0.1", "192.168.251.2", "8.8.8.8", "fd00:168::1"]
)
def test_a_strangers_address_has_no_owner(address: str) -> None:
    assert owner_of(ip_address(address)) is None


@pytest.mark.parametrize(
    ("name", "is_lab"),
    [
        ("pellicle-wire", True),
        ("pellicle-n1", True),
        ("pellicle-n12-p3", True),
        ("pellicle-n0", False),
        ("pellicle-test", False),
        ("pellicle-n1-p1-old", False),
        ("n1", False),
        ("my-pellicle-n1", False),
    ],
)
def test_only_names_of_the_lab_are_ours(name: str, is_lab: bool) -> None:
    assert is_ours(name) == is_lab


@pytest.mark.parametrize(
    ("where", "namespace"),
    [
        ("wire", "pellicle-wire"),
        ("n2", "pellicle-n2"),
        ("n2/p1", "pellicle-n2-p1"),
        ("pellicle-n2-p1", "pellicle-n2-p1"),
    ],
)
def test_places_are_called_as_people_call_them(where: str, namespace: str) -> None:
    assert namespace_of(where) == namespace


@pytest.mark.parametrize("where", ["", "n", "n0", "m1", "n1/", "n1/q1", "n1/p0", "../n1", "n1 "])
def test_a_wrong_place_is_refused_in_words(where: str) -> None:
    with pytest.raises(ValueError, match="are called"):
        namespace_of(where)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"nodes": 0, "pods": 1}, "1 to 1000 nodes"),
        ({"nodes": 1, "pods": -1}, "0 to 200 pods"),
        ({"nodes": 1, "pods": 1, "mtu": 1279}, "MTU"),
    ],
)
def test_an_impossible_shape_is_refused(shape: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Shape(**shape)


def test_a_pod_is_named_for_people_cluster_and_kernel() -> None:
    pod = LabPod(LabNode(3), 2)
    assert (pod.name, pod.cluster_name, pod.namespace) == ("n3/p2", "n3-p2", "pellicle-n3-p2")
    assert pod.labels == {"app": "p2"}
