# SPDX-License-Identifier: Apache-2.0
"""A pod's wire: a veth pair, the addresses and routes at both of its ends.

     pod                                              node
    ┌──────────────────────────────┐                 ┌──────────────────────────────────────┐
    │ eth0  10.244.1.7/32          ├═════════════════┤ pel0123456789a   fe80::1/64          │
    │       fd00::7/128            │                 │ 10.244.1.7/32 dev pel0123456789a     │
    │ 10.244.1.1 dev eth0          │                 │ fd00::7/128   dev pel0123456789a     │
    │ default via 10.244.1.1 mtu … │                 └──────────────────────────────────────┘
    │ default via fe80::1    mtu … │
    └──────────────────────────────┘
MAC addresses are told to both sides, never asked for: no first packet waits, and no setting
of the node that keeps ARP quiet (arp_ignore) can cut pods off. Everything here blocks for
some milliseconds; it is meant for a thread.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Interface, ip_interface, ip_network
from pathlib import Path

from pellicle.facts import Address, Network
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources.cni_spec import Hop, Plug
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd, change_link, put_address
from pellicle.wire.neighbour import Neighbour, dump_neighbours, put_neighbour, read_neighbour
from pellicle.wire.netlink import MAIN_TABLE, Route, put_route
from pellicle.wire.nlmsg import Request

GATEWAY6 = IPv6Address("fe80::1")
_GATEWAY6_HERE = IPv6Interface("fe80::1/64")
_DEFAULT = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_ALIAS_SEPARATOR = ": "
HOST_DEVICE = re.compile(r"pel[0-9a-f]{11}")

Step = tuple[str, Request]
"""What is being done, in words, and how."""


@dataclass(frozen=True, slots=True)
class Veth:
    """The wire of one pod as it shall be."""

    plug: Plug
    network: str
    """Which CNI network it belongs to; kept in the device's alias."""
    owner: str
    """The pod, for a person who lists devices."""
    hops: tuple[Hop, ...]
    mtu: int

    @property
    def alias(self) -> str:
        return f"{self.network}{_ALIAS_SEPARATOR}{self.owner} {self.plug.interface}"[:255]

    @property
    def has_v6(self) -> bool:
        return any(hop.address.version == 6 for hop in self.hops)


def is_host_device(name: str) -> bool:
    return HOST_DEVICE.fullmatch(name) is not None


def network_of(link: LinkInfo) -> str:
    """The CNI network that a host device was made for; empty when it does not say."""
    network, separator, _ = link.alias.partition(_ALIAS_SEPARATOR)
    return network if separator else ""


def create(veth: Veth, netns_fd: int) -> int:
    """The pair, the pod's end inside already, both ends down: nothing can be sent yet.

    Answers the ifindex of the host's end. A host end left by a crash is replaced; a device
    of the pod that has the wanted name is somebody else's, and an error.
    """
    plug = veth.plug
    with Netlink() as here:
        here.remove_link(plug.host_device)
        try:
            here.add_veth(
                VethEnd(plug.host_device, plug.host_mac, veth.mtu),
                VethEnd(plug.interface, plug.pod_mac, veth.mtu, netns_fd),
            )
        except FileExistsError as error:
            why = f"the container already has a device {plug.interface}, from another network?"
            raise FileExistsError(errno.EEXIST, why) from error
        return here.link(plug.host_device).index


def configure(veth: Veth, index: int, netns_fd: int) -> None:
    """Both ends up, with addresses and routes. `index`: of the host's end."""
    with Netlink() as here, Netlink(netns_fd) as there:
        pod = there.link(veth.plug.interface).index
        _set_host_sysctls(veth)
        _do(here, _host_steps(veth, index))
        _set_pod_sysctls(veth, netns_fd)
        _refuse_other_defaults(veth, there)
        _do(there, _pod_steps(veth, pod))
        _do(here, _way_to_pod(veth, index))


