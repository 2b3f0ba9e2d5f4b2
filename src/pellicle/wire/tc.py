# SPDX-License-Identifier: Apache-2.0
"""clsact and its BPF filters: how a tc program is attached where the kernel has no tcx.

    struct tcmsg  family, 0: 24, index: 32, handle: 32, parent: 32, info: 32

`info` of a filter is its priority (16 bits) and protocol (16 bits, network order).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    Malformed,
    Reply,
    Request,
    attributes,
    nested,
    read_text,
    read_u32,
    text,
    u32,
)

RTM_NEWQDISC = 36
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

_ROW = struct.Struct("=BxxxiIII")
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_PARENT = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
(_ETH_P_ALL,) = struct.unpack("=H", b"\0\3")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1


@dataclass(frozen=True, slots=True)
class Filter:
    """A BPF program at a place of a device's clsact: direction, priority, handle."""

    index: int
    direction: str
    priority: int
    handle: int
    program_id: int = 0


def add_clsact(index: int) -> Request:
    """Gives a device its clsact; EEXIST when it has one."""
    head = _ROW.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
    return Request(RTM_NEWQDISC, CREATE | EXCLUSIVE, head + text(_TCA_KIND, "clsact"))


def put_filter(place: Filter, program_fd: int, name: str) -> Request:
    """Puts a program at a place; what runs there is replaced between two packets."""
    options = nested(
        _TCA_OPTIONS,
        u32(_TCA_BPF_FD, program_fd),
        text(_TCA_BPF_NAME, name),
        u32(_TCA_BPF_FLAGS, _DIRECT_ACTION),
    )
    return Request(RTM_NEWTFILTER, CREATE, _place(place) + text(_TCA_KIND, "bpf") + options)


def remove_filter(place: Filter) -> Request:
    return Request(RTM_DELTFILTER, 0, _place(place) + text(_TCA_KIND, "bpf"))


def dump_filters(index: int, direction: str) -> Request:
    """Lists the filters of one direction of a device."""
    return Request(RTM_GETTFILTER, DUMP, _ROW.pack(0, index, 0, _PARENT[direction], 0))


def read_filter(reply: Reply) -> Filter | None:
    """A filter of a dump; None when it is no BPF program."""
    if len(reply.body) < _ROW.size:
        raise Malformed(f"a filter of {len(reply.body)} bytes")
    _family, index, handle, parent, info = _ROW.unpack_from(reply.body)
    found = attributes(reply.body, _ROW.size)
    direction = next((each for each, number in _PARENT.items() if number == parent), None)
    if direction is None or read_text(found, _TCA_KIND) != "bpf" or not handle:
        return None
    options = attributes(found.get(_TCA_OPTIONS, b""))
    return Filter(index, direction, info >> 16, handle, read_u32(options, _TCA_BPF_ID))


def _place(place: Filter) -> bytes:
    info = place.priority << 16 | _ETH_P_ALL
    return _ROW.pack(0, place.index, place.handle, _PARENT[place.direction], info)
