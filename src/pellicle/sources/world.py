# SPDX-License-Identifier: Apache-2.0
"""All documents → one `World`: what holds, what waits, what is rejected, and why.

Pure, and the same on every node whatever the order in which files were read. Of
documents that contradict each other one stays, by a rule that looks only at them:

    the same name twice       the one in its own place (nodes/n1.yaml), else the first path
    the same address or CIDR  the first name, as text: node n1 before node n2
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from pellicle.facts import (
    Address,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Identity,
    IdentityNumber,
    Network,
    Node,
    NodeName,
    PolicyName,
    PolicyNumber,
    Rejected,
)
from pellicle.identity import NAMESPACE_LABEL
from pellicle.sources.resources import Document, Resource, place, title

R = TypeVar("R", Node, Endpoint, Identity, EncryptionPolicy)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pending:
    """An endpoint that is in order, but names a node or an identity that nobody knows (yet)."""

    source: str
    endpoint: Endpoint
    why: str


@dataclass(frozen=True, slots=True)
class World:
    """One consistent picture: no name, address or CIDR is in it twice."""

    nodes: Mapping[NodeName, Node]
    endpoints: Mapping[EndpointName, Endpoint]
    identities: Mapping[IdentityNumber, Identity]
    policies: Mapping[PolicyName, EncryptionPolicy]
    rejected: tuple[Rejected, ...] = ()
    pending: tuple[Pending, ...] = ()


def judge(documents: Iterable[Document[Resource]], rejected: Iterable[Rejected] = ()) -> World:
    """The world that `documents` describe; `rejected` is what could not even be read."""
    everything = sorted(documents, key=lambda d: (d.source, d.position))
    bad = list(rejected)
    identities = _distinct(_of(Identity, everything), lambda i: i.number, bad)
    nodes = _without_overlaps(_distinct(_of(Node, everything), lambda n: n.name, bad), bad)
    homes = {name: _Home(node) for name, node in nodes.items()}
    pending: list[Pending] = []
    placed = (
        document
        for document in _of(Endpoint, everything)
        if _is_in_order(document, homes, identities, bad, pending)
    )
    endpoints = _without_shared_addresses(_distinct(placed, lambda e: e.name, bad), bad)
    policies = _without_shared_numbers(
        _distinct(_of(EncryptionPolicy, everything), lambda p: p.name, bad), bad
    )
    return World(
        MappingProxyType(nodes),
        MappingProxyType(endpoints),
        MappingProxyType({number: found.resource for number, found in identities.items()}),
        MappingProxyType(policies),
        tuple(sorted(bad, key=lambda r: (r.source, r.name, r.why))),
        tuple(pending),
    )


def _of(kind: type[R], documents: Iterable[Document[Resource]]) -> Iterator[Document[R]]:
    for document in documents:
        if isinstance(document.resource, kind):
            yield document  # type: ignore[misc]


def _reject(bad: list[Rejected], document: Document[Resource], why: str) -> None:
    bad.append(Rejected(document.source, title(document.resource), why))


def _distinct(
    documents: Iterable[Document[R]], key: Callable[[R], K], bad: list[Rejected]
) -> dict[K, Document[R]]:
    """One document for each name, the names in order."""
    groups: dict[K, list[Document[R]]] = {}
    for document in documents:
        groups.setdefault(key(document.resource), []).append(document)
    for rivals in groups.values():
        if len(rivals) > 1:
            rivals.sort(key=lambda d: d.source != place(d.resource))  # Stable: then by path.
            for loser in rivals[1:]:
                _reject(bad, loser, f"already defined in {rivals[0].source}, which stays")
    return {name: groups[name][0] for name in sorted(groups, key=_order)}


def _order(name: Hashable) -> tuple[int, str, str]:
    if isinstance(name, EndpointName):
        return 0, name.namespace, name.name
    return (name, "", "") if isinstance(name, int) else (0, str(name), "")


@dataclass(slots=True)
class _Claims:
    """Ranges of addresses, none overlapping another, and who has them."""

    ranges: dict[int, list[tuple[int, int, str]]] = field(default_factory=lambda: {4: [], 6: []})

    def rival(self, claim: Address | Network) -> str | None:
        """Who has a part of `claim` already."""
        ranges = self.ranges[claim.version]
        first, last = _bounds(claim)
        before = bisect_right(ranges, last, key=lambda r: r[0])
        # What is claimed never overlaps, so only the last range that begins early enough can.
        return ranges[before - 1][2] if before and ranges[before - 1][1] >= first else None

    def add(self, claim: Address | Network, owner: str) -> None:
        insort(self.ranges[claim.version], (*_bounds(claim), f"{owner} ({claim})"))


def _bounds(claim: Address | Network) -> tuple[int, int]:
    if isinstance(claim, Network):
        return int(claim.network_address), int(claim.broadcast_address)
    return int(claim), int(claim)


def _without_overlaps(
    nodes: Mapping[NodeName, Document[Node]], bad: list[Rejected]
) -> dict[NodeName, Node]:
    """The nodes whose addresses and pod CIDRs meet no others', first names first."""
    claims = _Claims()
    good: dict[NodeName, Node] = {}
    for name, document in nodes.items():
        node = document.resource
        mine: tuple[Address | Network, ...] = (*node.addresses, *node.pod_cidrs)
        clash = next(((c, rival) for c in mine if (rival := claims.rival(c))), None)
        if clash is not None:
            _reject(bad, document, f"{clash[0]} overlaps {clash[1]}, which comes first and stays")
            continue
        for claim in mine:
            claims.add(claim, f"node {name}")
        good[name] = node
    return good


