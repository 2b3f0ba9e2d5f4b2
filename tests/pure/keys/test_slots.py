# SPDX-License-Identifier: Apache-2.0
"""Slots: one for each pair, rested before it is given again, and what happens without one."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from pellicle.facts import NodeName
from pellicle.keys import slots
from pellicle.keys.pairing import PeerState
from pellicle.keys.slots import Slots

from .life import Life, agreed, node, offer, ring_of


def slot_of(life: Life, *epochs: int) -> int:
    found = {sa.slot for sa in life.plan.sas.values() if sa.pair == life.pair(*epochs)}
    assert len(found) == 1, "every SA of a pair has the same one"
    return found.pop()


def peers(count: int) -> list[str]:
    return [f"n{number}" for number in range(1, count + 1)]


def life_of(count: int) -> Life:
    return Life([node(name, offer(name, 1), at=(f"192.0.2.{name[1:]}9",)) for name in peers(count)])


# --- the numbers ---


def test_slots_are_given_in_turn() -> None:
    given = Slots()
    assert [given.take() for _ in range(3)] == [1, 2, 3]
    given.free(1)
    assert given.take() == 4


def test_after_the_last_comes_the_lowest_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 5)
    given = Slots()
    for slot in range(1, 6):
        assert given.has_free
        assert given.take() == slot
    assert not given.has_free
    given.free(4)
    given.free(2)
    assert [given.take(), given.take()] == [2, 4]
    assert not given.has_free


def test_all_65535_can_be_given() -> None:
    given = Slots()
    assert [given.take() for _ in range(65535)] == list(range(1, 65536))
    assert not given.has_free
    given.free(65535)
    assert given.take() == 65535


def test_the_first_one_is_above_all_that_were_kept() -> None:
    given = Slots()
    for slot in (0, 7, 65536, 3):
        given.keep(slot)
    assert given.take() == 8


def test_one_that_two_pairs_have_is_free_when_both_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 2)
    given = Slots()
    given.keep(1)
    given.keep(1)
    given.free(1)
    assert given.take() == 2
    assert not given.has_free
    given.free(1)
    assert given.take() == 1


def test_no_slot_ever_has_two_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 12)
    dice, given = Random(1), Slots()
    held: list[int] = []
    for _ in range(5000):
        if given.has_free and (not held or dice.random() < 0.6):
            slot = given.take()
            assert slot not in held
            assert 1 <= slot <= 12
            held.append(slot)
        else:
            given.free(held.pop(dice.randrange(len(held))))


# --- in the key ring ---


def test_every_pair_has_a_slot_of_its_own_on_all_its_sas() -> None:
    life = life_of(5)
    life.install()
    found = {(sa.pair, sa.slot) for sa in life.plan.sas.values()}
    assert sorted(slot for _, slot in found) == [1, 2, 3, 4, 5]
    assert len({pair for pair, _ in found}) == 5


def test_the_slot_of_a_pair_that_was_removed_rests() -> None:
    life = agreed()
    assert slot_of(life, 1, 1) == 1
    for epoch in range(2, 5):
        life.look(10)
        life.ring.rotate()
        life.look()
        life.install()
        life.agree(life.pair(epoch, 1))
        life.look(10)
        assert life.pairs() == {(epoch, 1)}
        assert slot_of(life, epoch, 1) == epoch


def test_a_restart_keeps_the_slots_that_are_taken() -> None:
    before = life_of(3)
    before.install()
    kept = {sa.pair: sa.slot for sa in before.plan.sas.values()}
    life = before.restart()
    life.install()
    found = {sa.pair: sa.slot for sa in life.plan.sas.values()}
    assert found.items() > kept.items()
    assert sorted(found.values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("slot", [0, 9])
def test_adopted_rows_without_a_slot_or_with_one_in_common_do_no_harm(slot: int) -> None:
    before = life_of(2)
    before.install()
    before.up = {at: replace(sa, slot=slot) for at, sa in before.up.items()}
    life = before.restart()
    life.install()
    adopted = [sa for sa in life.plan.sas.values() if sa.local_epoch == 1]
    assert {sa.slot for sa in adopted} == {slot}
    fresh = [sa.slot for sa in life.plan.sas.values() if sa.local_epoch == 2]
    assert sorted(set(fresh)) == [slot + 1, slot + 2]
    for pair in {sa.pair for sa in life.plan.sas.values() if sa.local_epoch == 2}:
        life.agree(pair)
    life.look(10)
    assert life.pairs() == {(2, 1)}


def test_without_a_free_slot_a_pair_waits_and_the_status_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 2)
    life = life_of(3)
    assert len({sa.pair for sa in life.plan.sas.values()}) == 2
    states = {name: (keys.state, keys.why) for name, keys in life.keys.items()}
    assert states["n3"] == (
        PeerState.CONFIRMING,
        "no slot is free for the newest ones: 65535 pairs stand",
    )
    assert life.plan.wake == life.now + 5
    life.look(5)
    assert life.published == [1]
    life.install()
    life.know(*life.nodes[1:])
    life.look(10)
    assert life.plan.wake == life.now
    life.look()
    assert {sa.peer for sa in life.plan.sas.values()} == {"n2", "n3"}
    assert [own.epoch for own in life.plan.own] == [1]


def test_the_newest_offers_come_first_where_slots_are_scarce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 1)
    life = Life([node("n1", offer("n1", 1), offer("n1", 2))])
    assert life.pairs() == {(1, 2)}
    assert life.keys["n1"].why == "SAs are being put in place"


def test_a_peer_that_is_ready_stays_so_without_a_slot_for_newer_offers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "LAST_SLOT", 1)
    life = agreed()
    life.look(10)
    life.ring.rotate()
    life.look(5)
    life.look(5)
    assert life.published == [1, 2]
    waits = "on offers 1 (ours) and 1 (the peer's); no slot is free for the newest ones: 65535"
    assert life.keys["n1"].state is PeerState.READY
    assert life.keys["n1"].why.startswith(waits)
    life.look(60)
    assert life.keys["n1"].state is PeerState.STALE
    assert life.keys["n1"].why.startswith(waits)
    for _ in range(100):
        life.look(30)
        assert life.sends == {"n1": life.pair(1, 1)}


def test_spis_that_collide_take_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    life = agreed()
    monkeypatch.setattr("pellicle.keys.peer.Peer.has_spi_of", lambda *_: True)
    life.look(10)
    life.ring.rotate()
    life.look()
    monkeypatch.undo()
    assert life.pairs() == {(1, 1)}
    monkeypatch.setattr(slots, "LAST_SLOT", 2)
    life.look(10)
    life.look(10)
    assert len(life.pairs()) == 2


def test_while_keys_are_derived_the_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellicle.keys.pairing.DERIVATIONS_PER_PLAN", 1)
    life = life_of(2)
    assert life.keys["n2"].why == "the keys of the newest ones are being derived"
    assert life.plan.wake == life.now
    life.look()
    assert life.keys["n2"].why == "SAs are being put in place"


def test_slots_do_not_depend_on_chance() -> None:
    nodes = life_of(4).nodes
    found = []
    for _ in range(2):
        ring = ring_of()
        ring.start((), {})
        ring.peers({NodeName(each.name): each for each in nodes})
        found.append({sa.peer: sa.slot for sa in ring.plan(0.0).sas.values()})
    assert found[0] == found[1]
