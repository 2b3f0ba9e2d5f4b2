# SPDX-License-Identifier: Apache-2.0
"""The pre-shared secrets: their text forms, and the keys that are derived from them.

A line for each, in one of these forms (blank lines and lines that begin with # are skipped):

    3 rfc4106(gcm(aes)) <40 hex digits> 128             as Cilium's Kubernetes secret has it
    3+ hmac(sha256) 0x<hex digits> cbc(aes) 0x<hex digits>
    <64 hex digits or more>                             32 random bytes or more, as hex
    <base64 of 32 bytes or more>                        the same, as base64

The cipher that a classic line names is not used: its key bytes are the secret, nothing else.
This node's offers are proven with the first line; whatever is proven with any of them is good. A
line that is wrong is left out and named. No error ever quotes the text.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pellicle.facts import NodeName
from pellicle.keys.trust import Judgement

HASH = "sha256"
PROOF_BYTES = 32
LEAST_BYTES = 32
"""Of a secret without a named cipher. Random bytes are asked for: no passphrase is stretched."""
LEAST_CLASSIC_BYTES = 16
GCM_KEY_BYTES = {20, 28, 36}
"""AES-128, -192 or -256 and 4 bytes of salt, RFC 4106 §8.1."""
LAST_KEY_ID = 15
"""Four bits of the packet mark hold it."""

_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]+)")
_KEY_ID = re.compile(r"([0-9]+)\+?")


class SecretError(ValueError):
    """The text is not a usable secret; says the line and the likely cause, never the text."""


@dataclass(frozen=True, slots=True, eq=False)
class Secret:
    """Keys derived from the pre-shared secret; the secret itself is not kept."""

    key_id: int | None
    fingerprint: str
    """Eight hex digits to compare two nodes by; a keyed hash, cut short."""
    proof_key: bytes = field(repr=False)
    """Proves offers."""
    pair_salt: bytes = field(repr=False)
    """Salts the extraction of every pair's keys."""

    @classmethod
    def derive(cls, material: bytes, key_id: int | None = None) -> Secret:
        """The keys of `material`: HKDF-SHA256 (RFC 5869), one label for each use."""
        prk = hmac.digest(b"pellicle psk 1", material, HASH)

        def expand(label: bytes) -> bytes:
            return hmac.digest(prk, label + b"\x01", HASH)

        return cls(
            key_id,
            expand(b"pellicle fingerprint 1")[:4].hex(),
            expand(b"pellicle proof 1"),
            expand(b"pellicle pair salt 1"),
        )

    def now(self) -> None:
        """Proofs do not end by themselves."""

    def prove(self, message: bytes) -> bytes:
        """The proof that a holder of the secret says `message`."""
        return hmac.digest(self.proof_key, message, HASH)

    def judge(self, _node: NodeName, message: bytes, proof: bytes) -> Judgement:
        """Whether a holder of the secret says `message`; which one cannot be told."""
        if len(proof) != PROOF_BYTES:
            found = f"a proof of {len(proof)} bytes" if proof else "no proof"
            return Judgement(f"{found}; {PROOF_BYTES} bytes are needed")
        if not hmac.compare_digest(self.prove(message), proof):
            why = "the proof does not verify: another pre-shared secret, or a forged record"
            return Judgement(why)
        return Judgement()


