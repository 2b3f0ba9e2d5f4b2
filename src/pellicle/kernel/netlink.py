# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: one socket in one network namespace, and what Pellicle asks of it.

What is there already, or gone already, is success.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from pellicle.kernel.netns import Namespace
from pellicle.kernel.nlsocket import NetlinkSocket
from pellicle.wire import link as links
from pellicle.wire import netlink as routing
from pellicle.wire import nlmsg
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.netlink import PROTOCOL, Route, Rule

_NETLINK_GET_STRICT_CHK = 12
"""A kernel that checks dumps strictly also filters them."""


class Netlink(NetlinkSocket):
    """A socket to the kernel's routing tables, devices and addresses of one namespace."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        super().__init__(socket.NETLINK_ROUTE, namespace, [_NETLINK_GET_STRICT_CHK])

    # Routes and rules.

    def put_routes(self, routes: Iterable[Route]) -> dict[Route, OSError]:
        """Adds or replaces routes; answers those that failed."""
        return self._each(routes, routing.put_route)

    def remove_routes(self, routes: Iterable[Route]) -> dict[Route, OSError]:
        """Removes routes by key and protocol; answers those that failed."""
        return self._each(routes, routing.remove_route, errno.ESRCH)

    def routes(self, table: int, protocol: int = PROTOCOL) -> list[Route]:
        """The routes of a table that are ours (protocol 0: anyone's)."""
        found = []
        for family in (4, 6):
            try:
                rows = self.dump(routing.dump_routes(family, table, protocol), routing.read_route)
            except FileNotFoundError:  # a table without routes does not exist
                continue
            found += [row for row in rows if row.table == table and protocol in (0, row.protocol)]
        return found

    def put_rules(self, rules: Iterable[Rule]) -> dict[Rule, OSError]:
        """Adds rules; answers those that failed."""
        return self._each(rules, routing.put_rule, errno.EEXIST)

    def remove_rules(self, rules: Iterable[Rule]) -> dict[Rule, OSError]:
        """Removes rules; answers those that failed."""
        return self._each(rules, routing.remove_rule, errno.ENOENT)

    def rules(self, protocol: int = PROTOCOL) -> list[Rule]:
        """The rules that are ours (protocol 0: anyone's)."""
        return [
            row
            for family in (4, 6)
            for row in self.dump(routing.dump_rules(family), routing.read_rule)
            if protocol in (0, row.protocol)
        ]

    # Devices.

    def links(self) -> dict[str, LinkInfo]:
        """The devices of the namespace by name."""
        return {row.name: row for row in self.dump(links.dump_links(), links.read_link)}

    def link(self, name: str) -> LinkInfo:
        """One device; OSError ENODEV when there is none of that name."""
        found = self.links().get(name)
        if found is None:
            raise OSError(errno.ENODEV, f"no device {name}")
        return found

    def add_veth(self, end: VethEnd, peer: VethEnd) -> None:
        """Makes a veth pair, either end in a namespace of its own; EEXIST when a name is taken."""
        self.ask(links.add_veth(end, peer))

    def add_xfrm(self, name: str, if_id: int, link: int) -> None:
        """Makes an xfrm interface; EEXIST when its name or its if_id is taken."""
        self.ask(links.add_xfrm(name, if_id, link))

    def add_overlay(self, name: str, kind: str, port: int) -> None:
        """Makes a vxlan or geneve device without peers; EEXIST when its name or port is taken."""
        self.ask(links.add_overlay(name, kind, port))

    def change_link(
        self,
        index: int,
        *,
        is_up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        is_noarp: bool | None = None,
        has_link_local: bool | None = None,
        netns_fd: int | None = None,
        name: str | None = None,
    ) -> None:
        """Changes what is given; has_link_local=False before it is up: no fe80:: of its own."""
        request = links.change_link(
            index,
            is_up=is_up,
            mtu=mtu,
            mac=mac,
            is_noarp=is_noarp,
            has_link_local=has_link_local,
            netns_fd=netns_fd,
            name=name,
        )
        self.ask(request)

    def remove_link(self, name: str) -> bool:
        """Removes a device; False when there was none."""
        found = self.links().get(name)
        if found is None:
            return False
        (error,) = self.batch([links.remove_link(found.index)])
        if error is not None and error.errno != errno.ENODEV:
            raise error
        return error is None

    # Addresses.

    def addresses(self, index: int | None = None) -> list[LinkAddress]:
        """The addresses of one device or all."""
        rows = self.dump(links.dump_addresses(), links.read_address)
        return [row for row in rows if index in (None, row.index)]

    def put_addresses(
        self, addresses: Iterable[LinkAddress], *, has_prefix_route: bool = True
    ) -> dict[LinkAddress, OSError]:
        """Adds addresses, usable at once; answers those that failed."""

        def put(address: LinkAddress) -> nlmsg.Request:
            return links.put_address(address, has_prefix_route=has_prefix_route)

        return self._each(addresses, put, errno.EEXIST)

    def remove_addresses(self, addresses: Iterable[LinkAddress]) -> dict[LinkAddress, OSError]:
        """Removes addresses; answers those that failed."""
        return self._each(addresses, links.remove_address, errno.EADDRNOTAVAIL, errno.ENODEV)
