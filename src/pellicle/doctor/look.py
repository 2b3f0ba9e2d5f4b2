# SPDX-License-Identifier: Apache-2.0
"""Looking at this machine: what needs trying is really done, and taken away again.

Programs are loaded with maps of their own, and attached in a namespace that is gone afterwards:
what is at work here goes on untouched.
"""

from __future__ import annotations

import os
from pathlib import Path

from pellicle.datapath import overlay, programs
from pellicle.datapath.door import FORWARDING
from pellicle.doctor.machine import Machine, Programs, Tried, read_cpu_flags
from pellicle.encryption import engine
from pellicle.facts import Overlay
from pellicle.kernel import Unsupported, netns
from pellicle.kernel.bpf import Object, attach_tc
from pellicle.kernel.bpf.attach import Mode, has_tcx
from pellicle.kernel.bpf.bpffs import is_bpffs
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import has_esp_offload
from pellicle.kernel.xfrm import Xfrm
from pellicle.sources import uplink
from pellicle.sources.uplink import NoUplink, Uplink
from pellicle.wire.netlink import MAIN_TABLE, PROTOCOL, RouteKind
from pellicle.wire.xfrm import Policy

_BPFFS = Path("/sys/fs/bpf")
_LOOPBACK = 1
"""Its index in every namespace."""


def look(device: str | None) -> Machine:
    """This machine, in this thread's network namespace; `device`: the uplink, if it is named."""
    name = os.uname()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        flags = read_cpu_flags(lines)
    return Machine(
        name.release,
        name.machine,
        flags,
        {sysctl: _sysctl(sysctl) for sysctl in FORWARDING},
        _try(device) if os.geteuid() == 0 else None,
    )


def _try(device: str | None) -> Tried:
    with Netlink() as netlink:
        found = _uplink(netlink, device)
        rules = tuple(netlink.rules(protocol=0))
        tables = {MAIN_TABLE, *(rule.table for rule in rules if rule.protocol == PROTOCOL)}
        routes = (route for table in sorted(tables) for route in netlink.routes(table))
        pods = tuple(r.destination for r in routes if r.kind is RouteKind.UNICAST)
    policies, xfrm_why = _policies()
    return Tried(
        _programs(),
        has_bpffs=is_bpffs(_BPFFS) if _BPFFS.exists() else False,
        can_mount_bpffs="bpf" in Path("/proc/filesystems").read_text("ascii").split(),
        xfrm_why=xfrm_why,
        abilities=engine.look(),
        uplink=found,
        has_offload=isinstance(found, Uplink) and has_esp_offload(found.name),
        policies=policies,
        rules=rules,
        pods=pods,
        overlays={kind: overlay.probe(kind) for kind in Overlay},
    )


def _programs() -> Programs:
    try:
        programs.refuse_realtime(os.uname().version)
        loaded = programs.try_out()
    except (Unsupported, OSError) as error:
        return Programs(str(error))
    with loaded:
        try:
            return Programs(None, netns.in_new(lambda: _attach(loaded)))
        except (Unsupported, OSError) as error:
            return Programs(None, None, str(error))


def _attach(loaded: Object) -> Mode:
    """How, in a new namespace; a filter, which `backstop` always is, is really made."""
    nowhere = Path("/proc/no-pin")
    attach_tc(_LOOPBACK, loaded.program("backstop"), "egress", pin=nowhere, mode="clsact")
    return "tcx" if has_tcx(_LOOPBACK) else "clsact"


def _policies() -> tuple[tuple[Policy, ...], str | None]:
    """Everybody's; or why there cannot be any."""
    try:
        with Xfrm() as xfrm:
            return tuple(xfrm.policies()), None
    except OSError as error:
        return (), error.strerror or str(error)


def _uplink(netlink: Netlink, device: str | None) -> Uplink | str:
    try:
        return uplink.find(netlink, device, ())
    except NoUplink as why:
        return str(why)


def _sysctl(name: str) -> str | None:
    try:
        return netns.read_sysctl(name)
    except OSError:
        return None
