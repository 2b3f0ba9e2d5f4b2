# SPDX-License-Identifier: Apache-2.0
"""The nine programs: loaded as one object, each on its devices, pinned to outlive the agent.

    from_pod   ingress of every pod device       door          ingress of pellicle_net
    from_net   ingress of the uplink             door_xfrm     egress of pellicle_xfrm
    to_net     egress of the uplink              from_xfrm     ingress of pellicle_xfrm
    backstop   the same, behind it               to_overlay    egress of pellicle_tunnel
                                                 from_overlay  ingress of pellicle_tunnel

A new agent loads the object again over the pinned maps and swaps the programs in place.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import structlog

from pellicle.datapath.address import ZERO, to_bytes
from pellicle.facts import Address, Link
from pellicle.kernel import Unsupported
from pellicle.kernel.bpf import IncompatibleMap, Object, attach_tc, attached_tc, detach_tc
from pellicle.kernel.bpf.attach import Direction, Mode
from pellicle.wire.btf import Btf

DOOR_HOST = "pellicle_host"
DOOR_NET = "pellicle_net"
DOOR_XFRM = "pellicle_xfrm"
DOOR_OVERLAY = "pellicle_tunnel"
DOOR_MAC = "02:70:65:6c:00:01"
"""Of pellicle_host: locally administered, never seen on a wire."""
POD_DEVICE = re.compile(r"pel[0-9a-f]{11}")

PINNED_MAPS = (
    "ipcache", "cluster_cidrs", "endpoints", "encrypt", "sa_out", "sa_in", "sharers", "others",
    "exempt", "remotes", "doors", "counts", "flows", "events", "lost_events",
)  # fmt: skip

_FULL_AT_ONCE = ("encrypt", "endpoints", "flows")
"""Maps whose rows the kernel allocates with the map."""

DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")

log = structlog.get_logger()


class HookName(NamedTuple):
    device: str
    direction: Direction
    is_backstop: bool = False
    """Always a filter, behind what is attached by link: who takes one away leaves the other."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program on a device."""

    ifindex: int
    program: str


@dataclass(frozen=True, slots=True)
class Words:
    """`struct config`: what the programs are told once, at load."""

    is_encrypting: bool
    are_nodes_encrypted: bool
    is_monitoring: bool
    """What should be encrypted and is not passes, and is reported."""
    uplink_ifindex: int
    flow_interval_ms: int
    addresses: tuple[Address, ...]
    overlay_port: int = 0
    """0: pods are routed directly."""
    overlay_first: int = 0
    """The first byte of the overlay's header."""
    seal: int = field(default_factory=partial(secrets.randbits, 64))
    """`to_net`'s, on what it let pass."""


def object_path() -> Path:
    """The compiled programs that this installation came with."""
    return Path(str(files("pellicle") / "_bpf" / "pellicle.bpf.o"))


def load(words: Words, maps: Path) -> Object:
    """Load the programs over the maps pinned in `maps`.

    Maps that an older version left and this one cannot read are made anew: the agent fills
    them again, and the SAs in them are replaced by new ones from a new offer.
    """
    refuse_realtime(os.uname().version)
    path = object_path()
    rodata = {"config": pack_words(Btf.parse(path.read_bytes()), words)}
    try:
        return Object.load(path, rodata=rodata, pin_dir=maps, pinned=PINNED_MAPS)
    except IncompatibleMap as error:
        log.warning("maps are made anew", why=str(error))
        for name in PINNED_MAPS:
            (maps / name).unlink(missing_ok=True)
        return Object.load(path, rodata=rodata, pin_dir=maps, pinned=PINNED_MAPS)


def try_out() -> Object:
    """Load the programs beside those that may be at work, with small maps of their own."""
    path = object_path()
    words = Words(False, False, False, 0, 0, ())
    rodata = {"config": pack_words(Btf.parse(path.read_bytes()), words)}
    return Object.load(path, rodata=rodata, sizes=dict.fromkeys(_FULL_AT_ONCE, 1))


def refuse_realtime(version: str) -> None:
    """`Unsupported` on a kernel whose programs may interrupt each other on one CPU.

    They share that CPU's scratch: a packet would be sealed with the number of another.
    """
    if "PREEMPT_RT" in version:
        raise Unsupported("sealing packets on a PREEMPT_RT kernel", "one with another preemption")


