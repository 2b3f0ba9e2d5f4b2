# SPDX-License-Identifier: Apache-2.0
"""Where pods are plugged in: what the CNI calls need of this node's datapath."""

from __future__ import annotations

import errno
import time

from pellicle.datapath import programs
from pellicle.datapath.programs import Hook, HookName
from pellicle.encryption.routes import inner_mtu, overlay_mtu
from pellicle.facts import Address, Endpoint
from pellicle.kernel.netlink import Netlink
from pellicle.sources.cni_spec import Mtu
from pellicle.sources.links import snapshot
from pellicle.sources.uplink import Uplink
from pellicle.table import Reconciler, Table
from pellicle.tables import Tables


class PodPorts:
    """The pod devices of this node."""

    def __init__(
        self,
        tables: Tables,
        hooks: Reconciler[HookName, Hook],
        netlink: Netlink,
        uplink: Uplink,
        outer_family: str,
        longest: int,
        *,
        is_encrypting: bool,
        is_overlay: bool,
    ) -> None:
        self._tables, self._hooks, self._netlink = tables, hooks, netlink
        self._uplink, self._is_encrypting = uplink, is_encrypting
        self._longest, self._is_overlay = longest, is_overlay
        families = {each.version for each in uplink.addresses}
        self._outer = min(families) if outer_family == "auto" else int(outer_family)

    def attach(self, device: str, _index: int) -> None:
        """Before the pod can send: straight through the reconciler that owns all programs."""
        t = self._tables
        t.links.replace(snapshot(self._netlink))
        t.hooks.replace(programs.plan(self._uplink.name, t.links.rows))
        self._hooks.run(time.monotonic())
        name = HookName(device, "ingress")
        if name not in t.hooks_up.rows:
            failure = self._hooks.failures.get(name)
            gone = OSError(errno.ENODEV, f"device {device} is gone")
            raise failure.error if failure else gone

    def detach(self, _device: str) -> None:
        """The device is gone, and its program with it: plan without it."""
        self._tables.links.replace(snapshot(self._netlink))

    async def ready(self, endpoint: Endpoint, index: int) -> None:
        """Returns when the datapath knows every address of `endpoint`, behind this device."""
        t = self._tables
        with Table.bell(t.pods_up, t.ipcache_up) as changed:
            while not all(
                address in t.ipcache_up.rows and self._is_plugged(address, endpoint, index)
                for address in endpoint.addresses
            ):
                changed.clear()
                await changed.wait()

    def mtu(self) -> Mtu:
        """What fits a pod's packets: exact for the family that the tunnels prefer."""
        link = self._tables.links.rows.get(self._uplink.name)
        device = link.mtu if link else self._uplink.mtu
        inner = inner_mtu(device, self._outer, self._longest) if self._is_encrypting else device
        if self._is_overlay:
            inner = overlay_mtu(inner, self._outer)
        return Mtu(device, inner, inner)

    def _is_plugged(self, address: Address, endpoint: Endpoint, index: int) -> bool:
        row = self._tables.pods_up.rows.get(address)
        return row is not None and (row.ifindex, row.identity) == (index, endpoint.identity)
