# SPDX-License-Identifier: Apache-2.0
"""The package derives what docs/keys.md says, and everything that names an SA changes its keys."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from itertools import permutations, product
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pellicle.facts import Cipher, Epoch, NodeName, Offer
from pellicle.keys import secret as secrets
from pellicle.keys.derivation import (
    CIPHER_KEY_BYTES,
    End,
    best_cipher,
    expand_sas,
    extract,
    pair_id,
)
from pellicle.keys.offers import OwnOffer, judge, prove
from tests.pure.keys.test_vectors import ALPHA, BETA, PAIRS, VECTORS

CHACHA = Cipher.CHACHA20_POLY1305
SECRET = secrets.parse(VECTORS["secret"])


def own(node: dict[str, Any]) -> tuple[OwnOffer, End]:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(node["private_key"]))
    offer = Offer(
        Epoch(node["epoch"]),
        bytes.fromhex(node["boot_nonce"]),
        private.public_key().public_bytes_raw(),
        bytes.fromhex(node["proof"]),
    )
    end = End(NodeName(node["name"]), ip_address(node["address"]), offer)
    return OwnOffer(offer, private), end


A, B = own(ALPHA), own(BETA)


def test_the_package_computes_the_vectors() -> None:
    for node in (A[1], B[1]):
        assert prove(SECRET, node.name, node.offer) == node.offer.proof
        assert not judge(SECRET, node.name, node.offer).why
    assert SECRET.fingerprint == VECTORS["fingerprint"]
    prk = extract(SECRET, A[0], B[1].offer)
    assert prk == extract(SECRET, B[0], A[1].offer)
    assert prk.hex() == VECTORS["prk"]
    for pair, (direction, ends) in product(
        PAIRS, (("alpha_to_beta", (A[1], B[1])), ("beta_to_alpha", (B[1], A[1])))
    ):
        cipher = Cipher(pair["cipher"])
        assert f"{pair_id(cipher, *ends):016x}" == pair["pair"]
        found = [
            {"number": n, "spi": f"{sa.spi:08x}", "key": sa.key.hex(), "salt": sa.salt.hex()}
            for n, sa in enumerate(expand_sas(prk, cipher, *ends))
        ]
        assert found == pair[direction]


@pytest.mark.parametrize(
    ("ours", "theirs", "best"),
    [
        ("chacha20-poly1305", "chacha20-poly1305", "chacha20-poly1305"),
        ("chacha20-poly1305 aes-128-gcm", "aes-128-gcm chacha20-poly1305", "aes-128-gcm"),
        ("chacha20-poly1305 aes-128-gcm aes-256-gcm", "aes-128-gcm aes-256-gcm", "aes-256-gcm"),
        ("chacha20-poly1305 aes-256-gcm", "chacha20-poly1305 aes-128-gcm", "chacha20-poly1305"),
        ("aes-256-gcm", "aes-128-gcm", None),
    ],
)
def test_the_best_cipher_in_common_is_chosen(ours: str, theirs: str, best: str | None) -> None:
    assert best_cipher(*([Cipher(c) for c in said.split()] for said in (ours, theirs))) == best


def test_both_nodes_choose_the_same_cipher() -> None:
    lists = [c for count in range(len(Cipher) + 1) for c in permutations(Cipher, count)]
    for ours, theirs in product(lists, repeat=2):
        chosen = best_cipher(ours, theirs)
        assert chosen is best_cipher(theirs, ours)
        assert (chosen is None) == set(ours).isdisjoint(theirs)
        assert chosen is None or (chosen in ours and chosen in theirs)


OTHER_ENDS = {
    "name": replace(A[1], name=NodeName("alphb")),
    "address": replace(A[1], address=ip_address("192.0.2.3")),
    "family": replace(A[1], address=ip_address("2001:db8::1")),
    "epoch": replace(A[1], offer=replace(A[1].offer, epoch=Epoch(8))),
    "boot nonce": replace(A[1], offer=replace(A[1].offer, boot_nonce=bytes(16))),
    "public key": replace(A[1], offer=replace(A[1].offer, public_key=b"\x09" + bytes(31))),
}


@pytest.mark.parametrize("what", OTHER_ENDS)
def test_whatever_names_an_end_changes_every_key(what: str) -> None:
    prk = bytes.fromhex(VECTORS["prk"])
    usual = expand_sas(prk, CHACHA, A[1], B[1])
    other = expand_sas(prk, CHACHA, OTHER_ENDS[what], B[1])
    assert {sa.key for sa in usual}.isdisjoint(sa.key for sa in other)
    assert {sa.spi for sa in usual}.isdisjoint(sa.spi for sa in other)
    assert pair_id(CHACHA, A[1], B[1]) != pair_id(CHACHA, OTHER_ENDS[what], B[1])


def test_ciphers_share_neither_keys_nor_names() -> None:
    prk = bytes.fromhex(VECTORS["prk"])
    assert len({pair_id(cipher, A[1], B[1]) for cipher in Cipher}) == len(Cipher)
    keys = {cipher: expand_sas(prk, cipher, A[1], B[1])[0].key for cipher in Cipher}
    assert {cipher: len(key) for cipher, key in keys.items()} == CIPHER_KEY_BYTES
    assert len({key[:16] for key in keys.values()}) == len(Cipher)


def test_secrets_do_not_show() -> None:
    sa = expand_sas(bytes.fromhex(VECTORS["prk"]), CHACHA, A[1], B[1])[0]
    for shown in (repr(sa), repr(A[0]), repr(SECRET)):
        for hidden in (sa.key, sa.salt, SECRET.proof_key, SECRET.pair_salt):
            assert hidden.hex() not in shown
            assert repr(hidden) not in shown


def test_a_wiped_offer_makes_no_key() -> None:
    gone, _ = own(ALPHA)
    gone.wipe()
    with pytest.raises(ValueError, match="private half of offer 7 is gone"):
        gone.shared(B[1].offer.public_key)
