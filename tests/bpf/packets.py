# SPDX-License-Identifier: Apache-2.0
"""Packets byte by byte, for the tests of the datapath: Ethernet, IPv4, IPv6 and what they carry."""

from __future__ import annotations

import struct
from ipaddress import ip_address

ETH_IPV4, ETH_IPV6, ETH_ARP = 0x0800, 0x86DD, 0x0806
ICMP, TCP, UDP, ESP, ICMPV6, PROBE, TEST = 1, 6, 17, 50, 58, 59, 253
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
MAC = bytes(6)


def checksum(data: bytes) -> int:
    """RFC 1071; 0 over a header that is right."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    protocol: int = TEST,
    tos: int = 0,
    ttl: int = 64,
    fragment: int = DONT_FRAGMENT,
    identifier: int = 0x1234,
    options: bytes = b"",
) -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | words, tos, words * 4 + len(payload), identifier, fragment, ttl, protocol, 0,
        ip_address(source).packed, ip_address(destination).packed,
    ) + options  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ipv6(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    protocol: int = TEST,
    tos: int = 0,
    ttl: int = 64,
    label: int = 0,
) -> bytes:
    head = struct.pack(">IHBB", 6 << 28 | tos << 20 | label, len(payload), protocol, ttl)
    return head + ip_address(source).packed + ip_address(destination).packed + payload


def ip(source: str, destination: str, payload: bytes = b"", **fields: int) -> bytes:
    """IPv4 or IPv6, as the addresses are."""
    make = ipv6 if ip_address(source).version == 6 else ipv4
    return make(source, destination, payload, **fields)  # type: ignore[arg-type]


def udp(source: int, destination: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(source: int, destination: int, payload: bytes = b"", *, words: int = 5) -> bytes:
    """`words`: of the header, which may reach into the payload."""
    head = source, destination, 1, 2, words << 4, 0x10, 64, 0, 0
    return struct.pack(">HHIIBBHHH", *head) + payload


def icmp(kind: int, code: int, rest: bytes = b"\0\0\0\0", payload: bytes = b"") -> bytes:
    """ICMP or ICMPv6; the checksum is nobody's business here."""
    return struct.pack(">BBH", kind, code, 0) + rest + payload


def frame(packet: bytes, *, source: bytes = MAC, destination: bytes = MAC) -> bytes:
    """Ethernet around an IP packet."""
    ethertype = ETH_IPV6 if packet[:1] and packet[0] >> 4 == 6 else ETH_IPV4
    return ethernet(ethertype, packet, source=source, destination=destination)


def ethernet(
    ethertype: int, payload: bytes, *, source: bytes = MAC, destination: bytes = MAC
) -> bytes:
    return destination + source + struct.pack(">H", ethertype) + payload
