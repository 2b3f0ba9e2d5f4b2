# SPDX-License-Identifier: Apache-2.0
"""Which device leads to the other nodes, and under which addresses they know this one."""

from __future__ import annotations

from dataclasses import dataclass

from pellicle.facts import Address
from pellicle.kernel.netlink import Netlink
from pellicle.wire.netlink import MAIN_TABLE

ETHERNET_ADDRESS = len("02:00:00:00:00:01")


class NoUplink(Exception):  # noqa: N818  it says what is missing
    """The uplink cannot be told, or is not there."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """The device, and at most one address in each family, IPv4 first."""

    name: str
    index: int
    mtu: int
    addresses: tuple[Address, ...]


def find(netlink: Netlink, name: str | None, addresses: tuple[Address, ...]) -> Uplink:
    """The configured device, or that of the default route; its addresses unless configured."""
    links = netlink.links()
    device = name or _of_default_route(netlink)
    if device not in links:
        raise NoUplink(f"uplink {device} is not a device of this host: set `uplink` to one that is")
    link = links[device]
    if len(link.mac) != ETHERNET_ADDRESS:
        # Its frames would have no header that the programs know: the last door would stand open.
        raise NoUplink(f"uplink {device} is not Ethernet: set `uplink` to the device below it")
    found = addresses or _addresses(netlink, link.index)
    if not found:
        raise NoUplink(f"uplink {device} has no global address: give it one, or set `addresses`")
    return Uplink(device, link.index, link.mtu, found)


def _of_default_route(netlink: Netlink) -> str:
    names = {link.index: name for name, link in netlink.links().items()}
    for route in sorted(netlink.routes(MAIN_TABLE, 0), key=lambda r: r.metric):
        if route.destination.prefixlen == 0 and route.device in names:
            return names[route.device]
    raise NoUplink("no default route tells which device leads to the other nodes: set `uplink`")


def _addresses(netlink: Netlink, index: int) -> tuple[Address, ...]:
    found: dict[int, Address] = {}
    for each in netlink.addresses(index):
        address = each.interface.ip
        if not address.is_link_local:
            found.setdefault(address.version, address)
    return tuple(found[version] for version in sorted(found))
