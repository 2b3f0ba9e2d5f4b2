# SPDX-License-Identifier: Apache-2.0
"""Which SA of the kernel's encrypts a packet that `door_xfrm` has marked: XFRM policies.

    out   any → 10.244.2.0/24   mark 0x00070e00/0xffff3f00   tmpl … spi … reqid …     each SA and
          any → 192.168.2.2/32  mark 0x00070e00/0xffff3f00   tmpl … spi … reqid …     prefix
    out   any → any             mark 0xe00/0xf00             block                    last of all
    in    any → any             mark 0/0xf00             tmpl any        what from_xfrm let pass

All carry the number of our device, so that they apply to what goes through it and to nothing
else. Prefixes are there for the kernel: it finds policies by destination, not by mark. A node's
own addresses are reached by SA 0 only. What no policy fits is dropped: the blocks are put before
anything else, and are the last to go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pellicle.datapath.address import host_network
from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption.routes import DEFAULTS
from pellicle.encryption.states import OUT_MASK, mark_of, out_reqid
from pellicle.facts import Address, Engine, Network, Node, NodeName, PairId
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction, Sa, SaKey
from pellicle.wire.xfrm import Action, Mark, Policy, PolicyDirection, PolicyKey, Template

PEER_PRIORITY, LAST_PRIORITY = 1000, 0x7FFFFFFF
"""The kernel takes the policy of the lowest."""
NODE_SA = 0
"""Of a pair: what carries packets for the node itself."""

ANY = {network.version: network for network in DEFAULTS}


def kernels(sas: Mapping[SaKey, Sa]) -> dict[SaKey, Sa]:
    """The SAs of the kernel's IPsec."""
    return {key: sa for key, sa in sas.items() if sa.engine is Engine.XFRM}


def plan(
    used: Mapping[Engine, bool], sas: Mapping[SaKey, Sa], nodes: Mapping[NodeName, Node]
) -> dict[PolicyKey, Policy]:
    """The blocks, and for each outbound SA that stands a policy to each prefix of its node.

    `sas`: the kernel's; `used`: empty while nothing is encrypted by the kernel.
    """
    if not used:
        return {}
    holders = {node.addresses[0]: node for node in nodes.values() if node.addresses}
    rows = {policy.key: policy for policy in _always()}
    for sa in sas.values():
        if sa.direction is Direction.OUT and sa.node in holders:
            rows.update((policy.key, policy) for policy in _to(sa, holders[sa.node]))
    return rows


def plan_passable(
    sas: Mapping[SaKey, Sa],
    wanted: Mapping[PolicyKey, Policy],
    standing: Mapping[PolicyKey, Policy],
) -> dict[PairId, Address]:
    """The pairs that packets find their way to, by peer: all their policies stand."""
    missing = {slot_of(policy) for key, policy in wanted.items() if standing.get(key) != policy}
    slots = {slot_of(policy) for policy in wanted.values()} - missing
    return {sa.pair: sa.node for sa in sas.values() if sa.slot in slots}


def _always() -> Iterable[Policy]:
    last = Mark(0xE00, 0xF00)
    for any_ in DEFAULTS:
        yield Policy(
            PolicyDirection.OUT, any_, any_, last, IF_ID, LAST_PRIORITY, action=Action.BLOCK
        )
    judged = Mark(0, 0xF00)
    for any_ in DEFAULTS:
        nowhere: Address = any_.network_address
        template = Template(nowhere, nowhere, spi=0, reqid=0)
        yield Policy(
            PolicyDirection.IN, any_, any_, judged, IF_ID, PEER_PRIORITY, template=template
        )


def _to(sa: Sa, node: Node) -> Iterable[Policy]:
    mark = Mark(mark_of(sa), OUT_MASK)
    template = Template(sa.source, sa.destination, sa.spi, out_reqid(sa.slot))
    prefixes: list[Network] = list(node.pod_cidrs)
    if sa.number == NODE_SA:
        prefixes += map(host_network, node.addresses)
    for prefix in prefixes:
        yield Policy(
            PolicyDirection.OUT, ANY[prefix.version], prefix, mark, IF_ID, PEER_PRIORITY,
            template=template,
        )  # fmt: skip


def slot_of(policy: Policy) -> int:
    """0 for those of no pair."""
    return policy.mark.value >> 16 if policy.mark else 0


class PolicyTarget:
    """All policies that carry our number; nobody else's is looked at."""

    def __init__(self, xfrm: Xfrm) -> None:
        self._xfrm = xfrm
        self._standing: dict[PolicyKey, Policy] = {}

    def read(self) -> Mapping[PolicyKey, Policy]:
        ours = (policy for policy in self._xfrm.policies() if policy.if_id == IF_ID)
        self._standing = {policy.key: policy for policy in ours}
        return dict(self._standing)

    def put(self, rows: Mapping[PolicyKey, Policy]) -> Mapping[PolicyKey, OSError]:
        errors = self._xfrm.put_policies(sorted(rows.values(), key=_is_for_pair))
        self._standing.update(rows)
        return {policy.key: error for policy, error in errors.items()}

    def remove(self, keys: Collection[PolicyKey]) -> Mapping[PolicyKey, OSError]:
        gone = [self._standing[key] for key in keys if key in self._standing]
        errors = self._xfrm.remove_policies(sorted(gone, key=_is_for_pair, reverse=True))
        return {policy.key: error for policy, error in errors.items()}


def _is_for_pair(policy: Policy) -> bool:
    return slot_of(policy) != 0
