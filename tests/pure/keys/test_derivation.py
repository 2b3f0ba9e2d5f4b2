# SPDX-License-Identifier: Apache-2.0
"""The package derives what docs/keys.md says, and everything that names an SA changes its keys."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from pellicle.facts import Cipher, Epoch, NodeName, Offer
from pellicle.keys import secret as secrets
from pellicle.keys.derivation import CIPHER_KEY_BYTES, End, expand_sas, extract, pair_id
from pellicle.keys.offers import OwnOffer, prove_psk, verify_psk
from tests.pure.keys.test_vectors import ALPHA, BETA, VECTORS

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
        assert prove_psk(SECRET, node.name, node.offer) == node.offer.proof
        assert verify_psk(SECRET, node.name, node.offer) is None
    assert SECRET.fingerprint == VECTORS["fingerprint"]
    assert f"{pair_id(A[1], B[1]):016x}" == VECTORS["pair"]
    prk = extract(SECRET, A[0], B[1].offer)
    assert prk == extract(SECRET, B[0], A[1].offer)
    assert prk.hex() == VECTORS["prk"]
    for direction, ends in (("alpha_to_beta", (A[1], B[1])), ("beta_to_alpha", (B[1], A[1]))):
        found = [
            {"number": n, "spi": f"{sa.spi:08x}", "key": sa.key.hex(), "salt": sa.salt.hex()}
            for n, sa in enumerate(expand_sas(prk, Cipher.CHACHA20_POLY1305, *ends))
        ]
        assert found == VECTORS[direction]


def test_the_pair_has_one_name_on_both_nodes() -> None:
    assert pair_id(A[1], B[1]) == pair_id(B[1], A[1])


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
    usual = expand_sas(prk, Cipher.CHACHA20_POLY1305, A[1], B[1])
    other = expand_sas(prk, Cipher.CHACHA20_POLY1305, OTHER_ENDS[what], B[1])
    assert {sa.key for sa in usual}.isdisjoint(sa.key for sa in other)
    assert {sa.spi for sa in usual}.isdisjoint(sa.spi for sa in other)
    assert pair_id(A[1], B[1]) != pair_id(OTHER_ENDS[what], B[1])


def test_ciphers_do_not_share_keys() -> None:
    prk = bytes.fromhex(VECTORS["prk"])
    keys = {cipher: expand_sas(prk, cipher, A[1], B[1])[0].key for cipher in Cipher}
    assert {cipher: len(key) for cipher, key in keys.items()} == CIPHER_KEY_BYTES
    assert len({key[:16] for key in keys.values()}) == len(Cipher)


def test_secrets_do_not_show() -> None:
    sa = expand_sas(bytes.fromhex(VECTORS["prk"]), Cipher.CHACHA20_POLY1305, A[1], B[1])[0]
    for shown in (repr(sa), repr(A[0]), repr(SECRET)):
        for hidden in (sa.key, sa.salt, SECRET.proof_key, SECRET.pair_salt):
            assert hidden.hex() not in shown
            assert repr(hidden) not in shown


def test_a_wiped_offer_makes_no_key() -> None:
    gone, _ = own(ALPHA)
    gone.wipe()
    with pytest.raises(ValueError, match="private half of offer 7 is gone"):
        gone.shared(B[1].offer.public_key)
