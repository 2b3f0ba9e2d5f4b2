# SPDX-License-Identifier: Apache-2.0
"""Putting a tc program on a device, so that it stays there and can be swapped under traffic.

    tcx      a link, pinned; bpf_link_update swaps the program between two packets
    clsact   a filter at a fixed place; replaced in one netlink message, also without a gap

tcx is used where the kernel has it (6.6 and later). A device takes its links with it when it
goes: what is pinned then is an empty shell, and a new link is made for the device that came.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pellicle.kernel.bpf import bpffs
from pellicle.kernel.bpf.libbpf import NO_SUCH_OPERATION, check, ffi, lib
from pellicle.kernel.bpf.programs import Program

Direction = Literal["ingress", "egress"]
Mode = Literal["tcx", "clsact"]

_TCX = {"ingress": 46, "egress": 47}  # enum bpf_attach_type
_CLSACT_PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}  # TC_H_CLSACT | TC_H_MIN_…
_CLSACT_QDISC = 0xFFFF0000
_HANDLE = 0x70  # of our filter, so that it can be found and replaced
_ETH_P_ALL = 3


@dataclass(frozen=True, slots=True)
class Attachment:
    """A program on a device."""

    ifindex: int
    direction: Direction
    mode: Mode
    program_id: int


def attach_tc(
    ifindex: int,
    program: Program,
    direction: Direction,
    *,
    pin: Path,
    prio: int = 1,
    mode: Mode | None = None,
) -> Attachment:
    """Puts `program` on a device of this network namespace, in the place of what `pin` names.

    Without `mode`, tcx where the kernel has it. `prio` orders clsact filters.
    """
    mode = mode or ("tcx" if has_tcx(ifindex) else "clsact")
    if mode == "tcx":
        _attach_link(ifindex, program, direction, pin)
        _remove_filter(ifindex, direction, prio)
    else:
        _replace_filter(ifindex, program, direction, prio)
        pin.unlink(missing_ok=True)
    return Attachment(ifindex, direction, mode, program.id)


def attached_tc(
    ifindex: int, direction: Direction, *, pin: Path, prio: int = 1
) -> Attachment | None:
    """What `attach_tc` left on a device, None when nothing is there (any more)."""
    link = _link_info(pin)
    if link is not None and link[:2] == (ifindex, _TCX[direction]):
        return Attachment(ifindex, direction, "tcx", link[2])
    program = _filter_program(ifindex, direction, prio)
    return None if program is None else Attachment(ifindex, direction, "clsact", program)


def detach_tc(ifindex: int, direction: Direction, *, pin: Path, prio: int = 1) -> None:
    """Takes the program off again, in either mode; a device or pin that is gone is success."""
    pin.unlink(missing_ok=True)
    _remove_filter(ifindex, direction, prio)


def has_tcx(ifindex: int) -> bool:
    """Whether this kernel attaches tc programs by link (Linux 6.6)."""
    count = ffi.new("__u32 *", 0)
    answer = lib.bpf_prog_query(ifindex, _TCX["ingress"], 0, ffi.NULL, ffi.NULL, count)
    if -answer in NO_SUCH_OPERATION:
        return False
    check(answer, f"asking for programs on device {ifindex}")
    return True


def _attach_link(ifindex: int, program: Program, direction: Direction, pin: Path) -> None:
    """Updates the pinned link, or makes one when there is none for this device."""
    if _link_info(pin) == (ifindex, _TCX[direction], program.id):
        return
    try:
        link = bpffs.open_pinned(pin)
    except FileNotFoundError:
        link = -1
    if link >= 0:
        try:
            if _link_row(link)[:2] == (ifindex, _TCX[direction]):
                answer = lib.bpf_link_update(link, program.fd, ffi.NULL)
                if answer != -errno.ENOLINK:
                    check(answer, f"swapping {program.name} on device {ifindex}")
                    return
        finally:
            os.close(link)
    what = f"attaching {program.name} to device {ifindex}"
    fresh = check(lib.bpf_link_create(program.fd, ifindex, _TCX[direction], ffi.NULL), what)
    try:
        bpffs.pin(fresh, pin)
    finally:
        os.close(fresh)


def _link_info(pin: Path) -> tuple[int, int, int] | None:
    try:
        link = bpffs.open_pinned(pin)
    except FileNotFoundError:
        return None
    try:
        return _link_row(link)
    finally:
        os.close(link)


def _link_row(link: int) -> tuple[int, int, int]:
    """Device (0 once it is gone), attach type and program of a tcx link."""
    row: Any = bpffs.info(link, "link")
    return row.ifindex, row.attach_type, row.prog_id


def _replace_filter(ifindex: int, program: Program, direction: Direction, prio: int) -> None:
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  0.3 s that tcx need not pay

    with IPRoute() as route:
        try:
            route.tc("add", "clsact", ifindex, handle=_CLSACT_QDISC, parent=0xFFFFFFF1)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise OSError(error.code, f"clsact on device {ifindex}: {error}") from error
        try:
            route.tc(
                "replace-filter", "bpf", ifindex, _HANDLE,
                parent=_CLSACT_PARENT[direction], prio=prio, protocol=_ETH_P_ALL,
                fd=program.fd, name=program.name, direct_action=True,
            )  # fmt: skip
        except NetlinkError as error:
            raise OSError(error.code, f"filter {program.name} on {ifindex}: {error}") from error


def _remove_filter(ifindex: int, direction: Direction, prio: int) -> None:
    if _filter_program(ifindex, direction, prio) is None:
        return
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415

    with IPRoute() as route:
        try:
            route.tc(
                "del-filter", "bpf", ifindex, _HANDLE,
                parent=_CLSACT_PARENT[direction], prio=prio, protocol=_ETH_P_ALL,
            )  # fmt: skip
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise OSError(error.code, f"filter on device {ifindex}: {error}") from error


def _filter_program(ifindex: int, direction: Direction, prio: int) -> int | None:
    """The program of our filter on a device."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415

    with IPRoute() as route:
        try:
            rows = list(route.get_filters(index=ifindex, parent=_CLSACT_PARENT[direction]))
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                return None
            raise OSError(error.code, f"filters of device {ifindex}: {error}") from error
    for row in rows:
        options = row.get("options")
        if row["handle"] == _HANDLE and row["info"] >> 16 == prio and options is not None:
            return int(options.get("id") or 0)
    return None
