# SPDX-License-Identifier: Apache-2.0
"""How a lab looks: names, addresses and places, all computed from numbers.

      pellicle-n1                     pellicle-wire                      pellicle-n2
    ┌───────────────┐            ┌────────────────────┐            ┌───────────────┐
    │ eth0 192.168.1.2 ───────── n1 .1            .1 n2 ───────── 192.168.2.2 eth0 │
    │  agent        │            │  a router, nothing │            │        agent  │
    │  ╪ veth       │            │  else              │            │       veth ╪  │
    └──┼────────────┘            └────────────────────┘            └────────────┼──┘
  pellicle-n1-p1  10.244.1.x                               10.244.2.x  pellicle-n2-p1

Nothing here touches the world. Everything that a lab makes carries the prefix `pellicle-`
followed by `wire` or a node's number, and is found again by that name alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Any, Final

from pellicle.facts import Address, Network
from pellicle.lab.engines import AUTO, parse

Interface = IPv4Interface | IPv6Interface

RUN: Final = Path("/run/pellicle-lab")
LOCK: Final = Path("/run/pellicle-lab.lock")
CLUSTER: Final = RUN / "cluster"
"""The directory source that all agents of the lab share."""
PSK: Final = RUN / "psk"
SHAPE: Final = RUN / "shape.json"
BPFFS: Final = Path("/sys/fs/bpf/pellicle-lab")
WIRE: Final = "pellicle-wire"
UPLINK: Final = "eth0"
POD_NAMESPACE: Final = "default"
"""The Kubernetes namespace of the lab's pods."""

BLOCK: Final = 250
"""Nodes to one /16: 1 … 250 keep their number in the third byte of their addresses."""
MOST_NODES: Final = 1000
MOST_PODS: Final = 200
LEAST_MTU: Final = 1380
"""IPv6 in the pods needs 1280 (RFC 8200 §5), ESP with IPv6 outside up to 77 more; rounded up."""

_OURS = re.compile(r"pellicle-(wire|n[1-9][0-9]*(-p[1-9][0-9]*)?)")
_NODE = re.compile(r"n([1-9][0-9]*)")
_POD = re.compile(r"n([1-9][0-9]*)[/-]p([1-9][0-9]*)")
_CLUSTER_V4: Final = IPv4Network("10.244.0.0/14")
"""Every pod of every possible node: four blocks."""
_CLUSTER_V6: Final = IPv6Network("fd00:244::/32")


@dataclass(frozen=True, slots=True)
class Shape:
    """What was asked for."""

    nodes: int
    pods: int
    """On each node."""
    engine: str = AUTO
    """In the words of `engines`."""
    encrypt: bool = True
    mtu: int = 1500
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More of the agents' configuration, by its own keys."""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MOST_NODES:
            raise ValueError(f"a lab has 1 to {MOST_NODES} nodes, not {self.nodes}")
        if not 0 <= self.pods <= MOST_PODS:
            raise ValueError(f"a node of the lab has 0 to {MOST_PODS} pods, not {self.pods}")
        if not LEAST_MTU <= self.mtu <= 65535:
            raise ValueError(
                f"the wire's MTU is {LEAST_MTU} to 65535, not {self.mtu}: "
                "with less, IPv6 in the pods has no room"
            )
        parse(self.engine, self.nodes)

    def engine_of(self, node: LabNode) -> str:
        """What is asked of this node: an engine, or auto."""
        return parse(self.engine, self.nodes).of(node.name)


@dataclass(frozen=True, slots=True, order=True)
class LabNode:
    """One node of the lab."""

    number: int

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def namespace(self) -> str:
        return f"pellicle-{self.name}"

    @property
    def wire_device(self) -> str:
        """The wire's end of the uplink."""
        return self.name

    @property
    def uplinks(self) -> tuple[Interface, ...]:
        """The node's own addresses."""
        return tuple(type(ours)((ours.ip + 1, ours.network.prefixlen)) for ours in self.gateways)

    @property
    def gateways(self) -> tuple[Interface, ...]:
        """The wire's addresses, seen from this node."""
        block, third = divmod(self.number - 1, BLOCK)
        # 192.168.0.0/16 holds the first 250, 172.16.0.0/12 the others (RFC 1918).
        prefix = "192.168" if block == 0 else f"172.{15 + block}"
        return (
            IPv4Interface(f"{prefix}.{third + 1}.1/24"),
            IPv6Interface(f"fd00:168:{self.number}::1/64"),
        )

    @property
    def spiffe_socket(self) -> Path:
        """Of the Workload API, if the lab's agents have their keys from SPIFFE."""
        return self.run_dir / "spire.sock"

    @property
    def psk(self) -> Path:
        """The agent's pre-shared secret: a link to that of all nodes."""
        return self.run_dir / "psk"

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(uplink.ip for uplink in self.uplinks)

    @property
    def pod_cidrs(self) -> tuple[Network, ...]:
        block, third = divmod(self.number - 1, BLOCK)
        return (
            IPv4Network(f"10.{244 + block}.{third + 1}.0/24"),
            IPv6Network(f"fd00:244:{self.number}::/64"),
        )

    @property
    def run_dir(self) -> Path:
        return RUN / self.name

    @property
    def config(self) -> Path:
        return self.run_dir / "config.yaml"

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def log(self) -> Path:
        return self.run_dir / "agent.log"

    @property
    def pid_file(self) -> Path:
        return self.run_dir / "agent.pid"

    @property
    def bpffs(self) -> Path:
        return BPFFS / self.name


