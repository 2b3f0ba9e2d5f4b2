# SPDX-License-Identifier: Apache-2.0
"""Which of an agent's tables is planned from which others, and by which part of them.

    node, pod ──▶ of that node: names, ipcache, cluster_cidrs, remotes, routes
    policy    ──▶ of each group: what it may say to those of this node; of each node: which keys
    SA        ──▶ of its node: policies; of its slot: whether its pair is passable;
                  of the state that it shares: that it stands
    send      ──▶ of its node: the row of the encryption table

A change costs what it changes, and a cluster may have thousands of nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pellicle.datapath import door, endpoints, ipcache, overlay, programs, xfrm_device
from pellicle.datapath.programs import DOOR_HOST, DOOR_OVERLAY, DOOR_XFRM
from pellicle.encryption import policies
from pellicle.encryption import table as encryption_table
from pellicle.encryption.policies import number_of, shared_by, slot_of
from pellicle.encryption.routes import RouteName, RoutePlan
from pellicle.encryption.table import EncryptKey, EncryptRow, key_for
from pellicle.facts import (
    Address,
    Context,
    Endpoint,
    EndpointName,
    Engine,
    Link,
    Network,
    Node,
    NodeName,
    Overlay,
    Owned,
    PolicyNumber,
)
from pellicle.flows import names
from pellicle.plans import Derivation, Parted, some
from pellicle.policy import members, rulebook
from pellicle.policy.members import Member
from pellicle.policy.rulebook import Books, Judgement, PairKey, PortsNumber
from pellicle.table import Table
from pellicle.tables import Tables
from pellicle.wire.netlink import Route

Derivations = Iterator[Derivation[Any, Any]]


def of_cluster(t: Tables, local: NodeName, uplink: str, cidrs: ipcache.Cidrs) -> Derivations:
    """Who is where, and the way to the door."""
    nodes = Parted(t.nodes, lambda name, _: name)
    pods = Parted(t.endpoints, lambda _, endpoint: endpoint.node)
    yield Derivation(t.own, partial(plan_own, local), [t.nodes], settle=0)
    ways = (uplink, DOOR_HOST, DOOR_XFRM, DOOR_OVERLAY)
    yield Derivation(t.ways, partial(some, ways), [t.links], settle=0)
    yield Derivation(t.names, partial(names.plan, local), [nodes, pods])
    yield Derivation(t.members, plan_members, [t.book, nodes, pods])
    yield Derivation(t.networks, partial(plan_networks, cidrs), [t.book])
    named = Parted(t.members, lambda _, member: member.node)
    yield Derivation(t.ipcache, partial(ipcache.plan, local), [nodes, pods, named])
    yield Derivation(t.cidrs, partial(ipcache.plan_cidrs, cidrs), [nodes, t.networks])
    yield Derivation(t.hooks, partial(programs.plan, uplink), [t.links])
    yield Derivation(t.door, partial(door.plan, local, uplink), [t.own, t.ways])
    yield Derivation(t.doors, door.plan_doors, [t.ways])

    def device(_: EndpointName, endpoint: Endpoint) -> str | None:
        plug = endpoint.attachment
        return plug.host_device if endpoint.node == local and plug else None

    plugged = Parted(t.endpoints, device)
    links = Parted(t.links, lambda name, _: name)
    yield Derivation(t.pods, partial(endpoints.plan, local), [plugged, links])


def plan_members(
    books: Books, nodes: Mapping[NodeName, Node], endpoints: Mapping[EndpointName, Endpoint]
) -> dict[Address, Member]:
    """Who is named by encryption policies."""
    return members.plan(books[0].selectors, nodes, endpoints) if books else {}


def plan_networks(cidrs: ipcache.Cidrs, books: Books) -> dict[Network, Member]:
    """The same for parts of the cluster's CIDRs."""
    return members.plan_networks(books[0].selectors, cidrs) if books else {}


def of_policies(t: Tables, local: NodeName, *, has_own_keys: bool = True) -> Derivations:
    """What encryption policies come to between groups of addresses.

    `has_own_keys`: keys are derived. If not, what asks for some of its own is never sent.
    """
    yield Derivation(t.book, rulebook.plan_book, [t.encryption_policies], settle=0)
    named = Parted(t.members, lambda _, member: (member.group, member.node))
    networks = Parted(t.networks, lambda _, member: (member.group, member.node))
    yield Derivation(t.groups, rulebook.plan_groups, [named, networks])
    here = Parted(t.groups, lambda placed, _: placed.group if placed.node == local else None)
    yield Derivation(t.local_groups, partial(rulebook.plan_local, local), [here])
    yield from _of_own_keys(t, has_own_keys=has_own_keys)
    by_group = Parted(t.groups, lambda placed, _: placed.group)
    yield Derivation(t.judged, rulebook.plan, [t.active_book, t.local_groups, by_group])

    def listed(_: PairKey, judgement: Judgement) -> PortsNumber | None:
        return judgement.ports_number or None

    ports = [
        Parted(t.judged, listed),
        Parted(t.policy_rows_up, lambda _, row: row.ports or None),
        Parted(t.policy_ports_up, lambda key, _: key.ports),
    ]
    yield Derivation(t.policy_ports, rulebook.plan_ports, ports)
    judged = Parted(t.judged, lambda key, judgement: judgement.ports_number or key)
    standing = Parted(t.policy_ports_up, lambda key, _: key.ports)
    yield Derivation(t.policy_rows, rulebook.plan_rows, [judged, standing])


