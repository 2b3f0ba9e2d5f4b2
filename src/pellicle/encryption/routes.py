# SPDX-License-Identifier: Apache-2.0
"""The way to the door: rules, tables 200 and 201, and the exact MTU of every route.

    1: from all fwmark 0xe00/0xf00 lookup 200                what pods send
    2: from all fwmark 0/0xf00 lookup 201                    what this node sends, or forwards
    table 200   10.244.2.0/24 dev pellicle_xfrm mtu 1446     per pod CIDR of a peer
                192.168.2.2 dev pellicle_xfrm mtu 1446       and per address
                throw 10.244.1.0/24                          our own pods: see `_back`
                blackhole default                            marked, and no peer: never the uplink
    table 201   10.244.2.0/24 dev pellicle_xfrm mtu 1446 src 192.168.1.2
                192.168.2.2 dev pellicle_xfrm mtu 1446 src 192.168.1.2

What the door has sealed, or let out, has the mark 0xc00 and meets neither rule: it goes by the
ordinary routes. So does everything for which there is no route here, and to_net sees to it.

Routes lead to the door of this node's engine: pellicle_xfrm or pellicle_host. With the bpf engine
they lead to pellicle_xfrm still, for peers that are sent to on an old pair of the kernel's: that
door hands over what is the other's, but not the other way round.

With the routing overlay, those to pods lead to pellicle_tunnel, whose packets have the mark 0xe00
and take the route to the node. Without encryption they are there, too, but in table 201 only:

    table 201   10.244.2.0/24 dev pellicle_tunnel mtu 1450 src 192.168.1.2

The MTU is what engine and overlay leave of the uplink's: the stack then fragments, or answers
with ICMP, as it would for any narrow link.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from pellicle.datapath.address import host_network
from pellicle.datapath.programs import DOOR_HOST, DOOR_OVERLAY, DOOR_XFRM
from pellicle.encryption.table import EncryptKey, EncryptRow, key_for
from pellicle.facts import Address, Engine, Link, Network, Node, NodeName, gateway
from pellicle.kernel.netlink import Netlink
from pellicle.keys.records import outer_addresses
from pellicle.wire.netlink import Route, RouteKind, Rule

MARK_ENCRYPT, MARK_MASK = 0xE00, 0xF00
POD_PRIORITY, NODE_PRIORITY = 1, 2
LAST_RESORT = 0x7FFFFFFF
"""Metric of the blackhole: after every real route."""
ESP_BYTES = 8 + 8 + 16
"""SPI and sequence number, IV, ICV: RFC 4303 §2, RFC 7634 §2."""
OUTER_BYTES = {4: 20, 6: 40}
OVERLAY_BYTES = 8 + 8 + 14
"""UDP, VXLAN or Geneve without options, Ethernet: RFC 7348 §5, RFC 8926 §3."""
IPV6_MINIMUM = 1280
"""RFC 8200 §5: every link must carry this."""
ANY_LENGTH = 65535
"""What an engine without a limit of its own can seal: more than any uplink carries."""
DEFAULTS = (ip_network("0.0.0.0/0"), ip_network("::/0"))

RouteName = tuple[Network, int, int]


def tables_of(table: int) -> tuple[int, int]:
    """For what is marked, and for what is not."""
    return table, table + 1


def inner_mtu(uplink_mtu: int, version: int, longest: int) -> int:
    """The longest IP packet that the uplink can carry sealed, with an outer header of `version`.

    What is encrypted, the packet and two bytes of trailer, is a multiple of four long (RFC 4303
    §2.4): 1446 bytes in 1500 with IPv4 outside, 1426 with IPv6. `longest`: what the engine can do.
    """
    room = (uplink_mtu - OUTER_BYTES[version] - ESP_BYTES) // 4 * 4 - 2
    return min(room, longest)


def overlay_mtu(carried: int, version: int) -> int:
    """The longest IP packet in an overlay packet of at most `carried`, of IP `version`."""
    return carried - OUTER_BYTES[version] - OVERLAY_BYTES


def path_mtu(named: int, version: int, *, is_overlay: bool = False) -> int:
    """What a router's word is worth: never so little that an IPv6 packet inside had no room."""
    least = IPV6_MINIMUM + OUTER_BYTES[version] + ESP_BYTES + 4
    return max(named, least + is_overlay * (OUTER_BYTES[version] + OVERLAY_BYTES))


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What does not change in an agent's life."""

    local: NodeName
    uplink: str
    table: int
    outer_family: str
    engine: Engine
    longest: int
    """The engine seals no more, whatever the uplink could carry."""
    are_nodes_encrypted: bool
    """Also what nodes say to each other."""
    is_overlay: bool = False
    is_encrypting: bool = True

    def rules(self) -> dict[Rule, Rule]:
        marked, unmarked = tables_of(self.table)
        rows = []
        for version in (4, 6):
            if self.is_encrypting:
                rows.append(Rule(version, POD_PRIORITY, marked, MARK_ENCRYPT, MARK_MASK))
            if self.is_encrypting or self.is_overlay:
                rows.append(Rule(version, NODE_PRIORITY, unmarked, 0, MARK_MASK))
        return {rule: rule for rule in rows}

    def routes(
        self,
        nodes: Mapping[NodeName, Node],
        links: Mapping[str, Link],
        paths: Mapping[Address, int],
        encrypt: Mapping[EncryptKey, EncryptRow],
    ) -> dict[RouteName, Route]:
        """Only blackholes while the uplink or this node's own record is missing; none to a peer
        while its door is.

        `paths`: MTU that routers between the nodes have named, by the peer's outer address.
        `encrypt`: what peers are sent to with now.
        """
        routes: list[Route] = []
        uplink, own = links.get(self.uplink), nodes.get(self.local)
        if self.is_encrypting:
            routes.extend(self._nowhere())
        if uplink is None or own is None:
            return {route.key: route for route in routes}
        if self.is_encrypting:
            routes.extend(self._back(own))
        for node in nodes.values():
            outer = outer_addresses(own.addresses, node.addresses, self.outer_family)
            if node.name != own.name and outer is not None:
                mtu = min(uplink.mtu, paths.get(outer[1], uplink.mtu))
                door = links.get(self._door(node, encrypt))
                routes.extend(self._to(node, own, door, links.get(DOOR_OVERLAY), outer[1], mtu))
        return {route.key: route for route in routes}

    def _nowhere(self) -> Iterable[Route]:
        for default in DEFAULTS:
            yield Route(default, table=self.table, kind=RouteKind.BLACKHOLE, metric=LAST_RESORT)

    def _door(self, node: Node, encrypt: Mapping[EncryptKey, EncryptRow]) -> str:
        row = encrypt.get(key_for(node)) if node.addresses else None
        is_kernels = Engine.XFRM in {self.engine, row.engine if row else self.engine}
        return DOOR_XFRM if is_kernels else DOOR_HOST

    def _back(self, own: Node) -> Iterable[Route]:
        """To the pods that the marked packets come from. The kernel looks there with the packet's
        mark when it checks a source (rp_filter with src_valid_mark) or answers with ICMP
        (fwmark_reflect): it must find what it would find without the mark.
        """
        for cidr in own.pod_cidrs:
            yield Route(cidr, table=self.table, kind=RouteKind.THROW)

    def _to(
        self,
        node: Node,
        own: Node,
        door: Link | None,
        overlay: Link | None,
        outer: Address,
        mtu: int,
    ) -> Iterable[Route]:
        """To the node and its pods. `mtu`: of the path to its address `outer`."""
        if self.is_encrypting:
            mtu = inner_mtu(mtu, outer.version, min(self.longest, node.longest or self.longest))
            if door is not None and door.is_up:
                yield from self._to_node(node, own, door.index, mtu)
        if self.is_overlay:
            door, mtu = overlay, overlay_mtu(mtu, outer.version)
        if door is not None and door.is_up:
            yield from self._to_pods(node, own, door.index, mtu)

    def _to_pods(self, node: Node, own: Node, door: int, mtu: int) -> Iterable[Route]:
        marked, unmarked = tables_of(self.table)
        sources = _sources(own)
        for cidr in node.pod_cidrs:
            if self.is_encrypting:
                yield Route(cidr, door, table=marked, mtu=mtu)
            source = sources.get(cidr.version)
            yield Route(cidr, door, source=source, table=unmarked, mtu=mtu)

    def _to_node(self, node: Node, own: Node, door: int, mtu: int) -> Iterable[Route]:
        marked, unmarked = tables_of(self.table)
        sources = _sources(own)
        for address in node.addresses:
            yield Route(host_network(address), door, table=marked, mtu=mtu)
            if self.are_nodes_encrypted:
                source = sources.get(address.version)
                yield Route(host_network(address), door, source=source, table=unmarked, mtu=mtu)


