# SPDX-License-Identifier: Apache-2.0
"""The hall: where rooms meet, in tables of frozen rows.

A source replaces its table's rows; `derive` (plans.py) plans other tables from them; a
`Reconciler` makes the kernel (or a file) equal to a table and says, in an *applied*
table, what really stands, so that what depends on it can be planned from that.
Everything is level-triggered: whole snapshots, any of which may be skipped; order never
matters, and the kernel is the memory. Whoever follows a table also hears at which keys to
look, so that a change costs what it changes, however many rows there are. Nothing here
knows what a row means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

K = TypeVar("K")
R = TypeVar("R")

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0


class Changes(Generic[K]):
    """At which keys one follower of a table has yet to look."""

    def __init__(self) -> None:
        self._keys: dict[K, None] = {}

    def add(self, keys: Iterable[K]) -> None:
        self._keys.update(dict.fromkeys(keys))

    def take(self) -> KeysView[K]:
        """Those that changed since the last call, in the order in which they did."""
        keys, self._keys = self._keys, {}
        return keys.keys()


class Table(Generic[K, R]):
    """Named rows by key; `listed` once its writer has said all that it knows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listed = False
        self._rows: dict[K, R] = {}
        """Never changed: who was given them keeps them."""
        self.bells: set[asyncio.Event] = set()
        self._followers: WeakSet[Changes[K]] = WeakSet()

    @property
    def rows(self) -> Mapping[K, R]:
        """An immutable snapshot; later changes make a new one."""
        return MappingProxyType(self._rows)

    def follow(self) -> Changes[K]:
        """What changes from now on; at first all that is there."""
        changes: Changes[K] = Changes()
        changes.add(self._rows)
        self._followers.add(changes)
        return changes

    def replace(self, rows: Mapping[K, R]) -> None:
        """Make `rows` the whole content. Equal content wakes nobody.

        The old rows are let go all the same: what does not count as a difference, such as a
        key that has served, must not live on in them.
        """
        was, self._rows = self._rows, dict(rows)
        if was != self._rows:
            fresh = [key for key, row in self._rows.items() if key not in was or was[key] != row]
            self._tell([*fresh, *(key for key in was if key not in self._rows)])
        elif not self.listed:
            self._tell(())

    def change(self, put: Mapping[K, R], gone: Iterable[K] = ()) -> None:
        """Take rows away, and put others; everything else stays. As `replace`, but costs no more
        than that.
        """
        was = self._rows
        lost = {key: None for key in gone if key in was and key not in put}
        self._rows = was.copy()
        self._rows.update(put)
        for key in lost:
            del self._rows[key]
        news = [*(key for key, row in put.items() if key not in was or was[key] != row), *lost]
        if news or not self.listed:
            self._tell(news)

    def _tell(self, keys: Collection[K]) -> None:
        self.listed = True
        for each in self._followers:
            each.add(keys)
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


class Target(Protocol[K, R]):
    """One thing in the world that a table describes."""

    def read(self) -> Mapping[K, R]:
        """What is there and ours."""

    def put(self, rows: Mapping[K, R]) -> Mapping[K, OSError]:
        """Add or replace each row; idempotent. What failed, and why."""

    def remove(self, keys: Collection[K]) -> Mapping[K, OSError]:
        """Take rows away; one that is absent is a success. What failed, and why."""


