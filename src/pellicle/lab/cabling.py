# SPDX-License-Identifier: Apache-2.0
"""Namespaces, uplinks, addresses and routes: what would be machines and cables elsewhere.

Every function makes the kernel what it should be, whatever it finds: nothing yet, half of it
left by an interruption, or all of it. Offloads are off on the wire: each frame there is one that
a cable could carry, no longer than the MTU and with its checksums in place.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from ipaddress import ip_network
from typing import Final

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import switch_off
from pellicle.lab.topology import UPLINK, WIRE, LabNode, LabPod, is_ours
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.netlink import Route

STATIC: Final = 4
"""RTPROT_STATIC: these routes are the network's, not Pellicle's."""
ROUTER: Final = {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
}
QUIET: Final = {"accept_dad": 0, "router_solicitations": 0, "accept_ra": 0}
"""Addresses are usable at once, and nobody asks for a router: they are given."""
DEFAULT: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def lay_wire() -> None:
    """The wire's namespace: a router with nothing on it yet."""
    _ensure_namespace(WIRE)
    for name, value in ROUTER.items():
        netns.write_sysctl(name, value, WIRE)


def connect_node(node: LabNode, mtu: int) -> bool:
    """The node's namespace, joined to the wire by its uplink, addressed and routed both ways.

    Whether the uplink had to be made.
    """
    _ensure_namespace(node.namespace)
    with Netlink(WIRE) as wire, Netlink(node.namespace) as inside:
        standing = _find_uplink(node, wire, inside)
        near, far = standing or _make_uplink(node, wire, inside)
        for end, netlink, namespace in ((near, wire, WIRE), (far, inside, node.namespace)):
            for name, value in QUIET.items():
                netns.write_sysctl(f"net/ipv6/conf/{end.name}/{name}", value, namespace)
            switch_off(end.name, namespace=namespace)
            netlink.change_link(end.index, is_up=True, mtu=mtu)
        gateways = [LinkAddress(near.index, interface) for interface in node.gateways]
        _must_all(wire.put_addresses(gateways))
        _must_all(inside.put_addresses(LinkAddress(far.index, each) for each in node.uplinks))
        _must_all(
            inside.put_routes(
                Route(network, far.index, gateway.ip, protocol=STATIC)
                for network, gateway in zip(DEFAULT, node.gateways, strict=True)
            )
        )
        # With encryption off the wire carries the pods' own addresses.
        _must_all(
            wire.put_routes(
                Route(network, near.index, address, protocol=STATIC)
                for network, address in zip(node.pod_cidrs, node.addresses, strict=True)
            )
        )
        return standing is None


def ensure_pod(pod: LabPod) -> None:
    """The pod's namespace with only lo, as a container runtime gives it to the plugin."""
    _ensure_namespace(pod.namespace)


def disconnect_node(node: LabNode) -> None:
    """Unplug the node from the wire and give up its namespace."""
    if WIRE in netns.names():
        with Netlink(WIRE) as wire:
            wire.remove_link(node.wire_device)
    netns.delete(node.namespace)


def clear_wire() -> None:
    """Take the wire away, with whatever is plugged into it.

    Devices go by name first: a sniffer's socket may keep the namespace itself alive a while.
    """
    if WIRE not in netns.names():
        return
    with Netlink(WIRE) as wire:
        for link in wire.links().values():
            if link.kind == "veth":
                wire.remove_link(link.name)
    netns.delete(WIRE)


def namespaces() -> list[str]:
    """The named namespaces that belong to a lab, this one's or the remains of another's."""
    return [name for name in netns.names() if is_ours(name)]


def _ensure_namespace(name: str) -> None:
    with suppress(FileExistsError):
        netns.create(name)
    try:
        with Netlink(name) as netlink:
            netlink.change_link(netlink.link("lo").index, is_up=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A name without a namespace: whoever made it was interrupted in the middle.
        netns.delete(name)
        netns.create(name)
        _ensure_namespace(name)


def _find_uplink(node: LabNode, wire: Netlink, inside: Netlink) -> tuple[LinkInfo, LinkInfo] | None:
    near, far = wire.links().get(node.wire_device), inside.links().get(UPLINK)
    is_whole = near and far and near.peer == far.index and far.peer == near.index
    return (near, far) if near and far and is_whole else None


def _make_uplink(node: LabNode, wire: Netlink, inside: Netlink) -> tuple[LinkInfo, LinkInfo]:
    wire.remove_link(node.wire_device)
    inside.remove_link(UPLINK)
    with netns.opened(node.namespace) as there:
        wire.add_veth(VethEnd(node.wire_device), VethEnd(UPLINK, netns_fd=there))
    return wire.link(node.wire_device), inside.link(UPLINK)


def _must_all(errors: dict[LinkAddress, OSError] | dict[Route, OSError]) -> None:
    for row, error in errors.items():
        raise OSError(error.errno, f"{error.strerror}: {row}")
