# SPDX-License-Identifier: Apache-2.0
"""What stands of a lab: read from the kernel, the agents and the run directory, never remembered.

Only the shape that was asked for is a file; everything else is found by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pellicle.facts import Address
from pellicle.lab import agents, cabling, pods, processes
from pellicle.lab.errors import LabError
from pellicle.lab.topology import SHAPE, WIRE, LabNode, LabPod, Shape, node_named, pod_named


@dataclass(frozen=True, slots=True)
class PodState:
    name: str
    """n1/p1"""
    cluster_name: str
    """As the cluster knows it: default/n1-p1"""
    namespace: str
    addresses: tuple[str, ...]
    """Empty: not plugged in."""


@dataclass(frozen=True, slots=True)
class NodeState:
    name: str
    namespace: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    pid: int | None
    """Of the agent that runs."""
    agent: Mapping[str, Any] | None
    """Its own status."""
    problem: str
    """Why it does not carry traffic yet; empty when it does."""
    pods: tuple[PodState, ...]


@dataclass(frozen=True, slots=True)
class LabState:
    shape: Shape | None
    """What was asked for; None when no lab was."""
    nodes: tuple[NodeState, ...]

    @property
    def is_up(self) -> bool:
        return self.shape is not None and len(self.nodes) == self.shape.nodes

    @property
    def is_ready(self) -> bool:
        """Whether everything that was asked for stands and works."""
        return self.is_up and not any(node.problem for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_up": self.is_up, "is_ready": self.is_ready}


def status() -> LabState:
    """What stands, asking each agent."""
    shape = read_shape()
    return LabState(shape, tuple(_node_state(node, shape) for node in standing_nodes()))


def read_shape() -> Shape | None:
    """What was asked for last, None when nothing was or a `down` has ended it."""
    try:
        return Shape(**json.loads(SHAPE.read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise LabError(f"{SHAPE} cannot be read ({error}): run `pellicle lab down`") from error


def must_read_shape() -> Shape:
    shape = read_shape()
    if shape is None:
        raise LabError("no lab is up: start one with `pellicle lab up`")
    return shape


def write_shape(shape: Shape) -> None:
    fresh = SHAPE.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(shape), indent=2) + "\n")
    fresh.rename(SHAPE)


def standing_nodes() -> tuple[LabNode, ...]:
    """The nodes that have a namespace."""
    names = [name for name in cabling.namespaces() if re.fullmatch(r"pellicle-n\d+", name)]
    return tuple(sorted(node_named(name) for name in names))


def standing_pods(node: LabNode | None = None) -> tuple[LabPod, ...]:
    """The pods that have a namespace: of one node, or of all."""
    found = [pod_named(name) for name in cabling.namespaces() if _is_pod(name)]
    return tuple(sorted(pod for pod in found if node in {None, pod.node}))


def standing_addresses() -> tuple[Address, ...]:
    """Those of all nodes and of all pods that are plugged in."""
    of_pods = [address for pod in standing_pods() for address in pods.addresses(pod)]
    return (*node_addresses(), *of_pods)


def node_addresses() -> tuple[Address, ...]:
    return tuple(address for node in standing_nodes() for address in node.addresses)


def _is_pod(namespace: str) -> bool:
    return namespace != WIRE and namespace.count("-") == 2


def _node_state(node: LabNode, shape: Shape | None) -> NodeState:
    process = processes.read_pid_file(node.pid_file)
    row: Mapping[str, Any] | None = None
    problem = "no agent runs" if process is None else "no lab was asked for"
    if process is not None and shape is not None:
        problem = agents.why_not_ready(node, shape, standing_addresses())
        with suppress(LabError):
            row = agents.status(node)
    return NodeState(
        name=node.name,
        namespace=node.namespace,
        addresses=tuple(map(str, node.addresses)),
        pod_cidrs=tuple(map(str, node.pod_cidrs)),
        pid=process.pid if process else None,
        agent=row,
        problem=problem,
        pods=tuple(_pod_state(pod) for pod in standing_pods(node)),
    )


def _pod_state(pod: LabPod) -> PodState:
    addresses = tuple(map(str, pods.addresses(pod)))
    return PodState(pod.name, pod.cluster_name, pod.namespace, addresses)
