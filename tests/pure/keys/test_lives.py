# SPDX-License-Identifier: Apache-2.0
"""A key ring in trouble: SAs that vanish, agents that restart; and its manners."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest

from pellicle.facts import Epoch, NodeName, PairId
from pellicle.keys import pairing
from pellicle.keys.offers import OwnOffer
from pellicle.keys.pair import Pair
from pellicle.keys.pairing import Direction, ProbeKind

from .life import ANSWER, ASK, ME, MY_ADDRESS, Life, agreed, node, offer, ring_of, rotated

IN, OUT = Direction.IN, Direction.OUT


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
    assert bool(life.sends) is (direction is IN)
    life.install()
    life.agree(life.pair(2, 1))
    assert life.published == [2]
    assert life.sends == {"n1": life.pair(2, 1)}


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
    for _ in range(2000):
        life.vanish(*life.up)
        life.stand()
        newest = life.plan.own[-1].epoch
        if newest != epoch:
            epoch = newest
            made.append(life.now)
        life.look(1)
    pauses = [after - before for before, after in pairwise(made)]
    assert pauses == sorted(pauses)
    assert max(pauses[:8]) <= 2, "eight times in quick succession it is made good at once"
    assert pauses[-1] >= 300
    assert len(made) < 30


def test_after_a_break_a_lower_pair_needs_fresh_proof() -> None:
    """The peer, past it since its answer on the higher one, may have taken it away."""
    life = rotated()
    old, new = life.pair(1, 1), life.pair(2, 1)
    life.hear(new, ASK)
    life.send()
    assert life.sends == {"n1": new}
    life.vanish(*life.rows(new, OUT))
    assert life.sends == {}
    assert old in life.probes(ASK)
    life.hear(old, ANSWER)
    assert life.sends == {"n1": old}


def test_what_happens_on_a_higher_pair_does_not_matter_to_it() -> None:
    life = rotated()
    life.hear(life.pair(2, 1), ASK)
    life.vanish(*life.rows(life.pair(1, 1)))
    assert life.sends == {"n1": life.pair(2, 1)}


def test_both_nodes_rank_their_pairs_alike() -> None:
    """Else one node could take away what the other sends on."""

    def ranked(local: str, peer: str, *, is_swapped: bool) -> list[PairId]:
        found = []
        for mine, theirs in product(range(1, 5), repeat=2):
            ours = (theirs, mine) if is_swapped else (mine, theirs)
            pair = Pair(PairId(10 * mine + theirs), MY_ADDRESS, *map(Epoch, ours), (), None)
            pair.rank_between(NodeName(local), NodeName(peer))
            found.append(pair)
        return [pair.id for pair in sorted(found, key=lambda pair: pair.rank)]

    here, there = ranked("a", "b", is_swapped=False), ranked("b", "a", is_swapped=True)
    assert here == there
    assert (here[0], here[-1]) == (11, 44)


def test_a_lower_pair_is_not_asked_about() -> None:
    life = Life([node("n1", offer("n1", 1), offer("n1", 2))])
    life.install()
    life.agree(life.pair(1, 2))
    asked = set()
    for _ in range(30):
        asked.update(life.look(1).probes)
    assert asked == set()


def test_a_withdrawn_offer_forgets_its_private_half(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped = []
    original = OwnOffer.wipe
    monkeypatch.setattr(
        OwnOffer, "wipe", lambda own: wiped.append(own.offer.epoch) or original(own)
    )
    life = rotated()
    assert wiped == []
    life.agree(life.pair(2, 1))
    assert wiped == [1]


# --- restarts ---


def test_a_restart_adopts_what_stands_and_moves_on() -> None:
    before = agreed()
    life = before.restart()
    assert life.sends == {"n1": before.pair(1, 1)}
    adopted = [sa for sa in life.plan.sas.values() if sa.local_epoch == 1]
    assert adopted == list(life.up.values())
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
    assert life.sends == {}
    assert life.pairs() == {(1, 1)}
    assert life.plan.wake == life.now + 10
    life.look(9.9)
    assert life.pairs() == {(1, 1)}
    life.look(0.1)
    assert life.pairs() == set()


def test_nothing_is_taken_away_before_the_nodes_are_listed() -> None:
    before = agreed()
    ring = ring_of()
    ring.start(before.plan.offers, before.up)
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
    life.ring.standing(life.up)
    assert life.look().sas is before


def test_it_never_wakes_for_what_it_cannot_change() -> None:
    """A short lifetime, and a peer that keeps the rotation from ending: a plan now and then."""
    ring = ring_of(MY_ADDRESS, lifetime_seconds=20)
    ring.start((), {})
    ring.peers({NodeName("n1"): node("n1", offer("n1", 1))})
    now, plans = 0.0, 0
    while now < 1000 and plans < 1000:
        plan = ring.plan(now)
        ring.standing(plan.sas)
        plans += 1
        assert plan.wake is not None
        now = plan.wake
    assert plans < 1000
    assert plan.own[-1].epoch > 2


def test_strange_pairs_are_nobodys() -> None:
    life = agreed()
    stranger = PairId(12345)
    life.ring.confirmed(stranger)
    life.ring.spent(stranger)
    before = life.look()
    strange = [replace(sa, pair=stranger) for sa in life.up.values()]
    life.ring.standing({sa.at: sa for sa in (*strange, *life.up.values())})
    assert life.hear(stranger, ProbeKind.ASK) == before


def test_a_plan_needs_a_start() -> None:
    with pytest.raises(AssertionError, match="start"):
        ring_of().plan(0.0)
