# SPDX-License-Identifier: Apache-2.0
"""Which flows someone wants to see: by verdict, by where from, by where to.

10.244.1.2  fd00:244:1::2     that address
10.244.0.0/16                 any address of that network
4711                          that identity
n1  web-0                     the node, or a pod of any namespace, of that name
default/web-0  default/web-*  the pod; shell patterns are understood, also in names
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network

from pellicle.facts import Address, IdentityNumber
from pellicle.flows.names import Name
from pellicle.flows.reasons import Verdict

Match = Callable[[Address, Name | None, IdentityNumber], bool]

_LIKE_ADDRESS = re.compile(r"[0-9.]+(/.*)?|.*:.*")
"""What can be no name of a pod or node: digits and dots only, or anything with a colon."""


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a flow as a person names it; `text` is what was asked for."""

    text: str
    matches: Match

    @staticmethod
    def parse(text: str) -> Party:
        """ValueError when `text` can name nothing."""
        if text.isascii() and text.isdigit():
            return Party(text, _identity(int(text)))
        if _LIKE_ADDRESS.fullmatch(text):
            return Party(text, _network(text) if "/" in text else _address(text))
        if not text or text.startswith("/") or text.endswith("/"):
            raise ValueError(f"{text!r} is no address, network, identity, node or pod")
        return Party(text, _pod(text) if "/" in text else _name(text))


@dataclass(frozen=True, slots=True)
class Selection:
    """All that is asked for must hold; what is None is not asked."""

    verdict: Verdict | None = None
    source: Party | None = None
    destination: Party | None = None

    @staticmethod
    def parse(verdict: str | None, source: str | None, destination: str | None) -> Selection:
        """ValueError names what is not understood."""
        if verdict is not None and verdict not in Verdict.__members__.values():
            raise ValueError(f"{verdict!r} is no verdict: {', '.join(Verdict)}")
        return Selection(
            None if verdict is None else Verdict(verdict),
            None if source is None else Party.parse(source),
            None if destination is None else Party.parse(destination),
        )


def _identity(number: int) -> Match:
    if number >= 1 << 32:
        raise ValueError(f"{number} is no identity: they have 32 bits")
    return lambda address, name, identity: identity == number


def _address(text: str) -> Match:
    wanted = ip_address(text)
    return lambda address, name, identity: address == wanted


def _network(text: str) -> Match:
    wanted = ip_network(text, strict=False)
    return lambda address, name, identity: address in wanted


def _pod(text: str) -> Match:
    return lambda address, name, identity: (
        name is not None and name.pod is not None and fnmatchcase(str(name.pod), text)
    )


def _name(text: str) -> Match:
    def matches(address: Address, name: Name | None, identity: IdentityNumber) -> bool:
        if name is None:
            return False
        return fnmatchcase(name.node, text) or (
            name.pod is not None and fnmatchcase(name.pod.name, text)
        )

    return matches
