# SPDX-License-Identifier: Apache-2.0
"""Keys that an operator made: which SAs follow from a file and the nodes' records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from pellicle.facts import Cipher, Node, NodeName, PairId
from pellicle.keys.manual import GRACE_SECONDS, LAST_SEQUENCE, ManualKey, ManualKeys, read_line
from pellicle.keys.rows import Direction, KeyPlan, LocalNode, PeerState, Sa, SaKey
from pellicle.keys.secret import SecretError, parse_all

GCM = "0102030405060708090a0b0c0d0e0f1011121314"
LONG = bytes(range(36)).hex()
THREE = f"3 rfc4106(gcm(aes)) {GCM} 128"
FOUR = f"4 rfc4106(gcm(aes)) {LONG} 128"
N1, N2, N3 = (NodeName(name) for name in ("n1", "n2", "n3"))
CIPHERS = (Cipher.AES_256_GCM, Cipher.AES_128_GCM)
DRAIN = 10.0


def keys(*lines: str) -> tuple[ManualKey, ...]:
    return parse_all("\n".join(lines), read_line)[0]


def node(name: NodeName, *addresses: str) -> Node:
    number = name[1:]
    found = addresses or (f"192.0.2.{number}", f"2001:db8::{number}")
    return Node(name, tuple(map(ip_address, found)), (), ())


NODES = {name: node(name) for name in (N1, N2, N3)}


class Life:
    """A node whose kernel does what it is told, when it is told to."""

    def __init__(self, *lines: str, name: NodeName = N1, standing: Sequence[Sa] = ()) -> None:
        self.name = name
        local = LocalNode(name, NODES[name].addresses)
        self.ring = ManualKeys(local, keys(*lines), ciphers=CIPHERS, drain_seconds=DRAIN)
        self.kernel = {sa.at: sa for sa in standing}
        self.ever = set(self.kernel)
        self.now = 0.0
        self.ring.start((), self.kernel)
        self.ring.peers(NODES)

    def plan(self) -> KeyPlan:
        return self.ring.plan(self.now)

    def obey(self) -> KeyPlan:
        """Until nothing changes: what is new is put first, and nothing twice."""
        while True:
            wanted = self.plan().sas
            assert not (wanted.keys() - self.kernel.keys()) & self.ever, "put twice"
            if wanted.keys() == self.kernel.keys():
                return self.plan()
            self.kernel = {at: replace(sa, key=b"", salt=b"") for at, sa in wanted.items()}
            self.ever |= self.kernel.keys()
            self.ring.standing(self.kernel)

    def lose(self, at: SaKey) -> None:
        self.kernel = {each: sa for each, sa in self.kernel.items() if each != at}
        self.ring.standing(self.kernel)


def sas(rows: Mapping[SaKey, Sa], direction: Direction, peer: str = "192.0.2.2") -> list[Sa]:
    found = [sa for sa in rows.values() if sa.direction is direction and str(sa.node) == peer]
    return sorted(found, key=lambda sa: (sa.spi, sa.local_epoch))


def test_both_nodes_have_the_same_keys_and_the_key_id_is_the_spi() -> None:
    here, there = Life(THREE).plan(), Life(THREE, name=N2).plan()
    (out,) = sas(here.sas, Direction.OUT)
    (in_,) = sas(there.sas, Direction.IN, "192.0.2.1")
    assert (out.source, out.destination, out.spi) == (in_.source, in_.destination, in_.spi)
    assert (out.spi, out.key + out.salt) == (3, bytes.fromhex(GCM))
    assert (in_.key, in_.salt) == (out.key, out.salt)
    assert out.cipher is Cipher.AES_128_GCM
    assert out.is_manual
    assert out.sequence_limit == LAST_SEQUENCE


def test_a_peer_is_sent_to_once_the_sas_stand() -> None:
    life = Life(THREE)
    assert {peer.state for peer in life.plan().peers.values()} == {PeerState.CONFIRMING}
    assert life.plan().sends == {}
    plan = life.obey()
    assert {peer.state for peer in plan.peers.values()} == {PeerState.READY}
    assert plan.sends.keys() == {N2, N3}
    assert {send.sas for send in plan.sends.values()} == {1}
    assert len({sa.slot for sa in plan.sas.values()}) == len(plan.sas) == 4


def test_every_line_decrypts_and_the_first_encrypts() -> None:
    plan = Life(FOUR, THREE).obey()
    assert [sa.spi for sa in sas(plan.sas, Direction.IN)] == [3, 4]
    assert [sa.spi for sa in sas(plan.sas, Direction.OUT)] == [4]
    assert [(own.epoch, own.state) for own in plan.own] == [(3, "retiring"), (4, "current")]


def test_a_roll_out_node_by_node_never_sends_what_cannot_be_opened() -> None:
    lives = [Life(THREE), Life(THREE, name=N2), Life(THREE, name=N3)]
    for life in lives:
        life.obey()
    for lines in ((THREE, FOUR), (FOUR, THREE), (FOUR,)):
        for life in lives:
            life.ring.know(keys(*lines))
            life.now += 1
            life.obey()
            for sender, receiver in ((a, b) for a in lives for b in lives if a is not b):
                pair = sender.plan().sends[receiver.name].pair
                (sa,) = (sa for sa in sender.kernel.values() if sa.pair == pair)
                opens = [each for each in receiver.kernel.values() if each.source == sa.source]
                assert sa.spi in {each.spi for each in opens}


def test_a_key_that_left_the_file_decrypts_for_a_while() -> None:
    life = Life(THREE)
    life.obey()
    life.ring.know(keys(FOUR))
    plan = life.obey()
    assert [sa.spi for sa in sas(plan.sas, Direction.IN)] == [3, 4]
    assert [sa.spi for sa in sas(plan.sas, Direction.OUT)] == [3, 4]
    assert plan.wake == DRAIN
    life.now = DRAIN
    plan = life.obey()
    assert [sa.spi for sa in sas(plan.sas, Direction.OUT)] == [4]
    assert plan.wake == GRACE_SECONDS
    life.now = GRACE_SECONDS
    assert [sa.spi for sa in sas(life.obey().sas, Direction.IN)] == [4]
    assert life.plan().wake is None


def test_what_vanished_is_replaced_under_another_name() -> None:
    life = Life(THREE)
    for direction in Direction:
        (before,) = sas(life.obey().sas, direction)
        life.lose(before.at)
        (after,) = sas(life.obey().sas, direction)
        assert (after.spi, after.pair != before.pair) == (3, True)


def test_a_spent_sa_is_replaced_and_drains() -> None:
    life = Life(THREE)
    (before,) = sas(life.obey().sas, Direction.OUT)
    life.ring.spent(before.pair)
    both = sas(life.obey().sas, Direction.OUT)
    assert [sa.local_epoch for sa in both] == [1, 2]
    assert life.plan().sends[N2].pair == both[1].pair
    assert len({sa.slot for sa in both}) == 2
    life.ring.spent(before.pair)
    assert sas(life.obey().sas, Direction.OUT) == both, "only what is in use can be spent"
    life.now = DRAIN
    assert sas(life.obey().sas, Direction.OUT) == both[1:]


def test_the_next_life_takes_over_what_stands() -> None:
    life = Life(THREE)
    life.obey()
    life.ring.spent(life.plan().sends[N2].pair)
    life.obey()
    life.now = DRAIN
    stood = life.obey().sas
    again = Life(THREE, standing=list(life.kernel.values()))
    assert again.plan().sas == stood


def test_a_node_that_comes_back_gets_sas_of_another_name() -> None:
    life = Life(THREE)
    life.obey()
    life.ring.peers({N1: NODES[N1], N3: NODES[N3]})
    life.obey()
    life.now = DRAIN
    assert sas(life.obey().sas, Direction.OUT) == []
    life.ring.peers(NODES)
    assert N2 in life.obey().sends


def test_a_node_that_was_away_while_the_agent_restarted_gets_sas_of_another_name() -> None:
    life = Life(THREE)
    life.obey()
    again = Life(THREE, standing=list(life.kernel.values()))
    again.ring.peers({N1: NODES[N1], N3: NODES[N3]})
    again.obey()
    again.now = DRAIN
    assert sas(again.obey().sas, Direction.OUT) == []
    again.ring.peers(NODES)
    assert N2 in again.obey().sends


def test_a_taken_key_id_and_a_claimed_address_are_refused_by_name() -> None:
    life = Life(THREE)
    life.ring.know(keys(f"3 rfc4106(gcm(aes)) {LONG} 128"))
    rogue = node(NodeName("n4"), "192.0.2.2")
    life.ring.peers({**NODES, NodeName("n4"): rogue})
    plan = life.obey()
    assert [sa.cipher for sa in sas(plan.sas, Direction.OUT)] == [Cipher.AES_128_GCM]
    said = " ".join(f"{row.source} {row.name} {row.why}" for row in plan.rejected)
    assert "is in use with other bytes: give the new key another id" in said
    assert "record of node n4 addresses an address of it belongs to node n2" in said


def test_a_peer_without_an_address_of_the_family_is_named() -> None:
    life = Life(THREE)
    life.ring.peers({N1: NODES[N1], N2: Node(N2, (), (), ())})
    (peer,) = life.plan().peers.values()
    assert (peer.state, "no address" in peer.why) == (PeerState.NO_OFFER, True)


REFUSED = {
    "hex alone": (LONG, "must be of the form '<key id> rfc4106"),
    "no key id": (f"rfc4106(gcm(aes)) {GCM} 128", "must be of the form"),
    "CBC": (f"2 hmac(sha256) 0x{LONG} cbc(aes) 0x{GCM}", "must be of the form"),
    "a short tag": (f"3 rfc4106(gcm(aes)) {GCM} 96", "must be of the form"),
    "AES-192": (f"3 rfc4106(gcm(aes)) {LONG[:56]} 128", "AES-192 is not known here"),
    "cut short": (f"3 rfc4106(gcm(aes)) {GCM[:-2]} 128", "40, 56 or 72 hex digits, found 38"),
    "a placeholder": (f"3 rfc4106(gcm(aes)) {'ab' * 20} 128", "a placeholder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_lines_that_are_refused(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(SecretError) as refusal:
        parse_all(text, read_line)
    assert words in str(refusal.value)


def test_a_cipher_that_the_kernel_lacks_is_said_at_once() -> None:
    local = LocalNode(N1, NODES[N1].addresses)
    with pytest.raises(SecretError, match="aes-128-gcm, which this kernel does not have"):
        ManualKeys(local, keys(THREE), ciphers=(Cipher.CHACHA20_POLY1305,))


def test_nothing_of_a_key_shows() -> None:
    (key,) = keys(THREE)
    (out,) = sas(Life(THREE).plan().sas, Direction.OUT)
    for shown in (repr(key), str(key), repr(out)):
        assert GCM[:8] not in shown
    assert PairId(out.pair) not in (0, int(GCM[:16], 16))