def _sources(own: Node) -> dict[int, Address]:
    """Who answers from a socket without an address answers from the one that was asked."""
    sources: dict[int, Address] = {c.version: gateway(c) for c in reversed(own.pod_cidrs)}
    sources.update((address.version, address) for address in own.addresses)
    return sources


class RouteTarget:
    """Our routes in both tables, and in those that an earlier agent's rules lead to."""

    def __init__(self, netlink: Netlink, table: int) -> None:
        self._netlink = netlink
        self._tables = {*tables_of(table), *(rule.table for rule in netlink.rules())}
        self._standing: dict[RouteName, Route] = {}

    def read(self) -> Mapping[RouteName, Route]:
        found = (route for table in self._tables for route in self._netlink.routes(table))
        self._standing = {route.key: route for route in found}
        return dict(self._standing)

    def put(self, rows: Mapping[RouteName, Route]) -> Mapping[RouteName, OSError]:
        errors = self._netlink.put_routes(rows.values())
        self._standing.update(rows)
        return {route.key: error for route, error in errors.items()}

    def remove(self, keys: Collection[RouteName]) -> Mapping[RouteName, OSError]:
        errors = self._netlink.remove_routes(self._standing[key] for key in keys)
        return {route.key: error for route, error in errors.items()}


class RuleTarget:
    """The rules that carry our protocol number, wherever they lead."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def read(self) -> Mapping[Rule, Rule]:
        return {rule: rule for rule in self._netlink.rules()}

    def put(self, rows: Mapping[Rule, Rule]) -> Mapping[Rule, OSError]:
        return self._netlink.put_rules(rows)

    def remove(self, keys: Collection[Rule]) -> Mapping[Rule, OSError]:
        return self._netlink.remove_rules(keys)