def pack_words(btf: Btf, words: Words) -> bytes:
    own = {address.version: to_bytes(address) for address in reversed(words.addresses)}
    return btf.struct("config").pack(
        encrypt=int(words.is_encrypting),
        nodes=int(words.are_nodes_encrypted),
        monitor=int(words.is_monitoring),
        uplink_ifindex=words.uplink_ifindex,
        flow_interval_ms=words.flow_interval_ms,
        overlay_port=words.overlay_port,
        overlay_first=words.overlay_first,
        self4={"bytes": own.get(4, ZERO)},
        self6={"bytes": own.get(6, ZERO)},
        seal=words.seal,
    )


def plan(uplink: str, links: Mapping[str, Link]) -> dict[HookName, Hook]:
    """Which program belongs on which device that is there."""
    rows: dict[HookName, Hook] = {}

    def put(device: str, direction: Direction, program: str) -> None:
        if device in links:
            name = HookName(device, direction, program == "backstop")
            rows[name] = Hook(links[device].index, program)

    put(uplink, "ingress", "from_net")
    put(uplink, "egress", "to_net")
    put(uplink, "egress", "backstop")
    put(DOOR_NET, "ingress", "door")
    put(DOOR_XFRM, "egress", "door_xfrm")
    put(DOOR_XFRM, "ingress", "from_xfrm")
    put(DOOR_OVERLAY, "egress", "to_overlay")
    put(DOOR_OVERLAY, "ingress", "from_overlay")
    for device in filter(POD_DEVICE.fullmatch, links):
        put(device, "ingress", "from_pod")
    return rows


class ProgramTarget:
    """The programs on this namespace's devices."""

    def __init__(self, bpf: Object, pins: Path, mode: Mode | None) -> None:
        self._bpf, self._pins, self._mode = bpf, pins, mode
        self._known: set[HookName] = set()
        self.modes: set[Mode] = set()
        """How programs were attached, for `pellicle status`."""

    def read(self) -> Mapping[HookName, Hook]:
        """What is attached; a program of an older agent shows as one without a name."""
        names = {program.id: name for name, program in self._bpf.programs.items()}
        rows: dict[HookName, Hook] = {}
        for hook in {*self._known, *self._pinned()}:
            index = _index(hook.device)
            there = index and attached_tc(
                index, hook.direction, pin=self._pin(hook), prio=_priority(hook)
            )
            if index and there:
                rows[hook] = Hook(index, names.get(there.program_id, ""))
            else:
                self._pin(hook).unlink(missing_ok=True)
        return rows

    def put(self, rows: Mapping[HookName, Hook]) -> Mapping[HookName, OSError]:
        errors: dict[HookName, OSError] = {}
        for hook, row in rows.items():
            try:
                done = attach_tc(
                    row.ifindex,
                    self._bpf.program(row.program),
                    hook.direction,
                    pin=self._pin(hook),
                    prio=_priority(hook),
                    mode="clsact" if hook.is_backstop else self._mode,
                )
            except OSError as error:
                errors[hook] = error
            else:
                self._known.add(hook)
                if not hook.is_backstop:
                    self.modes.add(done.mode)
        return errors

    def remove(self, keys: Collection[HookName]) -> Mapping[HookName, OSError]:
        errors: dict[HookName, OSError] = {}
        for hook in keys:
            try:
                index, prio = _index(hook.device), _priority(hook)
                detach_tc(index, hook.direction, pin=self._pin(hook), prio=prio)
            except OSError as error:
                errors[hook] = error
            else:
                self._known.discard(hook)
        return errors

    def _pin(self, hook: HookName) -> Path:
        # bpffs allows no dot in a name, and a device name has no colon.
        name = f"{hook.direction}_{hook.device.replace('.', ':')}"
        return self._pins / (f"never_{name}" if hook.is_backstop else name)

    def _pinned(self) -> set[HookName]:
        return {
            HookName(pin.name.removeprefix(f"{direction}_").replace(":", "."), direction)
            for pin in self._pins.iterdir()
            for direction in DIRECTIONS
            if pin.name.startswith(f"{direction}_")
        }


def _priority(hook: HookName) -> int:
    return 0x70 if hook.is_backstop else 1


def _index(device: str) -> int:
    """0 when the device is gone, which no device has."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0
