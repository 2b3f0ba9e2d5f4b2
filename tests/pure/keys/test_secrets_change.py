# SPDX-License-Identifier: Apache-2.0
"""Another pre-shared secret, on one node after the other: who is heard, and for how long."""

from __future__ import annotations

from pellicle.keys import pairing
from pellicle.keys.rows import PeerState
from pellicle.keys.secret import Secret

from .life import SECRET, Life, node, offer

NEW = Secret.derive(b"another secret for this cluster!")


def ready() -> Life:
    """With n1, whose offer 5 is proven with the secret of always."""
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    life.ring.probe(life.pair(1, 5), pairing.ProbeKind.ANSWER)
    life.look()
    life.send()
    assert life.keys["n1"].state is PeerState.READY
    return life


def test_the_same_secrets_again_change_nothing() -> None:
    life = ready()
    life.ring.know([SECRET])
    assert life.look(100).offers == life.plan.offers
    assert [own.epoch for own in life.plan.own] == [1]


def test_a_new_first_line_makes_a_new_offer_and_the_peer_is_not_lost() -> None:
    life = ready()
    life.ring.know([NEW, SECRET])
    life.look(1)
    assert [own.epoch for own in life.plan.own] == [1, 2]
    life.install()
    assert life.plan.sends["n1"].pair == life.pair(1, 5)  # type: ignore[index]
    assert {sa.pair for sa in life.plan.sas.values()} == {life.pair(1, 5)}, "one secret for both"
    life.know(node("n1", offer("n1", 5), offer("n1", 6, NEW)))
    assert life.pair(2, 6) in {sa.pair for sa in life.plan.sas.values()}


def test_a_line_more_at_the_end_makes_no_offer_and_is_heard() -> None:
    life = ready()
    life.ring.know([SECRET, NEW])
    life.look(1)
    assert [own.epoch for own in life.plan.own] == [1]
    life.know(node("n1", offer("n1", 6, NEW)))
    assert life.plan.rejected == ()
    assert life.plan.sends["n1"].pair == life.pair(1, 5)  # type: ignore[index]


def test_a_secret_that_left_is_good_for_an_hour_and_no_longer() -> None:
    life = ready()
    life.ring.know([NEW])
    life.look()
    for _ in range(12):
        life.look(pairing.GRACE_SECONDS / 12 - 10)
        life.install()
        assert life.plan.sends["n1"].pair == life.pair(1, 5)  # type: ignore[index]
    life.look(200)
    assert life.keys["n1"].state is PeerState.UNVERIFIED
    assert "another pre-shared secret" in life.plan.rejected[0].why
    life.look(11)
    assert life.plan.sends == {}
    assert life.plan.sas == {}


def test_a_secret_that_came_back_stays() -> None:
    life = ready()
    life.ring.know([NEW, SECRET])
    life.look()
    life.ring.know([SECRET])
    life.look(2 * pairing.GRACE_SECONDS)
    assert life.plan.rejected == ()
    assert life.plan.sends["n1"].pair == life.pair(1, 5)  # type: ignore[index]


def test_offers_of_different_lines_agree_on_nothing_and_say_so() -> None:
    life = Life()
    life.ring.know([SECRET, NEW])
    life.know(node("n1", offer("n1", 5, NEW)))
    (peer,) = life.plan.peers.values()
    assert (peer.state, life.plan.sas) == (PeerState.UNVERIFIED, {})
    assert "another line of the pre-shared secret" in peer.why
