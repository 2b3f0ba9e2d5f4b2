# SPDX-License-Identifier: Apache-2.0
"""The little of ELF that a BPF object needs read: its sections and its symbols.

A BPF object is a relocatable ELF64 file, little-endian for `bpfel`.  Only two tables
matter here: the section headers (name, offset, size) and `.symtab`, which says where in
a data section a variable lies (the compiler leaves that out of BTF).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_MAGIC = b"\x7fELF\x02\x01"  # 64 bit, little-endian
_SHT_NOBITS = 8


class ElfError(ValueError):
    """The bytes are not the ELF file that they should be."""


@dataclass(frozen=True, slots=True)
class Section:
    """A named range of the file; `data` is empty for .bss."""

    name: str
    index: int
    size: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for a place in a section."""

    name: str
    section: int
    offset: int
    size: int


def text_at(strings: bytes, offset: int) -> str:
    """The zero-terminated string at `offset` of a string table."""
    end = strings.find(b"\0", offset)
    if end < 0:
        raise ElfError(f"string table has no string at offset {offset}")
    return strings[offset:end].decode("utf-8", "replace")


def sections(image: bytes) -> Mapping[str, Section]:
    """The sections of an ELF file by name; the first of several with one name."""
    if not image.startswith(_MAGIC):
        raise ElfError("not a little-endian ELF64 file")
    if len(image) < _HEADER.size:
        raise ElfError("file ends within its ELF header")
    header = _HEADER.unpack_from(image)
    start, entry_size, count, names_index = header[6], header[11], header[12], header[13]
    if entry_size != _SECTION.size:
        raise ElfError(f"section headers of {entry_size} bytes, not {_SECTION.size}")
    if start + count * entry_size > len(image):
        raise ElfError("section headers lie beyond the end of the file")
    if names_index >= count:
        raise ElfError(f"section name table {names_index} of {count} sections")
    rows = list(_SECTION.iter_unpack(image[start : start + count * entry_size]))
    bodies = [_body(image, index, row) for index, row in enumerate(rows)]
    found: dict[str, Section] = {}
    for index, row in enumerate(rows):
        name = text_at(bodies[names_index], row[0])
        found.setdefault(name, Section(name, index, row[5], bodies[index]))
    return found


def symbols(parts: Mapping[str, Section]) -> Iterator[Symbol]:
    """The named symbols of an object, from .symtab and .strtab."""
    table, strings = parts.get(".symtab"), parts.get(".strtab")
    if table is None or strings is None:
        return
    if len(table.data) % _SYMBOL.size:
        raise ElfError("symbol table is not a whole number of symbols")
    for name, _info, _other, section, value, size in _SYMBOL.iter_unpack(table.data):
        if name:
            yield Symbol(text_at(strings.data, name), section, value, size)


def _body(image: bytes, index: int, row: tuple[int, ...]) -> bytes:
    kind, offset, size = row[1], row[4], row[5]
    if kind == _SHT_NOBITS or not kind:
        return b""
    if offset + size > len(image):
        raise ElfError(f"section {index} lies beyond the end of the file")
    return image[offset : offset + size]
