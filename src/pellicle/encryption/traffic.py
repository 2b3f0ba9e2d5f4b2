# SPDX-License-Identifier: Apache-2.0
"""What went to and came from each peer, over all the SAs that have served since the agent began.

    live SAs now  +  what removed ones had at their end  -  what stood when the agent began

Rotation takes SAs away every hour and their counts with them; these sums never fall. Only the
few fields that matter are read, so that all SAs of thousands of peers take a moment.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.encryption.states import shared_of
from pellicle.facts import Address, Engine
from pellicle.kernel.bpf import Map, Object
from pellicle.keys.rows import Direction
from pellicle.wire.btf import Btf
from pellicle.wire.layout import Field, Layout, Raw
from pellicle.wire.xfrm import StateCounts, StateKey

_TRIES, _TRY_SECONDS = 20, 0.02
"""Hardly any SAs are taken away for longer at a time."""


class Traffic(NamedTuple):
    """Of one peer's address in one direction."""

    packets: int = 0
    octets: int = 0
    replayed: int = 0
    auth_failed: int = 0


class SaKind(NamedTuple):
    """What SAs are told apart by where they are only counted."""

    direction: str
    engine: str
    cipher: str
    state: str
    """"confirmed" or "unconfirmed"; "used" or "unused" for data."""


Ends = tuple[Address, Direction]
"""A peer's primary address, and which way."""
Place = tuple[bytes, int, int | None]
"""Destination, SPI and mark: no two states share them."""
Sums = dict[Ends, Traffic]
States = Mapping[StateKey, StateCounts]


@dataclass(frozen=True, slots=True)
class Seen:
    """All SAs at one moment."""

    traffic: Sums
    sas: Mapping[SaKind, int]


class SaReader:
    """Reads both maps; may be used in any thread."""

    def __init__(self, bpf: Object) -> None:
        self._maps = (
            (Direction.IN, bpf.map("sa_in"), _Rows(bpf.btf, "sa_in_key", "sa_in")),
            (Direction.OUT, bpf.map("sa_out"), _Rows(bpf.btf, "sa_out_key", "sa_out")),
        )
        self._engines = _words(bpf.btf, "engine")
        self._ciphers = _words(bpf.btf, "cipher")

    def read(self, states: States, used: Collection[int] = ()) -> Seen:
        """`states`: the kernel's part of SAs of the xfrm engine. `used`: pairs sent on."""
        of_state = {_place(key): counts for key, counts in states.items()}
        sums: dict[tuple[bytes, Direction], Traffic] = defaultdict(Traffic)
        sas: Counter[tuple[Direction, int, int, bool]] = Counter()
        for direction, found, rows in self._maps:
            is_in = direction is Direction.IN
            for row in rows.read(found):
                is_good = bool(row["first_seen"]) if is_in else row["pair"] in used
                sas[direction, row["engine"], row["cipher"], is_good] += 1
                ends = (row["node"], direction)
                sums[ends] = _plus(sums[ends], self._traffic(row, of_state))
        return Seen(
            {(from_bytes(node), direction): each for (node, direction), each in sums.items()},
            {self._kind(*each): number for each, number in sas.items()},
        )

    def row(self, direction: Direction, raw: bytes) -> tuple[Ends, Traffic]:
        """Whose SA it is, and what it has counted; a row of the kernel's counts nothing."""
        row = next(rows for way, _, rows in self._maps if way is direction).one(raw)
        traffic = Traffic() if self._is_in_state(row) else _of_row(row)
        return (from_bytes(row["node"]), direction), traffic

    def _traffic(self, row: Mapping[str, Any], states: Mapping[Place, StateCounts]) -> Traffic:
        if not self._is_in_state(row):
            return _of_row(row)
        place = (row["destination"], row["spi"])
        counts = states.get((*place, row["mark"])) or states.get((*place, None))
        return of_state(counts) if counts else Traffic()

    def _is_in_state(self, row: Mapping[str, Any]) -> bool:
        """Whether a state counts for it, and for it alone."""
        return self._engines[row["engine"]] == Engine.XFRM and not shared_of(row["mark"])

    def _kind(self, direction: Direction, engine: int, cipher: int, is_good: bool) -> SaKind:
        good, other = ("confirmed", "unconfirmed") if direction == "in" else ("used", "unused")
        return SaKind(
            direction, self._engines[engine], self._ciphers[cipher], good if is_good else other
        )


