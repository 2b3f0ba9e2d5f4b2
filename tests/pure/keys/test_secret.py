# SPDX-License-Identifier: Apache-2.0
"""The pre-shared secret's text: what is taken, what is refused, and that nothing of it shows."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.keys.secret import Secret, SecretError, parse, parse_all, read_line

BYTES = bytes(range(1, 33))
MANY = bytes(range(190, 256))
HEX = BYTES.hex()
GCM = "0102030405060708090a0b0c0d0e0f1011121314"

ACCEPTED = {
    "hex": (HEX, BYTES, None),
    "hex with 0x": (f"0x{HEX}", BYTES, None),
    "upper case": (HEX.upper(), BYTES, None),
    "base64": (base64.b64encode(BYTES).decode(), BYTES, None),
    "base64 for file names": (base64.urlsafe_b64encode(MANY).decode(), MANY, None),
    "a newline and a comment": (f"# made 2026\n\n{HEX}\n", BYTES, None),
    "classic": (f"3 rfc4106(gcm(aes)) {GCM} 128", bytes.fromhex(GCM), 3),
    "classic, per-node keys": (f"3+ rfc4106(gcm(aes)) {GCM} 128", bytes.fromhex(GCM), 3),
    "classic, no key id": (f"rfc4106(gcm(aes)) {GCM} 128", bytes.fromhex(GCM), None),
    "classic, AES-256": (f"1 rfc4106(gcm(aes)) {HEX}{GCM[:8]} 128", BYTES + BYTES[:4], 1),
    "classic, CBC": (
        f"2 hmac(sha256) 0x{HEX} cbc(aes) 0x{GCM}",
        BYTES + bytes.fromhex(GCM),
        2,
    ),
    "classic, another AEAD": (f"4 rfc7539esp(chacha20,poly1305) {HEX} 128", BYTES, 4),
}

REFUSED = {
    "nothing": ("", "is empty"),
    "only comments": ("# nothing here\n\n", "is empty"),
    "too short": ("00112233", "4 bytes; at least 32 random ones are needed"),
    "a passphrase": ("correct-horse-battery!", "neither hex nor base64"),
    "odd hex": (HEX[:-1], "an odd number of hex digits (63)"),
    "a placeholder": ("00" * 32, "a placeholder, not a random key"),
    "a classic placeholder": (f"3 rfc4106(gcm(aes)) {'ab' * 20} 128", "a placeholder"),
    "key id 0": (f"0 rfc4106(gcm(aes)) {GCM} 128", "the key id must be 1 to 15"),
    "key id 16": (f"16 rfc4106(gcm(aes)) {GCM} 128", "the key id must be 1 to 15"),
    "an endless key id": (f"{'9' * 5000} rfc4106(gcm(aes)) {GCM} 128", "the key id must be"),
    "cut short": (f"3 rfc4106(gcm(aes)) {GCM[:-2]} 128", "40, 56 or 72 hex digits, found 38"),
    "no tag length": (f"3 rfc4106(gcm(aes)) {GCM}", "2 words after the key id"),
    "a strange tag length": (f"3 rfc4106(gcm(aes)) {GCM} 127", "64, 96 or 128 bits"),
    "words in another order": (f"3 {GCM} rfc4106(gcm(aes)) 128", "in the right order?"),
    "little key": ("3 some(aead) 0011223344 128", "5 key bytes; at least 16 are needed"),
    "binary": (b"\xff\xfe" + BYTES, "not plain text"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_forms_that_are_taken(case: str) -> None:
    text, material, key_id = ACCEPTED[case]
    secret = parse(text)
    assert secret.key_id == key_id
    assert parse(text.encode()).proof_key == secret.proof_key
    assert secret.proof_key == Secret.derive(material).proof_key


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_are_refused_by_line_and_cause(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(SecretError, match=re.escape(words)):
        parse(text)


def test_one_key_for_each_use() -> None:
    secret = parse(HEX)
    assert len({secret.proof_key, secret.pair_salt, BYTES}) == 3
    assert bytes.fromhex(secret.fingerprint) not in (secret.proof_key[:4], secret.pair_salt[:4])
    other = parse(GCM * 2)
    assert other.fingerprint != secret.fingerprint


def refusal(text: str | bytes) -> str:
    """Why it is refused; empty when it is taken."""
    try:
        parse(text)
    except SecretError as error:
        return str(error)
    return ""


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_whatever_is_given_is_taken_or_refused_and_never_quoted(text: str | bytes) -> None:
    why = refusal(text)
    words = text.split() if isinstance(text, str) else []
    assert not any(word in why for word in words if len(word) >= 12)


@given(st.text("0123456789abcdef", min_size=16, max_size=80))
def test_no_error_quotes_a_key(digits: str) -> None:
    for text in (digits, f"3 rfc4106(gcm(aes)) {digits} 128", f"3 x {digits} y {digits} z"):
        assert digits not in refusal(text)


def test_lines_keep_their_order_and_count_once() -> None:
    old, new = f"3 rfc4106(gcm(aes)) {GCM} 128", HEX
    found, wrong = parse_all(f"# the new one first\n{new}\n\n{old}\n{new}\n", read_line)
    assert [each.fingerprint for each in found] == [
        parse(new).fingerprint,
        parse(old).fingerprint,
    ]
    assert [each.key_id for each in found] == [None, 3]
    assert wrong == ()


def test_a_line_that_is_wrong_is_named_and_the_others_are_good() -> None:
    again = f"3 rfc4106(gcm(aes)) {GCM[::-1]} 128"
    text = f"3 rfc4106(gcm(aes)) {GCM} 128\n00112233\n{again}\n{HEX}"
    found, wrong = parse_all(text, read_line)
    assert [each.fingerprint for each in found] == [
        parse(f"3 rfc4106(gcm(aes)) {GCM} 128").fingerprint,
        parse(HEX).fingerprint,
    ]
    assert ["line 2 of" in str(wrong[0]), "line 3 of" in str(wrong[1])] == [True, True]
    assert "the key id 3 is another line's already" in str(wrong[1])
    with pytest.raises(SecretError, match="line 1 of"):
        parse_all("00112233\n4455", read_line)
