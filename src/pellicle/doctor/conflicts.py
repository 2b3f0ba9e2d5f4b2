# SPDX-License-Identifier: Apache-2.0
"""What others have set up that would catch packets for the door: in words, one for each.

Pods' packets bear the mark 0xe00 from `from_pod` on, without the slot that `door_xfrm` adds; those
of the node itself bear none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from pellicle.encryption.routes import MARK_ENCRYPT, MARK_MASK, NODE_PRIORITY
from pellicle.facts import Network
from pellicle.wire.netlink import PROTOCOL, Rule
from pellicle.wire.xfrm import Action, Policy, PolicyDirection

_LOCAL_TABLE = 255
"""The kernel's own: what is for this host."""


def catching(policies: Iterable[Policy], pods: Collection[Network]) -> Iterator[str]:
    """Policies without if_id that fit what is sent to pods; with no pods known, to anybody."""
    for policy in policies:
        if policy.if_id or policy.direction is PolicyDirection.IN or not _fits_mark(policy):
            continue
        is_harmless = policy.template is None and policy.action is Action.ALLOW
        if not is_harmless and _reaches(policy.destination, pods):
            what = policy.template.destination if policy.template else "block"
            direction = policy.direction.name.lower()
            yield f"{direction} {policy.source} → {policy.destination} ({what})"


def early(rules: Iterable[Rule]) -> Iterator[str]:
    """Rules that may decide on such packets before ours do."""
    for rule in _foreign(rules):
        if _is_early(rule):
            yield f"{_words(rule)} comes before ours"


def sharing(rules: Iterable[Rule]) -> Iterator[str]:
    """Rules that look at the same bits of marks: whoever made them sets these bits, too."""
    for rule in _foreign(rules):
        if rule.mask & MARK_MASK and not _is_early(rule):
            yield f"{_words(rule)} uses the same bits of marks"


def _foreign(rules: Iterable[Rule]) -> Iterator[Rule]:
    return (rule for rule in rules if rule.protocol != PROTOCOL and rule.table != _LOCAL_TABLE)


def _is_early(rule: Rule) -> bool:
    is_for_pods = MARK_ENCRYPT & rule.mask == rule.mark
    return rule.priority <= NODE_PRIORITY and (is_for_pods or not rule.mark)


def _fits_mark(policy: Policy) -> bool:
    return policy.mark is None or MARK_ENCRYPT & policy.mark.mask == policy.mark.value


def _reaches(destination: Network, pods: Collection[Network]) -> bool:
    return not pods or any(
        pod.version == destination.version and pod.overlaps(destination) for pod in pods
    )


def _words(rule: Rule) -> str:
    mark = f" fwmark 0x{rule.mark:x}/0x{rule.mask:x}" if rule.mask else ""
    source = rule.source or "all"
    to = f" to {rule.destination}" if rule.destination else ""
    family = "-6 " if rule.family == 6 else ""
    return f"{family}{rule.priority}: from {source}{to}{mark} lookup {rule.table}"
