# SPDX-License-Identifier: Apache-2.0
"""Tables that are planned from others, whole or part by part.

    nodes  by node ─┐
    pods   by node ─┼─▶ plan(the node's row, its pods, all links) ─▶ the part's rows ─▶ table
    links  all ─────┘

A plan is a pure function from rows to rows and knows nothing of parts. Where each row of an input
concerns one part of what comes out (say, one node), a change costs the planning of that part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from pellicle.table import Table

K = TypeVar("K")
R = TypeVar("R")

SETTLE_SECONDS = 0.05
"""A burst of changes is planned once."""
PARTS_AT_ONCE = 200
"""More would hold up everything else for too long."""


class Parted(NamedTuple):
    """An input of which each row concerns one part of what is planned; None: no part at all."""

    table: Table[Any, Any]
    part: Callable[[Any, Any], Hashable]
    """Of a key and its row."""


class _Input:
    """The rows of a table by part; of one without parts, all of them to each part."""

    def __init__(self, table: Table[Any, Any], part: Callable[[Any, Any], Hashable] | None) -> None:
        self.table, self._part = table, part
        self._changes = table.follow()
        self._parts: dict[Any, Hashable] = {}
        """By key, where its row is."""
        self._rows: dict[Hashable, dict[Any, Any]] = {}

    def take(self, touched: dict[Hashable, None]) -> bool:
        """Note the parts that have changed; whether all have."""
        keys = self._changes.take()
        if self._part is None:
            return bool(keys)
        rows = self.table.rows
        for key in keys:
            was = self._parts.pop(key, None)
            if was is not None:
                touched[was] = None
                del self._rows[was][key]
                if not self._rows[was]:
                    del self._rows[was]
            now = self._part(key, rows[key]) if key in rows else None
            if now is not None:
                touched[now] = None
                self._parts[key] = now
                self._rows.setdefault(now, {})[key] = rows[key]
        return False

    @property
    def parts(self) -> Iterable[Hashable]:
        """Those that have a row."""
        return self._rows

    def of(self, part: Hashable) -> Mapping[Any, Any]:
        return self.table.rows if self._part is None else self._rows.get(part, {})


class Derivation(Generic[K, R]):
    """Keeps a table, `out`, equal to what `plan` makes of the rows of others.

    Where inputs are `Parted`, only the parts that changed are planned anew. That needs a plan of
    which the whole is the sum of its parts: what it makes of no part's rows at all may be in each
    of them, and beyond that no two have a key in common.

    What was planned last, `out` itself, may be an input: for what depends on what was so before.
    """

    def __init__(
        self,
        out: Table[K, R],
        plan: Callable[..., Mapping[K, R]],
        inputs: Sequence[Table[Any, Any] | Parted],
        settle: float = SETTLE_SECONDS,
    ) -> None:
        self.out, self.plan, self.settle = out, plan, settle
        self._inputs = [
            _Input(*each) if isinstance(each, Parted) else _Input(each, None) for each in inputs
        ]
        self._always: Collection[K] | None = None
        """The keys that are there without any part; None: nothing has been planned yet."""
        self._planned: dict[Hashable, Collection[K]] = {}
        """Those of each part."""

    @property
    def tables(self) -> list[Table[Any, Any]]:
        return [each.table for each in self._inputs]

    def run(self) -> None:
        """Plan what has changed."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """The same, with pauses in which everything else may have its turn.

        Nothing is planned before every input has been listed once: a plan made from half the
        world would take away what the other half needs.
        """
        if not all(table.listed for table in self.tables if table is not self.out):
            return
        parts: dict[Hashable, None] = {}
        has_all_changed = self._always is None
        for each in self._inputs:
            has_all_changed |= each.take(parts)
        put: dict[K, R] = {}
        gone: list[K] = []
        if has_all_changed:
            known = (part for each in self._inputs for part in each.parts)
            parts = {**dict.fromkeys(known), **parts}
            gone.extend(self._always or ())
            put.update(self._rows(None))
            self._always = frozenset(put)
        assert self._always is not None
        for number, part in enumerate(parts, 1):
            if number % PARTS_AT_ONCE == 0:
                yield
            rows = self._rows(part)
            gone.extend(self._planned.pop(part, ()))
            put.update(rows)
            if keys := tuple(key for key in rows if key not in self._always):
                self._planned[part] = keys
        if parts or has_all_changed:
            self.out.change(put, gone)

    def _rows(self, part: Hashable) -> Mapping[K, R]:
        return self.plan(*(each.of(part) for each in self._inputs))


async def derive(derivation: Derivation[Any, Any]) -> None:
    """Run it at each change, for ever."""
    with Table.bell(*derivation.tables) as changed:
        while True:
            changed.clear()
            for _ in derivation.steps():
                await asyncio.sleep(0)
            await changed.wait()
            await asyncio.sleep(derivation.settle)


def some(keys: Collection[K], rows: Mapping[K, R]) -> dict[K, R]:
    """A plan: of a table, the rows of these keys."""
    return {key: rows[key] for key in keys if key in rows}
