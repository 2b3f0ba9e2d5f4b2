# SPDX-License-Identifier: Apache-2.0
"""The door of the kernel's IPsec: an xfrm interface, whose packets only our policies apply to.

    stack ─▶ pellicle_xfrm ─ `door_xfrm` marks ─▶ policy ─▶ state ─▶ ESP ─▶ uplink
    uplink ─▶ ESP ─▶ state ─▶ pellicle_xfrm ─ `from_xfrm` checks, delivers

Its number (if_id) is on every policy and state of ours, and on nobody else's: what others do with
IPsec on this node never meets it.

Packets are segmented before they get there. With esp4_offload and esp6_offload, which any driver
may load, the kernel encrypts the segments itself, and numbers them wrongly: over IPv6 each has the
nonce of the packet after it, and where 2^32 is passed the upper half of the number stays behind.
Nor are packets merged that come out: the kernel compares neither their marks nor their states, so
that one node's packet could pass for a piece of another's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pellicle.datapath.programs import DOOR_XFRM
from pellicle.facts import Engine, Link
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import ALL_TRANSMIT, Offload, is_on, switch_off
from pellicle.keys.rows import SaKey
from pellicle.table import refusals

IF_ID = 0x70656C6C
"""`pell`."""
_UNWANTED = (*ALL_TRANSMIT, Offload.RECEIVE_MERGING)


@dataclass(frozen=True, slots=True)
class XfrmDevice:
    """The device as it should be."""

    mtu: int
    uplink: int
    """Index of the device that ESP leaves by."""


def plan(
    uplink: str, links: Mapping[str, Link], used: Mapping[Engine, bool]
) -> dict[str, XfrmDevice]:
    """One row, or none while the uplink is missing or nothing is encrypted by the kernel."""
    device = links.get(uplink)
    if device is None or not used:
        return {}
    return {DOOR_XFRM: XfrmDevice(device.mtu, device.index)}


def plan_used(engine: Engine, kernel_sas: Collection[SaKey]) -> dict[Engine, bool]:
    """One row if this node encrypts with the kernel's IPsec, or some SA of it is left."""
    return {Engine.XFRM: True} if engine is Engine.XFRM or kernel_sas else {}


class XfrmDeviceTarget:
    """The device and its settings."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def read(self) -> Mapping[str, XfrmDevice]:
        """The device if all of it is in order; what is not is put again."""
        link = self._netlink.links().get(DOOR_XFRM)
        if link is None:
            return {}
        is_right = link.kind == "xfrm" and link.if_id == IF_ID and link.is_up
        is_merging = any(is_on(DOOR_XFRM, offload) for offload in _UNWANTED)
        if not is_right or is_merging:
            return {DOOR_XFRM: XfrmDevice(0, 0)}
        return {DOOR_XFRM: XfrmDevice(link.mtu, link.link)}

    def put(self, rows: Mapping[str, XfrmDevice]) -> Mapping[str, OSError]:
        return refusals(rows, lambda name: self._put(rows[name]))

    def remove(self, keys: Collection[str]) -> Mapping[str, OSError]:
        return refusals(keys, self._netlink.remove_link)

    def _put(self, row: XfrmDevice) -> None:
        link = self._netlink.links().get(DOOR_XFRM)
        if link is not None and (
            link.kind != "xfrm" or link.if_id != IF_ID or link.link != row.uplink
        ):
            self._netlink.remove_link(DOOR_XFRM)
            link = None
        if link is None:
            self._netlink.add_xfrm(DOOR_XFRM, IF_ID, row.uplink)
        index = self._netlink.link(DOOR_XFRM).index
        switch_off(DOOR_XFRM, _UNWANTED)
        self._netlink.change_link(index, has_link_local=False)
        self._netlink.change_link(index, is_up=True, mtu=row.mtu)
