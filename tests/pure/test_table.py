# SPDX-License-Identifier: Apache-2.0
"""The hall: one reconciler makes any target equal to a table, whatever happens to either."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pellicle.plans import Derivation, derive
from pellicle.table import FIRST_RETRY_SECONDS, Reconciler, Table, reconcile


@dataclass
class World:
    """A target in memory that can refuse, lose and drift; `log` keeps what was done to it."""

    rows: dict[str, int] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    is_blind: bool = False
    log: list[tuple[str, str]] = field(default_factory=list)

    def read(self) -> Mapping[str, int]:
        if self.is_blind:
            raise OSError(errno.EIO, "cannot be read")
        return dict(self.rows)

    def put(self, rows: Mapping[str, int]) -> Mapping[str, OSError]:
        self.log += [("put", key) for key in rows]
        good = {key: row for key, row in rows.items() if key not in self.refuses}
        self.rows.update(good)
        return {key: OSError(errno.ENOSPC, "full") for key in rows if key not in good}

    def remove(self, keys: Collection[str]) -> Mapping[str, OSError]:
        self.log += [("remove", key) for key in keys]
        refused = {key: OSError(errno.EBUSY, "busy") for key in keys if key in self.refuses}
        for key in keys:
            if key not in refused:
                self.rows.pop(key, None)
        return refused


def make(world: World, *, once: bool = False) -> Reconciler[str, int]:
    return Reconciler(Table("wanted"), world, Table("wanted up"), once=once)


def test_nothing_is_removed_before_the_writer_has_listed() -> None:
    world = World({"left by an earlier agent": 1})
    reconciler = make(world)
    assert reconciler.run(0) is None
    assert world.rows == {"left by an earlier agent": 1}
    assert reconciler.applied.rows == world.rows, "what stands is known before anything is wanted"
    reconciler.desired.replace({})
    reconciler.run(0)
    assert world.rows == {}


def test_new_rows_are_put_before_old_ones_go() -> None:
    world = World({"old": 1})
    reconciler = make(world)
    reconciler.desired.replace({"new": 2})
    reconciler.run(0)
    assert world.log == [("put", "new"), ("remove", "old")]
    assert reconciler.applied.rows == {"new": 2}


def test_a_refused_row_is_tried_again_with_back_off_and_stops_nothing() -> None:
    world = World(refuses={"a"})
    reconciler = make(world)
    reconciler.desired.replace({"a": 1, "b": 2})
    again = reconciler.run(100.0)
    assert world.rows == {"b": 2}
    assert again == 100.0 + FIRST_RETRY_SECONDS
    lag = reconciler.lag()
    assert (lag.desired, lag.applied, list(lag.failures)) == (2, 1, ["a"])
    assert lag.failures["a"].error.errno == errno.ENOSPC

    assert reconciler.run(100.5) == again, "not before its time"
    second = reconciler.run(again)
    assert second == again + 2 * FIRST_RETRY_SECONDS
    assert reconciler.lag().failures["a"].since == 100.0
    world.refuses.clear()
    assert reconciler.run(second) is None
    assert world.rows == {"a": 1, "b": 2}
    assert not reconciler.lag().failures


def test_another_row_in_the_place_of_a_refused_one_is_tried_at_once() -> None:
    """A pod's device that comes back under its name has another index than the one that went."""
    world = World(refuses={"a"})
    reconciler = make(world)
    reconciler.desired.replace({"a": 1})
    reconciler.run(100.0)
    world.refuses.clear()
    reconciler.desired.replace({"a": 2})
    assert reconciler.run(100.1) is None
    assert world.rows == {"a": 2}
    assert not reconciler.lag().failures


def test_since_when_the_world_is_behind() -> None:
    world = World(refuses={"a"})
    reconciler = make(world)
    reconciler.run(1)
    assert reconciler.lag().behind_since is None, "nothing is wanted yet"
    reconciler.desired.replace({"a": 1, "b": 2})
    reconciler.run(5)
    reconciler.run(9)
    assert reconciler.lag().behind_since == 5, "since it began, however often it was tried"
    world.refuses.clear()
    reconciler.run(100)
    assert reconciler.lag().behind_since is None
    world.is_blind = True
    reconciler.refresh()
    reconciler.run(200)
    assert reconciler.lag().behind_since == 200
    world.is_blind = False
    reconciler.run(300)
    assert reconciler.lag().behind_since is None


