# SPDX-License-Identifier: Apache-2.0
"""Which cipher and which engine a pair has, and what happens when a node changes either."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pellicle.facts import Cipher, Engine
from pellicle.keys.derivation import CIPHER_KEY_BYTES, SALT_BYTES
from pellicle.keys.pairing import PeerState, Send

from .life import ANSWER, ASK, Life, addresses, agreed, node, offer

CHACHA, AES_128, AES_256 = Cipher
EVERY = (CHACHA, AES_128, AES_256)
BPF, XFRM = Engine
(THERE,) = addresses("192.0.2.9")


def life_with(ours: tuple[Cipher, ...], theirs: tuple[Cipher, ...], engine: Engine = XFRM) -> Life:
    return Life([replace(node("n1", offer("n1", 1)), ciphers=theirs)], ciphers=ours, engine=engine)


@pytest.mark.parametrize("cipher", Cipher)
def test_a_cipher_goes_all_the_way_from_the_record_to_the_status(cipher: Cipher) -> None:
    life = life_with(EVERY, (cipher,))
    assert {len(sa.key) for sa in life.plan.sas.values()} == {CIPHER_KEY_BYTES[cipher]}
    assert {len(sa.salt) for sa in life.plan.sas.values()} == {SALT_BYTES}
    life.install()
    pair = life.pair(1, 1)
    assert (life.keys["n1"].cipher, life.keys["n1"].engine) == (None, None)
    life.agree(pair)
    assert {(sa.cipher, sa.engine) for sa in life.plan.sas.values()} == {(cipher, XFRM)}
    assert life.plan.sends == {"n1": Send(pair, XFRM, THERE)}
    assert (life.keys["n1"].cipher, life.keys["n1"].engine) == (cipher, XFRM)


@pytest.mark.parametrize("engine", Engine)
def test_new_pairs_have_the_engine_of_this_life(engine: Engine) -> None:
    life = life_with((CHACHA,), EVERY, engine)
    assert {(sa.cipher, sa.engine) for sa in life.plan.sas.values()} == {(CHACHA, engine)}


def test_without_a_common_cipher_nothing_is_agreed_and_both_lists_are_named() -> None:
    life = life_with((AES_256, AES_128), (CHACHA,))
    assert not life.plan.sas
    assert life.keys["n1"].state is PeerState.NO_OFFER
    assert life.keys["n1"].why == (
        "shares no cipher with this node: "
        "it has chacha20-poly1305; this node has aes-256-gcm, aes-128-gcm"
    )


def test_a_record_whose_ciphers_change_makes_other_pairs_and_loses_nothing() -> None:
    """A peer that restarts says what it can do now beside the offers that it found."""
    life = life_with(EVERY, (CHACHA,))
    life.install()
    old = life.pair(1, 1)
    life.agree(old)
    better = replace(life.nodes[0], ciphers=EVERY)
    life.know(better)
    life.install()
    new = ({sa.pair for sa in life.plan.sas.values()} - {old}).pop()
    assert {sa.cipher for sa in life.plan.sas.values() if sa.pair == new} == {AES_256}
    life.look(100)
    assert life.sends == {"n1": old}
    life.know(replace(better, offers=(*better.offers, offer("n1", 2))))
    life.install()
    newest = life.pair(1, 2)
    life.agree(newest)
    life.know(replace(better, offers=life.nodes[0].offers[1:]))
    life.look(10)
    assert life.pairs() == {(1, 2)}
    assert life.plan.sends == {"n1": Send(newest, XFRM, THERE)}
    assert life.published == [1]


def test_ciphers_that_change_for_a_moment_change_nothing() -> None:
    life = life_with(EVERY, (CHACHA,))
    life.install()
    life.agree(life.pair(1, 1))
    usual, old = life.nodes[0], life.pair(1, 1)
    for ciphers in ((AES_128,), (AES_256,)):
        life.know(replace(usual, ciphers=ciphers))
        life.install()
    life.know(usual)
    for _ in range(100):
        for pair in life.probes(ASK):
            if pair == old:
                life.hear(pair, ANSWER)
        life.look(1)
    assert {sa.pair for sa in life.plan.sas.values()} == {old}
    assert life.sends == {"n1": old}
    assert [own.epoch for own in life.plan.own] == [1]


def test_a_common_cipher_that_is_lost_ends_what_was_agreed_and_its_return_begins_anew() -> None:
    life = life_with((AES_256,), EVERY)
    life.install()
    life.agree(life.pair(1, 1))
    life.look(10)
    usual = life.nodes[0]
    life.know(replace(usual, ciphers=(CHACHA,)))
    assert life.sends
    life.look(10)
    assert life.plan.sas == {}
    life.know(usual)
    assert life.pairs() == {(2, 1)}


@pytest.mark.parametrize(("before", "after"), [(BPF, XFRM), (XFRM, BPF)])
def test_a_node_that_changes_its_engine_moves_over_under_traffic(
    before: Engine, after: Engine
) -> None:
    life = agreed()
    if before is not life.engine:
        life = life_with((CHACHA,), (CHACHA,), before)
        life.install()
        life.agree(life.pair(1, 1))
    old = life.pair(1, 1)
    life = life.restart(engine=after)
    assert life.plan.sends == {"n1": Send(old, before, THERE)}
    assert life.keys["n1"].engine is before
    life.install()
    assert {(sa.local_epoch, sa.engine) for sa in life.plan.sas.values()} == {
        (1, before),
        (2, after),
    }
    new = life.pair(2, 1)
    life.agree(new)
    assert life.plan.sends == {"n1": Send(new, after, THERE)}
    life.look(10)
    assert {sa.engine for sa in life.plan.sas.values()} == {after}


def test_an_adopted_pair_keeps_its_cipher() -> None:
    life = life_with(EVERY, EVERY)
    life.install()
    life.agree(life.pair(1, 1))
    life = life.restart(ciphers=(CHACHA,), engine=BPF)
    assert life.keys["n1"].cipher is AES_256
    life.install()
    life.agree(life.pair(2, 1))
    assert life.keys["n1"].cipher is CHACHA
    assert life.keys["n1"].engine is BPF
