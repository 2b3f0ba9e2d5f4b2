# SPDX-License-Identifier: Apache-2.0
"""Peers whose records lie, flap, rewind, move, collide or vanish; and ours in return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from pellicle.facts import Cipher, Epoch, Node, NodeName, Offer
from pellicle.keys import pair as pairs
from pellicle.keys import pairing, records
from pellicle.keys.derivation import SaKeys
from pellicle.keys.pairing import Direction, KeyPlan, PeerState
from pellicle.keys.peer import MOST_PAIRS
from pellicle.keys.records import outer_addresses
from pellicle.keys.secret import Secret
from pellicle.keys.trust import Judgement, Trust

from .life import ANSWER, ASK, ME, Life, addresses, agreed, node, offer, ring_of

OTHER_SECRET = Secret.derive(bytes(range(1, 33)))
FORGED = offer("nobody", 1, OTHER_SECRET)


@dataclass(frozen=True)
class Case:
    says: str
    node: Callable[[], Node]
    state: PeerState
    why: str
    rejected: tuple[str, ...] = ()


def good(epoch: int = 1) -> Node:
    return node("n1", offer("n1", epoch))


CASES = (
    Case("a good one", good, PeerState.CONFIRMING, "SAs are being put"),
    Case("no offers", lambda: node("n1"), PeerState.NO_OFFER, "publishes no offer"),
    Case(
        "another secret",
        lambda: node("n1", offer("n1", 1, OTHER_SECRET)),
        PeerState.UNVERIFIED,
        "another pre-shared secret",
        ("offer 1",),
    ),
    Case(
        "another node's offer",
        lambda: node("n1", offer("n2", 1)),
        PeerState.UNVERIFIED,
        "does not verify",
        ("offer 1",),
    ),
    Case(
        "one good, one forged",
        lambda: node("n1", offer("n1", 2), offer("n1", 3, OTHER_SECRET)),
        PeerState.CONFIRMING,
        "SAs are being put",
        ("offer 3",),
    ),
    Case(
        "three offers",
        lambda: node("n1", *(offer("n1", epoch) for epoch in (1, 2, 3))),
        PeerState.UNVERIFIED,
        "3 offers of epochs [1, 2, 3]; at most two",
        ("offers",),
    ),
    Case(
        "very many offers",
        lambda: node("n1", *([offer("n1", 1)] * 10000)),
        PeerState.UNVERIFIED,
        "10000 offers of epochs [1, 1, 1, 1]; at most two",
        ("offers",),
    ),
    Case(
        "two of one epoch",
        lambda: node("n1", offer("n1", 4), offer("n1", 4)),
        PeerState.UNVERIFIED,
        "2 offers of epochs [4, 4]; at most two, of different epochs",
        ("offers",),
    ),
    Case(
        "another family",
        lambda: node("n1", offer("n1", 1), at=("2001:db8::1",)),
        PeerState.NO_OFFER,
        "no address of the family that the tunnels use",
    ),
    Case("no address", lambda: node("n1", offer("n1", 1), at=()), PeerState.NO_OFFER, "no address"),
    Case(
        "another cipher",
        lambda: replace(good(), ciphers=(Cipher.AES_256_GCM,)),
        PeerState.NO_OFFER,
        "it has aes-256-gcm; this node has chacha20-poly1305",
    ),
    Case(
        "our address",
        lambda: node("n1", offer("n1", 1), at=("192.0.2.1",)),
        PeerState.NO_OFFER,
        "an address of it belongs to node me",
        ("addresses",),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_a_record_is_judged_in_words(case: Case) -> None:
    life = Life([case.node()])
    assert life.keys["n1"].state is case.state
    assert case.why in life.keys["n1"].why
    assert tuple(r.name for r in life.plan.rejected) == case.rejected
    assert all(r.source == "record of node n1" for r in life.plan.rejected)
    assert bool(life.plan.sas) is (case.state is PeerState.CONFIRMING)


def test_our_own_record_is_not_a_peer() -> None:
    assert Life([node(ME, offer(ME, 1))]).plan.peers == {}


FAMILIES = {
    "IPv4 first": (("10.0.0.1", "fd00::1"), ("fd00::2", "10.0.0.2"), "auto", "10.0.0.1 10.0.0.2"),
    "IPv6 if one lacks IPv4": (("10.0.0.1", "fd00::1"), ("fd00::2",), "auto", "fd00::1 fd00::2"),
    "IPv6 on demand": (("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2"), "6", "fd00::1 fd00::2"),
    "IPv4 on demand": (("fd00::1", "10.0.0.1"), ("10.0.0.2",), "4", "10.0.0.1 10.0.0.2"),
    "nothing in common": (("10.0.0.1",), ("fd00::2",), "auto", None),
    "not the one asked for": (("10.0.0.1",), ("10.0.0.2",), "6", None),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_both_nodes_choose_the_same_family(case: str) -> None:
    ours, theirs, family, chosen = FAMILIES[case]
    here = outer_addresses(addresses(*ours), addresses(*theirs), family)
    there = outer_addresses(addresses(*theirs), addresses(*ours), family)
    assert (here and " ".join(map(str, here))) == chosen
    assert there == (here and here[::-1])


def test_an_address_is_the_first_ones_until_it_gives_it_up() -> None:
    first, thief = good(), node("a-thief", offer("a-thief", 1))
    life = Life([first])
    life.know(first, thief)
    assert life.keys["a-thief"].why == "an address of it belongs to node n1"
    assert [r.source for r in life.plan.rejected] == ["record of node a-thief"]
    assert {sa.peer for sa in life.plan.sas.values()} == {"n1"}
    life.know(replace(first, addresses=addresses("192.0.2.77")), thief)
    assert life.plan.rejected == ()
    assert {"n1", "a-thief"} <= {sa.peer for sa in life.plan.sas.values()}


# --- peers that come and go ---


def test_a_peer_that_is_gone_for_a_moment_loses_nothing() -> None:
    life = agreed()
    before = life.plan.sas
    nodes = life.nodes
    life.know()
    assert life.plan.peers == {}
    assert life.plan.wake == life.now + 10
    life.look(9.9)
    assert life.plan.sas == before
    life.know(*nodes)
    life.look(100)
    assert life.plan.sas == before
    assert life.sends == {"n1": life.pair(1, 1)}


def test_a_peer_that_comes_back_later_gets_a_new_offer() -> None:
    life = agreed()
    old, nodes = life.pair(1, 1), life.nodes
    life.look(10)
    life.know()
    life.look(10)
    assert life.plan.sas == {}
    assert life.sends == {}
    life.know(*nodes)
    assert life.plan.sas
    assert old not in {sa.pair for sa in life.plan.sas.values()}
    assert [own.epoch for own in life.plan.own] == [1, 2]


def test_an_unverified_record_is_drained_and_named() -> None:
    life = agreed()
    life.know(node("n1", offer("n1", 2, OTHER_SECRET)))
    assert life.keys["n1"].state is PeerState.UNVERIFIED
    life.look(10)
    assert life.plan.sas == {}
    assert life.sends == {}


def test_ten_thousand_offers_cost_no_proof_and_ten_thousand_records_two_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounded by counting: what one record may cost, however long it is, and what one plan may."""
    judged: list[NodeName] = []

    def counted(secrets: Iterable[Trust], name: NodeName, offer: Offer) -> tuple[None, Judgement]:
        judged.append(name)
        return None, Judgement("counted")

    life = agreed()
    monkeypatch.setattr(records, "prover", counted)
    long = node(
        "n2", *(replace(FORGED, epoch=Epoch(n + 1)) for n in range(10_000)), at=("192.0.2.7",)
    )
    life.know(*life.nodes, long)
    assert judged == []
    assert life.keys["n2"].state is PeerState.UNVERIFIED
    assert "10000 offers" in life.keys["n2"].why
    assert len(life.keys["n2"].why) < 200
    many = [
        node(f"h{n}", FORGED, replace(FORGED, epoch=Epoch(2)), at=(f"198.18.{n >> 8}.{n & 255}",))
        for n in range(10_000)
    ]
    life.know(*life.nodes[:1], *many)
    while life.plan.wake == life.now:
        before = len(judged)
        life.look()
        assert len(judged) <= before + 2 * pairing.RECORDS_PER_PLAN
    assert len(judged) == 20_000
    life.know(*life.nodes[:1], *many)
    assert len(judged) == 20_000, "a record that did not change is not judged again"
    assert life.sends == {"n1": life.pair(1, 1)}, "and nothing else is disturbed"


