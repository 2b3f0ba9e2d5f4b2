# SPDX-License-Identifier: Apache-2.0
"""Netlink's frame: messages of a header and a body, bodies ending in attributes.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------------------------------------------------------+
    |                    Length, header included                    |
    +-------------------------------+-------------------------------+
    |             Kind              |             Flags             |
    +-------------------------------+-------------------------------+
    |                        Sequence number                        |
    +---------------------------------------------------------------+
    |                   Port of the sender (0: kernel)              |
    +---------------------------------------------------------------+
    |  body, padded to 4 bytes: a fixed struct, then attributes,    |
    |  each {length: 16, kind: 16 (0x8000: nested), payload, pad}   |

All numbers are in the host's byte order; addresses inside payloads are in the network's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK = 0x3FFF

ERROR = 2
DONE = 3
OVERRUN = 4

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
REPLACE = 0x100
EXCLUSIVE = 0x200
CREATE = 0x400
DUMP_INTERRUPTED = 0x10
_CAPPED = 0x100
_HAS_TEXT = 0x200


class Malformed(ValueError):  # noqa: N818  a word for what the bytes are
    """Bytes that are not the netlink message they should be."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the kernel; the sequence number comes when it is sent."""

    kind: int
    flags: int
    body: bytes

    def pack(self, sequence: int, flags: int = 0, port: int = 0) -> bytes:
        """The message, padded, with more flags and the port of its sender."""
        length = _HEADER.size + len(self.body)
        header = _HEADER.pack(length, self.kind, REQUEST | self.flags | flags, sequence, port)
        return header + self.body + bytes(-length % 4)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the kernel says."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    @property
    def error(self) -> tuple[int, str]:
        """Of an ERROR or DONE: the errno (0: an acknowledgement) and the kernel's own words."""
        if len(self.body) < 4:
            return 0, ""
        (number,) = struct.unpack_from("=i", self.body)
        return -number, self._words() if self.flags & _HAS_TEXT else ""

    def _words(self) -> str:
        start = 4
        if self.kind == ERROR:  # the header of the request, and all of it unless capped
            if len(self.body) < start + _HEADER.size:
                raise Malformed("an error that ends within the request's header")
            (length,) = struct.unpack_from("=I", self.body, start)
            start += _HEADER.size if self.flags & _CAPPED else (length + 3) & ~3
        text = attributes(self.body, start).get(1, b"")
        return text.rstrip(b"\0").decode("utf-8", "replace")


def replies(data: bytes) -> Iterator[Reply]:
    """The messages of one datagram."""
    at = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise Malformed("a message ends within its header")
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise Malformed(f"a message of {length} bytes where {len(data) - at} are left")
        yield Reply(kind, flags, sequence, data[at + _HEADER.size : at + length])
        at += (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | 0x8000, b"".join(parts))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(body: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from `start` to the end by kind; the last one of a kind."""
    found: dict[int, bytes] = {}
    while start < len(body):
        if start + _ATTRIBUTE.size > len(body):
            raise Malformed("an attribute ends within its header")
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size or start + length > len(body):
            raise Malformed(f"an attribute of {length} bytes where {len(body) - start} are left")
        found[kind & _KIND_MASK] = body[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3
    return found


def read_u32(found: dict[int, bytes], kind: int, default: int = 0) -> int:
    """A 32-bit attribute."""
    payload = found.get(kind)
    if payload is None:
        return default
    if len(payload) != 4:
        raise Malformed(f"attribute {kind} has {len(payload)} bytes, not 4")
    return int.from_bytes(payload, "little" if _IS_LITTLE else "big")


def read_text(found: dict[int, bytes], kind: int) -> str:
    """A text attribute; empty when there is none."""
    return found.get(kind, b"").split(b"\0", 1)[0].decode("utf-8", "replace")


_IS_LITTLE = struct.pack("=H", 1) == b"\1\0"
