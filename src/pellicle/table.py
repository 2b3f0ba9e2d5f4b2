# SPDX-License-Identifier: Apache-2.0
"""The hall: where rooms meet, in tables of frozen rows.

A source replaces its table's rows; `derive` plans other tables from them; a
`Reconciler` makes the kernel (or a file) equal to a table and says, in an *applied*
table, what really stands, so that what depends on it can be planned from that.
Everything is level-triggered: snapshots may be skipped, order never matters, and
the kernel is the memory. Nothing here knows what a row means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

K = TypeVar("K")
R = TypeVar("R")

SETTLE_SECONDS = 0.05
"""A burst of changes is planned once."""
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0


class Table(Generic[K, R]):
    """Named rows by key; `listed` once its writer has said all that it knows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listed = False
        self._rows: Mapping[K, R] = MappingProxyType({})
        self.bells: set[asyncio.Event] = set()

    @property
    def rows(self) -> Mapping[K, R]:
        """An immutable snapshot; later changes make a new one."""
        return self._rows

    def replace(self, rows: Mapping[K, R]) -> None:
        """Make `rows` the whole content. Equal content wakes nobody.

        The old rows are let go all the same: what does not count as a difference, such as a
        key that has served, must not live on in them.
        """
        is_news = not self.listed or rows != self._rows
        self._rows = MappingProxyType(dict(rows))
        self.listed = True
        if is_news:
            self.ring()

    def ring(self) -> None:
        """Wake everyone who plans from this table."""
        for bell in self.bells:
            bell.set()

    def __repr__(self) -> str:
        return f"Table({self.name}, {len(self._rows)} rows)"

    @staticmethod
    @contextmanager
    def bell(*tables: Table[Any, Any]) -> Iterator[asyncio.Event]:
        """An event that is set whenever one of `tables` changes."""
        event = asyncio.Event()
        for table in tables:
            table.bells.add(event)
        try:
            yield event
        finally:
            for table in tables:
                table.bells.discard(event)


async def derive(
    out: Table[K, R],
    plan: Callable[..., Mapping[K, R]],
    inputs: Sequence[Table[Any, Any]],
    settle: float = SETTLE_SECONDS,
) -> None:
    """Keep `out` equal to `plan(*rows of inputs)`, for ever.

    Nothing is planned before every input has been listed once: a plan made from half
    the world would take away what the other half needs.
    """
    with Table.bell(*inputs) as changed:
        while True:
            changed.clear()
            if all(table.listed for table in inputs):
                out.replace(plan(*(table.rows for table in inputs)))
            await changed.wait()
            await asyncio.sleep(settle)


class Target(Protocol[K, R]):
    """One thing in the world that a table describes."""

    def read(self) -> Mapping[K, R]:
        """What is there and ours."""

    def put(self, rows: Mapping[K, R]) -> Mapping[K, OSError]:
        """Add or replace each row; idempotent. What failed, and why."""

    def remove(self, keys: Collection[K]) -> Mapping[K, OSError]:
        """Take rows away; one that is absent is a success. What failed, and why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that the world refused."""

    error: OSError
    since: float
    attempts: int
    again: float
    """When it will be tried next."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the world is from a table."""

    table: str
    desired: int
    applied: int
    failures: Mapping[str, Failure]
    healed: int
    """Rows that someone else had changed or removed, seen at a refresh."""
    unreadable: str | None