def test_what_is_put_once_and_vanished_is_behind() -> None:
    world = World()
    reconciler = make(world, once=True)
    reconciler.desired.replace({"a": 1})
    reconciler.run(1)
    assert reconciler.lag().behind_since is None
    world.rows.clear()
    reconciler.refresh()
    reconciler.run(2)
    assert reconciler.lag().behind_since == 2
    reconciler.desired.replace({"b": 1})
    reconciler.run(3)
    assert reconciler.lag().behind_since is None


def test_a_refused_row_that_nobody_wants_any_more_is_forgotten() -> None:
    world = World(refuses={"a"})
    reconciler = make(world)
    reconciler.desired.replace({"a": 1})
    reconciler.run(0)
    reconciler.desired.replace({})
    assert reconciler.run(0) is None
    assert not reconciler.lag().failures


def test_a_row_that_cannot_be_removed_stays_applied() -> None:
    world = World({"a": 1}, refuses={"a"})
    reconciler = make(world)
    reconciler.desired.replace({})
    assert reconciler.run(0) is not None
    assert reconciler.applied.rows == {"a": 1}


def test_drift_is_counted_and_healed_at_refresh() -> None:
    world = World()
    reconciler = make(world)
    reconciler.desired.replace({"a": 1, "b": 2, "c": 3})
    reconciler.run(0)
    del world.rows["a"]
    world.rows["b"] = 99
    world.rows["stranger"] = 5
    reconciler.refresh()
    reconciler.run(1)
    assert world.rows == {"a": 1, "b": 2, "c": 3}
    assert reconciler.lag().healed == 2


def test_a_once_row_is_never_put_twice() -> None:
    world = World()
    reconciler = make(world, once=True)
    reconciler.desired.replace({"sa": 1})
    reconciler.run(0)
    world.rows.clear()
    reconciler.refresh()
    reconciler.run(1)
    assert world.rows == {}
    assert reconciler.applied.rows == {}, "whoever planned it sees that it is gone"
    reconciler.desired.replace({})
    reconciler.run(2)
    reconciler.desired.replace({"sa": 1})
    reconciler.run(3)
    assert world.rows == {}, "not even after it was taken away and asked for again"


def test_a_once_row_that_never_stood_may_be_tried_again() -> None:
    world = World(refuses={"sa"})
    reconciler = make(world, once=True)
    reconciler.desired.replace({"sa": 1})
    again = reconciler.run(0)
    assert again is not None
    world.refuses.clear()
    reconciler.run(again)
    assert world.rows == {"sa": 1}


def test_a_world_that_cannot_be_read_is_left_alone_and_reported() -> None:
    world = World({"a": 1}, is_blind=True)
    reconciler = make(world)
    reconciler.desired.replace({})
    assert reconciler.run(0) == FIRST_RETRY_SECONDS
    assert world.rows == {"a": 1}
    assert "cannot be read" in str(reconciler.lag().unreadable)
    world.is_blind = False
    reconciler.run(1)
    assert world.rows == {}
    assert reconciler.lag().unreadable is None


ROWS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


class AnyHistory(RuleBasedStateMachine):
    """Whatever was wanted, refused, drifted and lost before: once all is calm, all is equal."""

    @initialize(rows=ROWS)
    def begin(self, rows: dict[str, int]) -> None:
        self.world = World(rows)
        self.reconciler = make(self.world)
        self.now = 0.0

    @rule(rows=ROWS)
    def want(self, rows: dict[str, int]) -> None:
        self.reconciler.desired.replace(rows)

    @rule(keys=st.sets(st.sampled_from("abcdef")))
    def refuse(self, keys: set[str]) -> None:
        self.world.refuses = keys

    @rule(rows=ROWS)
    def drift(self, rows: dict[str, int]) -> None:
        self.world.rows = dict(rows)

    @rule(is_blind=st.booleans())
    def blind(self, is_blind: bool) -> None:
        self.world.is_blind = is_blind

    @rule(seconds=st.floats(0, 100))
    def work(self, seconds: float) -> None:
        self.now += seconds
        self.reconciler.run(self.now)

    @invariant()
    def calm_is_equal(self) -> None:
        if not self.reconciler.desired.listed:
            return
        self.world.refuses, self.world.is_blind = set(), False
        self.now += 1000
        self.reconciler.refresh()
        self.reconciler.run(self.now)
        assert self.world.rows == dict(self.reconciler.desired.rows)
        assert dict(self.reconciler.applied.rows) == self.world.rows


