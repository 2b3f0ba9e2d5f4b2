# SPDX-License-Identifier: Apache-2.0
"""The overlay: the kernel's VXLAN or Geneve device that brings pods' packets from node to node.

    stack ─▶ pellicle_tunnel ─ `to_overlay` says to which node ─▶ UDP, node to node ─▶ the door
    from_net ─▶ UDP ─▶ pellicle_tunnel ─ `from_overlay` delivers ─▶ a pod

The device knows no peers and learns none: to_overlay looks each packet's up. The map `remotes`
says which address of a node the tunnel leads to. Nobody resolves neighbours on it (no ARP), and all
nodes give it the same hardware address, so that what one sends the other takes for its own.

Packets are not merged that come out: the kernel does not compare their marks, so that one which
nobody has judged could pass for a piece of one that was.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import MapTarget
from pellicle.datapath.programs import DOOR_OVERLAY
from pellicle.facts import Address, Link, Node, NodeName, Overlay
from pellicle.kernel import Unsupported, netns
from pellicle.kernel.bpf import Object
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.netns import read_sysctl, write_sysctl
from pellicle.kernel.offloads import Offload, is_on, switch_off
from pellicle.keys.records import outer_addresses
from pellicle.table import refusals

PORTS = {Overlay.VXLAN: 4789, Overlay.GENEVE: 6081}
"""IANA's: RFC 7348 §5, RFC 8926 §3.3."""
FIRST_BYTES = {Overlay.VXLAN: 0x08, Overlay.GENEVE: 0x00}
"""Of the header: there is a VNI; version 0 without options."""
NEEDS = {
    Overlay.VXLAN: "a kernel with CONFIG_VXLAN (modprobe vxlan)",
    Overlay.GENEVE: "a kernel with CONFIG_GENEVE (modprobe geneve)",
}
OVERLAY_MAC = "02:70:65:6c:00:02"
"""Locally administered; inside the tunnel only."""
LONGEST = 65000
"""More than any packet through it has; Geneve's devices take a little less than 64 KB."""
_SOURCE_CHECK = f"net/ipv4/conf/{DOOR_OVERLAY}/rp_filter"
_LOOSE = 2


@dataclass(frozen=True, slots=True)
class OverlayDevice:
    """The device as it should be."""

    kind: Overlay
    mtu: int
    """The uplink's: it must not narrow what the routes allow."""


def words(kind: Overlay | None) -> tuple[int, int]:
    """The programs' configuration: by which port and which first byte they know its packets."""
    return (PORTS[kind], FIRST_BYTES[kind]) if kind else (0, 0)


def plan(kind: Overlay | None, uplink: str, links: Mapping[str, Link]) -> dict[str, OverlayDevice]:
    """One row, or none while the uplink is missing or pods are routed directly."""
    device = links.get(uplink)
    if device is None or kind is None:
        return {}
    return {DOOR_OVERLAY: OverlayDevice(kind, min(device.mtu, LONGEST))}


def plan_remotes(
    local: NodeName, family: str, nodes: Mapping[NodeName, Node]
) -> dict[Address, Address]:
    """By each peer's primary address, where the tunnel to it ends."""
    own = nodes.get(local)
    if own is None:
        return {}
    rows = {}
    for node in nodes.values():
        outer = outer_addresses(own.addresses, node.addresses, family)
        if node.name != local and outer is not None:
            rows[node.addresses[0]] = outer[1]
    return rows


def remotes_target(bpf: Object) -> MapTarget[Address, Address]:
    return MapTarget(
        bpf.map("remotes"),
        bpf.btf.struct("addr"),
        bpf.btf.struct("remote"),
        lambda node: {"bytes": to_bytes(node)},
        lambda _, outer: {"outer": {"bytes": to_bytes(outer)}},
        lambda key, row: (from_bytes(key["bytes"]), from_bytes(row["outer"]["bytes"])),
    )


def probe(kind: Overlay) -> OSError | None:
    """Whether this kernel has such devices; why not. One is really made, in a passing namespace."""

    def make() -> OSError | None:
        try:
            with Netlink() as there:
                there.add_overlay("probe", kind, PORTS[kind])
        except OSError as error:
            return error
        return None

    return netns.in_new(make)


def must_have(kind: Overlay) -> None:
    """`Unsupported`, in words, where the kernel has none."""
    error = probe(kind)
    if error is not None:
        raise Unsupported(f"the overlay {kind} ({error.strerror})", NEEDS[kind])


class OverlayTarget:
    """The device and its settings."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def read(self) -> Mapping[str, OverlayDevice]:
        """The device; with MTU 0, if not all of it is in order: it is then put again."""
        link = self._netlink.links().get(DOOR_OVERLAY)
        if link is None:
            return {}
        kind = next((each for each in Overlay if each == link.kind), Overlay.VXLAN)
        is_right = link.overlay_port == PORTS[kind] and link.mac == OVERLAY_MAC
        is_right &= link.is_up and link.is_noarp and read_sysctl(_SOURCE_CHECK) == str(_LOOSE)
        is_right &= not is_on(DOOR_OVERLAY, Offload.RECEIVE_MERGING)
        return {DOOR_OVERLAY: OverlayDevice(kind, link.mtu if is_right else 0)}

    def put(self, rows: Mapping[str, OverlayDevice]) -> Mapping[str, OSError]:
        return refusals(rows, lambda name: self._put(rows[name]))

    def remove(self, keys: Collection[str]) -> Mapping[str, OSError]:
        return refusals(keys, self._netlink.remove_link)

    def _put(self, row: OverlayDevice) -> None:
        link = self._netlink.links().get(DOOR_OVERLAY)
        port = PORTS[row.kind]
        if link is not None and (link.kind != row.kind or link.overlay_port != port):
            self._netlink.remove_link(DOOR_OVERLAY)
            link = None
        if link is None:
            self._netlink.add_overlay(DOOR_OVERLAY, row.kind, port)
        index = self._netlink.link(DOOR_OVERLAY).index
        switch_off(DOOR_OVERLAY, (Offload.RECEIVE_MERGING,))
        # What nodes say comes by the tunnel and is answered by the door.
        write_sysctl(_SOURCE_CHECK, _LOOSE)
        self._netlink.change_link(index, has_link_local=False, is_noarp=True, mac=OVERLAY_MAC)
        try:
            self._netlink.change_link(index, is_up=True, mtu=row.mtu)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            why = f"somebody else has UDP port {port}: another {row.kind} device?"
            raise OSError(errno.EADDRINUSE, why) from error
