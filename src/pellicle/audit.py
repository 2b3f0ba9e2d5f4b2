# SPDX-License-Identifier: Apache-2.0
"""The audit of a node: what was encrypted, what was not and why, since when; and its trail.

The flows are summed up (`flows/coverage.py`) from the moment when the cluster's nodes and pods are
known, so that every row has names; what the kernel counted before that is in the sums, too. What is
summed up goes into the trail (`sources/audit_trail.py`): each minute by nodes, and exceptions that
were never seen before at once. What cannot be written now is written later, with what follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog

from pellicle.flows import coverage
from pellicle.flows.coverage import Coverage, Direction, Key, Sum
from pellicle.serve import Answer, CallError, Request
from pellicle.sight import (
    VERSION,
    Sight,
    changed_flows,
    events_lost,
    know_flows,
    packet_counts,
    read_flows,
)
from pellicle.sources.audit_trail import AuditTrail, Entry
from pellicle.table import Table
from pellicle.wire.chain import Record

DEFAULT_ROWS = 1000
INTERVAL_SECONDS = 60.0
NEWS_SECONDS = 1.0
ROWS_TOLD = 512
"""In one interval; the others are summed up by verdict, reason and rule."""
COLUMNS = (
    "direction", "source_node", "destination_node", "verdict", "reason", "rule", "packets", "bytes",
)  # fmt: skip
"""Of the rows of an interval."""
Counts = tuple[int, int]
"""Packets and bytes."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger()


class Wanted(msgspec.Struct, frozen=True):
    """The arguments of the call `audit`."""

    most: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_ROWS
    since: float | None = None
    """Seconds since 1970; None: since the datapath's counters began."""


class Interval(msgspec.Struct, frozen=True):
    """The body of a record `interval`: what was seen since the one before."""

    since: float | None
    """Seconds since 1970; None: nothing was ever told before."""
    until: float
    rows: list[tuple[Direction, str, str, str, str, str, int, int]]
    """Their `COLUMNS`."""
    counted: dict[str, Counts]
    """By verdict and reason: what is in no row is not attributed."""
    events_lost: int
    boot: str
    clock: int
    """Boot time in nanoseconds: of flows that began later, nothing was told."""
    counters: dict[str, Counts]
    """As they stand."""

    @staticmethod
    def of(record: Record | None) -> Interval | None:
        """None: it is none."""
        try:
            return msgspec.convert(record.body, Interval) if record else None
        except msgspec.ValidationError:
            return None


msgspec.json.Decoder(Interval)  # learned before there are threads: see sources/shapes.py


