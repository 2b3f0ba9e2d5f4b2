# SPDX-License-Identifier: Apache-2.0
"""A chain of records: each names the hash of the line before it, so that none can be changed.

    {"seq":7,"at":"2026-11-28T00:02:28.100+00:00","prev":"9f86…","what":"interval","body":{…}}⏎

`prev` is the SHA-256 of the line before, without its end of line; that of the newest line is the
chain's *head*. A head that was noted elsewhere proves that nothing up to it was changed or cut off.

Nothing is ever taken out of a file, not even half a line that a crash has left: the record that
follows is then a `cut`, which says how many bytes lie between it and the last good line, and their
hash. Old files go as a whole: the `rotated` record that says so names the last record that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import msgspec

NOTHING: Final = "0" * 64
"""`prev` of record 1."""
CUT: Final = "cut"
ROTATED: Final = "rotated"
NO_RECORD: Final = b"~\n"
"""Put behind half a line before its `cut`, lest it become a record by getting its end."""


class Record(msgspec.Struct, frozen=True):
    """One line."""

    seq: int
    at: str
    """UTC, ISO 8601."""
    prev: str
    what: str
    body: dict[str, Any] = {}

    @property
    def line(self) -> bytes:
        """As it is written, with its end."""
        return msgspec.json.encode(self) + b"\n"


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands: its newest record, and the hash of that."""

    seq: int = 0
    head: str = NOTHING

    def next(self, at: str, what: str, body: Mapping[str, Any]) -> Record:
        """The record that follows."""
        return Record(self.seq + 1, at, self.head, what, dict(body))

    @staticmethod
    def of(line: bytes, record: Record) -> Link:
        """To a record by its line."""
        return Link(record.seq, sha256(line.removesuffix(b"\n")).hexdigest())


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain is broken."""

    file: str
    line: int
    why: str
    looks_like: str


@dataclass(slots=True)
class Walk:
    """Reads the files of a chain in their order, up to the first break."""

    noted: set[str] = field(default_factory=set)
    """Heads that the chain must have had. Those that were met are no longer in here."""
    visit: Callable[[Record], object] = lambda _record: None
    link: Link = Link()
    first: Record | None = None
    last: Record | None = None
    records: int = 0
    cuts: list[str] = field(default_factory=list)
    """Where half lines lie that the chain owns up to."""
    half: int = 0
    """Bytes behind the newest record: half a line, which the next agent will own up to."""
    broken: Break | None = None
    _start: str = ""
    _gone: set[Link] = field(default_factory=set)
    """Up to where, by what the chain says, older files were removed."""

    def file(self, name: str, raw: bytes, *, is_newest: bool) -> None:
        """One file. Only the newest may end in half a line."""
        strange, strange_at = b"", 0
        for number, line in enumerate(lines(raw), 1):
            if self.broken is not None:
                return
            record = parsed(line)
            if record is not None and self._owns_up(record, strange):
                self.cuts.append(f"{name}:{strange_at}")
                strange = b""
            elif record is None or strange:
                strange, strange_at = strange + line, strange_at or number
                continue
            self._take(name, number, line, record)
        if strange and self.broken is None:
            self._end_strange(name, strange_at, strange, is_newest=is_newest)

    def end(self) -> None:
        """No more files."""
        if self.broken is None and self.first is not None and self.first.seq > 1:
            before = Link(self.first.seq - 1, self.first.prev)
            if before not in self._gone:
                why = f"it begins with record {self.first.seq}; no record says that others went"
                self.broken = Break(self._start, 1, why, "the oldest files were taken away")
        if self.broken is None and self.noted:
            why = f"the chain has never had the head {min(self.noted)}"
            what = "its end was cut off, or it was written anew"
            self.broken = Break(self._start, 0, why, what)

    def _take(self, name: str, number: int, line: bytes, record: Record) -> None:
        wrong = self._objection(record)
        if wrong is not None:
            self.broken = Break(name, number, *wrong)
            return
        if self.first is None:
            self.first, self._start = record, name
            self.noted.discard(record.prev)
        match record.what, record.body:
            case "rotated", {"gone": {"seq": int(seq), "head": str(head)}}:
                self._gone.add(Link(seq, head))
        self.link, self.last = Link.of(line, record), record
        self.noted.discard(self.link.head)
        self.records += 1
        self.visit(record)

    def _objection(self, record: Record) -> tuple[str, str] | None:
        """Why the record cannot come next, and what may have happened."""
        if self.last is None:
            if record.seq > 1 or record.prev == NOTHING:
                return None
            return "record 1 names one before it", "the beginning was changed"
        due = self.link.seq + 1
        if record.prev == self.link.head:
            if record.seq == due:
                return None
            return f"record {record.seq} comes in place of {due}", "a record's number was changed"
        if record.seq == due:
            why = f"record {due} does not name the hash of the line before it"
            return why, f"record {due - 1} was changed, or record {due} was"
        if record.seq > due:
            why = f"after record {due - 1} comes {record.seq}"
            return why, "lines or files were taken away, or put in another order"
        why = f"record {record.seq} comes after {due - 1}"
        return why, "lines were copied, or put in another order"

    def _owns_up(self, record: Record, strange: bytes) -> bool:
        """Whether it is the `cut` that belongs to what is strange."""
        if not strange or record.what != CUT or record.body != span(strange):
            return False
        follows = Link(record.seq - 1, record.prev) == self.link
        return follows or self.last is None

    def _end_strange(self, name: str, at: int, strange: bytes, *, is_newest: bool) -> None:
        if is_newest and (strange.endswith(NO_RECORD) or not strange.endswith(b"\n")):
            self.half = len(strange)
            return
        why = f"what follows record {self.link.seq} is no record, and no crash that is owned up to"
        self.broken = Break(name, at, why, "a line was changed, or a part of it taken away")


_RECORDS = msgspec.json.Decoder(Record)  # made before there are threads: see sources/shapes.py


def parsed(line: bytes) -> Record | None:
    """The record of a whole line; None for anything else."""
    if not line.endswith(b"\n"):
        return None
    try:
        return _RECORDS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def lines(raw: bytes) -> list[bytes]:
    """Each with its end; only the last may have none."""
    return re.findall(rb"[^\n]*\n|[^\n]+", raw)


def span(raw: bytes) -> dict[str, Any]:
    """What a `cut` says of the bytes before it."""
    return {"bytes": len(raw), "sha256": sha256(raw).hexdigest()}
