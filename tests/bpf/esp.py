# SPDX-License-Identifier: Apache-2.0
"""ESP (RFC 4303) with ChaCha20-Poly1305 (RFC 7634) and ESN, written down once more in Python.

The judge of what the datapath seals, and the maker of what it must open: its cipher is that of
`cryptography`, and it shares no line with the datapath.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

ICV = 16
IPV4, IPV6, DUMMY = 4, 41, 59


@dataclass(frozen=True)
class Keys:
    """One SA's."""

    spi: int
    key: bytes
    salt: bytes

    @classmethod
    def made_of(cls, seed: int) -> Keys:
        bits = random.Random(seed)
        return cls(bits.randrange(256, 1 << 32), bits.randbytes(32), bits.randbytes(4))


@dataclass(frozen=True)
class Opened:
    """What an ESP packet carried."""

    spi: int
    sequence: int
    iv: bytes
    payload: bytes
    padding: bytes
    next_header: int


def padding(size: int) -> bytes:
    """RFC 4303 §2.4: 1, 2, 3 …, as short as can be."""
    return bytes(range(1, -(size + 2) % 4 + 1))


def seal(
    keys: Keys,
    sequence: int,
    payload: bytes,
    next_header: int,
    *,
    pad: bytes | None = None,
    pad_length: int | None = None,
    iv: bytes | None = None,
) -> bytes:
    """An ESP packet."""
    pad = padding(len(payload)) if pad is None else pad
    pad_length = len(pad) if pad_length is None else pad_length
    iv = struct.pack(">Q", sequence) if iv is None else iv
    data = payload + pad + bytes([pad_length, next_header])
    aad = struct.pack(">IQ", keys.spi, sequence)
    sealed = ChaCha20Poly1305(keys.key).encrypt(keys.salt + iv, data, aad)
    return struct.pack(">II", keys.spi, sequence & 0xFFFFFFFF) + iv + sealed


def unseal(keys: Keys, esp: bytes, high: int = 0) -> Opened:
    """Opens; cryptography.exceptions.InvalidTag when it is not authentic."""
    spi, low = struct.unpack_from(">II", esp)
    iv, sequence = esp[8:16], high << 32 | low
    aad = struct.pack(">IQ", spi, sequence)
    data = ChaCha20Poly1305(keys.key).decrypt(keys.salt + iv, esp[16:], aad)
    pad_length, next_header = data[-2:]
    end = len(data) - 2 - pad_length
    return Opened(spi, sequence, iv, data[:end], data[end:-2], next_header)