class Audit:
    """Of one node."""

    def __init__(self, sight: Sight, trail: AuditTrail) -> None:
        self._sight, self._trail = sight, trail
        self._boot_id = BOOT_ID.read_text().strip()
        self._coverage: Coverage | None = None
        self._told: dict[str, Counts] = {}
        """The datapath's counters at the end of the interval that was told last."""
        self._told_until: float | None = None
        self._problem = ""
        self._turn = asyncio.Lock()
        """Whoever tells."""

    async def run(self) -> None:
        """For ever: sum up, and keep the trail."""
        await self._add([("start", self._start())])
        clock = await self._resume()
        await self._names()
        await read_flows(self._sight)
        self._coverage = self._sight.history.sum_up(self._sight.names.rows, clock)
        try:
            while True:
                await self._tell_interval(self._coverage)
                ends = time.monotonic() + INTERVAL_SECONDS
                while time.monotonic() < ends:
                    await asyncio.sleep(NEWS_SECONDS)
                    await self._tell_news(self._coverage)
        finally:
            self._stop(self._coverage)

    def problems(self) -> Sequence[str]:
        """What is wrong now, in words."""
        return [self._problem] if self._problem else []

    def answers(self) -> Mapping[str, Answer]:
        """The calls that concern the audit."""
        return {"audit": self._answer}

    async def _names(self) -> None:
        """Until the addresses have some."""
        names = self._sight.names
        with Table.bell(names) as changed:
            while not names.listed:
                changed.clear()
                await changed.wait()

    # --- the trail --------------------------------------------------------------------------------

    def _start(self) -> dict[str, Any]:
        config = self._sight.config
        return {
            "node": config.node_name,
            "version": VERSION,
            "boot": self._boot_id,
            "engine": self._sight.choice.engine,
            "settings": {each.name: each.value for each in config.explain()},
            "columns": COLUMNS,
        }

    async def _resume(self) -> int:
        """Take up where the trail ends. Flows that began until the moment returned are told."""
        try:
            last = Interval.of(await asyncio.to_thread(self._trail.newest, "interval"))
        except OSError as error:
            self._problem, self._told = _unwritable(error), self._counters()
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if last is None:
            return 0
        self._told_until = last.until
        now = self._counters()
        has_grown = (now.get(each, (0, 0)) >= counts for each, counts in last.counters.items())
        if last.boot != self._boot_id or not all(has_grown):
            return 0  # the datapath counts anew
        self._told = last.counters
        return last.clock

    async def _tell_interval(self, sums: Coverage) -> None:
        async with self._turn:
            # In this order, so that no packet is attributed that is not counted, nor told twice.
            await read_flows(self._sight)
            counters = self._counters()
            rows, (news, more) = sums.take(), sums.take_news()
            interval = self._interval(rows, counters)
            if await self._add(
                [*_exceptions(sums, news, more), ("interval", msgspec.to_builtins(interval))]
            ):
                log.info("audit trail", seq=self._trail.seq, head=self._trail.head)
                self._told, self._told_until = counters, interval.until
            else:
                sums.put_back(rows, news, more)

    async def _tell_news(self, sums: Coverage) -> None:
        async with self._turn:
            news, more = sums.take_news()
            if news and not await self._add(_exceptions(sums, news, more)):
                sums.put_back({}, news, more)

    def _stop(self, sums: Coverage) -> None:
        """The last words, before anybody who waits for them is gone."""
        know_flows(self._sight, changed_flows(self._sight))
        counters = self._counters()
        interval = self._interval(sums.take(), counters)
        entries = _exceptions(sums, *sums.take_news())
        try:
            self._trail.add([*entries, ("interval", msgspec.to_builtins(interval)), ("stop", {})])
        except OSError as error:
            log.warning("audit trail", error=str(error))

    def _interval(self, rows: Mapping[Key, Sum], counters: Mapping[str, Counts]) -> Interval:
        """All since the last one."""
        return Interval(
            self._told_until,
            time.time(),
            told_rows(rows, ROWS_TOLD),
            _growth(self._told, counters),
            events_lost(self._sight),
            self._boot_id,
            time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            dict(counters),
        )

    async def _add(self, entries: Sequence[Entry]) -> bool:
        try:
            await asyncio.to_thread(self._trail.add, entries)
        except OSError as error:
            self._problem = _unwritable(error)
            return False
        self._problem = ""
        return True

    def _counters(self) -> dict[str, Counts]:
        counts = packet_counts(self._sight)
        return {_name(row): (row["packets"], row["bytes"]) for row in counts if row["packets"]}

    # --- the report -------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        try:
            wanted = msgspec.convert(request.arguments, Wanted)
        except ValueError as error:
            raise CallError(7, str(error)) from error
        if self._coverage is None:
            why = "nothing is summed up yet: the nodes of the cluster are not known"
            raise CallError(7, why, "a moment after the start that is so; else see the directory")
        if wanted.since is None:
            yield await self._whole(self._coverage, wanted.most)
        else:
            yield await self._part(self._coverage, wanted.since, wanted.most)

    async def _whole(self, sums: Coverage, most: int) -> dict[str, Any]:
        """All since the datapath's counters began; of each list the `most` weighty rows."""
        await read_flows(self._sight)
        counts, now = packet_counts(self._sight), sums.copy()
        answer = await asyncio.to_thread(coverage.report, now, counts, _boot(), most)
        return {**self._frame(), **answer}

    async def _part(self, sums: Coverage, since: float, most: int) -> dict[str, Any]:
        """What the trail says of the time since then, and what it does not say yet."""
        await self._tell_interval(sums)
        told = await asyncio.to_thread(self._intervals, wall(since))
        summed, counted = await asyncio.to_thread(added_up, told)
        counts = []
        for row in packet_counts(self._sight):
            packets, octets = counted.get(_name(row), (0, 0))
            counts.append({**row, "packets": packets, "bytes": octets})
        answer = coverage.report(summed, counts, 0.0, most)
        begun = next((each.since for each in told), None) or sums.since(_boot()) or since
        rows = {**answer["rows"], "endpoints": 0}
        return {**self._frame(), **answer, "since": begun, "endpoints": [], "rows": rows}

    def _intervals(self, after: str) -> list[Interval]:
        records = self._trail.records("interval", after=after)
        return [each for each in map(Interval.of, records) if each]

    def _frame(self) -> dict[str, Any]:
        return {
            "node": self._sight.config.node_name,
            "until": time.time(),
            "events_lost": events_lost(self._sight),
            "trail": self._trail.answer(),
        }


