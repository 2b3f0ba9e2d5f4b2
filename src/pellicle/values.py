# SPDX-License-Identifier: Apache-2.0
"""Single values as people write them → what they mean: names, addresses, CIDRs, bytes.

Or a `FieldError` that says what is wrong and how to write it. Each function takes the
text and the field it stands in.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TypeVar

from pellicle.facts import Address, Network

T = TypeVar("T")
V = TypeVar("V")

MAX_NAME = 253
"""RFC 1123 §2.1: a DNS name, as Kubernetes asks of nodes and pods."""
MAX_LABEL = 63
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_SHORTEST_PREFIX = {4: 8, 6: 16}
"""Wider than these is never the pod CIDR of anybody, and a slip of the finger kills a network."""
_SHOWN = 60


class FieldError(ValueError):
    """A value that cannot be used; the text names the field and what to do."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")


def printable(text: str, longest: int) -> str:
    """`text` cut to `longest`, and nothing in it that could steer a terminal."""
    short = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def shown(text: str) -> str:
    """`text` quoted for a person."""
    return f'"{printable(text, _SHOWN)}"'


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint to append: the nearest of `known`, or all of them."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(word[:_SHOWN].lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]}?" if near else f"known are {', '.join(names)}"


def dns_name(field: str, text: str) -> str:
    if len(text) <= MAX_NAME and _DNS_NAME.fullmatch(text):
        return text
    hint = ": use lower case" if _DNS_NAME.fullmatch(text.lower()) else ""
    why = "is not a DNS-1123 name (a-z, 0-9, - and . inside, at most 253)"
    raise FieldError(field, f"{shown(text)} {why}{hint}")


def dns_label(field: str, text: str) -> str:
    if _DNS_LABEL.fullmatch(text):
        return text
    raise FieldError(
        field, f"{shown(text)} is not a DNS-1123 label (a-z, 0-9 and - inside, at most 63)"
    )


def address(field: str, text: str) -> Address:
    """An address that a node or a pod can have."""
    if "/" in text:
        raise FieldError(field, f"{shown(text)} is a CIDR; an address has no /")
    try:
        found = ip_address(text)
    except ValueError:
        hint = " (no leading zeros)" if re.search(r"(^|\.)0[0-9]", text) else ""
        raise FieldError(field, f"{shown(text)} is not an IP address{hint}") from None
    kind = _useless(found)
    if kind:
        raise FieldError(field, f"{text} is {kind}: nobody can be reached there")
    return found


@dataclass(frozen=True, slots=True)
class Listener:
    """Where somebody may ask."""

    address: Address
    port: int

    def __str__(self) -> str:
        shown_address = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{shown_address}:{self.port}"


def listener(field: str, text: str) -> Listener:
    """ADDRESS:PORT; loopback and "any" addresses are as good as others."""
    match = re.fullmatch(r"(?:\[([^\[\]]{2,45})\]|([^:\[\]]{1,15})):([0-9]{1,5})", text)
    try:
        found = ip_address(match[1] or match[2]) if match else None
    except ValueError:
        found = None
    if match is None or found is None or (match[1] is not None) != (found.version == 6):
        how = "write 127.0.0.1:9465, or [::1]:9465"
        raise FieldError(field, f"{shown(text)} is not an address and a port: {how}")
    port = int(match[3])
    if not 1 <= port <= 65535:
        raise FieldError(field, f"{port} is not a port, which is between 1 and 65535")
    return Listener(found, port)


def _useless(found: Address) -> str | None:
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        return "bound to one device (%)"
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return "an IPv4 address in IPv6 clothes"
    if found.is_unspecified:
        return "the unspecified address"
    if found.is_loopback:
        return "a loopback address"
    if found.is_multicast:
        return "a multicast address"
    if found.is_link_local:
        return "a link-local address"
    return "the broadcast address" if found.version == 4 and int(found) == 0xFFFFFFFF else None


def any_network(field: str, text: str) -> Network:
    """A CIDR, whatever lies in it."""
    start, slash, length = text.partition("/")
    if not slash or not re.fullmatch(r"[0-9]{1,3}", length):
        raise FieldError(field, f"{shown(text)} is not a CIDR: write address/prefix length")
    try:
        found = ip_network((start, int(length)), strict=False)
    except ValueError:
        raise FieldError(field, f"{shown(text)} is not a CIDR") from None
    if ip_address(start) != found.network_address:
        raise FieldError(field, f"{text} has host bits set: did you mean {found}?")
    return found


def network(field: str, text: str) -> Network:
    """A CIDR that pods or nodes can have."""
    found = any_network(field, text)
    if found.prefixlen < _SHORTEST_PREFIX[found.version]:
        raise FieldError(field, f"{text} is too wide: /{_SHORTEST_PREFIX[found.version]} at most")
    kind = _useless(found.network_address)
    if kind:
        raise FieldError(field, f"{text} begins with {kind}: nobody lives there")
    return found


def place(field: str, text: str) -> Network:
    """A CIDR, or a single address."""
    return network(field, text) if "/" in text else ip_network(address(field, text))


def each(field: str, items: Sequence[V], read: Callable[[str, V], T]) -> tuple[T, ...]:
    """`read` for every item of a list; the error names the place."""
    return tuple(read(f"{field}[{n}]", item) for n, item in enumerate(items))


def one_per_family(field: str, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """At least one address, at most one of IPv4 and one of IPv6."""
    if not addresses:
        raise FieldError(field, "is empty: at least one address is needed")
    for version in (4, 6):
        found = [str(a) for a in addresses if a.version == version]
        if len(found) > 1:
            raise FieldError(
                field, f"more than one IPv{version} address ({', '.join(found)}): keep one"
            )
    return addresses


def base64(field: str, text: str, length: int | None = None) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(field, "is not base64") from None
    return _of_length(field, raw, length)


def hexadecimal(field: str, text: str, length: int) -> bytes:
    if not re.fullmatch(r"[0-9A-Fa-f]*", text):
        raise FieldError(field, "is not hexadecimal (0-9, a-f)")
    if len(text) % 2:
        raise FieldError(field, f"has {len(text)} hex digits instead of {2 * length}")
    return _of_length(field, bytes.fromhex(text), length)


def _of_length(field: str, raw: bytes, length: int | None) -> bytes:
    if length is not None and len(raw) != length:
        raise FieldError(field, f"is {len(raw)} bytes long instead of {length}")
    return raw


def mac(field: str, text: str) -> str:
    if not _MAC.fullmatch(text.lower()):
        raise FieldError(field, f"{shown(text)} is not a MAC address (02:00:00:00:00:01)")
    return text.lower()


def word(field: str, text: str, longest: int) -> str:
    """Something that only has to be short and without blanks."""
    if not 1 <= len(text) <= longest or not re.fullmatch(r"[A-Za-z0-9._:@-]+", text):
        raise FieldError(field, f"{shown(text)} is not 1 to {longest} letters, digits and ._:@-")
    return text
