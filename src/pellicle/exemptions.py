# SPDX-License-Identifier: Apache-2.0
"""What nodes may say to each other in the clear: named, by protocol and port, and never silently.

    etcd=tcp/2379-2380     ssh=tcp/22     ospf=89     the first word is what reports call it

A port is that of either end, so that answers pass, too. Without a port, all of the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from zlib import crc32

from pellicle.facts import Ports
from pellicle.values import FieldError, shown, word

DEFAULT_EXEMPTIONS: Final = (
    "etcd=tcp/2379-2380",
    "kubernetes-api=tcp/6443",
    "ike=udp/500",
    "ike-nat=udp/4500",
    "dhcp=udp/67-68",
    "dhcpv6=udp/546-547",
)
"""What a node may need before it can have keys; all but DHCP protects itself."""
NOTHING: Final = "none"
"""In place of a list: nothing is exempt."""
WITH_PORTS: Final[Mapping[str, int]] = MappingProxyType({"tcp": 6, "udp": 17, "sctp": 132})
_PROTOCOLS: Final = MappingProxyType({**WITH_PORTS, "icmp": 1, "icmpv6": 58, "gre": 47, "ospf": 89})
_FORM = re.compile(r"([^=]+)=([a-z0-9]+)(?:/([0-9]{1,5})(?:-([0-9]{1,5}))?)?")
_PORTS = re.compile(r"([a-z]+)/([0-9]{1,5})(?:-([0-9]{1,5}))?")
_ESP = 50
LAST_PORT, MOST_PORTS = 65535, 1024
LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class Exemption:
    """One line of the list."""

    name: str
    protocol: int
    ports: tuple[int, int] | None = None
    """First and last; None: all of the protocol."""

    @property
    def number(self) -> int:
        """What the datapath calls it: the same in every life of the agent, and never 0."""
        return crc32(self.name.encode()) or 1

    def rows(self) -> Iterator[tuple[int, int]]:
        """(protocol, port) of the rows of the map `exempt`; port 0 is any."""
        if self.ports is None:
            yield self.protocol, 0
            return
        first, last = self.ports
        yield from ((self.protocol, port) for port in range(first, last + 1))

    def __str__(self) -> str:
        words = {number: name for name, number in _PROTOCOLS.items()}
        first, last = self.ports or (0, 0)
        ports = f"/{first}" if first == last else f"/{first}-{last}"
        return f"{self.name}={words.get(self.protocol, self.protocol)}{ports if first else ''}"


def exemption(field: str, text: str) -> Exemption:
    """From its text; FieldError says what is wrong with it."""
    matched = _FORM.fullmatch(text)
    if matched is None:
        form = "name=protocol/port, name=protocol/port-port or name=protocol"
        raise FieldError(field, f"{shown(text)} is not of the form {form}")
    name, said, first, last = matched.groups()
    word(field, name, LONGEST_NAME)
    number = _PROTOCOLS.get(said, int(said) if said.isdecimal() else -1)
    if not 1 <= number <= 255:
        known = ", ".join(_PROTOCOLS)
        raise FieldError(field, f"{shown(said)} is no protocol: give {known}, or its number")
    if number == _ESP:
        raise FieldError(field, "ESP is never touched: it needs no exemption")
    if first is None:
        return Exemption(name, number)
    if number not in WITH_PORTS.values():
        raise FieldError(field, f"{said} has no ports: leave /{first} away")
    return Exemption(name, number, _range(field, text, int(first), int(last or first)))


def ports(field: str, text: str) -> Ports:
    """From tcp/443 or udp/8000-8010; FieldError says what is wrong with it."""
    matched = _PORTS.fullmatch(text)
    if matched is None:
        raise FieldError(field, f"{shown(text)} is not of the form tcp/443 or tcp/8000-8010")
    said, first, last = matched.groups()
    if said not in WITH_PORTS:
        raise FieldError(field, f"{shown(said)} has no ports: give {', '.join(WITH_PORTS)}")
    return Ports(WITH_PORTS[said], *_range(field, text, int(first), int(last or first)))


def ports_text(each: Ports) -> str:
    """As `ports` reads it."""
    words = {number: name for name, number in WITH_PORTS.items()}
    last = "" if each.first == each.last else f"-{each.last}"
    return f"{words[each.protocol]}/{each.first}{last}"


def _range(field: str, text: str, first: int, last: int) -> tuple[int, int]:
    if not 1 <= first <= last <= LAST_PORT:
        raise FieldError(field, f"{text}: ports are 1 to {LAST_PORT}, the lower one first")
    if last - first >= MOST_PORTS:
        raise FieldError(field, f"{text}: at most {MOST_PORTS} ports in a row")
    return first, last


def names(exemptions: Iterable[Exemption]) -> Mapping[int, str]:
    """What people call the rules that the datapath names by number."""
    return {each.number: str(each) for each in exemptions}
