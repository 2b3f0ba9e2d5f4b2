# SPDX-License-Identifier: Apache-2.0
"""Offers: the public halves that nodes publish, the private halves, and the proof between.

    proof = HMAC-SHA256(proof key, message)

    message  +---+------------------+--------+-----------+---------+--------------+--------------+
             | 16| pellicle offer 1 | u16 n  | node name | epoch   | boot nonce   | public key   |
             | u8|     16 bytes     |        |  n bytes  |  u32    |   16 bytes   |   32 bytes   |
             +---+------------------+--------+-----------+---------+--------------+--------------+

All integers are big endian. The proof key is derived from the pre-shared secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from pellicle.facts import Epoch, NodeName, Offer
from pellicle.keys.trust import Judgement, Trust

KEY_BYTES = 32
NONCE_BYTES = 16
LAST_EPOCH = 2**32 - 1
"""The datapath's rows hold 32 bits."""
MOST_OFFERS = 2
"""Of one node: the current and the next."""
LONGEST_NAME = 253
"""RFC 1123 as Kubernetes applies it to the names of nodes."""

_LABEL = b"pellicle offer 1"
_P = 2**255 - 19
_LOW_ORDER = {
    0,
    1,
    _P - 1,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
}
"""u-coordinates of the points whose order divides 8, modulo p: RFC 7748 §6.1 and §7."""


class OwnOffer:
    """An offer of this node, with its private half, which lives here and nowhere else."""

    __slots__ = ("_private", "offer")

    def __init__(self, offer: Offer, private: X25519PrivateKey) -> None:
        self.offer = offer
        self._private: X25519PrivateKey | None = private

    @classmethod
    def make(
        cls,
        node: NodeName,
        epoch: Epoch,
        boot_nonce: bytes,
        random: Callable[[int], bytes],
        trust: Trust,
    ) -> OwnOffer:
        """A fresh key pair, proven."""
        private = X25519PrivateKey.from_private_bytes(random(KEY_BYTES))
        offer = Offer(epoch, boot_nonce, private.public_key().public_bytes_raw(), b"")
        return cls(replace(offer, proof=prove(trust, node, offer)), private)

    def shared(self, public_key: bytes) -> bytes:
        """X25519 with a peer's public key. ValueError after `wipe`, or for a low-order point."""
        if self._private is None:
            raise ValueError(f"the private half of offer {self.offer.epoch} is gone")
        return self._private.exchange(X25519PublicKey.from_public_bytes(public_key))

    def wipe(self) -> None:
        """Forget the private half; OpenSSL clears the memory of a key that it frees."""
        self._private = None

    def __repr__(self) -> str:
        return f"OwnOffer(epoch={self.offer.epoch})"


def prove(trust: Trust, node: NodeName, offer: Offer) -> bytes:
    """The proof that `node` made `offer`."""
    return trust.prove(_message(node, offer))


def judge(trust: Trust, node: NodeName, offer: Offer) -> Judgement:
    """Whether `offer` is one that `node` made."""
    malformed = _malformed(node, offer)
    return (
        Judgement(malformed) if malformed else trust.judge(node, _message(node, offer), offer.proof)
    )


def prover(trusts: Iterable[Trust], node: NodeName, offer: Offer) -> tuple[Trust | None, Judgement]:
    """What `offer` is proven with, or None and why it is not."""
    said = Judgement("no secret is known")
    for trust in trusts:
        said = judge(trust, node, offer)
        if not said.why:
            return trust, said
    return None, said


def fingerprint(offer: Offer) -> str:
    """Eight hex digits of the public key, for people."""
    return offer.public_key[:4].hex()


def is_low_order(public_key: bytes) -> bool:
    """Whether X25519 with this key gives all zeros, whatever the private half."""
    return (int.from_bytes(public_key, "little") & (2**255 - 1)) % _P in _LOW_ORDER


def _malformed(node: NodeName, offer: Offer) -> str | None:
    if not 1 <= len(node.encode()) <= LONGEST_NAME:
        return f"a node name of {len(node.encode())} bytes; 1 to {LONGEST_NAME} are possible"
    if not 1 <= offer.epoch <= LAST_EPOCH:
        return f"epoch {offer.epoch} is not between 1 and {LAST_EPOCH}"
    for what, found, wanted in (
        ("boot nonce", offer.boot_nonce, NONCE_BYTES),
        ("public key", offer.public_key, KEY_BYTES),
    ):
        if len(found) != wanted:
            missing = f"no {what}" if not found else f"a {what} of {len(found)} bytes"
            return f"{missing}; {wanted} bytes are needed"
    if is_low_order(offer.public_key):
        return "a public key of low order: every shared secret would be zero"
    return None


def _message(node: NodeName, offer: Offer) -> bytes:
    name = node.encode()
    return b"".join(
        (
            len(_LABEL).to_bytes(1, "big"),
            _LABEL,
            len(name).to_bytes(2, "big"),
            name,
            offer.epoch.to_bytes(4, "big"),
            offer.boot_nonce,
            offer.public_key,
        )
    )
