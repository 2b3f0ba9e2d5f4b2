# SPDX-License-Identifier: Apache-2.0
"""The door: a veth pair that makes the kernel finish every packet before it is sealed.

    stack ─▶ pellicle_host ═══ pellicle_net ─▶ `door` at its ingress: sealed or dropped

Transmit offloads are off on pellicle_host, so what arrives at the other end has been segmented
and checksummed, and lies in one piece (no scatter-gather): sealing need not gather it first.
pellicle_host carries the pods' gateway addresses; pellicle_net carries nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from pellicle.datapath.programs import DOOR_HOST, DOOR_MAC, DOOR_NET
from pellicle.facts import Address, Link, Node, NodeName, gateway
from pellicle.kernel.bpf import Object
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.netns import read_sysctl, write_sysctl
from pellicle.kernel.offloads import ALL_TRANSMIT, is_on, switch_off
from pellicle.table import refusals
from pellicle.wire.link import LinkAddress, VethEnd

STRICT, LOOSE = 1, 2
"""Values of rp_filter."""
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@dataclass(frozen=True, slots=True)
class Door:
    """The pair of devices as it should be."""

    mtu: int
    addresses: frozenset[Address]


def plan(
    local: NodeName, uplink: str, nodes: Mapping[NodeName, Node], links: Mapping[str, Link]
) -> dict[str, Door]:
    """One row, or none while this node's record or its uplink is missing."""
    own, device = nodes.get(local), links.get(uplink)
    if own is None or device is None:
        return {}
    return {DOOR_HOST: Door(device.mtu, frozenset(map(gateway, own.pod_cidrs)))}


def plan_doors(links: Mapping[str, Link]) -> dict[int, int]:
    """The map `doors`: where the other door hands packets over to; 0: nowhere."""
    host = links.get(DOOR_HOST)
    return {0: host.index if host and host.is_up else 0}


class DoorsTarget:
    """The only row of the map `doors`; it is an array, so there always is one."""

    def __init__(self, bpf: Object) -> None:
        self._map, self._layout = bpf.map("doors"), bpf.btf.struct("doors")

    def read(self) -> Mapping[int, int]:
        (row,) = (row for _, row in self._map.items())
        return {0: self._layout.unpack(row)["host"]}

    def put(self, rows: Mapping[int, int]) -> Mapping[int, OSError]:
        for host in rows.values():
            self._map.update(bytes(4), self._layout.pack(host=host))
        return {}

    def remove(self, keys: Collection[int]) -> Mapping[int, OSError]:
        return self.put(dict.fromkeys(keys, 0))


class DoorTarget:
    """The devices, their addresses and settings, and forwarding, without which nothing arrives."""

    def __init__(self, netlink: Netlink, uplink: str) -> None:
        self._netlink = netlink
        self._router_adverts = f"net/ipv6/conf/{uplink}/accept_ra"
        self._source_checks = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", uplink)]

    def read(self) -> Mapping[str, Door]:
        """The door if all of it is in order, else nothing: it is then put again."""
        links = self._netlink.links()
        host, net = links.get(DOOR_HOST), links.get(DOOR_NET)
        if host is None or net is None or not (host.is_up and net.is_up):
            return {}
        if host.mac != DOOR_MAC or any(is_on(DOOR_HOST, offload) for offload in ALL_TRANSMIT):
            return {}
        if any(read_sysctl(name) != value for name, value in FORWARDING.items()):
            return {}
        if self._is_source_check_strict():
            return {}
        addresses = (each.interface.ip for each in self._netlink.addresses(host.index))
        ours = frozenset(address for address in addresses if not address.is_link_local)
        return {DOOR_HOST: Door(host.mtu, ours)}

    def put(self, rows: Mapping[str, Door]) -> Mapping[str, OSError]:
        return refusals(rows, lambda name: self._put(rows[name]))

    def remove(self, keys: Collection[str]) -> Mapping[str, OSError]:
        """The door stays as long as anything may still be routed to it: it fails closed."""
        return {}

    def _put(self, door: Door) -> None:
        for name, value in FORWARDING.items():
            write_sysctl(name, value)
        if read_sysctl(self._router_adverts) == "1":
            # A forwarding host would stop listening to its own router (ip-sysctl: accept_ra).
            write_sysctl(self._router_adverts, 2)
        if self._is_source_check_strict():
            write_sysctl(self._source_checks[-1], LOOSE)
        links = self._netlink.links()
        if DOOR_HOST not in links or DOOR_NET not in links:
            self._netlink.remove_link(DOOR_HOST)
            self._netlink.remove_link(DOOR_NET)
            self._netlink.add_veth(VethEnd(DOOR_HOST, DOOR_MAC), VethEnd(DOOR_NET))
            links = self._netlink.links()
        host, net = links[DOOR_HOST].index, links[DOOR_NET].index
        write_sysctl(f"net/ipv6/conf/{DOOR_NET}/disable_ipv6", 1)
        self._netlink.change_link(net, has_link_local=False)
        self._netlink.change_link(net, is_up=True, mtu=door.mtu)
        self._netlink.change_link(host, has_link_local=False, is_noarp=True)
        self._netlink.change_link(host, is_up=True, mtu=door.mtu, mac=DOOR_MAC)
        switch_off(DOOR_HOST, ALL_TRANSMIT)
        self._put_addresses(host, door.addresses)

    def _is_source_check_strict(self) -> bool:
        """Strict would lose what others' pods send to this node: it is opened on the uplink, and
        answered through the door. The greater of both settings counts (ip-sysctl: rp_filter).
        """
        return max(int(read_sysctl(name)) for name in self._source_checks) == STRICT

    def _put_addresses(self, host: int, wanted: frozenset[Address]) -> None:
        found = self._netlink.addresses(host)
        standing = [each for each in found if each.interface.ip not in wanted]
        fresh = [LinkAddress(host, ip_interface(address)) for address in wanted]
        errors = {
            **self._netlink.put_addresses(fresh, has_prefix_route=False),
            **self._netlink.remove_addresses(standing),
        }
        for error in errors.values():
            raise error
