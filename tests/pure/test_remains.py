# SPDX-License-Identifier: Apache-2.0
"""What of everybody's states and policies goes with a flush, and in which order."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

from pellicle.encryption import policies
from pellicle.encryption.remains import PeerCount, Remains
from pellicle.encryption.states import state_of
from pellicle.facts import Engine, Spi
from pellicle.keys.rows import Direction
from pellicle.wire.xfrm import Action, Policy, PolicyDirection, State

from .sas_made import N2, PEER, rows, sa

OUT = rows(*(sa(number) for number in range(4)))
STATES = [
    state_of(sa(number, direction))
    for number in range(4)
    for direction in (Direction.IN, Direction.OUT)
]
POLICIES = list(policies.plan({Engine.XFRM: True}, OUT, {N2: PEER}).values())
OTHERS_STATES = [replace(STATES[0], if_id=0), replace(STATES[1], if_id=7)]
OTHERS_POLICIES = [replace(POLICIES[0], if_id=0), replace(POLICIES[-1], if_id=0x70656C6D)]


def found() -> Remains:
    """The kernel lists in an order of its own."""
    states: list[State] = [*STATES, *OTHERS_STATES]
    listed: list[Policy] = [*POLICIES, *OTHERS_POLICIES]
    chance = random.Random(7)
    chance.shuffle(states)
    chance.shuffle(listed)
    return Remains.among(states, listed)


def test_all_of_ours_goes_and_nothing_of_others() -> None:
    assert set(found().states) == {state.key for state in STATES}
    assert set(found().policies) == set(POLICIES)


def test_what_sends_goes_before_what_receives_and_blocks_go_last() -> None:
    assert [key.mark is None for key in found().states] == [True] * 4 + [False] * 4
    kinds = [
        "block" if p.action is Action.BLOCK else "in" if p.direction is PolicyDirection.IN else "to"
        for p in found().policies
    ]
    pairs = len(POLICIES) - 4
    assert kinds == ["to"] * pairs + ["in"] * 2 + ["block"] * 2


def test_it_is_counted_by_peer() -> None:
    pairs = len(POLICIES) - 4
    assert found().by_peer() == [
        PeerCount(None, 0, 0, 4),
        PeerCount(ip_address("192.0.2.2"), 4, 4, pairs),
    ]
    assert Remains.among([], POLICIES[:1]).by_peer() == [PeerCount(None, 0, 0, 1)]
    assert Remains.among(OTHERS_STATES, OTHERS_POLICIES).by_peer() == []
    assert not Remains.among(OTHERS_STATES, OTHERS_POLICIES).is_any


def test_of_keys_made_by_hand_what_sends_has_a_mark_too() -> None:
    states = [
        state_of(replace(sa(0, direction, slot), spi=Spi(3)))
        for direction, slot in ((Direction.IN, 8), (Direction.OUT, 7))
    ]
    found = Remains.among(states, [])
    assert found.states == (states[1].key, states[0].key), "what sends goes first"
    assert found.by_peer() == [PeerCount(ip_address("192.0.2.2"), 1, 1, 0)]
