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

from pellicle.kernel import Unsupported
from pellicle.kernel.bpf import bpffs
from pellicle.kernel.bpf.libbpf import NO_SUCH_OPERATION, check, ffi, lib
from pellicle.kernel.bpf.programs import Program
from pellicle.kernel.netlink import Netlink
from pellicle.wire import tc

Direction = Literal["ingress", "egress"]
Mode = Literal["tcx", "clsact"]

_TCX = {"ingress": 46, "egress": 47}  # enum bpf_attach_type
_HANDLE = 0x70  # of our filter, so that it can be found and replaced
_ABSENT = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})
"""What the kernel says of a filter that is not there, or whose clsact or device is not."""


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

    Without `mode`, tcx where the kernel has it. `prio` orders clsact filters. When the mode
    changes, both run for a moment: better twice than not at all.
    """
    can_link = mode != "clsact" and has_tcx(ifindex)
    if mode == "tcx" and not can_link:
        raise Unsupported("attaching tc programs by link (tcx)", "Linux 6.6")
    mode = "tcx" if can_link else "clsact"
    if mode == "tcx":
        _attach_link(ifindex, program, direction, pin)
        _remove_filter(ifindex, direction, prio)
    else:
        _replace_filter(ifindex, program, direction, prio)
        _detach_link(pin)
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
    _detach_link(pin)
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


def _detach_link(pin: Path) -> None:
    """Detaches at once; a link whose last name goes is let go some time later only."""
    try:
        link = bpffs.open_pinned(pin)
    except FileNotFoundError:
        return
    try:
        answer = lib.bpf_link_detach(link)
        if answer != -errno.ENOLINK:
            check(answer, f"detaching {pin}")
    finally:
        os.close(link)
    pin.unlink(missing_ok=True)


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
    place = tc.Filter(ifindex, direction, prio, _HANDLE)
    with Netlink() as netlink:
        (error,) = netlink.batch([tc.add_clsact(ifindex)])
        if error is not None and error.errno != errno.EEXIST:
            raise error
        netlink.ask(tc.put_filter(place, program.fd, program.name))


def _remove_filter(ifindex: int, direction: Direction, prio: int) -> None:
    if _filter_program(ifindex, direction, prio) is None:
        return
    with Netlink() as netlink:
        (error,) = netlink.batch([tc.remove_filter(tc.Filter(ifindex, direction, prio, _HANDLE))])
    if error is not None and error.errno not in _ABSENT:
        raise error


def _filter_program(ifindex: int, direction: Direction, prio: int) -> int | None:
    """The program of our filter on a device."""
    with Netlink() as netlink:
        try:
            rows = netlink.dump(tc.dump_filters(ifindex, direction), tc.read_filter)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
    ours = (direction, prio, _HANDLE)
    for row in rows:
        if (row.direction, row.priority, row.handle) == ours:
            return row.program_id
    return None
