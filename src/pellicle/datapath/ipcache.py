# SPDX-License-Identifier: Apache-2.0
"""Who: every address of the cluster, its identity, and the node that holds it.

The maps `ipcache` and `cluster_cidrs`. What is inside a cluster CIDR and not here is
never taken for the outside world.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntFlag
from ipaddress import ip_network

from pellicle.datapath.address import from_bytes, from_cidr, to_bytes, to_cidr
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import (
    IDENTITY_HOST,
    IDENTITY_REMOTE_NODE,
    Address,
    Endpoint,
    EndpointName,
    IdentityNumber,
    Network,
    Node,
    NodeName,
)
from pellicle.kernel.bpf import Object
from pellicle.policy.members import NOBODYS, GroupNumber, Member


class PeerFlags(IntFlag):
    """`enum peer_flags`."""

    LOCAL = 1
    NODE = 2


@dataclass(frozen=True, slots=True)
class Peer:
    """`struct peer`."""

    identity: IdentityNumber
    flags: PeerFlags
    node: Address
    group: GroupNumber = NOBODYS
    """For encryption policies."""


class CidrFlags(IntFlag):
    """`enum cidr_flags`."""

    NONE = 0
    NODE = 1
    """Where nodes are, and not pods."""


@dataclass(frozen=True, slots=True)
class CidrRow:
    """`struct cidr_row`."""

    flags: CidrFlags = CidrFlags.NONE
    group: GroupNumber = NOBODYS
    """Of addresses in there that the ipcache does not know."""


def plan(
    local: NodeName,
    nodes: Mapping[NodeName, Node],
    endpoints: Mapping[EndpointName, Endpoint],
    members: Mapping[Address, Member],
) -> dict[Address, Peer]:
    """Addresses of nodes, their gateways and their pods; an endpoint of an unknown node waits."""
    rows: dict[Address, Peer] = {}
    for endpoint in endpoints.values():
        node = nodes.get(endpoint.node)
        if node is None or not node.addresses:
            continue
        flags = PeerFlags.LOCAL if node.name == local else PeerFlags(0)
        peer = Peer(endpoint.identity, flags, node.addresses[0])
        rows.update((address, peer) for address in endpoint.addresses)
    for node in nodes.values():
        rows.update(_node_rows(local, node))
    for address in rows.keys() & members.keys():
        rows[address] = replace(rows[address], group=members[address].group)
    return rows


Cidrs = dict[Network, CidrRow]


def configured_cidrs(
    of_pods: Iterable[Network],
    of_nodes: Iterable[Network],
    but: Iterable[Network],
    own: Iterable[Address],
) -> Cidrs:
    """Those that are the cluster's whatever the records say; `but`: no node is in there.

    `own`: addresses of this node. While they are not there, the datapath takes nobody for a
    stranger.
    """
    whole = set(of_nodes)
    for hole in but:
        whole = {part for cidr in whole for part in _around(cidr, hole)}
    rows = {cidr: CidrRow(CidrFlags.NODE) for cidr in whole}
    rows |= {cidr: CidrRow() for cidr in of_pods}
    return rows | {ip_network(address): CidrRow(CidrFlags.NODE) for address in own}


def plan_cidrs(
    configured: Mapping[Network, CidrRow],
    nodes: Mapping[NodeName, Node],
    networks: Mapping[Network, Member],
) -> Cidrs:
    """The configured CIDRs and whatever the nodes say they own, their addresses, too.

    `networks`: those of the configured ones, and parts of them, that policies name.
    """
    named = {
        cidr: CidrRow(_flags_in(configured, cidr), member.group)
        for cidr, member in networks.items()
    }
    rows = {cidr: CidrRow() for node in nodes.values() for cidr in node.pod_cidrs}
    addresses = (address for node in nodes.values() for address in node.addresses)
    of_nodes = {ip_network(address): CidrRow(CidrFlags.NODE) for address in addresses}
    return {**configured, **rows, **named, **of_nodes}


def _flags_in(configured: Mapping[Network, CidrRow], part: Network) -> CidrFlags:
    """Of the narrowest one that `part` lies in."""
    lengths = range(part.prefixlen, -1, -1)
    around = (configured.get(part.supernet(new_prefix=length)) for length in lengths)
    return next((row.flags for row in around if row is not None), CidrFlags.NONE)


def _around(cidr: Network, hole: Network) -> Iterator[Network]:
    """The parts of `cidr` that are not in `hole`."""
    if cidr.version != hole.version or not cidr.overlaps(hole):
        yield cidr
    elif hole.prefixlen > cidr.prefixlen:
        yield from cidr.address_exclude(hole)  # type: ignore[arg-type]


def _node_rows(local: NodeName, node: Node) -> Iterable[tuple[Address, Peer]]:
    if not node.addresses:
        return
    is_local = node.name == local
    identity = IDENTITY_HOST if is_local else IDENTITY_REMOTE_NODE
    flags = PeerFlags.NODE | (PeerFlags.LOCAL if is_local else PeerFlags(0))
    peer = Peer(identity, flags, node.addresses[0])
    for address in node.own_addresses:
        yield address, peer


def target(bpf: Object) -> MapTarget[Address, Peer]:
    return MapTarget(
        bpf.map("ipcache"),
        bpf.btf.struct("addr"),
        bpf.btf.struct("peer"),
        lambda address: {"bytes": to_bytes(address)},
        lambda _, row: {
            "identity": row.identity,
            "flags": int(row.flags),
            "node": {"bytes": to_bytes(row.node)},
            "group": row.group,
        },
        _from_fields,
    )


def cidr_target(bpf: Object) -> MapTarget[Network, CidrRow]:
    return MapTarget(
        bpf.map("cluster_cidrs"),
        bpf.btf.struct("cidr"),
        bpf.btf.struct("cidr_row"),
        _cidr_key,
        lambda _, row: {"flags": int(row.flags), "group": row.group},
        lambda key, row: (
            from_cidr(key["prefixlen"], key["addr"]["bytes"]),
            CidrRow(CidrFlags(row["flags"]), GroupNumber(row["group"])),
        ),
    )


def _from_fields(key: Fields, row: Fields) -> tuple[Address, Peer]:
    node = from_bytes(row["node"]["bytes"])
    identity, flags = IdentityNumber(row["identity"]), PeerFlags(row["flags"])
    peer = Peer(identity, flags, node, GroupNumber(row["group"]))
    return from_bytes(key["bytes"]), peer


def _cidr_key(network: Network) -> Fields:
    prefixlen, raw = to_cidr(network)
    return {"prefixlen": prefixlen, "addr": {"bytes": raw}}
