# SPDX-License-Identifier: Apache-2.0
"""Which offers are believed, and what is said of the others."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import Epoch, NodeName, Offer
from pellicle.keys import secret as secrets
from pellicle.keys.offers import OwnOffer, fingerprint, is_low_order, judge, prove

SECRET = secrets.parse("a1b2c3d4" * 8)
OTHER = secrets.parse("a1b2c3d5" * 8)
N1 = NodeName("n1")
GOOD = OwnOffer.make(N1, Epoch(3), bytes(range(16)), os.urandom, SECRET).offer
LOW_ORDER = (
    bytes(32),
    b"\x01" + bytes(31),
    b"\xec" + b"\xff" * 30 + b"\x7f",
    b"\xed" + b"\xff" * 30 + b"\x7f",
    b"\xee" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)


def forged(**changes: object) -> Offer:
    """Changed after it was proven."""
    return replace(GOOD, **changes)  # type: ignore[arg-type]


def proven(**changes: object) -> Offer:
    """Made so by someone who has the secret."""
    offer = forged(**changes)
    return replace(offer, proof=prove(SECRET, N1, offer))


CASES = {
    "another epoch": (forged(epoch=Epoch(4)), "the proof does not verify"),
    "another boot nonce": (forged(boot_nonce=bytes(16)), "the proof does not verify"),
    "another public key": (forged(public_key=b"\x09" + bytes(31)), "the proof does not verify"),
    "another proof": (forged(proof=bytes(32)), "the proof does not verify"),
    "no proof": (forged(proof=b""), "no proof; 32 bytes are needed"),
    "a short proof": (forged(proof=GOOD.proof[:31]), "a proof of 31 bytes; 32 bytes are needed"),
    "a long nonce": (proven(boot_nonce=bytes(17)), "a boot nonce of 17 bytes"),
    "a short key": (proven(public_key=bytes(31)), "a public key of 31 bytes"),
    "epoch zero": (forged(epoch=Epoch(0)), "epoch 0 is not between 1 and"),
    "epoch too large": (forged(epoch=Epoch(2**32)), "epoch 4294967296 is not between"),
}


def test_what_a_holder_of_the_secret_made_is_believed() -> None:
    assert not judge(SECRET, N1, GOOD).why
    assert fingerprint(GOOD) == GOOD.public_key[:4].hex()


@pytest.mark.parametrize("case", CASES)
def test_anything_else_is_refused_in_words(case: str) -> None:
    offer, words = CASES[case]
    assert words in judge(SECRET, N1, offer).why


def test_an_offer_is_of_one_node_and_one_secret() -> None:
    assert "does not verify" in judge(SECRET, NodeName("n2"), GOOD).why
    assert "another pre-shared secret" in judge(OTHER, N1, GOOD).why


@pytest.mark.parametrize("size", [0, 254])
def test_a_name_that_no_node_has_is_refused(size: int) -> None:
    assert f"a node name of {size} bytes" in judge(SECRET, NodeName("x" * size), GOOD).why


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
@pytest.mark.parametrize("top_bit", [0, 0x80])
def test_points_of_low_order_are_refused(point: bytes, top_bit: int) -> None:
    """Every private half gives the same with them: OpenSSL is the judge."""
    key = point[:31] + bytes([point[31] | top_bit])
    with pytest.raises(ValueError, match="shared key"):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    assert is_low_order(key)
    assert "low order" in judge(SECRET, N1, proven(public_key=key)).why


@given(st.binary(min_size=32, max_size=32))
def test_only_those(key: bytes) -> None:
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        assert is_low_order(key)
    else:
        assert not is_low_order(key)


@given(
    st.builds(
        Offer,
        st.integers(-5, 2**33).map(Epoch),
        st.binary(max_size=40),
        st.binary(max_size=40),
        st.binary(max_size=40),
    ),
    st.text(max_size=300),
)
def test_nothing_raises_and_nothing_unproven_passes(offer: Offer, name: str) -> None:
    encodable = name.encode("utf-8", "replace").decode()
    assert judge(SECRET, NodeName(encodable), offer).why