# --- records late, twice, out of order, replayed ---


def test_a_peers_rotation_is_followed() -> None:
    life = agreed()
    current, following = life.nodes[0].offers[0], offer("n1", 2)
    life.know(node("n1", current, following))
    life.install()
    assert life.sends == {"n1": life.pair(1, 1)}
    life.agree(life.pair(1, 2))
    assert life.sends == {"n1": life.pair(1, 2)}
    life.know(node("n1", following))
    life.look(9.9)
    assert life.pairs() == {(1, 1), (1, 2)}
    life.look(0.1)
    assert life.pairs() == {(1, 2)}
    assert life.published == [1]


def test_an_old_record_changes_nothing_that_works() -> None:
    life = agreed()
    first, second = life.nodes[0], node("n1", offer("n1", 2))
    life.know(second)
    life.install()
    life.agree(life.pair(1, 2))
    life.look(10)
    assert life.pairs() == {(1, 2)}
    life.know(first)
    for _ in range(100):
        assert life.sends == {"n1": life.pair(1, 2)}
        life.look(5)
    life.know(second)
    assert life.sends == {"n1": life.pair(1, 2)}


def test_a_record_that_is_late_does_not_lower_what_is_sent_on() -> None:
    """First the newer record, then the older one: both pairs are good, the higher one is used."""
    new, old = offer("n1", 2), offer("n1", 1)
    life = Life([node("n1", new)])
    life.install()
    life.agree(life.pair(1, 2))
    life.know(node("n1", old))
    life.install()
    life.agree(life.pair(1, 1))
    life.look(100)
    assert life.sends == {"n1": life.pair(1, 2)}


