# SPDX-License-Identifier: Apache-2.0
"""A C struct as Python reads and writes it: one dict of plain values for one run of bytes.

    integer, enum, pointer   int, in the byte order that its typedef tells (__be32: network)
    _Bool                    bool
    array of 1-byte integers bytes, whole; char[n] is padded with zeros when packed
    other arrays             list
    struct in a struct       dict, or when packing also its bytes
    union                    read through its widest member; packed through any one member
    anonymous struct, union  their members are members of the parent, as in C

What is not given is zero. An unknown name or a value that does not fit raises ValueError
naming the field.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, Protocol

type_codes = {1: "b", 2: "h", 4: "i", 8: "q"}


class Kind(Protocol):
    """What a field holds: how its bytes become a value and back."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, raw: bytes) -> Any:
        """The value of exactly `size` bytes."""

    def write(self, value: Any) -> bytes:
        """Exactly `size` bytes; ValueError (or TypeError) when the value does not fit."""


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer, enum, pointer or bool; `typedef` is the name it was declared by."""

    size: int
    is_signed: bool = False
    is_big_endian: bool = False
    is_bool: bool = False
    typedef: str = ""

    @property
    def code(self) -> str:
        """Its letter for the struct module; empty when that has none (16 bytes)."""
        if self.is_bool:
            return "?" if self.size == 1 else ""
        letter = type_codes.get(self.size, "")
        return letter if self.is_signed else letter.upper()

    def read(self, raw: bytes) -> int:
        value = int.from_bytes(
            raw, "big" if self.is_big_endian else "little", signed=self.is_signed
        )
        return bool(value) if self.is_bool else value

    def write(self, value: Any) -> bytes:
        if self.is_bool and value not in (0, 1):
            raise ValueError(f"{value!r} is not true or false")
        order = "big" if self.is_big_endian else "little"
        try:
            return int.to_bytes(value, self.size, order, signed=self.is_signed)  # type: ignore[arg-type]
        except OverflowError:
            sign = "signed" if self.is_signed else "unsigned"
            raise ValueError(f"{value} does not fit {self.size * 8} {sign} bits") from None


@dataclass(frozen=True, slots=True)
class Bits:
    """A bit field: `width` bits from bit `shift` of a little-endian run of `size` bytes."""

    size: int
    shift: int
    width: int
    is_signed: bool = False

    def read(self, raw: bytes) -> int:
        value = int.from_bytes(raw, "little") >> self.shift & (1 << self.width) - 1
        return value - (1 << self.width) if self.is_signed and value >> self.width - 1 else value

    def write(self, value: Any) -> bytes:
        low = -(1 << self.width - 1) if self.is_signed else 0
        if not low <= value < low + (1 << self.width):
            raise ValueError(f"{value} does not fit {self.width} bits")
        return int.to_bytes((value & (1 << self.width) - 1) << self.shift, self.size, "little")

    def write_into(self, out: bytearray, offset: int, value: Any) -> None:
        """Adds the bits to what their neighbours have written."""
        for at, byte in enumerate(self.write(value), offset):
            out[at] |= byte


@dataclass(frozen=True, slots=True)
class Raw:
    """An array of single bytes; text (char) may be shorter than the field."""

    size: int
    is_text: bool = False

    def read(self, raw: bytes) -> bytes:
        return bytes(raw)

    def write(self, value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"{type(value).__name__} is not bytes")
        if len(value) != self.size and not (self.is_text and len(value) < self.size):
            raise ValueError(f"{len(value)} bytes for a field of {self.size}")
        return bytes(value).ljust(self.size, b"\0")


@dataclass(frozen=True, slots=True)
class Array:
    """Several of one kind."""

    kind: Kind
    count: int

    @property
    def size(self) -> int:
        return self.kind.size * self.count

    def read(self, raw: bytes) -> list[Any]:
        number = _number(self.kind)
        if number:
            return [value for (value,) in number.iter_unpack(raw)]
        step = self.kind.size
        return [self.kind.read(raw[at : at + step]) for at in range(0, len(raw), step or 1)]

    def write(self, value: Any) -> bytes:
        if len(value) != self.count:
            raise ValueError(f"{len(value)} items for an array of {self.count}")
        return b"".join(self.kind.write(item) for item in value)


@dataclass(frozen=True, slots=True)
class Field:
    """A member and where it lies; `is_alternative` members are read through another one."""

    name: str
    offset: int
    kind: Kind
    is_alternative: bool = False


@dataclass(frozen=True)
class Layout:
    """A struct or union; itself a kind, for it may lie inside another."""

    name: str
    size: int
    fields: tuple[Field, ...]
    by_name: Mapping[str, Field] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {each.name: each for each in self.fields})

    def pack(self, **values: Any) -> bytes:
        """The bytes of one struct."""
        out = bytearray(self.size)
        places = self._places
        for name, value in values.items():
            place = places.get(name)
            if place is None:
                raise ValueError(f"struct {self.name} has no field {name}")
            offset, number, kind = place
            try:
                if number is not None:
                    number.pack_into(out, offset, value)
                elif isinstance(kind, Bits):
                    kind.write_into(out, offset, value)
                else:
                    out[offset : offset + kind.size] = kind.write(value)
            except (ValueError, TypeError, struct.error) as error:
                raise self._unfit(name, value, error) from None
        if self._has_alternatives and len(values) > 1:
            self._check_agreement(values, out)
        return bytes(out)

    def unpack(self, raw: bytes | bytearray | memoryview) -> dict[str, Any]:
        """The values of one struct."""
        if len(raw) != self.size:
            raise ValueError(f"{len(raw)} bytes are not one struct {self.name} of {self.size}")
        return self._slowly(raw, 0) if self.has_bits or not raw else next(self._reader.rows(raw))

    def unpack_many(self, buffer: bytes | bytearray | memoryview) -> Iterator[dict[str, Any]]:
        """The values of each struct in a packed row of them."""
        if not self.size or len(buffer) % self.size:
            raise ValueError(f"{len(buffer)} bytes are no whole number of struct {self.name}")
        if self.has_bits:
            return (self._slowly(buffer, at) for at in range(0, len(buffer), self.size))
        return self._reader.rows(buffer)

    def unpack_values(self, buffer: bytes | bytearray | memoryview) -> Iterator[Sequence[Any]]:
        """As `unpack_many`, only the values, in the order of the fields: several times as fast.

        For structs without unions, bit fields and structs inside.
        """
        if not self.size or len(buffer) % self.size:
            raise ValueError(f"{len(buffer)} bytes are no whole number of struct {self.name}")
        kinds = {type(each.kind) for each in self.fields}
        if self.has_bits or self._has_alternatives or Layout in kinds:
            raise ValueError(f"struct {self.name} is not flat")
        return self._reader.values(buffer)

    def read(self, raw: bytes) -> dict[str, Any]:
        return self.unpack(raw)

    def write(self, value: Any) -> bytes:
        if isinstance(value, Mapping):
            return self.pack(**value)
        return Raw(self.size).write(value)

    def _unfit(self, name: str, value: Any, error: Exception) -> ValueError:
        """The error that names the field; the struct module's own words would not help."""
        try:
            self.by_name[name].kind.write(value)
        except (ValueError, TypeError) as better:
            error = better
        return ValueError(f"{self.name}.{name}: {error}")

    def _check_agreement(self, values: Mapping[str, Any], out: bytearray) -> None:
        """Two members of one union may be given only if they say the same."""
        for name, value in values.items():
            offset, _, kind = self._places[name]
            if not isinstance(kind, Bits) and out[offset : offset + kind.size] != kind.write(value):
                raise ValueError(f"{self.name}.{name} overlaps another field given")

    @cached_property
    def _places(self) -> dict[str, tuple[int, struct.Struct | None, Kind]]:
        """Where each field goes, and the number format that writes it fastest."""
        return {each.name: (each.offset, _number(each.kind), each.kind) for each in self.fields}

    def _slowly(self, raw: bytes | bytearray | memoryview, at: int) -> dict[str, Any]:
        """Field by field, for bit fields share bytes."""
        row = bytes(raw[at : at + self.size])
        return {
            each.name: each.kind.read(row[each.offset : each.offset + each.kind.size])
            for each in self.fields
            if not each.is_alternative
        }

    @cached_property
    def has_bits(self) -> bool:
        """Whether it has bit fields, which only a slower way can read."""
        return any(isinstance(each.kind, Bits) for each in self.fields)

    @cached_property
    def _has_alternatives(self) -> bool:
        return any(each.is_alternative for each in self.fields)

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader(self)