def _name(row: Mapping[str, Any]) -> str:
    """Of a counter."""
    return f"{row['verdict']} {row['reason']}"


def _exceptions(sums: Coverage, news: Sequence[Key], more: int) -> list[Entry]:
    """As records."""
    boot = _boot()
    told: list[Entry] = [("exception", coverage.row(key, sums.rows[key], boot)) for key in news]
    return [*told, ("exceptions", {"more": more})] if more else told


def told_rows(sums: Mapping[Key, Sum], most: int) -> list[Any]:
    """The rows of an interval, those with most bytes; the others together."""
    ordered = sorted(sums.items(), key=lambda item: -item[1].octets)
    told = dict(ordered[:most])
    for key, each in ordered[most:]:
        others = key._replace(source_node=coverage.OTHERS, destination_node=coverage.OTHERS)
        told.setdefault(others, Sum()).add(each.packets, each.octets, each.first, each.last)
    return [
        (
            key.direction, key.source_node, key.destination_node, key.verdict, key.reason,
            key.rule, each.packets, each.octets,
        )
        for key, each in told.items()
    ]  # fmt: skip


def added_up(intervals: Sequence[Interval]) -> tuple[Coverage, dict[str, Counts]]:
    """What intervals come to: sums by nodes, in seconds since 1970, and what was counted."""
    summed, counted = Coverage(), dict[str, Counts]()
    for each in intervals:
        span = (int((each.since or each.until) * 1e9), int(each.until * 1e9))
        for direction, source, destination, verdict, reason, rule, packets, octets in each.rows:
            key = Key(direction, source, destination, "", "", verdict, reason, rule)
            summed.sum_up(key, packets, octets, *span)
        for reason, (packets, octets) in each.counted.items():
            before = counted.get(reason, (0, 0))
            counted[reason] = (before[0] + packets, before[1] + octets)
    return summed, counted


def wall(moment: float | None = None) -> str:
    """UTC, as in the trail; now or then."""
    then = datetime.now(UTC) if moment is None else datetime.fromtimestamp(moment, UTC)
    return then.isoformat(timespec="milliseconds")


def _growth(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> dict[str, Counts]:
    grown = {
        reason: (packets - before.get(reason, (0, 0))[0], octets - before.get(reason, (0, 0))[1])
        for reason, (packets, octets) in after.items()
    }
    return {reason: each for reason, each in grown.items() if any(each)}


def _boot() -> float:
    """The wall clock's seconds at boot time 0."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _unwritable(error: OSError) -> str:
    return f"the audit trail cannot be written: {error}"