def differences(veth: Veth, netns_fd: int | None) -> list[str]:
    """What is not as it shall be, in words; nothing when all is well."""
    plug = veth.plug
    with Netlink() as here:
        host = here.links().get(plug.host_device)
        if host is None:
            return [f"the host device {plug.host_device} is gone"]
        found = _device_differences(host, plug.host_mac)
        wanted_here = [LinkAddress(host.index, _GATEWAY6_HERE)] if veth.has_v6 else []
        found += _missing("address", _addresses(wanted_here), _addresses(here.addresses()))
        there = map(_route_words, here.routes(MAIN_TABLE))
        found += _missing("route", map(_route_words, _host_routes(veth, host.index)), there)
        found += _missing_neighbours(here, _host_neighbours(veth, host.index))
    if netns_fd is None:
        return [*found, "the container's network namespace is gone"]
    return found + _pod_differences(veth, host.index, netns_fd)


def remove(host_device: str) -> bool:
    """The pair and all that hangs on it; False when there was none."""
    with Netlink() as here:
        return here.remove_link(host_device)


def devices() -> dict[str, LinkInfo]:
    """All devices of this namespace."""
    with Netlink() as here:
        return here.links()


def why_not(netns_fd: int) -> str:
    """Why a pod cannot live there, in words; empty when it can."""
    try:
        with netns.inside(netns_fd):
            pass
    except OSError as error:
        return f"the descriptor is no network namespace: {error.strerror}"
    here, there = Path("/proc/thread-self/ns/net").stat(), os.fstat(netns_fd)
    is_here = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    return (
        "it is the node's own namespace: the container shares the host's network" if is_here else ""
    )


def _host_steps(veth: Veth, index: int) -> list[Step]:
    steps = [
        ("naming the network on the host's end", change_link(index, alias=veth.alias)),
        ("the host's end up", change_link(index, is_up=True)),
    ]
    if _has_kernel_v6():
        quiet = change_link(index, has_link_local=False)
        steps.insert(0, ("no IPv6 address of its own for the host's end", quiet))
    if veth.has_v6:
        steps.append(("fe80::1 on the host's end", put_address(LinkAddress(index, _GATEWAY6_HERE))))
    return steps


def _way_to_pod(veth: Veth, index: int) -> list[Step]:
    return [
        *((f"neighbour {n.address}", put_neighbour(n)) for n in _host_neighbours(veth, index)),
        *((f"route to {r.destination}", put_route(r)) for r in _host_routes(veth, index)),
    ]


def _pod_steps(veth: Veth, index: int) -> list[Step]:
    return [
        ("the pod's end up", change_link(index, is_up=True)),
        *(
            (f"address {row.interface} in the pod", put_address(row))
            for row in _pod_addresses(veth, index)
        ),
        *(
            (f"neighbour {row.address} in the pod", put_neighbour(row))
            for row in _pod_neighbours(veth, index)
        ),
        *(
            (f"route to {row.destination} in the pod", put_route(row))
            for row in _pod_routes(veth, index)
        ),
    ]


def _pod_addresses(veth: Veth, index: int) -> list[LinkAddress]:
    return [LinkAddress(index, ip_interface(_alone(hop.address))) for hop in veth.hops]


def _pod_neighbours(veth: Veth, index: int) -> list[Neighbour]:
    return [Neighbour(index, hop.gateway, veth.plug.host_mac) for hop in veth.hops]


def _pod_routes(veth: Veth, index: int) -> list[Route]:
    on_link = [Route(_alone(hop.gateway), index) for hop in veth.hops if hop.gateway.version == 4]
    return on_link + [
        Route(_DEFAULT[hop.gateway.version], index, via=hop.gateway, mtu=hop.mtu)
        for hop in veth.hops
    ]


def _host_neighbours(veth: Veth, index: int) -> list[Neighbour]:
    return [Neighbour(index, hop.address, veth.plug.pod_mac) for hop in veth.hops]


def _host_routes(veth: Veth, index: int) -> list[Route]:
    return [Route(_alone(hop.address), index) for hop in veth.hops]