class _Reader:
    """Reads rows in bulk: one pass of the struct module for each byte order.

    The struct module cannot mix byte orders, so two formats cover the same bytes, each
    skipping the other's leaves. A leaf is a number, or bytes that its kind reads; structs in
    structs are taken apart too, and put together again from their leaves.
    """

    def __init__(self, layout: Layout) -> None:
        leaves: list[tuple[int, Kind]] = []
        self.build = _builder(layout, 0, leaves)
        order = sorted(range(len(leaves)), key=lambda each: leaves[each][0])
        network = [each for each in order if _is_network(leaves[each][1])]
        native = [each for each in order if each not in network]
        self.native = struct.Struct("<" + _format([leaves[n] for n in native], layout.size))
        self.network: struct.Struct | None = None
        if network:
            self.network = struct.Struct(">" + _format([leaves[n] for n in network], layout.size))
        unpacked = [*native, *network]
        self.sort: itemgetter[Any] | None = None
        if unpacked != list(range(len(leaves))):
            self.sort = itemgetter(*(unpacked.index(n) for n in range(len(leaves))))
        self.kinds = [(n, kind) for n, (_, kind) in enumerate(leaves) if not _is_plain(kind)]

    def rows(self, buffer: bytes | bytearray | memoryview) -> Iterator[dict[str, Any]]:
        """The values of each struct of the buffer."""
        return map(self.build, self.values(buffer))

    def values(self, buffer: bytes | bytearray | memoryview) -> Iterator[Sequence[Any]]:
        """Of each struct its leaves."""
        values: Iterable[Sequence[Any]] = self.native.iter_unpack(buffer)
        if self.network:
            pairs = zip(values, self.network.iter_unpack(buffer), strict=True)
            values = ((*native, *network) for native, network in pairs)
        if self.sort:
            values = map(self.sort, values)
        if self.kinds:
            values = map(self._read, values)
        return iter(values)

    def _read(self, leaves: Sequence[Any]) -> Sequence[Any]:
        row = list(leaves)
        for number, kind in self.kinds:
            row[number] = kind.read(row[number])
        return row


