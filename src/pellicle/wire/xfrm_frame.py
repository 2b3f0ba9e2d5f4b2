# SPDX-License-Identifier: Apache-2.0
"""What states and policies share: addresses, selectors, limits, marks.

    xfrm_address_t       16 bytes; an IPv4 address stands in the first four, zeros behind
    struct xfrm_selector 56 bytes
        to: 16 bytes, from: 16 bytes,
        port of to, its mask, port of from, its mask: 16 each, in network order,
        family: 16, prefix length of to, of from, protocol: 8 each, hole: 24,
        device: 32, user: 32
    struct xfrm_lifetime_cfg 64 bytes, 64 each
        octets: soft, hard; packets: soft, hard (all ones: no limit)
        seconds since it was added: soft, hard; since it was first used: soft, hard (0: no limit)
    struct xfrm_lifetime_cur 32 bytes, 64 each
        octets, packets, when it was added, when it was first used (seconds since the epoch)
    struct xfrm_mark     value: 32, mask: 32

Addresses, SPIs and ports are in network order, all else in the host's. The holes are those of
the 64-bit ABI, the same on x86-64 and arm64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pellicle.wire.netlink import Address, Network
from pellicle.wire.nlmsg import Malformed, attribute, u32

AF_INET, AF_INET6 = 2, 10
FAMILY = {4: AF_INET, 6: AF_INET6}
IPPROTO_ESP = 50
MODE_TUNNEL = 1

XFRMA_MARK, XFRMA_IF_ID = 21, 31

NO_LIMIT = 2**64 - 1
LIMITS = struct.Struct("=8Q")
NO_LIMITS = LIMITS.pack(NO_LIMIT, NO_LIMIT, NO_LIMIT, NO_LIMIT, 0, 0, 0, 0)

SELECTOR = "16s16s8sHBBB3x8s"
"""to, from, ports, family, bits of to, bits of from, protocol, device and user."""
ANY = bytes(8)
"""The ports, or the device and user, of a selector that does not look at them."""

_MARK = struct.Struct("=II")
_CACHED = 1 << 15


@dataclass(frozen=True, slots=True)
class Mark:
    """Matches packets whose mark, under the mask, is the value; to match any, have no Mark."""

    value: int
    mask: int

    def __post_init__(self) -> None:
        if not self.mask:
            raise ValueError("a mark without a mask would match every packet or none")


def mark_and_if_id(mark: Mark | None, if_id: int) -> bytes:
    """Their attributes; what is 0 is left out, as the kernel does."""
    return (attribute(XFRMA_MARK, _MARK.pack(mark.value, mark.mask)) if mark else b"") + (
        u32(XFRMA_IF_ID, if_id) if if_id else b""
    )


def has_readable_mark(found: dict[int, bytes]) -> bool:
    """Not so: a value without a mask, which matches nothing and which only others would make."""
    packed = found.get(XFRMA_MARK)
    if packed is not None and len(packed) != _MARK.size:
        raise Malformed(f"a mark of {len(packed)} bytes")
    return packed is None or any(packed[4:])


def read_mark(found: dict[int, bytes]) -> Mark | None:
    """The mark of a state or policy that `has_readable_mark`."""
    packed = found.get(XFRMA_MARK)
    return None if packed is None else _mark(packed)


# The same addresses stand in many states and policies, and ipaddress takes its time.


@lru_cache(_CACHED)
def read_address(family: int, packed: bytes) -> Address:
    """An xfrm_address_t of a family that is IP."""
    return IPv4Address(packed[:4]) if family == AF_INET else IPv6Address(packed)


@lru_cache(_CACHED)
def read_network(family: int, packed: bytes, bits: int) -> Network | None:
    """One side of a selector; None when the prefix is longer than the family or has host bits."""
    try:
        if family == AF_INET:
            return IPv4Network((packed[:4], bits)) if not any(packed[4:]) else None
        return IPv6Network((packed, bits)) if family == AF_INET6 else None
    except ValueError:
        return None


@lru_cache(_CACHED)
def _mark(packed: bytes) -> Mark:
    return Mark(*_MARK.unpack(packed))
