# SPDX-License-Identifier: Apache-2.0
"""From two offers to the keys of their SAs: RFC 7748 and RFC 5869, both sides alone.

shared = X25519(own private half, the peer's public key)
prk    = HKDF-Extract(salt = pair salt of the pre-shared secret, shared)      SHA-256
okm    = HKDF-Expand(prk, info "esp", key bytes + 4) = key ‖ salt             for each SA
spi    = HKDF-Expand(prk, info "spi", 4), its last 2 bits replaced by n       for each direction
pair   = first 8 bytes of SHA-256(info "pair")

info   +----+-------+--------+--------+----------------+----------------+---------------+
       | u8 | label | u8     | cipher |     end A      |     end B      | n: u8         |
       |    |       |        |        |                |                | (only "esp")  |
       +----+-------+--------+--------+----------------+----------------+---------------+
       label "pellicle esp 1", "pellicle spi 1" or "pellicle pair 1"; A sends and B receives,
       for "pair" the end whose name sorts first (by its bytes) stands first. Keys that a policy
       has for its own are bound to its number, too: in place of the cipher's name stands
       "cipher policy number", the number in decimal.

end    +-------+-----------+---------------+-------+------------+------------+
       | u16 k | node name | outer address | epoch | boot nonce | public key |
       |       |  k bytes  |   16 bytes    |  u32  |  16 bytes  |  32 bytes  |
       +-------+-----------+---------------+-------+------------+------------+
       IPv4 is written ::ffff:a.b.c.d. All integers are big endian.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from pellicle.facts import ALL_TRAFFIC, Address, Cipher, Context, NodeName, Offer, PairId, Spi
from pellicle.keys.offers import OwnOffer
from pellicle.keys.secret import HASH
from pellicle.keys.trust import Trust

SAS_PER_PAIR = 4
"""In each direction; `SAS_PER_PAIR` of bpf/tables.h."""
SALT_BYTES = 4
"""RFC 4106 §4, RFC 7634 §2."""
CIPHER_KEY_BYTES = {
    Cipher.CHACHA20_POLY1305: 32,
    Cipher.AES_128_GCM: 16,
    Cipher.AES_256_GCM: 32,
}
BEST_FIRST = (Cipher.AES_256_GCM, Cipher.AES_128_GCM, Cipher.CHACHA20_POLY1305)
"""Both ends of a pair go by this order, whatever the order in their records."""
FIRST_SPI = 256
"""RFC 4303 §2.1: 1 to 255 are reserved."""

_MAPPED = bytes(10) + b"\xff\xff"
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair: all that its keys are bound to."""

    name: NodeName
    address: Address
    """The outer one."""
    offer: Offer

    def encode(self) -> bytes:
        name, address, offer = self.name.encode(), self.address, self.offer
        return b"".join(
            (
                len(name).to_bytes(2, "big"),
                name,
                (_MAPPED if isinstance(address, IPv4Address) else b"") + address.packed,
                offer.epoch.to_bytes(4, "big"),
                offer.boot_nonce,
                offer.public_key,
            )
        )


@dataclass(frozen=True, slots=True)
class SaKeys:
    """What one SA needs."""

    spi: Spi
    key: bytes = field(repr=False)
    salt: bytes = field(repr=False)


def best_cipher(ours: Collection[Cipher], theirs: Collection[Cipher]) -> Cipher | None:
    """The same choice on both nodes; None: none in common."""
    return next((c for c in BEST_FIRST if c in ours and c in theirs), None)


def pair_id(cipher: Cipher, one: End, other: End, context: Context = ALL_TRAFFIC) -> PairId:
    """The name of the pair, the same on both nodes; never 0."""
    first, second = sorted((one, other), key=lambda end: end.name.encode())
    info = _prefixed(b"pellicle pair 1") + _bound(cipher, context, first, second)
    digest = hashlib.sha256(info)
    return PairId(int.from_bytes(digest.digest()[:8], "big") or 1)


def extract(trust: Trust, own: OwnOffer, peer: Offer) -> bytes:
    """The pseudo-random key of two offers. ValueError if the peer's key is of low order."""
    return hmac.digest(trust.pair_salt, own.shared(peer.public_key), HASH)


def expand_sas(
    prk: bytes, cipher: Cipher, sender: End, receiver: End, context: Context = ALL_TRAFFIC
) -> tuple[SaKeys, ...]:
    """The SAs of one direction, by number."""
    bound = _bound(cipher, context, sender, receiver)
    first = _first_spi(_expand(prk, _prefixed(b"pellicle spi 1") + bound, 4))
    esp = _prefixed(b"pellicle esp 1") + bound
    length = CIPHER_KEY_BYTES[cipher]
    sas = []
    for number in range(SAS_PER_PAIR):
        okm = _expand(prk, esp + bytes((number,)), length + SALT_BYTES)
        sas.append(SaKeys(Spi(first + number), okm[:length], okm[length:]))
    return tuple(sas)


def _bound(cipher: Cipher, context: Context, one: End, other: End) -> bytes:
    what = cipher.value if context == ALL_TRAFFIC else f"{cipher.value} policy {context}"
    return _prefixed(what.encode()) + one.encode() + other.encode()


def _first_spi(raw: bytes) -> int:
    spi = int.from_bytes(raw, "big") // SAS_PER_PAIR * SAS_PER_PAIR
    return spi if spi >= FIRST_SPI else spi + FIRST_SPI


def _prefixed(word: bytes) -> bytes:
    return len(word).to_bytes(1, "big") + word


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand, RFC 5869 §2.3."""
    block = okm = b""
    for counter in range(1, -(-length // _HASH_BYTES) + 1):
        block = hmac.digest(prk, block + info + bytes((counter,)), HASH)
        okm += block
    return okm[:length]
