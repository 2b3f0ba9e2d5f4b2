# SPDX-License-Identifier: Apache-2.0
"""A key ring's life, step by step: what is wanted when, and what has to be seen first."""

from __future__ import annotations

from dataclasses import replace

from pellicle.keys.offers import OwnOffer
from pellicle.keys.own import JITTER, LIFETIME_SECONDS
from pellicle.keys.pairing import Direction, OfferState, PeerState

from .life import ANSWER, ASK, DICE, ME, SECRET, Life, agreed, node, offer, rotated

IN, OUT = Direction.IN, Direction.OUT


# --- towards the first packet ---


def test_a_node_alone_publishes_at_once() -> None:
    life = Life()
    assert life.published == [1]
    assert life.plan.own[0].state is OfferState.CURRENT
    assert not life.plan.sas
    assert life.plan.wake is not None
    least = LIFETIME_SECONDS * (1 - JITTER)
    assert least <= life.plan.wake - life.now <= LIFETIME_SECONDS


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
    life.ring.standing(life.up)
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
    assert life.sends == {}
    assert life.keys["n1"].state is PeerState.CONFIRMING
    life.ring.confirmed(pair)
    life.look()
    assert life.sends == {"n1": pair}
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
    assert life.sends == {}
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
    life.ring.standing(life.up)
    life.look()
    life.up = {at: sa for at, sa in life.plan.sas.items() if sa.peer == "n1"}
    life.ring.standing(life.up)
    assert life.look().probes == ()
    assert life.keys["n1"].why == "our new offer is not yet published"
    life.look(5)
    assert len(life.probes(ASK)) == 1


def test_an_answer_leaves_when_the_kernel_sends_so() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    pair = life.pair(1, 5)
    life.hear(pair, ASK)
    assert life.sends == {"n1": pair}
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
    life.ring.standing(life.up)
    life.look()
    assert life.sends == {"n1": life.pair(1, 5)}
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
    assert set(life.sends.values()) == set(new)
    life.look(9.9)
    assert life.pairs() == {(1, 1), (2, 1)}
    life.look(0.1)
    assert life.pairs() == {(2, 1)}


def test_a_confirmation_is_not_an_answer() -> None:
    """The peer has the new keys, but may still send with the old ones."""
    life = rotated()
    new = life.pair(2, 1)
    life.hear(new, ASK)
    life.send()
    assert life.sends == {"n1": new}
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
    assert life.sends == {"n1": life.pair(1, 1)}


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
    life.look(LIFETIME_SECONDS)
    assert [own.epoch for own in life.plan.own] == [1, 2]
    life = agreed()
    life.look(10)
    life.ring.spent(life.pair(1, 1))
    life.look()
    assert [own.epoch for own in life.plan.own] == [1, 2]
    assert life.sends == {"n1": life.pair(1, 1)}


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
