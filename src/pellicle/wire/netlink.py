# SPDX-License-Identifier: Apache-2.0
"""Routes and rules in bulk: frozen rows to rtnetlink requests, and dumps back to rows.

    struct rtmsg         family, destination length, source length, TOS,
                         table, protocol, scope, type; flags: 32        (rtnetlink(7))
    struct fib_rule_hdr  family, destination length, source length, TOS,
                         table, 0, 0, action; flags: 32

A row read back from the kernel equals the row that was put there: what the kernel fills in by
itself (IPv6 metric 1024, scopes, the loopback device of a blackhole) is filled in, or left out,
here as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    Malformed,
    Reply,
    Request,
    attribute,
    attributes,
    nested,
    read_u32,
    u8,
    u32,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

PROTOCOL = 80
"""Says in the kernel that a route or rule is Pellicle's; /etc/iproute2/rt_protos may name it."""
MAIN_TABLE = 254

_ROW = struct.Struct("=BBBBBBBBI")  # rtmsg and fib_rule_hdr alike
_AF_INET, _AF_INET6 = 2, 10
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_TABLE, _RTA_VIA, _RTAX_MTU = 8, 15, 18, 2
_FRA_DST, _FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 6, 10
_FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 15, 16, 21
_RTNH_F_ONLINK = 4
_FR_ACT_TO_TBL = 1
_IPV6_METRIC = 1024  # IP6_RT_PRIO_USER, what the kernel makes of 0


class RouteKind(IntEnum):
    """What becomes of a packet that takes the route."""

    UNICAST = 1
    LOCAL = 2
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9
    """On to the next rule, as if the table had nothing to say."""


class Scope(IntEnum):
    """How far away the destination is (IPv4 only)."""

    UNIVERSE = 0
    LINK = 253
    HOST = 254


_KINDS, _SCOPES = frozenset(RouteKind), frozenset(Scope)
_NO_DEVICE = frozenset(RouteKind) - {RouteKind.UNICAST, RouteKind.LOCAL}


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `scope` None means as `ip route` does: the narrowest that fits."""

    destination: Network
    device: int | None = None
    """The ifindex."""
    via: Address | None = None
    source: Address | None = None
    """Preferred source address of packets that start here."""
    table: int = MAIN_TABLE
    kind: RouteKind = RouteKind.UNICAST
    metric: int = 0
    """0 in IPv6 is the kernel's 1024."""
    mtu: int | None = None
    scope: Scope | None = None
    is_onlink: bool = False
    """`via` is on the device's link although no address says so."""
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        is_six = self.destination.version == 6
        if is_six and self.metric == _IPV6_METRIC:
            object.__setattr__(self, "metric", 0)
        if is_six or self.scope is None:
            object.__setattr__(self, "scope", Scope.UNIVERSE if is_six else self._natural_scope())

    @property
    def key(self) -> tuple[Network, int, int]:
        """What the kernel allows only once: destination, table and metric."""
        return self.destination, self.table, self.metric

    def _natural_scope(self) -> Scope:
        if self.kind is RouteKind.LOCAL:
            return Scope.HOST
        if self.kind is RouteKind.UNICAST and self.via is None:
            return Scope.LINK
        return Scope.UNIVERSE


@dataclass(frozen=True, slots=True)
class Rule:
    """Which packets look into which table; `family` is 4 or 6."""

    family: int
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    """Of the mark; 0: any packet."""
    source: Network | None = None
    destination: Network | None = None
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if self.mark and not self.mask:
            raise ValueError("a rule's mark without a mask would match every packet")
        for name in ("source", "destination"):
            prefix = getattr(self, name)
            if prefix is not None and not prefix.prefixlen:
                object.__setattr__(self, name, None)


def put_route(route: Route) -> Request:
    """Adds the route or replaces the one with its key."""
    return Request(RTM_NEWROUTE, CREATE | REPLACE, _route_body(route))


def remove_route(route: Route) -> Request:
    """Removes the route with this key and protocol, whatever else it says."""
    to = route.destination
    any_scope = 255  # RT_SCOPE_NOWHERE
    head = _ROW.pack(
        _AF[to.version], to.prefixlen, 0, 0, _small(route.table), route.protocol, any_scope, 0, 0
    )
    metric = route.metric or (_IPV6_METRIC if to.version == 6 else 0)
    parts = u32(_RTA_TABLE, route.table) + u32(_RTA_PRIORITY, metric)
    return Request(RTM_DELROUTE, 0, head + attribute(_RTA_DST, to.network_address.packed) + parts)


def dump_routes(family: int, table: int = 0, protocol: int = 0) -> Request:
    """Lists routes; a kernel in strict mode filters by table and protocol itself."""
    head = _ROW.pack(_AF[family], 0, 0, 0, 0, protocol, 0, 0, 0)
    return Request(RTM_GETROUTE, DUMP, head + (u32(_RTA_TABLE, table) if table else b""))


def read_route(reply: Reply) -> Route | None:
    """A route of a dump or event; None for what a Route cannot say (multicast, cached…)."""
    family, bits, _, _, table, protocol, scope, kind, flags = _head(reply.body)
    if kind not in _KINDS or family not in _VERSION or flags & 0x200:  # RTM_F_CLONED
        return None
    found = attributes(reply.body, _ROW.size)
    kind = RouteKind(kind)
    oif = read_u32(found, _RTA_OIF)
    metrics = attributes(found.get(_RTA_METRICS, b""))
    return Route(
        destination=_prefix(family, found.get(_RTA_DST), bits),
        device=None if kind in _NO_DEVICE or not oif else oif,
        via=_gateway(family, found),
        source=_address(found.get(_RTA_PREFSRC)),
        table=read_u32(found, _RTA_TABLE, table),
        kind=kind,
        metric=read_u32(found, _RTA_PRIORITY),
        mtu=read_u32(metrics, _RTAX_MTU) or None,
        scope=Scope(scope) if scope in _SCOPES else None,
        is_onlink=bool(flags & _RTNH_F_ONLINK),
        protocol=protocol,
    )