def refusals(keys: Iterable[K], act: Callable[[K], object]) -> dict[K, OSError]:
    """For targets of few rows: act on each by itself. What failed, and why."""
    errors: dict[K, OSError] = {}
    for key in keys:
        try:
            act(key)
        except OSError as error:
            errors[key] = error
    return errors


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
    behind_since: float | None = None
    """None: all stands as it is wanted."""
    refreshed: float | None = None
    """When the target was last read."""


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
    behind_since: float | None = None
    refreshed: float | None = None
    _stood: set[K] = field(default_factory=set)
    _unsettled: dict[K, None] = field(default_factory=dict)
    """Where the target may differ from what is wanted; nowhere else."""
    _changes: Changes[K] = field(init=False)

    def __post_init__(self) -> None:
        self._changes = self.desired.follow()

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
            self.healed += sum(1 for key in self.applied.rows if self._has_drifted(key, there))
        self._stood.update(there)
        self.applied.replace(there)
        self._unsettled = dict.fromkeys((*self.desired.rows, *there))

    def _has_drifted(self, key: K, there: Mapping[K, R]) -> bool:
        """A row that is put only once is not put again if it is another now."""
        return key not in there or (not self.once and there[key] != self.applied.rows[key])

    def run(self, now: float) -> float | None:
        """One pass. Returns when a failed row wants another try, or None."""
        retry = self._run(now)
        if not self._is_behind():
            self.behind_since = None
        elif self.behind_since is None:
            self.behind_since = now
        return retry

    def _is_behind(self) -> bool:
        """Whether a pass has left something undone."""
        if self.failures or self.unreadable is not None:
            return True
        # Nothing else stands after a pass without failures; what is put once may have vanished.
        return len(self.applied.rows) < len(self.desired.rows)

    def _run(self, now: float) -> float | None:
        if not self.applied.listed or self.unreadable is not None:
            self.refresh()
        if self.unreadable is not None:
            return now + FIRST_RETRY_SECONDS
        if not self.desired.listed:
            return None
        changed = self._changes.take()
        self._unsettled.update(dict.fromkeys(changed))
        for key in changed & self.failures.keys():
            del self.failures[key]  # it was another row that failed
        standing, wanted = self.applied.rows, self.desired.rows
        for key in [key for key in self.failures if key not in wanted and key not in standing]:
            del self.failures[key]
        missing = {
            key: wanted[key]
            for key in self._unsettled
            if key in wanted and self._must_put(key, wanted[key], standing, now)
        }
        gone = [
            key
            for key in self._unsettled
            if key in standing and key not in wanted and self._is_due(key, now)
        ]
        put = self._put(missing, now)
        lost = self._remove(gone, now)
        self._unsettled = dict.fromkeys(self.failures)
        self.applied.change(put, lost)
        return min((failure.again for failure in self.failures.values()), default=None)

    def lag(self) -> Lag:
        """Counts rows: of large tables better in another thread, which it allows."""
        return Lag(
            self.desired.name,
            len(self.desired.rows),
            sum(1 for key in self.desired.rows if key in self.applied.rows),
            {str(key): failure for key, failure in dict(self.failures).items()},
            self.healed,
            self.unreadable,
            self.behind_since,
            self.refreshed,
        )

    def _must_put(self, key: K, row: R, standing: Mapping[K, R], now: float) -> bool:
        if key in standing:
            return standing[key] != row and not self.once and self._is_due(key, now)
        return not (self.once and key in self._stood) and self._is_due(key, now)

    def _is_due(self, key: K, now: float) -> bool:
        failure = self.failures.get(key)
        return failure is None or failure.again <= now

    def _put(self, rows: Mapping[K, R], now: float) -> Mapping[K, R]:
        """What stands now."""
        if not rows:
            return {}
        # Before the call: a put that fails half-way may still have reached the world.
        if self.once:
            self._stood.update(rows)
        errors = self.target.put(rows)
        self._note(rows, errors, now)
        if self.once:
            self._stood.difference_update(errors)
        return {key: row for key, row in rows.items() if key not in errors}

    def _remove(self, keys: Collection[K], now: float) -> Collection[K]:
        """What stands no more."""
        if not keys:
            return ()
        errors = self.target.remove(keys)
        self._note(keys, errors, now)
        return [key for key in keys if key not in errors]

    def _note(self, keys: Iterable[K], errors: Mapping[K, OSError], now: float) -> None:
        for key in keys:
            if key in errors:
                self._fail(key, errors[key], now)
            else:
                self.failures.pop(key, None)

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
            if reconciler.unreadable is None:
                reconciler.refreshed = refreshed
            wake = min(refreshed + refresh_seconds, retry if retry is not None else float("inf"))
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wake - clock())):
                    await changed.wait()
