# SPDX-License-Identifier: Apache-2.0
"""Which SA of the kernel's encrypts a packet that `door_xfrm` has marked: XFRM policies.

    out   any → 10.244.2.0/24   mark 0x00070e00/0xffff3f00   tmpl … spi … reqid …     each SA and
          any → 192.168.2.2/32  mark 0x00070e00/0xffff3f00   tmpl … spi … reqid …     prefix
    out   any → 10.244.0.0/16   mark 0xe80/0x3f80   tmpl … placeholder …   each shared state, subnet
          any → 192.168.2.3/32  mark 0x00080e80/0xffff3f80   the same   a node that is in no subnet
    out   any → any             mark 0xe00/0xf00             block                    last of all
    in    any → any             mark 0/0xf00             tmpl any        what from_xfrm let pass

All carry the number of our device, so that they apply to what goes through it and to nothing
else. Prefixes are there for the kernel: it finds policies by destination, not by mark. A node's
own addresses are reached by SA 0 only; with the routing overlay by each, for what is for its pods
goes there, too. SAs that share a state share the policies to subnets, too, however many peers
there are. What no policy fits is dropped: the blocks are put before anything else, and are the last
to go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from pellicle.datapath.address import host_network
from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption.routes import DEFAULTS
from pellicle.encryption.states import (
    MARK_SHARED,
    OUT_MASK,
    PLACEHOLDERS,
    SHARED_OUT_MASK,
    mark_of,
    out_reqid,
    shared_of,
    shared_out_mark,
)
from pellicle.facts import Address, Engine, Network, Node, NodeName, PairId, Spi
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction, Sa, SaKey
from pellicle.keys.subnets import is_within
from pellicle.wire.xfrm import Action, Mark, Policy, PolicyDirection, PolicyKey, Template

PEER_PRIORITY, LAST_PRIORITY = 1000, 0x7FFFFFFF
"""The kernel takes the policy of the lowest."""
NODE_SA = 0
"""Of a pair: what carries packets for the node itself."""

ANY = {network.version: network for network in DEFAULTS}


class Shared(NamedTuple):
    """A state that sends, and that SAs of many peers have together."""

    source: Address
    spi: Spi
    number: int

    @property
    def template(self) -> Template:
        return Template(self.source, PLACEHOLDERS[self.source.version], self.spi, out_reqid(0))


def shared_by(sa: Sa) -> Shared | None:
    """What it sends by, if that is shared."""
    is_one = sa.shared and sa.direction is Direction.OUT
    return Shared(sa.source, sa.spi, sa.shared) if is_one else None


def plan_shared(sas: Mapping[SaKey, Sa]) -> dict[Shared, Shared]:
    """Each such state of SAs that stand."""
    return {each: each for each in map(shared_by, sas.values()) if each is not None}


def kernels(sas: Mapping[SaKey, Sa]) -> dict[SaKey, Sa]:
    """The SAs of the kernel's IPsec."""
    return {key: sa for key, sa in sas.items() if sa.engine is Engine.XFRM}


def plan(
    used: Mapping[Engine, bool],
    sas: Mapping[SaKey, Sa],
    nodes: Mapping[NodeName, Node],
    shared: Collection[Shared] = (),
    *,
    subnets: Collection[Network] = (),
    is_overlay: bool = False,
) -> dict[PolicyKey, Policy]:
    """The blocks, for each state that is shared a policy to each subnet, and for each outbound SA
    that stands one to each prefix of its node that these do not reach.

    `sas`: the kernel's; `used`: empty while nothing is encrypted by the kernel.
    """
    if not used:
        return {}
    holders = {node.addresses[0]: node for node in nodes.values() if node.addresses}
    rows = {policy.key: policy for policy in _always()}
    for each in shared:
        rows.update((policy.key, policy) for policy in _to_subnets(each, subnets))
    for sa in sas.values():
        if sa.direction is Direction.OUT and sa.node in holders:
            found = _to(sa, holders[sa.node], subnets, is_overlay=is_overlay)
            rows.update((policy.key, policy) for policy in found)
    return rows