def put_rule(rule: Rule) -> Request:
    """Adds the rule; EEXIST when it stands already."""
    return Request(RTM_NEWRULE, CREATE | EXCLUSIVE, _rule_body(rule))


def remove_rule(rule: Rule) -> Request:
    """Removes exactly this rule."""
    return Request(RTM_DELRULE, 0, _rule_body(rule))


def dump_rules(family: int) -> Request:
    """Lists rules; the kernel does not filter them."""
    return Request(RTM_GETRULE, DUMP, _ROW.pack(_AF[family], 0, 0, 0, 0, 0, 0, 0, 0))


def read_rule(reply: Reply) -> Rule | None:
    """A rule of a dump or event; None when it does something else than look into a table."""
    family, to_bits, from_bits, _, table, _, _, action, _flags = _head(reply.body)
    if family not in _VERSION or action != _FR_ACT_TO_TBL:
        return None
    found = attributes(reply.body, _ROW.size)
    protocol, mask = found.get(_FRA_PROTOCOL, b"\0"), read_u32(found, _FRA_FWMASK)
    to, source = found.get(_FRA_DST), found.get(_FRA_SRC)
    return Rule(
        family=_VERSION[family],
        priority=read_u32(found, _FRA_PRIORITY),
        table=read_u32(found, _FRA_TABLE, table),
        mark=read_u32(found, _FRA_FWMARK) if mask else 0,
        mask=mask,
        source=_prefix(family, source, from_bits) if source else None,
        destination=_prefix(family, to, to_bits) if to else None,
        protocol=protocol[0] if protocol else 0,
    )


_AF = {0: 0, 4: _AF_INET, 6: _AF_INET6}
_VERSION = {_AF_INET: 4, _AF_INET6: 6}


def _route_body(route: Route) -> bytes:
    to, scope = route.destination, route.scope or Scope.UNIVERSE
    parts = [
        _ROW.pack(
            _AF[to.version], to.prefixlen, 0, 0, _small(route.table),
            route.protocol, scope, route.kind, _RTNH_F_ONLINK if route.is_onlink else 0,
        ),
        u32(_RTA_TABLE, route.table),
    ]  # fmt: skip
    if to.prefixlen:
        parts.append(attribute(_RTA_DST, to.network_address.packed))
    if route.device is not None:
        parts.append(u32(_RTA_OIF, route.device))
    if route.via is not None:
        parts.append(_via(to.version, route.via))
    if route.source is not None:
        parts.append(attribute(_RTA_PREFSRC, route.source.packed))
    if route.metric:
        parts.append(u32(_RTA_PRIORITY, route.metric))
    if route.mtu is not None:
        parts.append(nested(_RTA_METRICS, u32(_RTAX_MTU, route.mtu)))
    return b"".join(parts)


def _rule_body(rule: Rule) -> bytes:
    to, source = rule.destination, rule.source
    parts = [
        _ROW.pack(
            _AF[rule.family], to.prefixlen if to else 0, source.prefixlen if source else 0, 0,
            _small(rule.table), 0, 0, _FR_ACT_TO_TBL, 0,
        ),
        u32(_FRA_TABLE, rule.table),
        u32(_FRA_PRIORITY, rule.priority),
        u8(_FRA_PROTOCOL, rule.protocol),
    ]  # fmt: skip
    if rule.mask:
        parts += u32(_FRA_FWMARK, rule.mark), u32(_FRA_FWMASK, rule.mask)
    if to:
        parts.append(attribute(_FRA_DST, to.network_address.packed))
    if source:
        parts.append(attribute(_FRA_SRC, source.network_address.packed))
    return b"".join(parts)


def _small(table: int) -> int:
    """The table as the old 8-bit field has it; the attribute says it in full."""
    return table if table < 256 else 0


def _via(version: int, gateway: Address) -> bytes:
    if gateway.version == version:
        return attribute(_RTA_GATEWAY, gateway.packed)
    return attribute(_RTA_VIA, struct.pack("=H", _AF[gateway.version]) + gateway.packed)


def _gateway(family: int, found: dict[int, bytes]) -> Address | None:
    other = found.get(_RTA_VIA)
    return _address(found.get(_RTA_GATEWAY) if other is None else other[2:])


def _head(body: bytes) -> tuple[int, int, int, int, int, int, int, int, int]:
    if len(body) < _ROW.size:
        raise Malformed(f"a row of {len(body)} bytes")
    head: tuple[int, int, int, int, int, int, int, int, int] = _ROW.unpack_from(body)
    return head


def _address(packed: bytes | None) -> Address | None:
    if packed is None:
        return None
    match len(packed):
        case 4:
            return IPv4Address(packed)
        case 16:
            return IPv6Address(packed)
        case size:
            raise Malformed(f"an address of {size} bytes")


def _prefix(family: int, packed: bytes | None, bits: int) -> Network:
    size = 4 if family == _AF_INET else 16
    if bits > size * 8 or (packed is not None and len(packed) != size):
        raise Malformed(f"a prefix of {bits} bits that does not fit its family")
    start = packed or bytes(size)
    return IPv4Network((start, bits), False) if size == 4 else IPv6Network((start, bits), False)
