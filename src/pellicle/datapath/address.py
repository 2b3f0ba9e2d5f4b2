# SPDX-License-Identifier: Apache-2.0
"""Addresses as the datapath's maps hold them: always 16 bytes, IPv4 as ::ffff:a.b.c.d.

RFC 4291 §2.5.5.2. One key form serves both families; see `struct addr` and
`struct cidr` in bpf/tables.h.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from pellicle.facts import Address, Network

_MAPPED = b"\0" * 10 + b"\xff\xff"
ZERO = bytes(16)


def to_bytes(address: Address) -> bytes:
    return _MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def from_bytes(raw: bytes) -> Address:
    return IPv4Address(raw[12:]) if raw[:12] == _MAPPED else IPv6Address(raw)


def to_cidr(network: Network) -> tuple[int, bytes]:
    """(prefix length of the 128-bit form, address): IPv4 10.0.0.0/8 is (104, ::ffff:10.0.0.0)."""
    offset = 96 if isinstance(network, IPv4Network) else 0
    return network.prefixlen + offset, to_bytes(network.network_address)


def from_cidr(prefixlen: int, raw: bytes) -> Network:
    address = from_bytes(raw)
    length = prefixlen - 96 if isinstance(address, IPv4Address) else prefixlen
    return ip_network((address, length))


def host_network(address: Address) -> Network:
    """The network that it has alone."""
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    return kind((int(address), address.max_prefixlen))