def plan_shared_passable(
    wanted: Mapping[PolicyKey, Policy], standing: Mapping[PolicyKey, Policy]
) -> dict[int, bool]:
    """The numbers of the shared states whose policies to subnets all stand."""
    missing = {number_of(policy) for key, policy in wanted.items() if standing.get(key) != policy}
    numbers = {number_of(policy) for policy in wanted.values()} - missing
    return {number: True for number in numbers if number}


def plan_passable(
    sas: Mapping[SaKey, Sa],
    wanted: Mapping[PolicyKey, Policy],
    standing: Mapping[PolicyKey, Policy],
    shared: Collection[int] = (),
    *,
    subnets: Collection[Network] = (),
) -> dict[PairId, Address]:
    """The pairs that packets find their way to, by peer: all their policies stand.

    `shared`: the numbers of the shared states whose policies do.
    """
    missing = {slot_of(policy) for key, policy in wanted.items() if standing.get(key) != policy}
    slots = {slot_of(policy) for policy in wanted.values()} - missing

    def is_passable(sa: Sa) -> bool:
        if not sa.shared or not subnets:  # an earlier life may have had some
            return sa.slot in slots
        is_all_shared = is_within(host_network(sa.node), subnets)
        return sa.shared in shared and (is_all_shared or sa.slot in slots)

    out = (sa for sa in sas.values() if sa.direction is Direction.OUT)
    return {sa.pair: sa.node for sa in out if is_passable(sa)}


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


def _to(sa: Sa, node: Node, subnets: Collection[Network], *, is_overlay: bool) -> Iterable[Policy]:
    prefixes: list[Network] = [] if is_overlay else list(node.pod_cidrs)
    if is_overlay or sa.number == NODE_SA:
        prefixes += map(host_network, node.addresses)
    by = shared_by(sa)
    if by is None:
        mark = Mark(mark_of(sa), OUT_MASK)
        template = Template(sa.source, sa.destination, sa.spi, out_reqid(sa.slot))
    else:
        mark, template = Mark(mark_of(sa), OUT_MASK | MARK_SHARED), by.template
        prefixes = [prefix for prefix in prefixes if not is_within(prefix, subnets)]
    for prefix in prefixes:
        yield _out(prefix, mark, template)


def _to_subnets(by: Shared, subnets: Collection[Network]) -> Iterable[Policy]:
    mark = Mark(shared_out_mark(by.number), SHARED_OUT_MASK)
    for subnet in subnets:
        yield _out(subnet, mark, by.template)


def _out(prefix: Network, mark: Mark, template: Template) -> Policy:
    return Policy(
        PolicyDirection.OUT, ANY[prefix.version], prefix, mark, IF_ID, PEER_PRIORITY,
        template=template,
    )  # fmt: skip


def slot_of(policy: Policy) -> int:
    """0 for those of no pair."""
    return policy.mark.value >> 16 if policy.mark else 0


def number_of(policy: Policy) -> int:
    """Of the shared state that a policy to a subnet leads to; 0 for all others."""
    mark = policy.mark
    return shared_of(mark.value) if mark and mark.mask == SHARED_OUT_MASK else 0


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
        errors = self._xfrm.put_policies(sorted(rows.values(), key=_leads))
        self._standing.update(rows)
        return {policy.key: error for policy, error in errors.items()}

    def remove(self, keys: Collection[PolicyKey]) -> Mapping[PolicyKey, OSError]:
        gone = [self._standing[key] for key in keys if key in self._standing]
        errors = self._xfrm.remove_policies(sorted(gone, key=_leads, reverse=True))
        return {policy.key: error for policy, error in errors.items()}


def _leads(policy: Policy) -> bool:
    """To a state; those that do not are for everything."""
    return policy.template is not None and policy.template.spi != 0