class _Home:
    """Where a node's pods can live."""

    def __init__(self, node: Node) -> None:
        self.cidrs = ", ".join(map(str, node.pod_cidrs)) or "none"
        self.ranges = [(cidr.version, *_bounds(cidr)) for cidr in node.pod_cidrs]

    def fault(self, address: Address) -> str | None:
        """Why no pod of the node can have `address`."""
        number = int(address)
        for version, first, last in self.ranges:
            if version == address.version and first <= number <= last:
                # The first one is where the node itself answers its pods.
                return (
                    "is the node's own in this pod CIDR" if number == min(first + 1, last) else None
                )
        return f"is outside the node's pod CIDRs ({self.cidrs})"


def _is_in_order(
    document: Document[Endpoint],
    homes: Mapping[NodeName, _Home],
    identities: Mapping[IdentityNumber, Document[Identity]],
    bad: list[Rejected],
    pending: list[Pending],
) -> bool:
    """Whether the endpoint is right in itself; if not, it was put where it belongs."""
    endpoint = document.resource
    home = homes.get(endpoint.node)
    identity = identities.get(endpoint.identity)
    why = _misplaced(document, home) or _mistaken(endpoint, identity)
    if why:
        _reject(bad, document, why)
    elif home is None:
        wait = (
            f"node {endpoint.node} is not known, or rejected: waits for nodes/{endpoint.node}.yaml"
        )
        pending.append(Pending(document.source, endpoint, wait))
    elif identity is None:
        wait = f"identity {endpoint.identity} is not recorded: waits for its record in identities/"
        pending.append(Pending(document.source, endpoint, wait))
    return not why and home is not None and identity is not None


def _misplaced(document: Document[Endpoint], home: _Home | None) -> str | None:
    endpoint = document.resource
    top, _, rest = document.source.partition("/")
    owner, slash, _ = rest.partition("/")
    if top == "endpoints" and slash and owner != endpoint.node:
        return f"spec.node is {endpoint.node}, but the file lies in node {owner}'s directory"
    if home is None:
        return None
    for address in endpoint.addresses:
        if fault := home.fault(address):
            return f"{address} {fault}"
    return None


def _mistaken(endpoint: Endpoint, identity: Document[Identity] | None) -> str | None:
    """What contradicts the record of the endpoint's identity."""
    if identity is None:
        return None
    mine = {**endpoint.labels, NAMESPACE_LABEL: endpoint.name.namespace}
    theirs = identity.resource.labels
    if theirs == mine:
        return None
    other = ", ".join(f"{k}={v}" for k, v in sorted(set(mine.items()) ^ set(theirs.items())))
    number = endpoint.identity
    return f"identity {number} has other labels in {identity.source}; they differ in {other[:256]}"


def _without_shared_addresses(
    endpoints: Mapping[EndpointName, Document[Endpoint]], bad: list[Rejected]
) -> dict[EndpointName, Endpoint]:
    """The endpoints that have their addresses alone, first names first."""
    owners: dict[Address, EndpointName] = {}
    good: dict[EndpointName, Endpoint] = {}
    for name, document in endpoints.items():
        endpoint = document.resource
        clash = next((a for a in endpoint.addresses if a in owners), None)
        if clash is not None:
            rival = owners[clash]
            _reject(bad, document, f"{clash} belongs to endpoint {rival}, which stays")
            continue
        owners.update(dict.fromkeys(endpoint.addresses, name))
        good[name] = endpoint
    return good


def _without_shared_numbers(
    policies: Mapping[PolicyName, Document[EncryptionPolicy]], bad: list[Rejected]
) -> dict[PolicyName, EncryptionPolicy]:
    """The policies that have their numbers alone, first names first."""
    owners: dict[PolicyNumber, PolicyName] = {}
    good: dict[PolicyName, EncryptionPolicy] = {}
    for name, document in policies.items():
        policy = document.resource
        rival = owners.setdefault(policy.number, name)
        if rival != name:
            why = f"its number is that of {rival}, which stays: give it another name"
            _reject(bad, document, why)
            continue
        good[name] = policy
    return good
