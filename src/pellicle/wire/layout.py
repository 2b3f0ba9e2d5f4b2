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
from collections.abc import Iterable, Iterator, Mapping
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
        written: list[tuple[Field, bytes]] = []
        for name, value in values.items():
            member = self.by_name.get(name)
            if member is None:
                raise ValueError(f"struct {self.name} has no field {name}")
            raw = self._written(member, value)
            if isinstance(member.kind, Bits):
                here = bytes(out[member.offset : member.offset + len(raw)])
                out[member.offset : member.offset + len(raw)] = _either(here, raw)
                continue
            out[member.offset : member.offset + len(raw)] = raw
            written.append((member, raw))
        if self._has_alternatives:
            for member, raw in written:
                if out[member.offset : member.offset + len(raw)] != raw:
                    raise ValueError(f"{self.name}.{member.name} overlaps another field given")
        return bytes(out)

    def unpack(self, raw: bytes | bytearray | memoryview) -> dict[str, Any]:
        """The values of one struct."""
        if len(raw) != self.size:
            raise ValueError(f"{len(raw)} bytes are not one struct {self.name} of {self.size}")
        return next(self.unpack_many(raw)) if self.size else {}

    def unpack_many(self, buffer: bytes | bytearray | memoryview) -> Iterator[dict[str, Any]]:
        """The values of each struct in a packed row of them."""
        if not self.size or len(buffer) % self.size:
            raise ValueError(f"{len(buffer)} bytes are no whole number of struct {self.name}")
        return self._reader.rows(buffer)

    def read(self, raw: bytes) -> dict[str, Any]:
        return self.unpack(raw)

    def write(self, value: Any) -> bytes:
        if isinstance(value, Mapping):
            return self.pack(**value)
        return Raw(self.size).write(value)

    def _written(self, member: Field, value: Any) -> bytes:
        try:
            return member.kind.write(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}.{member.name}: {error}") from None

    @cached_property
    def _has_alternatives(self) -> bool:
        return any(each.is_alternative for each in self.fields)

    @cached_property
    def _reader(self) -> _Reader:
        return _Reader(self)


class _Reader:
    """Reads rows in bulk: one pass of the struct module for each byte order.

    The struct module cannot mix byte orders, so two formats cover the same bytes, each
    skipping the other's fields; what neither can decode comes out as bytes and is read by
    its kind. Bit fields share bytes and are read last, from the whole row.
    """

    def __init__(self, layout: Layout) -> None:
        shown = [each for each in layout.fields if not each.is_alternative]
        self.bits = [each for each in shown if isinstance(each.kind, Bits)]
        plain = sorted(
            (each for each in shown if not isinstance(each.kind, Bits)),
            key=lambda each: each.offset,
        )
        network = [
            each for each in plain if isinstance(each.kind, Integer) and _is_network(each.kind)
        ]
        native = [each for each in plain if each not in network]
        self.size = layout.size
        self.native = struct.Struct("<" + _format(native, layout.size))
        self.network = struct.Struct(">" + _format(network, layout.size)) if network else None
        order = [*native, *network]
        self.names = tuple(each.name for each in plain)
        wanted = [order.index(each) for each in plain]
        self.sort = itemgetter(*wanted) if network and len(wanted) > 1 else None
        self.kinds = [(each.name, each.kind) for each in plain if not _is_plain(each.kind)]

    def rows(self, buffer: bytes | bytearray | memoryview) -> Iterator[dict[str, Any]]:
        names, kinds, sort = self.names, self.kinds, self.sort
        values: Iterable[tuple[Any, ...]] = self.native.iter_unpack(buffer)
        if self.network:
            pairs = zip(values, self.network.iter_unpack(buffer), strict=True)
            values = (sort(a + b) if sort else a + b for a, b in pairs)
        for number, row in enumerate(values):
            answer = dict(zip(names, row, strict=True))
            for name, kind in kinds:
                raw = answer[name]
                answer[name] = kind.read(raw) if isinstance(raw, bytes) else bool(raw)
            if self.bits:
                self._read_bits(answer, buffer, number * self.size)
            yield answer

    def _read_bits(self, answer: dict[str, Any], buffer: Any, start: int) -> None:
        for each in self.bits:
            at = start + each.offset
            answer[each.name] = each.kind.read(bytes(buffer[at : at + each.kind.size]))


def _is_plain(kind: Kind) -> bool:
    """Whether the struct module alone makes its value."""
    return isinstance(kind, Raw) or (
        isinstance(kind, Integer) and bool(kind.code) and not kind.is_bool
    )


def _is_network(kind: Integer) -> bool:
    return kind.is_big_endian and bool(kind.code)


def _code(kind: Kind) -> str:
    return kind.code if isinstance(kind, Integer) and kind.code else f"{kind.size}s"


def _format(fields: list[Field], size: int) -> str:
    """A format of the struct module for fields in rising order, padding between them."""
    text, at = "", 0
    for each in fields:
        text += f"{each.offset - at}x{_code(each.kind)}"
        at = each.offset + each.kind.size
    return f"{text}{size - at}x"


def _either(first: bytes, second: bytes) -> bytes:
    return bytes(a | b for a, b in zip(first, second, strict=True))