def rewound(life: Life) -> None:
    """The peer lost its disk and its kernel's maps: its epochs begin anew."""
    life.know(node("n1", offer("n1", 1)))
    life.install()
    life.agree(life.pair(1, 1))


def test_a_peer_that_lost_its_memory_is_believed_once_the_old_pair_is_silent() -> None:
    life = agreed(epoch=9)
    old = life.pair(1, 9)
    rewound(life)
    begin = life.now
    assert life.sends == {"n1": old}
    asked = set()
    while life.rows(old):
        life.look(1)
        asked.update(life.probes(ASK))
        for pair in life.probes(ASK):
            if pair != old:
                life.hear(pair, ANSWER)
        assert life.now < begin + 30
    assert old in asked
    assert life.now >= begin + 10
    assert life.sends == {"n1": life.pair(1, 1)}


def test_a_pair_that_the_peer_still_answers_on_is_not_ended() -> None:
    life = agreed(epoch=9)
    old = life.pair(1, 9)
    rewound(life)
    for second in range(200):
        for pair in life.probes(ASK):
            life.hear(pair, ANSWER if pair == old or second % 3 else ASK)
        life.look(1)
    assert life.sends == {"n1": old}


def test_a_dead_agent_is_silence_too_and_ends_nothing() -> None:
    life = agreed(epoch=9)
    rewound(life)
    life.look(100000)
    assert life.sends == {"n1": life.pair(1, 9)}


def test_a_record_that_changes_without_end_is_bounded() -> None:
    life = agreed()
    most = 0
    for epoch in range(2, 2 * MOST_PAIRS):
        life.know(node("n1", offer("n1", epoch)))
        life.stand()
        life.look(1)
        most = max(most, len({sa.pair for sa in life.plan.sas.values()}))
    assert most == MOST_PAIRS
    assert life.sends == {"n1": life.pair(1, 1)}


# --- addresses ---


def test_a_peer_that_moves_gets_other_keys() -> None:
    life = agreed()
    old = life.pair(1, 1)
    moved = replace(life.nodes[0], addresses=addresses("192.0.2.99"))
    life.know(moved)
    new = next(sa for sa in life.plan.sas.values() if sa.pair != old)
    assert {new.source, new.destination} == set(addresses("192.0.2.99", "192.0.2.1"))
    assert new.node == ip_address("192.0.2.99")
    assert life.sends == {"n1": old}


def test_another_primary_address_needs_a_new_offer() -> None:
    """The rows of the datapath name the primary address, and no row is ever put again."""
    life = agreed()
    life.look(10)
    old = life.pair(1, 1)
    both = addresses("2001:db8::9", "192.0.2.9")
    life.know(replace(life.nodes[0], addresses=both))
    for _ in range(40):
        life.look(1)
        for pair in life.probes(ASK):
            life.hear(pair, ANSWER)
        life.install()
    assert {sa.node for sa in life.plan.sas.values()} == {both[0]}
    assert life.sends["n1"] != old


def test_spis_that_collide_are_not_put(monkeypatch: pytest.MonkeyPatch) -> None:
    life = agreed()
    life.look(10)
    taken = {at.direction: at.spi - at.number for at in life.plan.sas}
    original = pairs.expand_sas
    is_first = [True]

    def collide(*arguments: object) -> tuple[SaKeys, ...]:
        found: tuple[SaKeys, ...] = original(*arguments)  # type: ignore[arg-type]
        if arguments[2].name == ME or not is_first[0]:  # type: ignore[attr-defined]
            is_first[0] = False
            return found
        return tuple(
            replace(sa, spi=taken[Direction.IN] + number) for number, sa in enumerate(found)
        )

    monkeypatch.setattr(pairs, "expand_sas", collide)
    life.know(node("n1", offer("n1", 2)))
    life.look(1)
    spis = [at.spi for at in life.plan.sas if at.direction is Direction.IN]
    assert len(spis) == len(set(spis))
    assert life.pairs() == {(1, 1), (2, 2)}


def test_an_outer_family_can_be_asked_for() -> None:
    ring = ring_of(*addresses("192.0.2.1", "2001:db8::1"), outer_family="6")
    ring.start((), {})
    peer = node("n1", offer("n1", 1), at=("192.0.2.9", "2001:db8::9"))
    ring.peers({NodeName("n1"): peer})
    plan: KeyPlan = ring.plan(0.0)
    assert {sa.source for sa in plan.sas.values()} == set(addresses("2001:db8::9"))
    assert {sa.node for sa in plan.sas.values()} == set(addresses("192.0.2.9"))
    assert {sa.local_epoch for sa in plan.sas.values()} == {Epoch(1)}