class Line(Protocol):
    """What a line of the file holds."""

    @property
    def key_id(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...


L = TypeVar("L", bound=Line)
Read = Callable[[int, list[str]], L]
"""(number of the line, its words) → what it holds, or SecretError."""


def no_secret() -> Secret:
    """What stands for one where none is shared: known to everybody, its proofs prove nothing."""
    return Secret.derive(b"pellicle: whoever may write a record is believed")


def parse(text: str | bytes) -> Secret:
    """The first secret that `text` (the whole content of the file) holds."""
    return parse_all(text, read_line)[0][0]


def parse_all(text: str | bytes, read: Read[L]) -> tuple[tuple[L, ...], tuple[SecretError, ...]]:
    """What the lines of `text` hold, in its order, and what is wrong with the others.

    SecretError when there is nothing good.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("ascii")
        except UnicodeDecodeError:
            cause = "not plain text: give the random bytes as hex or base64"
            raise SecretError(f"the pre-shared secret is {cause}") from None
    lines = [
        (number, line.split())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise SecretError("the pre-shared secret is empty")
    found: dict[str, L] = {}
    wrong_ones: list[SecretError] = []
    for number, words in lines:
        try:
            line = read(number, words)
            _check_id(number, line, found.values())
        except SecretError as error:
            wrong_ones.append(error)
        else:
            found.setdefault(line.fingerprint, line)
    if not found:
        raise wrong_ones[0]
    return tuple(found.values()), tuple(wrong_ones)


def _check_id(number: int, line: Line, before: Collection[Line]) -> None:
    if line.key_id is not None and line.key_id in {each.key_id for each in before}:
        raise wrong(number, f"the key id {line.key_id} is another line's already")


def read_line(number: int, words: list[str]) -> Secret:
    """A secret, from which keys are derived."""
    if len(words) == 1:
        return Secret.derive(_plain(number, words[0]))
    return _classic(number, words)


def wrong(line: int, cause: str) -> SecretError:
    return SecretError(f"line {line} of the pre-shared secret: {cause}")


def _plain(line: int, word: str) -> bytes:
    matched = _HEX.fullmatch(word)
    if matched:
        material = _unhex(line, matched[1])
    else:
        try:
            material = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        except ValueError:  # of which binascii.Error is one
            raise wrong(line, "neither hex nor base64; was it cut short in copying?") from None
    if len(material) < LEAST_BYTES:
        cause = f"{len(material)} bytes; at least {LEAST_BYTES} random ones are needed"
        raise wrong(line, f"{cause} (openssl rand -hex 32)")
    return unguessable(line, material)


def _classic(line: int, words: list[str]) -> Secret:
    """`[key id] cipher key icv-bits` or `[key id] hash key cipher key`."""
    key_id = read_key_id(line, words[0])
    if key_id is not None:
        words = words[1:]
    if len(words) == 3:
        material = read_aead(line, words[0], words[1], words[2])
    elif len(words) == 4:
        material = _key(line, words[1]) + _key(line, words[3])
    else:
        raise wrong(
            line,
            "expected '<key id> <cipher> <hex key> <tag bits>' or "
            f"'<key id> <hash> <hex key> <cipher> <hex key>', found {len(words)} words "
            "after the key id",
        )
    if len(material) < LEAST_CLASSIC_BYTES:
        cause = f"{len(material)} key bytes; at least {LEAST_CLASSIC_BYTES} are needed"
        raise wrong(line, cause)
    return Secret.derive(unguessable(line, material), key_id)


def read_key_id(line: int, word: str) -> int | None:
    """None: the word is none."""
    matched = _KEY_ID.fullmatch(word)
    if not matched:
        return None
    key_id = int(matched[1][:4])
    if not 1 <= key_id <= LAST_KEY_ID:
        raise wrong(line, f"the key id must be 1 to {LAST_KEY_ID}")
    return key_id


def read_aead(line: int, cipher: str, key: str, tag_bits: str) -> bytes:
    """Key and salt."""
    if tag_bits not in {"64", "96", "128"}:
        raise wrong(line, "the last word must be the tag length: 64, 96 or 128 bits")
    material = _key(line, key)
    if cipher == "rfc4106(gcm(aes))" and len(material) not in GCM_KEY_BYTES:
        cause = f"{cipher} takes 40, 56 or 72 hex digits, found {2 * len(material)}"
        raise wrong(line, f"{cause}; was the key cut short in copying?")
    return material


def _key(line: int, word: str) -> bytes:
    matched = _HEX.fullmatch(word)
    if not matched:
        raise wrong(line, "a key is not hex; are the words in the right order?")
    return _unhex(line, matched[1])


def _unhex(line: int, digits: str) -> bytes:
    if len(digits) % 2:
        raise wrong(line, f"an odd number of hex digits ({len(digits)}): one is missing")
    return bytes.fromhex(digits)


def unguessable(line: int, material: bytes) -> bytes:
    """Only a gross mistake is seen: a placeholder."""
    if len(set(material)) < 4:
        raise wrong(line, "hardly any different bytes: a placeholder, not a random key")
    return material
