# SPDX-License-Identifier: Apache-2.0
"""Neighbours: which MAC address an address on a link has, said once and for all.

struct ndmsg  family, 0, 0: 16, index: 32, state: 16, flags, type
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    REPLACE,
    Malformed,
    Reply,
    Request,
    attribute,
    attributes,
)

RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30

_NEIGHBOUR = struct.Struct("=BBHiHBB")
_AF = {4: 2, 6: 10}
_NUD_PERMANENT = 0x80
_NDA_DST, _NDA_LLADDR = 1, 2


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour that is never asked for, and never forgotten."""

    index: int
    """Of the device on whose link it is."""
    address: IPv4Address | IPv6Address
    mac: str


def put_neighbour(row: Neighbour) -> Request:
    """Adds it, or replaces what the device has for the address."""
    head = _NEIGHBOUR.pack(_AF[row.address.version], 0, 0, row.index, _NUD_PERMANENT, 0, 0)
    to = attribute(_NDA_DST, row.address.packed)
    mac = attribute(_NDA_LLADDR, bytes.fromhex(row.mac.replace(":", "")))
    return Request(RTM_NEWNEIGH, CREATE | REPLACE, head + to + mac)


def dump_neighbours() -> Request:
    """Lists the neighbours of all devices."""
    return Request(RTM_GETNEIGH, DUMP, _NEIGHBOUR.pack(0, 0, 0, 0, 0, 0, 0))


def read_neighbour(reply: Reply) -> Neighbour | None:
    """A neighbour of a dump; None for one that the kernel learnt or is looking for."""
    if len(reply.body) < _NEIGHBOUR.size:
        raise Malformed(f"a neighbour of {len(reply.body)} bytes")
    family, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(reply.body)
    found = attributes(reply.body, _NEIGHBOUR.size)
    packed, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
    if family not in _AF.values() or not state & _NUD_PERMANENT or len(mac) != 6:
        return None
    if len(packed) != (4 if family == _AF[4] else 16):
        raise Malformed(f"a neighbour with an address of {len(packed)} bytes")
    address = IPv4Address(packed) if family == _AF[4] else IPv6Address(packed)
    return Neighbour(index, address, mac.hex(":"))
