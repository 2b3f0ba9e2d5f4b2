# SPDX-License-Identifier: Apache-2.0
"""Which encryption policies name an address.

    pod, node, network ──▶ sides {(policy, selector), …} ──▶ group: the name of that set

Addresses that the same selectors name are treated alike, so the datapath need not know who they
are, only their group. The number of a group is a hash of the set: the same in every life of the
agent, and whatever other policies there are. Who is named by none is in group 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_network
from typing import NewType

from pellicle.facts import (
    Address,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Network,
    Node,
    NodeName,
    PolicyName,
    Selector,
)

GroupNumber = NewType("GroupNumber", int)
"""64 bits."""
Side = tuple[PolicyName, int]
"""A policy and which of its selectors."""
Sides = frozenset[Side]
NOBODYS = GroupNumber(0)
NOWHERE = NodeName("")
"""In place of the node of addresses that nobody is known to have."""


@dataclass(frozen=True, slots=True)
class Member:
    """What is named by some policy."""

    group: GroupNumber
    sides: Sides
    node: NodeName


def group_of(sides: Sides) -> GroupNumber:
    """Its number."""
    if not sides:
        return NOBODYS
    text = "\n".join(f"{number} {name}" for name, number in sorted(sides))
    return GroupNumber(int.from_bytes(sha256(text.encode()).digest()[:8], "big") or 1)


class Selectors:
    """All selectors there are, found by what they ask for: a look-up costs what it finds."""

    def __init__(self, policies: Iterable[EncryptionPolicy]) -> None:
        self._by_label: dict[tuple[str, str], list[tuple[Side, Selector]]] = {}
        self._by_namespace: dict[str, list[tuple[Side, Selector]]] = {}
        self._by_node: dict[NodeName, list[tuple[Side, Selector]]] = {}
        self._by_network: dict[Network, list[tuple[Side, Selector]]] = {}
        self._others: list[tuple[Side, Selector]] = []
        for policy in policies:
            for number, selector in enumerate(policy.between):
                for filed in self._places(selector):
                    filed.append(((policy.name, number), selector))
        self._lengths = {
            version: {each.prefixlen for each in self._by_network if each.version == version}
            for version in (4, 6)
        }
        self._numbers: dict[Sides, GroupNumber] = {}

    def _places(self, selector: Selector) -> Iterator[list[tuple[Side, Selector]]]:
        """Where it is looked for: under what fewest have."""
        if selector.labels:
            yield self._by_label.setdefault(min(selector.labels.items()), [])
        elif selector.namespaces:
            yield from (self._by_namespace.setdefault(each, []) for each in selector.namespaces)
        elif selector.nodes:
            yield from (self._by_node.setdefault(each, []) for each in selector.nodes)
        elif selector.cidrs:
            yield from (self._by_network.setdefault(each, []) for each in selector.cidrs)
        else:
            yield self._others

    @property
    def networks(self) -> Iterable[Network]:
        """Those that are asked for alone."""
        return self._by_network.keys()

    def member(
        self, at: Address | Network, node: NodeName, endpoint: Endpoint | None = None
    ) -> Member | None:
        """Who it is for policies; None: nobody. `endpoint`: the pod whose address it is."""
        found = ip_network(at)
        near = [*self._others, *self._by_node.get(node, ())]
        if endpoint is not None:
            near += self._by_namespace.get(endpoint.name.namespace, ())
            for label in endpoint.labels.items():
                near += self._by_label.get(label, ())
        for length in self._lengths[found.version]:
            if length <= found.prefixlen:
                near += self._by_network.get(found.supernet(new_prefix=length), ())
        sides = frozenset(
            side for side, selector in near if _names(selector, found, node, endpoint)
        )
        if not sides:
            return None
        if sides not in self._numbers:
            self._numbers[sides] = group_of(sides)
        return Member(self._numbers[sides], sides, node)


def _names(selector: Selector, network: Network, node: NodeName, endpoint: Endpoint | None) -> bool:
    if selector.nodes and node not in selector.nodes:
        return False
    if selector.cidrs and not _lies_in(network, selector.cidrs):
        return False
    if not selector.namespaces and not selector.labels:
        return True
    if endpoint is None:
        return False
    return (
        not selector.namespaces or endpoint.name.namespace in selector.namespaces
    ) and selector.labels.items() <= endpoint.labels.items()


def plan(
    selectors: Selectors,
    nodes: Mapping[NodeName, Node],
    endpoints: Mapping[EndpointName, Endpoint],
) -> dict[Address, Member]:
    """Each address of a pod or a node that some policy names."""
    rows = {
        address: member
        for endpoint in endpoints.values()
        for address in endpoint.addresses
        if (member := selectors.member(address, endpoint.node, endpoint))
    }
    for node in nodes.values():
        for address in node.own_addresses:
            if member := selectors.member(address, node.name):
                rows[address] = member
    return rows


def plan_networks(selectors: Selectors, cluster: Iterable[Network]) -> dict[Network, Member]:
    """The same for what is the cluster's, but may be nobody's yet. `cluster`: the CIDRs whose
    addresses are never the world's.
    """
    mine = tuple(cluster)
    inside = [each for each in selectors.networks if _lies_in(each, mine)]
    return {
        network: member
        for network in (*mine, *inside)
        if (member := selectors.member(network, NOWHERE))
    }


def _lies_in(network: Network, others: Iterable[Network]) -> bool:
    return any(
        network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]
        for each in others
    )
