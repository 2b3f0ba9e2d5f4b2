# SPDX-License-Identifier: Apache-2.0
"""What a node says of its encryption policies: whom they name, and how far their keys are."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from pellicle.encryption.table import key_for
from pellicle.exemptions import ports_text
from pellicle.facts import (
    ALL_TRAFFIC,
    Context,
    EncryptionPolicy,
    NodeName,
    PolicyAction,
    PolicyNumber,
    Selector,
)
from pellicle.policy.members import Side
from pellicle.serve import Answer, Request
from pellicle.tables import Tables


class Policies:
    """Of one node."""

    def __init__(self, tables: Tables, local: NodeName, *, has_own_keys: bool) -> None:
        """`has_own_keys`: keys are derived, so that a policy can have some of its own."""
        self._tables, self._local, self._has_own_keys = tables, local, has_own_keys

    def answers(self) -> Mapping[str, Answer]:
        return {"policies": self._answer}

    def problems(self) -> Iterator[str]:
        """What is wrong now, in words."""
        for policy in self._tables.encryption_policies.rows.values():
            if policy.action is PolicyAction.OWN_KEYS and not self._has_own_keys:
                yield (
                    f"policy {policy.name} asks for keys of its own, but keys are not derived "
                    "here: what it names is dropped"
                )

    async def _answer(self, _request: Request) -> AsyncIterator[Any]:
        here, all_ = self._members()
        decides, own = self._decides(), self._asked_for_own()
        for policy in self._tables.encryption_policies.rows.values():
            yield {
                "name": policy.name,
                "action": policy.action,
                "between": [
                    {
                        "selector": words(selector),
                        "here": here[policy.name, number],
                        "addresses": all_[policy.name, number],
                    }
                    for number, selector in enumerate(policy.between)
                ],
                "ports": [ports_text(each) for each in policy.ports],
                "decides": decides[policy.number],
                "own_keys": list(self._keys(policy, is_asked=policy.number in own)),
            }

    def _members(self) -> tuple[Counter[Side], Counter[Side]]:
        """How many addresses each selector names: on this node, and in all."""
        here: Counter[Side] = Counter()
        everywhere: Counter[Side] = Counter()
        for member in self._tables.members.rows.values():
            everywhere.update(member.sides)
            if member.node == self._local:
                here.update(member.sides)
        return here, everywhere

    def _decides(self) -> Counter[PolicyNumber]:
        """For how many pairs of groups, one of them here, each is in the datapath."""
        found: Counter[PolicyNumber] = Counter()
        judged = self._tables.judged.rows
        for key, row in self._tables.policy_rows_up.rows.items():
            asked = judged[key].choices if row.ports and key in judged else (row.rest,)
            found.update({choice.policy for choice in asked})
        return found

    def _asked_for_own(self) -> set[PolicyNumber]:
        """Those whose own keys the datapath asks for; it does so from when they are there."""
        t = self._tables
        choices = (
            *(row.rest for row in t.policy_rows_up.rows.values()),
            *t.policy_ports_up.rows.values(),
        )
        return {each.policy for each in choices if each.action is PolicyAction.OWN_KEYS}

    def _keys(self, policy: EncryptionPolicy, *, is_asked: bool) -> Iterator[dict[str, Any]]:
        """With whom it has some of its own, by what the datapath goes by, not by the plan. While
        it is not asked there what the policy says, the nodes' keys are used.
        """
        nodes, stands = self._tables.nodes.rows, self._tables.encrypt_up.rows
        for (name, context), keys in sorted(self._tables.own_peers.rows.items()):
            if context != Context(policy.number):
                continue
            used = context if is_asked else ALL_TRAFFIC
            row = stands.get(key_for(nodes[name], used)) if name in nodes else None
            is_own = row is not None and row.pair == keys.pair
            yield {
                "node": name,
                "encrypts": "own" if is_own else "the node's" if row else "nothing",
                "why": "" if is_own else keys.why,
                "pair": f"{row.pair:016x}" if row else "",
            }


def words(selector: Selector) -> str:
    """As short as it can be said."""
    parts = [
        *(f"node {' or '.join(selector.nodes)}" for _ in selector.nodes[:1]),
        *(f"namespace {' or '.join(selector.namespaces)}" for _ in selector.namespaces[:1]),
        *(f"{key}={value}" for key, value in selector.labels.items()),
        *(" or ".join(map(str, selector.cidrs)) for _ in selector.cidrs[:1]),
    ]
    return ", ".join(parts)