def _refuse_other_defaults(veth: Veth, there: Netlink) -> None:
    """A pod's way out is never taken from another network without a word."""
    wanted = {_DEFAULT[hop.address.version] for hop in veth.hops}
    for row in there.routes(MAIN_TABLE, protocol=0):
        if row.destination in wanted:
            why = f"the container already has a route to {row.destination}, from another network?"
            raise FileExistsError(errno.EEXIST, why)


def _set_host_sysctls(veth: Veth) -> None:
    device = veth.plug.host_device
    netns.write_sysctl(f"net/ipv4/conf/{device}/forwarding", 1)
    # The program on this device checks sources, exactly; the kernel's check would look the
    # source up with the packet's mark where src_valid_mark is set, and not find it.
    netns.write_sysctl(f"net/ipv4/conf/{device}/rp_filter", 0)
    if veth.has_v6:
        _set_v6(device, {"disable_ipv6": 0, "accept_ra": 0, "accept_redirects": 0, "forwarding": 1})


def _set_pod_sysctls(veth: Veth, netns_fd: int) -> None:
    if veth.has_v6:
        # The device has one neighbour, which never has the pod's address: nothing to detect.
        wanted = {"disable_ipv6": 0, "accept_ra": 0, "accept_dad": 0}
        with netns.inside(netns_fd):
            _set_v6(veth.plug.interface, wanted)


def _set_v6(device: str, settings: dict[str, int]) -> None:
    for name, value in settings.items():
        try:
            netns.write_sysctl(f"net/ipv6/conf/{device}/{name}", value)
        except FileNotFoundError as error:
            why = "this kernel runs without IPv6, but the node has an IPv6 pod CIDR"
            raise OSError(errno.EAFNOSUPPORT, why) from error


def _has_kernel_v6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


def _pod_differences(veth: Veth, host: int, netns_fd: int) -> list[str]:
    name = veth.plug.interface
    with Netlink(netns_fd) as there:
        pod = there.links().get(name)
        if pod is None:
            return [f"the container has no device {name}"]
        found = _device_differences(pod, veth.plug.pod_mac)
        if pod.peer != host:
            found.append(f"{name} is not the other end of {veth.plug.host_device}")
        addresses = _addresses(there.addresses(pod.index))
        found += _missing("address", _addresses(_pod_addresses(veth, pod.index)), addresses)
        routes = map(_route_words, there.routes(MAIN_TABLE))
        found += _missing("route", map(_route_words, _pod_routes(veth, pod.index)), routes)
        found += _missing_neighbours(there, _pod_neighbours(veth, pod.index))
    return [f"in the pod: {words}" for words in found]


def _device_differences(link: LinkInfo, mac: str) -> list[str]:
    found = [] if link.is_up else [f"{link.name} is down"]
    if link.mac != mac:
        found.append(f"{link.name} has the MAC address {link.mac}, not {mac}")
    return found


def _missing(what: str, wanted: Iterable[str], there: Iterable[str]) -> list[str]:
    have = set(there)
    return [f"{what} {words} is missing" for words in wanted if words not in have]


def _addresses(rows: Iterable[LinkAddress]) -> list[str]:
    return [f"{row.interface} (device {row.index})" for row in rows]


def _route_words(row: Route) -> str:
    via = f" via {row.via}" if row.via else ""
    mtu = f" mtu {row.mtu}" if row.mtu else ""
    return f"{row.destination}{via} (device {row.device}){mtu}"


def _missing_neighbours(netlink: Netlink, wanted: Iterable[Neighbour]) -> list[str]:
    there = set(netlink.dump(dump_neighbours(), read_neighbour))
    return [
        f"neighbour {row.address} at {row.mac} is missing" for row in wanted if row not in there
    ]


def _do(netlink: Netlink, steps: Sequence[Step]) -> None:
    """All of them in one system call; raises the first error, with what was being done."""
    errors = netlink.batch(request for _, request in steps)
    for (words, _), error in zip(steps, errors, strict=True):
        if error is not None:
            raise OSError(error.errno, f"{words}: {error.strerror}")


def _alone(address: Address) -> Network:
    return ip_network(address)
