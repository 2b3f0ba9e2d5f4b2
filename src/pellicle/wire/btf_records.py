# SPDX-License-Identifier: Apache-2.0
"""The records of a .BTF section, one for each type; what they mean together is said in btf.py.

header   magic 0xeb9f: 16, version: 8, flags: 8, header length: 32,
         type offset, type length, string offset, string length: 32 each
record   name offset: 32, info: 32, size or another type's number: 32, then by kind a tail
info     members: 16, unused: 8, kind: 5, unused: 2, flag: 1
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from pellicle.wire import elf

_HEADER = struct.Struct("<HBBIIIII")
_RECORD = struct.Struct("<III")
_MAGIC = 0xEB9F


class BtfError(ValueError):
    """The object's BTF is malformed, or lacks what was asked for."""


class Is(IntEnum):
    """The kinds of type records."""

    VOID = 0
    INT = 1
    POINTER = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FORWARD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNCTION = 12
    PROTOTYPE = 13
    VARIABLE = 14
    SECTION = 15
    FLOAT = 16
    DECLARATION_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_TAIL = {Is.INT: 4, Is.ARRAY: 12, Is.VARIABLE: 4, Is.DECLARATION_TAG: 4}
"""Bytes after a record of this kind."""
_EACH = {
    Is.STRUCT: 12, Is.UNION: 12, Is.ENUM: 8, Is.PROTOTYPE: 8, Is.SECTION: 12, Is.ENUM64: 12,
}  # fmt: skip
"""Bytes after a record for each of its members."""


@dataclass(frozen=True, slots=True)
class Record:
    """One type: `target` is a size or another type's number, as its kind has it."""

    kind: Is
    name: str
    target: int
    flag: bool
    members: int
    tail: bytes


def string_at(strings: bytes, offset: int) -> str:
    """A string of the section's string part."""
    try:
        return elf.text_at(strings, offset)
    except elf.ElfError as error:
        raise BtfError(str(error)) from None


def split(data: bytes) -> tuple[bytes, bytes]:
    """The type and the string part of a .BTF section."""
    if len(data) < _HEADER.size:
        raise BtfError("the .BTF section ends within its header")
    magic, version, _flags, start, type_at, type_size, text_at, text_size = _HEADER.unpack_from(
        data
    )
    if magic != _MAGIC or version != 1:
        raise BtfError(f"BTF magic {magic:#x} version {version}: not little-endian BTF 1")
    types = data[start + type_at : start + type_at + type_size]
    strings = data[start + text_at : start + text_at + text_size]
    if len(types) != type_size or len(strings) != text_size:
        raise BtfError("the .BTF section is shorter than its header says")
    return types, strings


def records(types: bytes, strings: bytes) -> Iterator[Record]:
    """The types in order, void first."""
    yield Record(Is.VOID, "void", 0, flag=False, members=0, tail=b"")
    at, number = 0, 0
    while at < len(types):
        number += 1
        if at + _RECORD.size > len(types):
            raise BtfError(f"type {number} is cut off")
        name_at, info, target = _RECORD.unpack_from(types, at)
        at += _RECORD.size
        code, members = info >> 24 & 0x1F, info & 0xFFFF
        if not 0 < code <= Is.ENUM64:
            raise BtfError(f"type {number} is of unknown kind {code}")
        kind = Is(code)
        end = at + _TAIL.get(kind, 0) + _EACH.get(kind, 0) * members
        if end > len(types):
            raise BtfError(f"type {number} ({kind.name.lower()}) is cut off")
        yield Record(
            kind, string_at(strings, name_at), target, info >> 31 == 1, members, types[at:end]
        )
        at = end