Builder = Callable[[Sequence[Any]], dict[str, Any]]


def _builder(layout: Layout, start: int, leaves: list[tuple[int, Kind]]) -> Builder:
    """What makes a layout's dict of a row of leaves; the layout's leaves are added to `leaves`."""
    parts: list[tuple[str, int, Builder | None]] = []
    for each in layout.fields:
        if each.is_alternative:
            continue
        inner: Builder | None = None
        number, at = len(leaves), start + each.offset
        if isinstance(each.kind, Layout) and not each.kind.has_bits:
            inner = _builder(each.kind, at, leaves)
        else:
            leaves.append((at, each.kind))
        parts.append((each.name, number, inner))
    if any(inner for _, _, inner in parts):
        return lambda row: {
            name: row[number] if inner is None else inner(row) for name, number, inner in parts
        }
    names, first, last = [name for name, _, _ in parts], len(leaves) - len(parts), len(leaves)
    return lambda row: dict(zip(names, row[first:last], strict=True))


def _number(kind: Kind) -> struct.Struct | None:
    if not isinstance(kind, Integer) or not kind.code or kind.is_bool:
        return None
    return struct.Struct((">" if kind.is_big_endian else "<") + kind.code)


def _is_plain(kind: Kind) -> bool:
    """Whether the struct module alone makes its value."""
    return isinstance(kind, Raw) or (isinstance(kind, Integer) and bool(kind.code))


def _is_network(kind: Kind) -> bool:
    return isinstance(kind, Integer) and kind.is_big_endian and bool(kind.code)


def _code(kind: Kind) -> str:
    return kind.code if isinstance(kind, Integer) and kind.code else f"{kind.size}s"


def _format(leaves: list[tuple[int, Kind]], size: int) -> str:
    """A format of the struct module for leaves in rising order, padding between them."""
    text, at = "", 0
    for offset, kind in leaves:
        text += f"{offset - at}x{_code(kind)}"
        at = offset + kind.size
    return f"{text}{size - at}x"