TestAnyHistory = AnyHistory.TestCase


@given(ROWS)
def test_a_snapshot_does_not_change_under_its_reader(rows: dict[str, int]) -> None:
    table: Table[str, int] = Table("t")
    table.replace(rows)
    before = table.rows
    rows_then = dict(before)
    table.replace({"other": 1})
    rows["later"] = 1
    assert before == rows_then
    with pytest.raises(TypeError):
        before["x"] = 1  # type: ignore[index]


def merged(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {**left, **right}


async def test_derive_waits_for_all_its_inputs_and_follows_them() -> None:
    left: Table[str, int] = Table("left")
    right: Table[str, int] = Table("right")
    out: Table[str, int] = Table("out")
    task = asyncio.create_task(derive(Derivation(out, merged, [left, right], settle=0)))
    left.replace({"a": 1})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not out.listed
    right.replace({"b": 2})
    await _until(lambda: out.rows == {"a": 1, "b": 2})
    left.replace({})
    await _until(lambda: out.rows == {"b": 2})
    task.cancel()
    await asyncio.wait([task])
    assert not left.bells, "it no longer listens"


class AnyWriter(RuleBasedStateMachine):
    """Whatever is replaced and changed: who follows has looked wherever a row is another."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table[str, int] = Table("t")
        self.wanted: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.changes = self.table.follow()

    @rule(rows=ROWS)
    def replace(self, rows: dict[str, int]) -> None:
        self.wanted = rows
        self.table.replace(rows)

    @rule(put=ROWS, gone=st.sets(st.sampled_from("abcdef")))
    def change(self, put: dict[str, int], gone: set[str]) -> None:
        self.wanted = {k: row for k, row in self.wanted.items() if k not in gone} | put
        with Table.bell(self.table) as bell:
            is_news = not self.table.listed or self.wanted != self.table.rows
            self.table.change(put, gone)
            assert bell.is_set() == is_news

    @rule()
    def look(self) -> None:
        for key in self.changes.take():
            self.seen.pop(key, None)
            if key in self.table.rows:
                self.seen[key] = self.table.rows[key]
        assert self.seen == self.wanted

    @invariant()
    def holds_what_was_written(self) -> None:
        assert self.table.rows == self.wanted


TestAnyWriter = AnyWriter.TestCase


async def test_equal_content_wakes_nobody() -> None:
    table: Table[str, int] = Table("t")
    table.replace({"a": 1})
    with Table.bell(table) as bell:
        table.replace({"a": 1})
        assert not bell.is_set()
        table.replace({"a": 2})
        assert bell.is_set()


async def test_reconcile_runs_at_changes_retries_and_refreshes() -> None:
    world = World(refuses={"b"})
    reconciler = make(world)
    now = asyncio.get_running_loop().time
    task = asyncio.create_task(reconcile(reconciler, now, refresh_seconds=0.05))
    reconciler.desired.replace({"a": 1, "b": 2})
    await _until(lambda: world.rows == {"a": 1})
    world.refuses.clear()
    await _until(lambda: world.rows == {"a": 1, "b": 2}, FIRST_RETRY_SECONDS * 5)
    world.rows.clear()
    await _until(lambda: world.rows == {"a": 1, "b": 2})
    task.cancel()


async def _until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def test_rows_that_are_equal_wake_nobody_and_are_the_new_ones() -> None:
    """A key that has served is taken out of its row, which is then as equal as before."""

    @dataclass(frozen=True)
    class Row:
        number: int
        key: bytes = field(default=b"", compare=False)

    table: Table[str, Row] = Table("sas")
    table.replace({"a": Row(1, b"secret")})
    with Table.bell(table) as bell:
        table.replace({"a": Row(1)})
        assert not bell.is_set()
        assert table.rows["a"].key == b""
        table.replace({"a": Row(2)})
        assert bell.is_set()
