# SPDX-License-Identifier: Apache-2.0
"""What becomes of keys when SVIDs are renewed, expire or come back: one ring, a clock by hand.

10:00        10:30                     11:00
  |- the peer's SVID ------------------|
               |- its next one ---------------------- …
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from pellicle.facts import Node, NodeName, Offer
from pellicle.keys.offers import judge, prove
from pellicle.keys.pairing import LOOK_SECONDS, PeerState
from pellicle.keys.spiffe import Spiffe
from pellicle.wire.spiffe import read_response
from tests.spiffe import Authority, Issued, response

from .life import ME, Life, node, offer
from .test_svid import AUTHORITY, ELEVEN, HALF_PAST, HOUR, MINUTE, TEMPLATE, TEN, Clock

N1 = NodeName("n1")
DRAIN = 10.0


def svid(name: str, begin: datetime = TEN, authority: Authority = AUTHORITY) -> Issued:
    return authority.svid(f"/pellicle/node/{name}", begin=begin, end=begin + HOUR)


class Cluster:
    """This node, `me`, and one peer, n1, whose offer is of epoch 1."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.me, self.peer = self.spiffe(ME), self.spiffe(N1)
        self.offer = offer("n1", 1, self.peer)
        self.life = Life([self.record], secret=self.me)
        self.life.install()
        self.life.agree(self.life.pair(1, 1))

    def spiffe(self, name: NodeName) -> Spiffe:
        made = Spiffe(name, [TEMPLATE], self.clock)
        made.take(read_response(response([svid(name)])))
        return made

    @property
    def record(self) -> Node:
        return node("n1", self.offer)

    def renew(self, begin: datetime, authority: Authority = AUTHORITY) -> None:
        """The peer has another SVID, and signs its offer anew."""
        self.peer.take(read_response(response([svid("n1", begin, authority)])))
        self.offer = replace(self.offer, proof=prove(self.peer, N1, self.offer))

    def later(self, at: datetime) -> None:
        seconds = (at - self.clock.at).total_seconds()
        self.clock.at = at
        self.life.look(seconds)

    def wake(self) -> None:
        """Nothing happens until the plan wants to be made again."""
        wake = self.life.look().wake
        assert wake is not None
        assert wake - self.life.now <= LOOK_SECONDS
        self.life.look(wake - self.life.now)

    @property
    def state(self) -> PeerState:
        return self.life.keys["n1"].state


def test_a_renewed_svid_changes_no_key() -> None:
    it = Cluster()
    before, sends = it.life.plan.sas, it.life.sends
    it.renew(HALF_PAST)
    it.life.know(it.record)
    assert it.life.plan.sas == before
    it.later(ELEVEN + MINUTE)
    assert it.state is PeerState.READY
    assert it.life.plan.sas == before
    assert it.life.sends == sends


def test_our_own_renewed_svid_signs_the_same_offers() -> None:
    it = Cluster()
    (before,), sas = it.life.plan.offers, it.life.plan.sas
    it.clock.at = HALF_PAST + 10 * MINUTE
    it.me.take(read_response(response([svid(ME, HALF_PAST)])))
    it.life.ring.prove_anew()
    it.life.look()
    (after,) = it.life.plan.offers
    assert _unproven(after) == _unproven(before)
    assert after.proof != before.proof
    assert it.life.plan.sas == sas
    it.clock.at = ELEVEN + 20 * MINUTE
    assert judge(it.peer, ME, before).why
    assert not judge(it.peer, ME, after).why


def _unproven(offer_: Offer) -> Offer:
    return replace(offer_, proof=b"")


def test_an_expired_svid_ends_in_no_keys_and_the_plan_wakes_for_it() -> None:
    it = Cluster()
    it.later(ELEVEN - MINUTE)
    assert it.state is PeerState.READY
    it.clock.at = ELEVEN - MINUTE / 60  # a second before
    wake = it.life.look().wake
    assert wake is not None
    assert 0 < wake - it.life.now <= 1
    it.later(ELEVEN)
    it.later(ELEVEN + MINUTE / 60)
    assert it.state is PeerState.UNVERIFIED
    assert "expired at 2030-01-01 11:00:00" in it.life.keys["n1"].why
    it.life.look(DRAIN)
    assert not it.life.plan.sas
    assert not it.life.sends


def test_a_clock_that_is_set_forward_is_noticed() -> None:
    it = Cluster()
    wake = it.life.look().wake
    assert wake is not None
    assert wake - it.life.now <= 10, "though the SVID is good for half an hour"
    it.clock.at += 24 * HOUR
    it.life.look(wake - it.life.now)
    assert it.state is PeerState.UNVERIFIED


@pytest.mark.parametrize("step", [24 * HOUR, -24 * HOUR], ids=["forward", "back"])
def test_a_clock_that_was_wrong_by_a_day_and_is_set_right_again(step: timedelta) -> None:
    it = Cluster()
    it.clock.at += step
    it.wake()
    assert it.state is PeerState.UNVERIFIED
    it.life.look(DRAIN)
    assert not it.life.plan.sas
    it.clock.at -= step
    it.wake()
    assert it.state is PeerState.CONFIRMING
    it.life.install()
    it.life.agree(it.life.pair(2, 1))
    assert it.state is PeerState.READY


def test_an_svid_that_begins_in_a_moment_counts_then() -> None:
    it = Cluster()
    it.renew(HALF_PAST + 4 * MINUTE / 60)
    it.life.know(it.record)
    assert it.state is PeerState.UNVERIFIED
    assert "not valid before 2030-01-01 10:30:04" in it.life.keys["n1"].why
    wake = it.life.plan.wake
    assert wake is not None
    assert wake - it.life.now <= 4
    it.later(HALF_PAST + 4 * MINUTE / 60)
    assert it.state is PeerState.READY


def test_who_comes_back_with_a_good_svid_gets_other_keys() -> None:
    it = Cluster()
    old = it.life.pair(1, 1)
    it.later(ELEVEN + MINUTE)
    it.life.look(DRAIN)
    it.renew(ELEVEN)
    it.life.know(it.record)
    it.life.look(1)
    it.life.install()
    fresh = it.life.pair(2, 1)
    assert fresh != old
    it.life.agree(fresh)
    assert it.state is PeerState.READY


def test_a_bundle_without_the_peers_root_ends_in_no_keys() -> None:
    it = Cluster()
    fresh = Authority("example.org", begin=TEN - HOUR, end=TEN + 24 * HOUR)
    news = it.me.take(read_response(response([svid(ME, authority=fresh)])))
    assert news.are_bundles_new
    it.life.ring.judge_anew()
    it.life.look()
    assert it.state is PeerState.UNVERIFIED
    assert "does not end at the trust bundle" in it.life.keys["n1"].why
    it.renew(TEN, fresh)
    it.life.know(it.record)
    assert it.state is PeerState.READY, "within the drain interval nothing was taken away"


def test_another_key_mode_is_named() -> None:
    it = Cluster()
    it.life.know(node("n1", offer("n1", 2)))
    assert it.state is PeerState.UNVERIFIED
    assert "another key mode?" in it.life.keys["n1"].why
    secretive = Life([it.record])
    assert "32 bytes are needed" in secretive.keys["n1"].why