class Totals:
    """The sums since the agent began. SAs are retired in one thread, and all is read in another."""

    def __init__(self, reader: SaReader, states: States) -> None:
        self._reader = reader
        self._begun = reader.read(states).traffic
        self._retired: Sums = {}
        self._turn = 0
        """Odd while SAs are being taken away."""
        self._said: Sums = self._begun
        self._vanished: Sums = {}
        """What was in SAs that somebody else has removed."""

    @contextmanager
    def retiring(self) -> Iterator[Callable[[Ends, Traffic], None]]:
        """While it lasts SAs go; what is yielded is told what each had counted."""
        self._turn += 1
        try:
            yield self._retire
        finally:
            self._turn += 1

    def read(
        self,
        read_states: Callable[[], States],
        used: Collection[int],
        addresses: Collection[Address],
    ) -> Seen:
        """The sums of all peers with these `addresses`, and the SAs that stand."""
        retired, seen = self._together(read_states, used)
        if retired is not None:  # else what is missing now comes with the next reading
            sums = _sum(_sum(retired, self._vanished), seen.traffic)
            lost = {ends: _minus(before, sums.get(ends)) for ends, before in self._said.items()}
            self._vanished = _sum(self._vanished, lost)
            self._said = _sum(sums, lost)
        traffic = {
            ends: _minus(each, self._begun.get(ends))
            for ends, each in self._said.items()
            if ends[0] in addresses
        }
        return replace(seen, traffic=traffic)

    def _together(
        self, read_states: Callable[[], States], used: Collection[int]
    ) -> tuple[Sums | None, Seen]:
        """What is gone and what stands, none of it in both; None when it could not be had so."""
        for _ in range(_TRIES):
            turn, retired = self._turn, dict(self._retired)
            seen = self._reader.read(read_states(), used)
            if turn % 2 == 0 and turn == self._turn:
                return retired, seen
            time.sleep(_TRY_SECONDS)
        return None, self._reader.read(read_states(), used)

    def _retire(self, ends: Ends, last: Traffic) -> None:
        self._retired[ends] = _plus(self._retired.get(ends, Traffic()), last)


def of_state(counts: StateCounts) -> Traffic:
    """The same of a state of the kernel's."""
    return Traffic(
        counts.packets,
        counts.octets,
        counts.replayed + counts.replay_window_errors,
        counts.integrity_failed,
    )


class _Rows:
    """The fields that are counted here, of a map's keys and rows."""

    def __init__(self, btf: Btf, key: str, row: str) -> None:
        self._key = _part(btf.struct(key), {"destination", "spi", "pair"})
        self._row = _part(
            btf.struct(row),
            {"destination", "spi", "node", "packets", "bytes", "replayed", "auth_failed",
             "first_seen", "engine", "cipher", "mark"},
        )  # fmt: skip

    def read(self, found: Map) -> Iterator[Mapping[str, Any]]:
        items = found.items()
        keys = self._key.unpack_many(b"".join(key for key, _ in items))
        rows = self._row.unpack_many(b"".join(row for _, row in items))
        return ({**row, **key} for row, key in zip(rows, keys, strict=True))

    def one(self, row: bytes) -> Mapping[str, Any]:
        return self._row.unpack(row)


def _of_row(row: Mapping[str, Any]) -> Traffic:
    return Traffic(row["packets"], row["bytes"], row.get("replayed", 0), row.get("auth_failed", 0))


def _part(layout: Layout, names: Collection[str]) -> Layout:
    """Only these fields; an address stays the bytes that it is."""
    return Layout(
        layout.name,
        layout.size,
        tuple(
            Field(each.name, each.offset, Raw(16)) if isinstance(each.kind, Layout) else each
            for each in layout.fields
            if each.name in names
        ),
    )


def _place(key: StateKey) -> Place:
    mark = key.mark.value if key.mark is not None else None
    return to_bytes(key.destination), int(key.spi), mark


def _words(btf: Btf, enum: str) -> Mapping[int, str]:
    prefix = f"{enum.upper()}_"
    return {
        number: name.removeprefix(prefix).lower().replace("_", "-")
        for name, number in btf.enum(enum).items()
    }


def _plus(one: Traffic, other: Traffic) -> Traffic:
    return Traffic(
        one.packets + other.packets,
        one.octets + other.octets,
        one.replayed + other.replayed,
        one.auth_failed + other.auth_failed,
    )


def _minus(one: Traffic, other: Traffic | None) -> Traffic:
    if other is None:
        return one
    return Traffic(*(max(mine - theirs, 0) for mine, theirs in zip(one, other, strict=True)))


def _sum(one: Mapping[Ends, Traffic], other: Mapping[Ends, Traffic]) -> Sums:
    return {
        ends: _plus(one.get(ends, Traffic()), other.get(ends, Traffic()))
        for ends in one.keys() | other.keys()
    }
