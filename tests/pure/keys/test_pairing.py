# SPDX-License-Identifier: Apache-2.0
"""A key ring's life, step by step: what is wanted when, and what has to be seen first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from pellicle.facts import PairId
from pellicle.keys import pairing
from pellicle.keys.offers import OwnOffer
from pellicle.keys.pairing import Direction, OfferState, PeerState, ProbeKind

from .life import ANSWER, ASK, DICE, ME, SECRET, Life, agreed, node, offer

IN, OUT = Direction.IN, Direction.OUT


# --- towards the first packet ---


def test_a_node_alone_publishes_at_once() -> None:
    life = Life()
    assert life.published == [1]
    assert life.plan.own[0].state is OfferState.CURRENT
    assert not life.plan.sas
    assert life.plan.wake == life.now + pairing.LIFETIME_SECONDS


def test_inbound_before_publishing_and_before_outbound() -> None:
    life = Life([node("n1", offer("n1", 5))])
    assert life.published == []
    assert life.plan.own[0].state is OfferState.PREPARING
    assert {sa.direction for sa in life.plan.sas.values()} == {IN}
    life.stand()
    assert life.published == [1]
    assert len(life.rows(life.pair(1, 5), IN)) == len(life.rows(life.pair(1, 5), OUT)) == 4


def test_three_of_four_inbound_sas_are_not_enough() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.up = dict(list(life.plan.sas.items())[:3])
    life.ring.standing(life.up.values())
    life.look()
    assert life.published == []
    assert not life.rows(life.pair(1, 5), OUT)


def test_a_new_offer_waits_five_seconds_at_most() -> None:
    life = Life([node("n1", offer("n1", 5))])
    assert life.plan.wake == life.now + 5
    assert life.look(4.9).offers == ()
    life.look(0.1)
    assert life.published == [1]


def test_nothing_is_sent_before_the_peer_is_heard() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    pair = life.pair(1, 5)
    assert life.plan.sends == {}
    assert life.keys["n1"].state is PeerState.CONFIRMING
    life.ring.confirmed(pair)
    assert life.look().sends == {"n1": pair}
    assert life.keys["n1"].state is PeerState.READY
    assert (life.keys["n1"].local_epoch, life.keys["n1"].peer_epoch) == (1, 5)


def test_what_the_status_says_on_the_way() -> None:
    life = Life([node("n1", offer("n1", 5)), node("n2", at=("192.0.2.8",))])
    why = [life.keys["n1"].why]
    life.stand((IN,))
    why.append(life.keys["n1"].why)
    life.stand()
    why.append(life.keys["n1"].why)
    assert why == [
        "SAs are being put in place",
        "SAs are being put in place",
        "asked; no packet of the peer has come in on the new SAs",
    ]
    assert life.keys["n2"].state is PeerState.NO_OFFER
    assert life.keys["n2"].why == "publishes no offer"


def test_no_outbound_sas_no_sending() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.stand()
    life.hear(life.pair(1, 5), ASK)
    assert life.plan.sends == {}
    assert life.plan.probes == ()


def test_asking_slows_down_and_ends_with_the_answer() -> None:
    life = Life([node("n1", offer("n1", 5))])
    start = life.now
    asked = []
    life.install()
    while life.now < start + 30:
        if life.probes(ASK):
            asked.append(round(life.now - start, 3))
        assert life.plan.wake is not None
        life.look(life.plan.wake - life.now)
    assert asked[:8] == [0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 11.3, 16.3]
    life.agree(life.pair(1, 5))
    life.look(100)
    assert life.probes(ASK) == []


def test_nobody_is_asked_before_the_offer_is_published() -> None:
    life = Life([node("n1", offer("n1", 5)), node("n2", offer("n2", 1), at=("192.0.2.8",))])
    life.up = {at: sa for at, sa in life.plan.sas.items() if sa.peer == "n1"}
    life.ring.standing(life.up.values())
    life.look()
    life.up = {at: sa for at, sa in life.plan.sas.items() if sa.peer == "n1"}
    life.ring.standing(life.up.values())
    assert life.look().probes == ()
    assert life.keys["n1"].why == "our new offer is not yet published"
    life.look(5)
    assert len(life.probes(ASK)) == 1


def test_an_answer_leaves_when_the_kernel_sends_so() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    pair = life.pair(1, 5)
    life.hear(pair, ASK)
    assert life.plan.sends == {"n1": pair}
    assert life.probes(ANSWER) == []
    life.send()
    assert life.probes(ANSWER) == [pair]
    assert life.look().probes == ()


def test_without_word_of_the_encryption_table_the_plan_is_taken_for_done() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.stand()
    life.stand()
    life.hear(life.pair(1, 5), ASK)
    assert life.probes(ANSWER) == [life.pair(1, 5)]


def test_each_question_is_answered_once() -> None:
    life = agreed()
    for _ in range(3):
        life.hear(life.pair(1, 1), ASK)
        assert life.probes(ANSWER) == [life.pair(1, 1)]
        assert life.look().probes == ()


def test_whoever_is_confirmed_says_so_once() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    life.ring.confirmed(life.pair(1, 5))
    life.look()
    life.send()
    assert life.probes(ANSWER) == [life.pair(1, 5)]
    life.ring.confirmed(life.pair(1, 5))
    assert life.look().probes == ()


def test_the_kernel_remembers_what_an_event_failed_to_say() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    life.up = {at: replace(sa, first_seen=1) for at, sa in life.up.items()}
    life.ring.standing(life.up.values())
    assert life.look().sends == {"n1": life.pair(1, 5)}
    life.send()
    assert life.probes(ANSWER) == [life.pair(1, 5)]


# --- rotation ---


def test_rotation_waits_for_every_peer() -> None:
    life = Life([node("n1", offer("n1", 1)), node("n2", offer("n2", 1), at=("192.0.2.8",))])
    life.install()
    for pair in {sa.pair for sa in life.plan.sas.values()}:
        life.agree(pair)
    life.look(10)
    life.ring.rotate()
    life.look()
    assert life.published == [1]
    life.install()
    assert life.published == [1, 2]
    assert [own.state for own in life.plan.own] == [OfferState.RETIRING, OfferState.CURRENT]
    new = sorted({sa.pair for sa in life.plan.sas.values() if sa.local_epoch == 2})
    life.agree(new[0])
    assert life.published == [1, 2]
    life.agree(new[1])
    assert life.published == [2]
    assert set(life.plan.sends.values()) == set(new)
    life.look(9.9)
    assert life.pairs() == {(1, 1), (2, 1)}
    life.look(0.1)
    assert life.pairs() == {(2, 1)}


def rotated() -> Life:
    """A second offer stands and is published; the peer has not said a word about it."""
    life = agreed()
    life.look(10)
    life.ring.rotate()
    life.look()
    life.install()
    assert life.published == [1, 2]
    return life


def test_a_confirmation_is_not_an_answer() -> None:
    """The peer has the new keys, but may still send with the old ones."""
    life = rotated()
    new = life.pair(2, 1)
    life.hear(new, ASK)
    life.send()
    assert life.plan.sends == {"n1": new}
    assert life.published == [1, 2]
    life.agree(new)
    assert life.published == [2]


def test_a_peer_that_does_not_move_is_stale_and_keeps_its_sas() -> None:
    life = rotated()
    life.look(59)
    assert life.keys["n1"].state is PeerState.READY
    life.look(1)
    assert life.keys["n1"].state is PeerState.STALE
    assert not life.keys["n1"].confirmed
    life.look(239.9)
    assert life.published == [1, 2]
    life.look(0.2)
    assert life.published == [2]
    life.look(100000)
    assert life.published == [2]
    assert life.pairs() >= {(1, 1), (2, 1)}
    assert life.plan.sends == {"n1": life.pair(1, 1)}


def test_an_old_pair_stays_while_the_kernel_sends_on_it() -> None:
    life = rotated()
    old = life.pair(1, 1)
    life.hear(life.pair(2, 1), ANSWER)
    assert life.published == [2]
    life.look(1000)
    assert life.rows(old)
    life.send()
    assert not life.rows(old)


def test_an_offer_has_a_lifetime_and_an_sa_a_limit() -> None:
    life = agreed()
    life.look(pairing.LIFETIME_SECONDS)
    assert [own.epoch for own in life.plan.own] == [1, 2]
    life = agreed()
    life.look(10)
    life.ring.spent(life.pair(1, 1))
    life.look()
    assert [own.epoch for own in life.plan.own] == [1, 2]
    assert life.plan.sends == {"n1": life.pair(1, 1)}


def test_a_rotation_is_not_begun_before_the_last_one_is_over() -> None:
    life = rotated()
    life.ring.rotate()
    life.look(20)
    assert [own.epoch for own in life.plan.own] == [1, 2]
    life.agree(life.pair(2, 1))
    life.look()
    assert [own.epoch for own in life.plan.own] == [2, 3]


def test_epochs_begin_anew_after_the_last_one() -> None:
    last = OwnOffer.make(ME, 2**32 - 1, DICE(16), DICE, SECRET).offer
    life = Life(found=(last,))
    assert life.published == [1]


# --- what breaks ---


@pytest.mark.parametrize("direction", Direction)
def test_what_vanishes_is_burned_and_a_new_offer_follows(direction: Direction) -> None:
    life = agreed()
    life.look(10)
    pair = life.pair(1, 1)
    gone = life.rows(pair, direction)[2]
    life.vanish(gone)
    assert gone not in life.plan.sas
    assert [own.epoch for own in life.plan.own] == [1, 2]
    assert len(life.rows(pair)) == 7
    assert bool(life.plan.sends) is (direction is IN)
    life.install()
    life.agree(life.pair(2, 1))
    assert life.published == [2]
    assert life.plan.sends == {"n1": life.pair(2, 1)}


def test_nothing_of_a_burned_pair_comes_back() -> None:
    life = agreed()
    life.look(10)
    old = life.pair(1, 1)
    life.vanish(*life.rows(old))
    for _ in range(20):
        assert not life.rows(old)
        life.look(1)


def test_what_never_stands_is_given_up_after_a_minute() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.look(59.9)
    assert life.pairs() == {(1, 5)}
    life.look(0.1)
    assert life.plan.wake == life.now
    life.look()
    assert [own.epoch for own in life.plan.own] == [1, 2]
    assert life.pairs() == {(2, 5)}


def test_offers_are_made_ever_more_rarely() -> None:
    life = agreed()
    made = []
    epoch = 1
    for _ in range(4000):
        life.vanish(*life.up)
        life.stand()
        newest = life.plan.own[-1].epoch
        if newest != epoch:
            epoch = newest
            made.append(life.now)
        life.look(1)
    pauses = [after - before for before, after in pairwise(made)]
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 300
    assert len(made) < 30


def test_after_a_break_a_lower_pair_needs_fresh_proof() -> None:
    """The peer, past it since its answer on the higher one, may have taken it away."""
    life = rotated()
    old, new = life.pair(1, 1), life.pair(2, 1)
    life.hear(new, ASK)
    life.send()
    assert life.plan.sends == {"n1": new}
    life.vanish(*life.rows(new, OUT))
    assert life.plan.sends == {}
    assert old in life.probes(ASK)
    life.hear(old, ANSWER)
    assert life.plan.sends == {"n1": old}


def test_what_happens_on_a_higher_pair_does_not_matter_to_it() -> None:
    life = rotated()
    life.hear(life.pair(2, 1), ASK)
    life.vanish(*life.rows(life.pair(1, 1)))
    assert life.plan.sends == {"n1": life.pair(2, 1)}


# --- restarts ---


def test_a_restart_adopts_what_stands_and_moves_on() -> None:
    before = agreed()
    life = before.restart()
    assert life.plan.sends == {"n1": before.pair(1, 1)}
    adopted = [sa for sa in life.plan.sas.values() if sa.local_epoch == 1]
    assert adopted == list(before.up.values())
    assert {sa.key for sa in adopted} == {b""}
    assert life.published == [1]
    life.install()
    assert life.published == [1, 2]
    life.agree(life.pair(2, 1))
    assert life.published == [2]
    life.look(10)
    assert life.pairs() == {(2, 1)}


def test_the_next_epoch_is_above_all_that_was_seen() -> None:
    before = rotated()
    before.agree(before.pair(2, 1))
    life = Life(before.nodes, (), before.up, before.now)
    assert life.plan.own[-1].epoch == 3


def test_of_two_offers_found_the_newest_in_use_stays() -> None:
    life = rotated().restart()
    assert life.published == [1, 2]
    life.install()
    assert life.published == [2, 3]
    assert life.pairs() >= {(1, 1), (2, 1), (3, 1)}


def test_offers_that_no_sa_uses_are_dropped() -> None:
    life = rotated()
    life = Life(life.nodes, life.plan.offers, {}, life.now)
    assert life.published == [1, 2]
    life.install()
    assert life.published == [3]


def test_a_forged_own_record_is_reported_and_not_published() -> None:
    forged = replace(offer(ME, 900), proof=bytes(32))
    life = Life(found=(forged,))
    assert life.published == [1]
    assert [r.name for r in life.plan.rejected] == ["offer 900"]
    assert "own record of node me" in life.plan.rejected[0].source


def test_what_belongs_to_nobody_is_drained() -> None:
    before = agreed()
    life = before.restart()
    life.know()
    life = Life([], life.plan.offers, before.up, before.now)
    assert life.plan.sends == {}
    assert life.pairs() == {(1, 1)}
    assert life.plan.wake == life.now + 10
    life.look(9.9)
    assert life.pairs() == {(1, 1)}
    life.look(0.1)
    assert life.pairs() == set()


def test_nothing_is_taken_away_before_the_nodes_are_listed() -> None:
    before = agreed()
    ring = pairing.Keyring(pairing.LocalNode(ME, ()), SECRET, DICE)
    ring.start(before.plan.offers, before.up.values())
    for now in (0.0, 1000.0):
        plan = ring.plan(now)
        assert dict(plan.sas) == before.up
        assert plan.offers == before.plan.offers
        assert plan.wake is None


# --- manners ---


def test_each_pair_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = []
    original = OwnOffer.shared
    monkeypatch.setattr(
        OwnOffer, "shared", lambda own, key: shared.append(key) or original(own, key)
    )
    life = agreed()
    assert len(shared) == 1
    for _ in range(10):
        life.know(*life.nodes)
        life.know(replace(life.nodes[0]))
        life.stand()
    assert len(shared) == 1


def test_many_peers_are_derived_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "DERIVATIONS_PER_PLAN", 3)
    life = Life([node(f"n{i}", offer(f"n{i}", 1), at=(f"192.0.2.{i}",)) for i in range(10, 17)])
    counts = [len(life.plan.sas)]
    while life.plan.wake == life.now:
        life.stand()
        assert life.published == []
        counts.append(sum(at.direction is IN for at in life.plan.sas))
    assert counts[:3] == [12, 24, 28]
    life.stand()
    assert life.published == [1]


def test_keys_are_forgotten_once_they_stand() -> None:
    life = Life([node("n1", offer("n1", 1))])
    assert {len(sa.key) for sa in life.plan.sas.values()} == {32}
    shown = repr(life.plan)
    assert not any(sa.key.hex() in shown for sa in life.plan.sas.values())
    assert not any(repr(sa.key) in shown for sa in life.plan.sas.values())
    before = dict(life.plan.sas)
    life.install()
    assert {sa.key + sa.salt for sa in life.plan.sas.values()} == {b""}
    assert all(life.plan.sas[at] == sa for at, sa in before.items())


def test_an_unchanged_plan_is_the_same_plan() -> None:
    life = agreed()
    before = life.plan.sas
    life.look(1)
    assert life.plan.sas is before
    life.know(*life.nodes)
    life.ring.standing(life.up.values())
    assert life.look().sas is before


def test_strange_pairs_are_nobodys() -> None:
    life = agreed()
    stranger = PairId(12345)
    life.ring.confirmed(stranger)
    life.ring.spent(stranger)
    before = life.look()
    strange = [replace(sa, pair=stranger) for sa in life.up.values()]
    life.ring.standing([*strange, *life.up.values()])
    assert life.hear(stranger, ProbeKind.ASK) == before


def test_a_plan_needs_a_start() -> None:
    with pytest.raises(AssertionError, match="start"):
        pairing.Keyring(pairing.LocalNode(ME, ()), SECRET, DICE).plan(0.0)
