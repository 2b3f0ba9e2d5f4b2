# SPDX-License-Identifier: Apache-2.0
"""Keys that a policy has for its own: pairs of the same offers, that share nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from pellicle.facts import Context, Node, NodeName
from pellicle.keys.pairing import Direction, Sa
from pellicle.keys.peers import Peers
from pellicle.keys.records import NOTHING, Verdict

from .life import ANSWER, ME, Life, addresses, agreed, epochs, node, offer

PAYMENTS, LEDGER = Context(7), Context(8)


def needing(*contexts: Context) -> Life:
    """A life that has agreed with n1 on everything else."""
    life = agreed()
    life.need(*contexts)
    life.install()
    return life


def sas(life: Life, context: Context) -> list[Sa]:
    return [sa for sa in life.plan.sas.values() if sa.context == context]


def agree(life: Life, context: Context) -> None:
    for pair in {sa.pair for sa in sas(life, context)}:
        life.hear(pair, ANSWER)
    life.send()


def test_they_are_sent_on_when_the_peer_has_shown_that_it_has_them() -> None:
    life = needing(PAYMENTS)
    (send,) = life.plan.own_sends.values()
    assert (send.context, send.pair) == (PAYMENTS, life.sends["n1"]), "the node's, until then"
    agree(life, PAYMENTS)
    (send,) = life.plan.own_sends.values()
    assert (send.context, send.pair) == (PAYMENTS, sas(life, PAYMENTS)[0].pair)
    assert life.plan.own_peers.keys() == {("n1", PAYMENTS)}
    assert life.sends["n1"] != send.pair, "the rest goes on as it was"


def test_until_then_the_nodes_keys_are_those_that_it_has_now() -> None:
    life = needing(PAYMENTS)
    life.ring.rotate()
    life.look(10)
    life.install()
    life.agree(next(sa.pair for sa in life.plan.sas.values() if epochs(sa) == (2, 1)))
    life.look()
    (send,) = life.plan.own_sends.values()
    assert send.pair == life.sends["n1"]


def test_once_they_were_sent_on_nothing_else_will_do() -> None:
    life = needing(PAYMENTS)
    agree(life, PAYMENTS)
    life.vanish(*(sa.at for sa in sas(life, PAYMENTS)))
    assert life.sends
    assert life.plan.own_sends == {}


def test_no_two_contexts_share_a_pair_a_key_an_spi_or_a_slot() -> None:
    life = agreed()
    life.need(PAYMENTS, LEDGER)
    fresh = [sa for sa in life.plan.sas.values() if sa.direction is Direction.IN]
    assert len({sa.spi for sa in fresh}) == len(fresh) == 12
    per_context = [sas(life, context) for context in (Context(0), PAYMENTS, LEDGER)]
    assert [len({sa.pair for sa in each}) for each in per_context] == [1, 1, 1]
    assert [len({sa.slot for sa in each}) for each in per_context] == [1, 1, 1]
    assert len({sa.pair for each in per_context for sa in each}) == 3
    assert len({sa.slot for each in per_context for sa in each}) == 3
    keys = [sa.key for each in per_context[1:] for sa in each]
    assert all(keys)
    assert len(set(keys)) == len(keys)


def test_they_rotate_with_the_offers() -> None:
    life = needing(PAYMENTS)
    agree(life, PAYMENTS)
    first = {sa.pair for sa in sas(life, PAYMENTS)}
    life.ring.rotate()
    life.look(10)
    life.install()
    assert life.published == [1, 2]
    new = {sa.pair for sa in sas(life, PAYMENTS)} - first
    assert len(new) == 1
    (send,) = life.plan.own_sends.values()
    assert send.pair in first, "the peer has not been heard on the new one"
    for sa in list(life.plan.sas.values()):
        if sa.local_epoch == 2:
            life.hear(sa.pair, ANSWER)
    life.send()
    life.look(11)
    life.look()
    (send,) = life.plan.own_sends.values()
    assert {send.pair} == new
    assert {sa.pair for sa in sas(life, PAYMENTS)} == new


def test_a_new_life_adopts_them() -> None:
    life = needing(PAYMENTS)
    agree(life, PAYMENTS)
    pairs = {sa.pair for sa in sas(life, PAYMENTS)}
    after = life.restart()
    assert {sa.pair for sa in sas(after, PAYMENTS)} == pairs, "before anybody asks for them"
    after.need(PAYMENTS)
    (send,) = after.plan.own_sends.values()
    assert send.pair in pairs


def test_what_no_policy_asks_for_any_more_ends_after_the_drain() -> None:
    life = needing(PAYMENTS)
    agree(life, PAYMENTS)
    life.need()
    assert life.plan.own_peers == {}
    assert life.plan.own_sends
    assert sas(life, PAYMENTS), "whoever has not heard of it yet sends on them"
    life.look(10.1)
    assert (life.plan.own_sends, sas(life, PAYMENTS)) == ({}, [])
    assert life.sends


def test_a_node_that_goes_takes_them_along() -> None:
    life = needing(PAYMENTS)
    agree(life, PAYMENTS)
    life.know()
    assert life.plan.own_peers == {}
    life.look(10.1)
    assert (life.plan.own_sends, life.plan.sas) == ({}, {})
    life.know(node("n1", offer("n1", 2)))
    life.install()
    assert sas(life, PAYMENTS), "it is still asked for"


def test_one_change_costs_the_same_among_ten_nodes_and_a_thousand() -> None:
    few, many = cluster(10), cluster(1000)
    everything = [calls(partial(needs, few, 10)), calls(partial(needs, many, 1000))]
    assert everything[1] > 50 * everything[0], "it does count"
    one = (NodeName("n5"), LEDGER)
    for wanted in ((), (one,)):
        costs = [calls(partial(peers.need, wanted, [one])) for peers in (few, many)]
        assert costs[0] == costs[1]
        assert [len(peers.take(10)) for peers in (few, many)] == [1, 1]


def cluster(size: int) -> Peers:
    """So many nodes, and with each of them two sets of keys of their own."""
    peers = Peers(ME)
    for n in range(size):
        name = NodeName(f"n{n}")
        at = addresses(f"198.18.{n >> 8}.{n & 255}")
        peers.believe(Verdict(name, Node(name, at, ()), NOTHING, is_refused=False))
    needs(peers, size)
    peers.take(3 * size)
    return peers


def needs(peers: Peers, size: int) -> None:
    names = [NodeName(f"n{n}") for n in range(size)]
    every = [(name, context) for name in names for context in (PAYMENTS, LEDGER)]
    peers.need(set(every), every)


def calls(act: Callable[[], object]) -> int:
    """Of functions, ours and Python's own."""
    counted, before = [0], sys.getprofile()

    def count(*_: object) -> None:
        counted[0] += 1

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(before)
    return counted[0]
