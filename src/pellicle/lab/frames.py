# SPDX-License-Identifier: Apache-2.0
"""What a frame on the wire is: read only as far as a stranger who listens could.

Ethernet ┬ IPv4 ┬ ESP        SPI, sequence number, IV
         ├ IPv6 ┘ └ TCP, UDP, ICMP… in the clear: a leak when a cluster address shows
         └ ARP, neighbour discovery, listener reports: the link talking to itself

 0                   1                   2                   3
 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
+---------------------------------------------------------------+
|               Security Parameters Index (SPI)                 |   RFC 4303 §2
|                 Sequence number, low 32 bits                  |
|                IV (8 bytes, RFC 4106, RFC 7634)               |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pellicle.facts import Address
from pellicle.lab.topology import is_cluster_address, is_node_address, owner_of

ETHERNET: Final = 14
IPV4: Final = b"\x08\x00"
IPV6: Final = b"\x86\xdd"
ARP: Final = b"\x08\x06"
HOP_BY_HOP, ICMP, TCP, UDP, ESP, ICMPV6 = 0, 1, 6, 17, 50, 58
PROTOCOLS: Final = {
    HOP_BY_HOP: "hop-by-hop",
    ICMP: "ICMP",
    TCP: "TCP",
    UDP: "UDP",
    44: "fragment",
    ESP: "ESP",
    ICMPV6: "ICMPv6",
}
LINK_ICMPV6: Final = frozenset({*range(130, 138), 143})
"""Listener and neighbour discovery (RFC 2710, RFC 3810, RFC 4861): they never pass a router."""

_ESP_HEADER = struct.Struct("!IIQ")
_PORTS = struct.Struct("!HH")


class Kind(StrEnum):
    """What the wire sees."""

    ESP = "ESP"
    CLEAR = "cleartext"
    """A pod's address shows, or what two nodes say: a leak, unless encryption is off."""
    LINK = "link"
    """ARP, neighbour discovery, listener reports."""
    OTHER = "other"
    """Neither: between a node and the world, or not IP at all."""


@dataclass(frozen=True, slots=True)
class Header:
    """The outermost addresses of a frame, and what that makes of it."""

    kind: Kind
    family: int
    """4, 6, or 0 when it is not IP."""
    source: Address | None
    destination: Address | None
    protocol: str
    start: int
    """Where the payload of IP begins in the frame."""

    @property
    def to(self) -> str:
        """The node that it is for: `n2`, or `?`."""
        owner = owner_of(self.destination) if self.destination is not None else None
        return owner or "?"


@dataclass(frozen=True, slots=True)
class EspHeader:
    """The clear part of an ESP packet."""

    spi: int
    sequence: int
    iv: int


def read_header(frame: bytes) -> Header:
    """Read the outer header; a frame too short or of another protocol is OTHER, never an error."""
    ethertype = frame[12:14]
    if ethertype == IPV4 and len(frame) >= ETHERNET + 20:
        start = ETHERNET + (frame[ETHERNET] & 0x0F) * 4
        source, destination = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
        is_fragment = _is_fragment(frame)
        return _ip_header(frame[23], source, destination, start, is_fragment=is_fragment)
    if ethertype == IPV6 and len(frame) >= ETHERNET + 40:
        ends = IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
        return _ip_header(frame[20], ends[0], ends[1], ETHERNET + 40, is_link=_is_link_v6(frame))
    if ethertype == ARP:
        return Header(Kind.LINK, 4, None, None, "ARP", ETHERNET)
    return Header(Kind.OTHER, 0, None, None, f"ethertype 0x{ethertype.hex()}", ETHERNET)


def header_key(frame: bytes) -> bytes:
    """Equal for frames with equal `read_header`, and far cheaper."""
    ethertype = frame[12:14]
    if ethertype == IPV4 and len(frame) >= ETHERNET + 20:
        return frame[14:15] + frame[23:24] + frame[26:34] + (b"f" if _is_fragment(frame) else b"")
    if ethertype == IPV6 and len(frame) >= ETHERNET + 40:
        return frame[20:21] + frame[22:54] + (frame[54:55] if frame[20] == ICMPV6 else b"")
    return ethertype


def read_esp(frame: bytes, start: int) -> EspHeader | None:
    """The clear part of the ESP packet at `start`; None when it is cut off."""
    if len(frame) < start + _ESP_HEADER.size:
        return None
    return EspHeader(*_ESP_HEADER.unpack_from(frame, start))


def describe(frame: bytes, length: int) -> str:
    """One line for a person: outer header, then SPI and sequence number, or ports."""
    header = read_header(frame)
    if header.source is None:
        return f"{header.protocol}, {length} bytes"
    ends = f"{header.source} > {header.destination}"
    esp = read_esp(frame, header.start) if header.protocol == "ESP" else None
    if esp is not None:
        return f"{ends} ESP spi 0x{esp.spi:08x} seq {esp.sequence}, {length} bytes"
    if header.protocol in {"TCP", "UDP"} and len(frame) >= header.start + 4:
        source, destination = _PORTS.unpack_from(frame, header.start)
        return f"{ends} {header.protocol} {source} > {destination}, {length} bytes"
    return f"{ends} {header.protocol}, {length} bytes"


def _ip_header(
    protocol: int,
    source: Address,
    destination: Address,
    start: int,
    *,
    is_link: bool = False,
    is_fragment: bool = False,
) -> Header:
    name = PROTOCOLS.get(protocol, f"protocol {protocol}") + (" fragment" if is_fragment else "")
    if is_link:
        kind = Kind.LINK
    elif name == "ESP" and is_node_address(source) and is_node_address(destination):
        kind = Kind.ESP
    elif _are_members(source, destination):
        # Asked before ESP: a pod's own ESP still shows who talks to whom.
        kind = Kind.CLEAR
    else:
        # Pellicle's ESP is never a fragment, and a fragment shows no SPI.
        kind = Kind.ESP if name == "ESP" else Kind.OTHER
    return Header(kind, source.version, source, destination, name, start)


def _are_members(source: Address, destination: Address) -> bool:
    """Whether a member of the cluster shows, who is not to be seen to talk so."""
    if is_cluster_address(source) or is_cluster_address(destination):
        return True
    return is_node_address(source) and is_node_address(destination)


def _is_fragment(frame: bytes) -> bool:
    # More-fragments bit or an offset (RFC 791 §3.1).
    return bool(frame[20] & 0x3F or frame[21])


def _is_link_v6(frame: bytes) -> bool:
    if frame[20] == ICMPV6:
        return len(frame) > 54 and frame[54] in LINK_ICMPV6
    # Listener reports carry a router alert in front (RFC 3810 §5) and go to a link-scope group.
    return frame[20] == HOP_BY_HOP and frame[38:40] == b"\xff\x02"
