# SPDX-License-Identifier: Apache-2.0
"""What agents ask each other, inside the tunnel: an IP packet with nothing for anybody else.

    IPv4 or IPv6 header, protocol 59 (no next header, RFC 8200 §4.7), node address to node address

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------------------------------------------------------+
    |                     Pair, the fingerprint                     |
    |                         of two offers                         |
    +---------------------------------------------------------------+
    |                   Number of the SA within it                  |
    +---------------------------------------------------------------+
    |              Kind: 1 asks for the keys, 2 answers             |
    +---------------------------------------------------------------+

All integers are big endian; `struct probe` of bpf/tables.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

ETHERTYPES = {4: 0x0800, 6: 0x86DD}

_PROTOCOL = 59
_TTL = 64
_PAYLOAD = struct.Struct("!QII")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_DONT_FRAGMENT = 0x4000


def pack_probe(
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    pair: int,
    number: int,
    kind: int,
) -> bytes:
    """The whole IP packet; both addresses are of one family."""
    payload = _PAYLOAD.pack(pair, number, kind)
    if source.version == 6:
        head = _IPV6.pack(6 << 28, len(payload), _PROTOCOL, _TTL, source.packed, destination.packed)
        return head + payload
    fields = [
        0x45, 0, _IPV4.size + len(payload), 0, _DONT_FRAGMENT, _TTL, _PROTOCOL, 0,
        source.packed, destination.packed,
    ]  # fmt: skip
    fields[7] = _checksum(_IPV4.pack(*fields))
    return _IPV4.pack(*fields) + payload


def _checksum(header: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
