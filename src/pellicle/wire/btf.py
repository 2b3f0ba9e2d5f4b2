# SPDX-License-Identifier: Apache-2.0
"""BTF, the types inside a BPF object: C stays the only place where a layout is declared.

    Btf.parse(object bytes)   structs, enums, maps and variables of one compiled object
    btf.struct("peer")        a Layout that packs and unpacks rows
    btf.enum("reason")        its words and numbers
    btf.maps["ipcache"]       what the map holds
    btf.variables[".rodata"]  the `const volatile` configuration, with offsets

The .BTF section is a header, a table of type records and a string table; record n is type
number n, type 0 is void (kernel: Documentation/bpf/btf.rst).  What the compiler leaves to
the linker, the place of a variable in its section, comes from the ELF symbols.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType

from pellicle.wire import elf
from pellicle.wire.btf_records import BtfError, Is, Record, records, split, string_at
from pellicle.wire.layout import Array, Bits, Field, Integer, Kind, Layout, Raw

__all__ = ["Btf", "BtfError", "MapSpec", "Variable"]

_LARGEST = 1 << 28
"""No struct, union or array of a BPF object is larger; guards against absurd sizes."""
_DEEPEST = 64
_WRAPPERS = frozenset({Is.TYPEDEF, Is.VOLATILE, Is.CONST, Is.RESTRICT, Is.TYPE_TAG})
_NETWORK_ORDER = frozenset({"__be16", "__be32", "__be64"})


@dataclass(frozen=True, slots=True)
class Variable:
    """A global: where in its section it lies, and what it holds."""

    name: str
    offset: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the source declares it."""

    name: str
    type: int
    max_entries: int
    flags: int
    key: Kind | None
    value: Kind | None


