# SPDX-License-Identifier: Apache-2.0
"""What all encryption policies come to for the traffic between two groups of addresses.

    the most specific policy that fits decides:
      1. who it is between      two selectors, before one, before none
      2. ports                  some, before all
      3. what it asks for       own-keys, before encrypt, before exempt
      4. its name

The outcome is the same whichever of the two groups sends, so answers go the way of what they
answer, and the same on both nodes. What no policy fits is encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple, NewType

from pellicle.facts import (
    Context,
    EncryptionPolicy,
    NodeName,
    Owned,
    PolicyAction,
    PolicyName,
    PolicyNumber,
)
from pellicle.policy.members import NOBODYS, NOWHERE, GroupNumber, Member, Selectors, Sides

PortsNumber = NewType("PortsNumber", int)
"""64 bits: names a list of ports and what is asked for on each. 0: none is treated apart."""
NO_PORTS = PortsNumber(0)


class Choice(NamedTuple):
    """What is asked for, and by which policy; 0: by none."""

    policy: PolicyNumber
    action: PolicyAction


UNASKED = Choice(PolicyNumber(0), PolicyAction.ENCRYPT)


class PortChoice(NamedTuple):
    """What is asked for on one port."""

    protocol: int
    port: int
    choice: Choice


class PolicyRow(NamedTuple):
    """`struct policy_row`."""

    rest: Choice
    fragments: Choice
    ports: PortsNumber = NO_PORTS


class Judgement(NamedTuple):
    """Of the traffic between two groups."""

    rest: Choice
    """What is not on one of the ports."""
    fragments: Choice
    """They have no ports: the strictest of all."""
    ports: tuple[PortChoice, ...] = ()
    ports_number: PortsNumber = NO_PORTS

    @property
    def choices(self) -> Iterator[Choice]:
        yield self.rest
        yield from (each.choice for each in self.ports)


class PairKey(NamedTuple):
    """Two groups, the lesser number first."""

    one: GroupNumber
    other: GroupNumber


class Placed(NamedTuple):
    """A group, and a node that has some of it."""

    group: GroupNumber
    node: NodeName


class PortKey(NamedTuple):
    """One port of a list."""

    ports: PortsNumber
    protocol: int
    port: int


class Rulebook:
    """All policies, ready to be looked up."""

    def __init__(self, policies: Iterable[EncryptionPolicy] = ()) -> None:
        everything = sorted(policies, key=_precedence)
        self.selectors = Selectors(everything)
        self._alone, self._facing = (
            {each.name: rank for rank, each in enumerate(everything) if len(each.between) == many}
            for many in (1, 2)
        )
        """Ranks of policies between some and anybody, and of those between some and others."""
        self._alone_in: dict[Sides, frozenset[int]] = {}
        self._policies = everything
        self._for_all = [rank for rank, policy in enumerate(everything) if not policy.between]
        self._known: dict[tuple[int, ...], Judgement | None] = {}
        self.own_keys = frozenset(
            policy.number for policy in everything if policy.action is PolicyAction.OWN_KEYS
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rulebook) and self._policies == other._policies

    def __hash__(self) -> int:
        return hash(tuple(self._policies))

    def between(self, one: Sides, other: Sides) -> Judgement | None:
        """None: it is encrypted, with the keys of the nodes."""
        few, many = sorted((one, other), key=len)
        # Sides may be older than the policies: what is gone says nothing any more.
        facing = {
            self._facing[name]
            for name, side in few
            if (name, 1 - side) in many and name in self._facing
        }
        ranks = tuple(sorted(facing | self._named(one) | self._named(other)))
        if ranks not in self._known:
            self._known[ranks] = self._judge(sorted((*ranks, *self._for_all)))
        return self._known[ranks]

    def _named(self, sides: Sides) -> frozenset[int]:
        """The policies between these and anybody."""
        if sides not in self._alone_in:
            ranks = {self._alone[name] for name, _ in sides if name in self._alone}
            self._alone_in[sides] = frozenset(ranks)
        return self._alone_in[sides]

    def _judge(self, ranks: Sequence[int]) -> Judgement | None:
        """By the policies of these ranks."""
        rest, ports = UNASKED, dict[tuple[int, int], Choice]()
        for policy in (self._policies[rank] for rank in ranks):
            choice = Choice(policy.number, policy.action)
            if not policy.ports:
                rest = choice
                break
            for each in policy.ports:
                for port in range(each.first, each.last + 1):
                    ports.setdefault((each.protocol, port), choice)
        if rest == UNASKED and not ports:
            return None
        listed = tuple(PortChoice(*key, choice) for key, choice in sorted(ports.items()))
        strictest = max((*ports.values(), rest), key=lambda choice: choice.action.strictness)
        return Judgement(rest, strictest, listed, _number(listed))


def _precedence(policy: EncryptionPolicy) -> tuple[int, bool, int, str]:
    return -len(policy.between), not policy.ports, -policy.action.strictness, policy.name


def _number(ports: Sequence[PortChoice]) -> PortsNumber:
    if not ports:
        return NO_PORTS
    text = "\n".join(
        f"{each.protocol} {each.port} {each.choice.policy} {each.choice.action}" for each in ports
    )
    return PortsNumber(int.from_bytes(sha256(text.encode()).digest()[:8], "big") or 1)


# --- plans ----------------------------------------------------------------------------------------

Books = Mapping[int, Rulebook]
"""One row."""


def plan_book(policies: Mapping[PolicyName, EncryptionPolicy]) -> dict[int, Rulebook]:
    """All policies that are in force."""
    return {0: Rulebook(policies.values())}


def plan_groups(
    members: Mapping[object, Member], networks: Mapping[object, Member]
) -> dict[Placed, Sides]:
    """Which groups there are, and where."""
    return {
        Placed(member.group, member.node): member.sides
        for member in (*members.values(), *networks.values())
    }


def plan_local(local: NodeName, groups: Mapping[Placed, Sides]) -> dict[GroupNumber, Sides]:
    """Those of this node; there may always be somebody whom nothing names."""
    nobodys: dict[GroupNumber, Sides] = {NOBODYS: frozenset()}
    return nobodys | {group: sides for (group, node), sides in groups.items() if node == local}


def plan(
    books: Books, local: Mapping[GroupNumber, Sides], groups: Mapping[Placed, Sides]
) -> dict[PairKey, Judgement]:
    """Between each group and those of this node: what is not there is encrypted, and no more."""
    rows: dict[PairKey, Judgement] = {}
    for book in books.values():
        nobodys = book.between(frozenset(), frozenset())
        if nobodys:
            rows[PairKey(NOBODYS, NOBODYS)] = nobodys
        for (group, _), sides in groups.items():
            for other, others in local.items():
                # A pair of two local ones belongs to the greater.
                if group in local and other > group:
                    continue
                if judgement := book.between(sides, others):
                    rows[PairKey(*sorted((group, other)))] = judgement
    return rows


def plan_ports(
    judged: Mapping[PairKey, Judgement],
    rows: Mapping[PairKey, PolicyRow],
    standing: Mapping[PortKey, Choice],
) -> dict[PortKey, Choice]:
    """The lists of ports that they name; those that rows which stand still name stay, too."""
    used = {row.ports for row in rows.values()}
    kept = {key: choice for key, choice in standing.items() if key.ports in used}
    return kept | {
        PortKey(number, *at): choice
        for number, ports in {each.ports_number: each.ports for each in judged.values()}.items()
        for *at, choice in ports
    }


def plan_rows(
    judged: Mapping[PairKey, Judgement], ports: Mapping[PortKey, Choice]
) -> dict[PairKey, PolicyRow]:
    """The map's rows; while not all of a list of ports stands, the strictest of it holds for
    everything. `ports`: what stands.
    """
    rows = {}
    for key, (rest, strictest, listed, number) in judged.items():
        if any(ports.get(PortKey(number, *at)) != choice for *at, choice in listed):
            rows[key] = PolicyRow(strictest, strictest)
        else:
            rows[key] = PolicyRow(rest, strictest, number)
    return rows


def plan_contexts(
    books: Books, local: Mapping[GroupNumber, Sides], groups: Mapping[Placed, Sides]
) -> dict[Owned, PolicyNumber]:
    """With which nodes which keys of their own are needed."""
    rows: dict[Owned, PolicyNumber] = {}
    for book in books.values():
        if not book.own_keys:
            continue
        for (_, node), sides in groups.items():
            for others in local.values() if node != NOWHERE else ():
                judgement = book.between(sides, others)
                for choice in judgement.choices if judgement else ():
                    if choice.action is PolicyAction.OWN_KEYS:
                        rows[node, Context(choice.policy)] = choice.policy
    return rows


def plan_kept(
    books: Books, contexts: Mapping[Owned, PolicyNumber], kept: Mapping[Owned, PolicyNumber]
) -> dict[Owned, PolicyNumber]:
    """The same, and those that were needed once, as long as their policy asks for them: pods come
    and go, and keys that were given up are never made again of the same offers.
    """
    asked = frozenset[PolicyNumber]().union(*(book.own_keys for book in books.values()))
    return {**contexts, **{at: number for at, number in kept.items() if number in asked}}


def plan_active(
    policies: Mapping[PolicyName, EncryptionPolicy],
    contexts: Mapping[Owned, PolicyNumber],
    covered: Mapping[Owned, PolicyNumber],
    active: Mapping[PolicyName, EncryptionPolicy],
) -> dict[PolicyName, EncryptionPolicy]:
    """The policies as they can be followed without a loss: whoever asks for keys of its own begins
    when there is something to encrypt with everywhere. Once it has begun nothing else will do.

    `covered`: those of the contexts that have a row in the encryption table, or need none.
    """
    needed = set(contexts.values())
    waiting = {number for at, number in contexts.items() if at not in covered}
    waiting.update(each.number for each in policies.values() if each.number not in needed)
    return {
        name: replace(policy, action=PolicyAction.ENCRYPT)
        if policy.action is PolicyAction.OWN_KEYS
        and policy.number in waiting
        and active.get(name) != policy
        else policy
        for name, policy in policies.items()
    }