def _of_own_keys(t: Tables, *, has_own_keys: bool) -> Derivations:
    """With whom they are needed, and the policies as far as they stand."""
    by_node = Parted(t.groups, lambda placed, _: placed.node)
    yield Derivation(t.contexts, rulebook.plan_contexts, [t.book, t.local_groups, by_node])
    yield Derivation(t.kept_contexts, rulebook.plan_kept, [t.book, t.contexts, t.kept_contexts])
    yield Derivation(t.covered, plan_covered, [t.book, t.contexts, _by_address(t), _standing(t)])
    if not has_own_keys:
        yield Derivation(t.active_book, rulebook.plan_book, [t.encryption_policies], settle=0)
        return
    yield Derivation(
        t.active_policies,
        rulebook.plan_active,
        [t.encryption_policies, t.contexts, t.covered, t.active_policies],
        settle=0,
    )
    yield Derivation(t.active_book, rulebook.plan_book, [t.active_policies], settle=0)


def plan_covered(
    books: Books,
    contexts: Mapping[Owned, PolicyNumber],
    nodes: Mapping[NodeName, Node],
    encrypt: Mapping[EncryptKey, EncryptRow],
) -> dict[Owned, PolicyNumber]:
    """What a policy asks for is there to send with, or there is nothing at all for that node."""
    return {
        (node.name, Context(number)): number
        for book in books.values()
        for number in book.own_keys
        for node in nodes.values()
        if (node.name, Context(number)) in contexts
        and (
            EncryptKey(Context(number), node.addresses[0]) in encrypt
            or key_for(node) not in encrypt
        )
    }


def plan_own(local: NodeName, nodes: Mapping[NodeName, Node]) -> dict[NodeName, Node]:
    """This node, but for what only its keys depend on."""
    own = nodes.get(local)
    return {local: replace(own, offers=())} if own else {}


def of_encryption(t: Tables, used: Engine, subnets: Collection[Network] = ()) -> Derivations:
    """What peers are sent to on, and whether the kernel lets it pass. `used`: by new pairs."""
    kernels = Parted(t.sas_up, lambda key, sa: key if sa.engine is Engine.XFRM else None)
    yield Derivation(t.kernel_sas, policies.kernels, [kernels], settle=0)
    yield Derivation(t.kernel_used, partial(xfrm_device.plan_used, used), [t.kernel_sas], settle=0)
    states = Parted(t.kernel_sas, lambda _, sa: shared_by(sa))
    yield Derivation(t.shared, policies.plan_shared, [states], settle=0)
    numbers: list[Table[Any, Any] | Parted] = [
        Parted(table, lambda _, policy: number_of(policy) or None)
        for table in (t.policies, t.policies_up)
    ]
    yield Derivation(t.shared_up, policies.plan_shared_passable, numbers)
    slots: list[Table[Any, Any] | Parted] = [
        Parted(t.kernel_sas, lambda _, sa: sa.slot),
        Parted(t.policies, lambda _, policy: slot_of(policy)),
        Parted(t.policies_up, lambda _, policy: slot_of(policy)),
        t.shared_up,
    ]
    yield Derivation(t.passable, partial(policies.plan_passable, subnets=subnets), slots)
    sends = Parted(t.sends, lambda _, send: send.node)
    passable = Parted(t.passable, lambda _, node: node)
    own = Parted(t.own_sends, lambda _, send: send.node)
    yield Derivation(t.encrypt, encryption_table.plan, [sends, own, passable, _standing(t)])


def of_routes(t: Tables, route: RoutePlan) -> Derivations:
    """To every peer whose door is there."""

    def plan(
        own: Mapping[NodeName, Node],
        ways: Mapping[str, Link],
        paths: Mapping[Address, int],
        nodes: Mapping[NodeName, Node],
        encrypt: Mapping[EncryptKey, EncryptRow],
    ) -> Mapping[RouteName, Route]:
        return route.routes({**nodes, **own}, ways, paths, encrypt)

    yield Derivation(t.routes, plan, [t.own, t.ways, t.paths, _by_address(t), _standing(t)])


def of_overlay(
    t: Tables, local: NodeName, uplink: str, kind: Overlay | None, family: str
) -> Derivations:
    """Its device, and where its packets go; neither, where pods are routed directly."""
    yield Derivation(t.overlay, partial(overlay.plan, kind, uplink), [t.ways])
    if kind is None:
        t.remotes.replace({})
        return

    def plan(
        own: Mapping[NodeName, Node], nodes: Mapping[NodeName, Node]
    ) -> Mapping[Address, Address]:
        return overlay.plan_remotes(local, family, {**nodes, **own})

    yield Derivation(t.remotes, plan, [t.own, _by_address(t)])


def of_kernel_ipsec(
    t: Tables, uplink: str, subnets: Collection[Network] = (), *, is_overlay: bool = False
) -> Derivations:
    """Its device and its policies, as long as anything needs them."""
    yield Derivation(t.device, partial(xfrm_device.plan, uplink), [t.ways, t.kernel_used])
    sas = Parted(t.kernel_sas, lambda _, sa: sa.node)
    plan = partial(policies.plan, subnets=subnets, is_overlay=is_overlay)
    yield Derivation(t.policies, plan, [t.kernel_used, sas, _by_address(t), t.shared])


def _standing(t: Tables) -> Parted:
    """Of the encryption table, by node."""
    return Parted(t.encrypt_up, lambda key, _: key.node)


def _by_address(t: Tables) -> Parted:
    """Nodes by their primary ones, as SAs and the encryption table name them."""
    return Parted(t.nodes, lambda _, node: node.addresses[0] if node.addresses else None)