@dataclass(frozen=True, eq=False, repr=False)
class Btf:
    """The types of one object."""

    records: tuple[Record, ...]
    strings: bytes
    places: Mapping[str, int]
    """Offset of each symbol in its section."""

    @staticmethod
    def parse(data: bytes) -> Btf:
        """Reads an ELF object; BtfError names what is wrong with it."""
        try:
            parts = elf.sections(data)
            places = {symbol.name: symbol.offset for symbol in elf.symbols(parts)}
        except elf.ElfError as error:
            raise BtfError(str(error)) from None
        if ".BTF" not in parts:
            raise BtfError("the object has no .BTF section: was it compiled with -g?")
        return Btf.from_section(parts[".BTF"].data, places)

    @staticmethod
    def from_section(data: bytes, places: Mapping[str, int] = MappingProxyType({})) -> Btf:
        """Reads bare BTF, such as /sys/kernel/btf/vmlinux."""
        types, strings = split(data)
        return Btf(tuple(records(types, strings)), strings, places)

    def struct(self, name: str) -> Layout:
        """The layout of `struct name` (or `union name`)."""
        return self._layout(self._number(name, Is.STRUCT, Is.UNION))

    def enum(self, name: str) -> dict[str, int]:
        """The constants of `enum name`, in the order of the source."""
        record = self.records[self._number(name, Is.ENUM, Is.ENUM64)]
        return dict(self._constants(record))

    def int_enum(self, name: str) -> type[IntEnum]:
        """The constants of `enum name` as a Python enum; equal numbers are aliases."""
        return IntEnum(name, self.enum(name))  # type: ignore[return-value]

    @cached_property
    def structs(self) -> tuple[str, ...]:
        """The names of all structs and unions."""
        return tuple(
            each.name for each in self.records if each.kind in (Is.STRUCT, Is.UNION) and each.name
        )

    @cached_property
    def enums(self) -> tuple[str, ...]:
        """The names of all enums."""
        return tuple(
            each.name for each in self.records if each.kind in (Is.ENUM, Is.ENUM64) and each.name
        )

    @cached_property
    def maps(self) -> Mapping[str, MapSpec]:
        """The maps of section .maps."""
        found = self._section_variables(".maps")
        return {name: self._map(name, number) for name, number in found}

    @cached_property
    def variables(self) -> Mapping[str, Mapping[str, Variable]]:
        """The globals of every data section (.rodata, .data, .bss), by section."""
        return {
            each.name: {
                name: Variable(name, self.places.get(name, 0), self._kind(number))
                for name, number in self._section_variables(each.name)
            }
            for each in self.records
            if each.kind is Is.SECTION and each.name not in (".maps", "license", ".ksyms")
        }

    def _number(self, name: str, *kinds: Is) -> int:
        number = self._named.get((name, kinds[0])) or self._named.get((name, kinds[-1]))
        if number is None:
            raise BtfError(f"the object has no {kinds[0].name.lower()} {name}")
        return number

    @cached_property
    def _named(self) -> dict[tuple[str, Is], int]:
        found: dict[tuple[str, Is], int] = {}
        for number, record in enumerate(self.records):
            if record.name:
                found.setdefault((record.name, record.kind), number)
        return found

    @cached_property
    def _layouts(self) -> dict[int, Layout]:
        return {}

    def _record(self, number: int) -> Record:
        if number >= len(self.records):
            raise BtfError(f"type {number} is not one of {len(self.records)}")
        return self.records[number]

    def _bare(self, number: int) -> tuple[int, str]:
        """Through typedefs and qualifiers to the type itself; and the outermost telling name."""
        typedef = ""
        for _ in range(_DEEPEST):
            record = self._record(number)
            if record.kind not in _WRAPPERS:
                return number, typedef
            if record.kind is Is.TYPEDEF and typedef not in _NETWORK_ORDER:
                typedef = record.name if record.name in _NETWORK_ORDER or not typedef else typedef
            number = record.target
        raise BtfError(f"type {number} is a typedef of itself")

    def kind(self, number: int) -> Kind:
        """What a value of type `number` is made of."""
        self._record(number)
        return self._kind(number)

    def _kind(self, number: int, depth: int = 0) -> Kind:
        number, typedef = self._bare(number)
        record = self.records[number]
        if depth > _DEEPEST:
            raise BtfError(f"type {number} contains itself")
        match record.kind:
            case Is.INT:
                return _integer(record, typedef)
            case Is.ENUM | Is.ENUM64:
                return Integer(_checked(record.target), is_signed=record.flag, typedef=record.name)
            case Is.POINTER:
                return Integer(8, typedef=typedef)
            case Is.FLOAT:
                return Raw(_checked(record.target))
            case Is.STRUCT | Is.UNION:
                return self._layout(number, depth + 1)
            case Is.ARRAY:
                return self._array(record, depth + 1)
            case _:
                raise BtfError(f"type {number} ({record.kind.name.lower()}) has no value")

    def _array(self, record: Record, depth: int) -> Kind:
        element, _index, count = struct.unpack("<III", record.tail)
        kind = self._kind(element, depth)
        _checked(kind.size * count)
        if isinstance(kind, Integer) and kind.size == 1 and not kind.is_bool:
            bare, _ = self._bare(element)
            return Raw(count, is_text=self.records[bare].name == "char")
        return Array(kind, count)

    def _layout(self, number: int, depth: int = 0) -> Layout:
        known = self._layouts.get(number)
        if known:
            return known
        record = self.records[number]
        size = _checked(record.target)
        fields = tuple(self._fields(record, depth + 1))
        for each in fields:
            if each.offset + each.kind.size > size:
                raise BtfError(f"{record.name}.{each.name} lies beyond its struct")
        self._check_overlap(record, fields)
        layout = Layout(record.name or f"(anonymous {number})", size, fields)
        self._layouts[number] = layout
        return layout

    def _check_overlap(self, record: Record, fields: tuple[Field, ...]) -> None:
        end = 0
        for each in sorted(fields, key=lambda each: each.offset):
            if each.is_alternative or isinstance(each.kind, Bits):
                continue
            if each.offset < end:
                raise BtfError(f"{record.name}.{each.name} overlaps the field before it")
            end = each.offset + each.kind.size

    def _fields(self, record: Record, depth: int) -> Iterator[Field]:
        """The members; those of anonymous members are lifted into the parent."""
        if depth > _DEEPEST:
            raise BtfError(f"struct {record.name} contains itself")
        groups = []
        for name_at, number, place in struct.iter_unpack("<III", record.tail):
            bits, width = (place & 0xFFFFFF, place >> 24) if record.flag else (place, 0)
            groups.append(self._member(self._string(name_at), number, bits, width, depth))
        shown = max(groups, key=_extent, default=None)
        for group in groups:
            for each in group:
                hidden = each.is_alternative or (record.kind is Is.UNION and group is not shown)
                yield Field(each.name, each.offset, each.kind, hidden)

    def _member(self, name: str, number: int, bits: int, width: int, depth: int) -> list[Field]:
        kind = self._kind(number, depth)
        if width:
            if not isinstance(kind, Integer) or width > kind.size * 8:
                raise BtfError(f"bit field {name} of {width} bits is not in an integer")
            size = (bits % 8 + width + 7) // 8
            field = Field(name, bits // 8, Bits(size, bits % 8, width, kind.is_signed))
            return [field] if name else []
        if bits % 8:
            raise BtfError(f"field {name} does not start at a byte")
        if not name and isinstance(kind, Layout):
            start = bits // 8
            return [
                Field(each.name, start + each.offset, each.kind, each.is_alternative)
                for each in kind.fields
            ]
        return [Field(name, bits // 8, kind)] if name else []

    def _constants(self, record: Record) -> Iterator[tuple[str, int]]:
        if record.kind is Is.ENUM:
            for name_at, value in struct.iter_unpack("<Ii" if record.flag else "<II", record.tail):
                yield self._string(name_at), value
            return
        for name_at, low, high in struct.iter_unpack("<III", record.tail):
            value = high << 32 | low
            negative = record.flag and high >> 31
            yield self._string(name_at), value - (1 << 64) if negative else value

    def _section_variables(self, section: str) -> list[tuple[str, int]]:
        number = self._named.get((section, Is.SECTION))
        if number is None:
            return []
        found = []
        for variable, _offset, _size in struct.iter_unpack("<III", self.records[number].tail):
            record = self._record(variable)
            if record.kind is Is.VARIABLE:
                found.append((record.name, record.target))
        return found

    def _map(self, name: str, number: int) -> MapSpec:
        """A map's settings are the types of its members: a pointer to int[n] says n."""
        record = self._record(self._bare(number)[0])
        if record.kind is not Is.STRUCT:
            raise BtfError(f"map {name} is not declared as a struct")
        members = {
            self._string(name_at): self._pointed(name, kind)
            for name_at, kind, _place in struct.iter_unpack("<III", record.tail)
        }
        numbers = {
            each: self._array_length(members.get(each))
            for each in ("type", "max_entries", "map_flags")
        }
        types = {each: self._kind(members[each]) for each in ("key", "value") if each in members}
        return MapSpec(
            name, numbers["type"], numbers["max_entries"], numbers["map_flags"],
            types.get("key"), types.get("value"),
        )  # fmt: skip

    def _pointed(self, name: str, number: int) -> int:
        record = self._record(self._bare(number)[0])
        if record.kind is Is.ARRAY:  # __array(values, …): an inner map or programs
            return number
        if record.kind is not Is.POINTER:
            raise BtfError(f"map {name} has a member that is no pointer")
        return record.target

    def _array_length(self, number: int | None) -> int:
        if number is None:
            return 0
        record = self._record(self._bare(number)[0])
        if record.kind is not Is.ARRAY:
            raise BtfError("a map's setting is not an array's length")
        return int(struct.unpack("<III", record.tail)[2])

    def _string(self, offset: int) -> str:
        return string_at(self.strings, offset)


def _integer(record: Record, typedef: str) -> Integer:
    (info,) = struct.unpack("<I", record.tail)
    encoding = info >> 24 & 0xF  # 1 signed, 2 char, 4 bool
    size = _checked(record.target)
    return Integer(
        size,
        is_signed=bool(encoding & 1) and record.name != "char",
        is_big_endian=typedef in _NETWORK_ORDER,
        is_bool=bool(encoding & 4),
        typedef=typedef or record.name,
    )


def _extent(group: list[Field]) -> int:
    return max((each.offset + each.kind.size for each in group), default=0)


def _checked(size: int) -> int:
    if size > _LARGEST:
        raise BtfError(f"a type of {size} bytes")
    return size