@dataclass(slots=True)
class Reconciler(Generic[K, R]):
    """Makes `target` equal to `desired`, and `applied` equal to what stands there.

    New and changed rows are put before old ones are removed (make before break).
    `once`: a key that has stood here is never put a second time; when it vanishes it
    shows as missing in `applied`, and whoever planned it must ask for another.
    """

    desired: Table[K, R]
    target: Target[K, R]
    applied: Table[K, R]
    once: bool = False
    healed: int = 0
    unreadable: str | None = None
    failures: dict[K, Failure] = field(default_factory=dict)
    is_doubted: bool = False
    """Something was heard of the target: it is read again before anything else."""
    _stood: set[K] = field(default_factory=set)

    def doubt(self) -> None:
        """Have the target read again at once: somebody may have changed it."""
        self.is_doubted = True
        self.desired.ring()

    def refresh(self) -> None:
        """Read the target again; what differs from `applied` is drift and will be healed."""
        self.is_doubted = False
        try:
            there = dict(self.target.read())
        except OSError as error:
            self.unreadable = str(error)
            return
        self.unreadable = None
        if self.applied.listed:
            self.healed += sum(1 for key, row in self.applied.rows.items() if there.get(key) != row)
        self._stood.update(there)
        self.applied.replace(there)

    def run(self, now: float) -> float | None:
        """One pass. Returns when a failed row wants another try, or None."""
        if not self.applied.listed or self.unreadable is not None:
            self.refresh()
        if self.unreadable is not None:
            return now + FIRST_RETRY_SECONDS
        if not self.desired.listed:
            return None
        standing = dict(self.applied.rows)
        wanted = self.desired.rows
        for key in [key for key in self.failures if key not in wanted and key not in standing]:
            del self.failures[key]
        missing = {k: r for k, r in wanted.items() if self._must_put(k, r, standing, now)}
        self._put(missing, standing, now)
        gone = [k for k in standing if k not in wanted and self._is_due(k, now)]
        self._remove(gone, standing, now)
        self.applied.replace(standing)
        return min((failure.again for failure in self.failures.values()), default=None)

    def lag(self) -> Lag:
        return Lag(
            self.desired.name,
            len(self.desired.rows),
            sum(1 for key in self.desired.rows if key in self.applied.rows),
            {str(key): failure for key, failure in self.failures.items()},
            self.healed,
            self.unreadable,
        )

    def _must_put(self, key: K, row: R, standing: Mapping[K, R], now: float) -> bool:
        if key in standing:
            return standing[key] != row and not self.once and self._is_due(key, now)
        return not (self.once and key in self._stood) and self._is_due(key, now)

    def _is_due(self, key: K, now: float) -> bool:
        failure = self.failures.get(key)
        return failure is None or failure.again <= now

    def _put(self, rows: Mapping[K, R], standing: dict[K, R], now: float) -> None:
        if not rows:
            return
        # Before the call: a put that fails half-way may still have reached the world.
        if self.once:
            self._stood.update(rows)
        errors = self.target.put(rows)
        for key, row in rows.items():
            if key in errors:
                self._fail(key, errors[key], now)
                if self.once:
                    self._stood.discard(key)
            else:
                self.failures.pop(key, None)
                standing[key] = row

    def _remove(self, keys: Collection[K], standing: dict[K, R], now: float) -> None:
        if not keys:
            return
        errors = self.target.remove(keys)
        for key in keys:
            if key in errors:
                self._fail(key, errors[key], now)
            else:
                self.failures.pop(key, None)
                del standing[key]

    def _fail(self, key: K, error: OSError, now: float) -> None:
        before = self.failures.get(key)
        attempts = before.attempts + 1 if before else 1
        wait = min(FIRST_RETRY_SECONDS * 2 ** (attempts - 1), LAST_RETRY_SECONDS)
        fresh = Failure(error, now, attempts, now + wait)
        self.failures[key] = replace(fresh, since=before.since) if before else fresh


async def reconcile(
    reconciler: Reconciler[Any, Any], clock: Callable[[], float], refresh_seconds: float
) -> None:
    """Run `reconciler` at each change of its table, at each due retry, and at each refresh."""
    with Table.bell(reconciler.desired) as changed:
        refreshed = clock()
        while True:
            changed.clear()
            if reconciler.is_doubted or clock() >= refreshed + refresh_seconds:
                reconciler.refresh()
                refreshed = clock()
            retry = reconciler.run(clock())
            wake = min(refreshed + refresh_seconds, retry if retry is not None else float("inf"))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wake - clock())):
                    await changed.wait()