@dataclass(frozen=True, slots=True, order=True)
class LabPod:
    """One pod of the lab."""

    node: LabNode
    number: int

    @property
    def short(self) -> str:
        return f"p{self.number}"

    @property
    def name(self) -> str:
        """As a person says it: n1/p1."""
        return f"{self.node.name}/{self.short}"

    @property
    def cluster_name(self) -> str:
        """Its name within its Kubernetes namespace, one in the cluster."""
        return f"{self.node.name}-{self.short}"

    @property
    def namespace(self) -> str:
        return f"{self.node.namespace}-{self.short}"

    @property
    def labels(self) -> dict[str, str]:
        return {"app": self.short}

    @property
    def result(self) -> Path:
        """What the plugin answered to ADD, as a container runtime keeps it for DEL."""
        return self.node.run_dir / "pods" / f"{self.short}.json"


def cluster_cidrs(nodes: int) -> tuple[Network, ...]:
    """What covers the pods of the first `nodes` nodes: one /16 for each block, one /32."""
    blocks = range(1 + (nodes - 1) // BLOCK)
    return (*(IPv4Network(f"10.{244 + block}.0.0/16") for block in blocks), _CLUSTER_V6)


def nodes_of(count: int) -> tuple[LabNode, ...]:
    return tuple(LabNode(number) for number in range(1, count + 1))


def pods_of(node: LabNode, count: int) -> tuple[LabPod, ...]:
    return tuple(LabPod(node, number) for number in range(1, count + 1))


def is_ours(namespace: str) -> bool:
    """Whether a network namespace of this name belongs to a lab."""
    return _OURS.fullmatch(namespace) is not None


def node_named(name: str) -> LabNode:
    """`n3` -> the node; ValueError says what a node is called."""
    match = _NODE.fullmatch(name.removeprefix("pellicle-"))
    if match is None:
        raise ValueError(f"{name!r} is not a node of the lab: nodes are called n1, n2, …")
    return LabNode(int(match[1]))


def pod_named(name: str) -> LabPod:
    """`n1/p2` (or its namespace) -> the pod; ValueError says what a pod is called."""
    match = _POD.fullmatch(name.removeprefix("pellicle-"))
    if match is None:
        raise ValueError(f"{name!r} is not a pod of the lab: pods are called n1/p1, n1/p2, …")
    return LabPod(LabNode(int(match[1])), int(match[2]))


def namespace_of(where: str) -> str:
    """The namespace behind `wire`, `n1` or `n1/p1`."""
    if where in {"wire", WIRE}:
        return WIRE
    if "/" in where or _POD.fullmatch(where.removeprefix("pellicle-")):
        return pod_named(where).namespace
    return node_named(where).namespace


def owner_of(address: Address) -> str | None:
    """Whose address this is: `n2` for the node and for its pods, None when nobody's in the lab."""
    number = _number_v4(address) if isinstance(address, IPv4Address) else _number_v6(address)
    return f"n{number}" if number is not None and 1 <= number <= MOST_NODES else None


def is_cluster_address(address: Address) -> bool:
    """Whether this is a pod's address, which the wire must never see in the clear."""
    return address in (_CLUSTER_V4 if isinstance(address, IPv4Address) else _CLUSTER_V6)


def is_node_address(address: Address) -> bool:
    """Whether this is a node's own address: the wire must not see what two of them say."""
    number = _number_v4(address) if isinstance(address, IPv4Address) else _number_v6(address)
    return number is not None and 1 <= number <= MOST_NODES and address in LabNode(number).addresses


def _number_v4(address: IPv4Address) -> int | None:
    first, second, third, _ = address.packed
    if not 1 <= third <= BLOCK:
        return None
    if first == 10 and 244 <= second < 248:
        return (second - 244) * BLOCK + third
    if (first, second) == (192, 168):
        return third
    if first == 172 and 16 <= second < 32:
        return (second - 15) * BLOCK + third
    return None


def _number_v6(address: IPv6Address) -> int | None:
    groups = address.exploded.split(":")
    if groups[0] != "fd00" or groups[1] not in {"0168", "0244"}:
        return None
    # The node's decimal number is written as it is into the third group.
    return int(groups[2]) if groups[2].isdecimal() else None
