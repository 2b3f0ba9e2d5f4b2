# SPDX-License-Identifier: Apache-2.0
"""The audit trail: whatever is done to it is found and named, and no crash breaks it."""

from __future__ import annotations

import errno
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellicle.sources import audit_trail
from pellicle.sources.audit_trail import AuditTrail, files, verify
from pellicle.wire.chain import NOTHING, Walk, lines

FAST = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def trail(directory: Path, most_bytes: int = 700, most_files: int = 100) -> AuditTrail:
    ticks = count()
    return AuditTrail(
        directory, lambda: f"t{next(ticks):06}", most_bytes=most_bytes, most_files=most_files
    )


def written(directory: Path, records: int, **limits: int) -> AuditTrail:
    """A trail of so many records of its own, and those of its rotations."""
    made = trail(directory, **limits)
    for number in range(records):
        made.add([("interval", {"number": number, "rows": [["sent", "n1", "n2"]]})])
    return made


def whole(directory: Path) -> Walk:
    walk = verify(directory)
    assert walk.broken is None
    return walk


def all_lines(directory: Path) -> list[bytes]:
    return [line for path in files(directory) for line in lines(path.read_bytes())]


def refill(directory: Path, source: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty records in several files."""
    directory = tmp_path_factory.mktemp("trail") / "audit"
    written(directory, 20)
    assert len(files(directory)) > 4
    return directory


def head_of(directory: Path) -> str:
    return whole(directory).link.head


# --- as it should be ---------------------------------------------------------------------------


def test_records_are_chained_through_files_and_restarts(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "audit"
    written(directory, 5)
    made = written(directory, 5)
    walk = whole(directory)
    assert (walk.link.seq, walk.link.head) == (made.seq, made.head)
    assert walk.first is not None
    assert (walk.first.seq, walk.first.prev) == (1, NOTHING)
    assert walk.link.seq == walk.records == len(all_lines(directory))
    told = [record.body["number"] for record in trail(directory).records("interval")]
    assert told == [*range(5), *range(5)]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(directory)} == {0o600}


def test_the_newest_of_a_kind_is_found_wherever_it_lies(tmp_path: Path) -> None:
    made = written(tmp_path, 3)
    made.add([("start", {"version": "1"})])
    for number in range(9):
        made.add([("interval", {"number": number, "rows": []})])
    newest = made.newest("start")
    assert newest is not None
    assert newest.body == {"version": "1"}
    assert made.newest("unheard of") is None
    assert trail(tmp_path / "none").newest("start") is None


def test_records_after_a_moment(tmp_path: Path) -> None:
    written(tmp_path, 20)
    moments = [record.at for record in trail(tmp_path).records()]
    for at in (0, 1, 7, len(moments) - 1):
        assert [each.at for each in trail(tmp_path).records(after=moments[at])] == moments[at:]


def test_it_does_not_grow_without_end_and_says_what_is_gone(tmp_path: Path) -> None:
    made = trail(tmp_path, most_files=3)
    heads = [made.add([("interval", {"number": number})]) for number in range(40)]
    assert len(files(tmp_path)) == 3
    walk = whole(tmp_path)
    assert walk.first is not None
    assert walk.first.seq > 1
    assert verify(tmp_path, [heads[-5].head]).broken is None
    assert verify(tmp_path, [walk.first.prev]).broken is None
    assert verify(tmp_path, [heads[0].head]).broken is not None


def test_it_can_be_read_while_its_oldest_file_goes(tmp_path: Path) -> None:
    written(tmp_path, 20)
    found = trail(tmp_path).records()
    first = next(found)
    for path in files(tmp_path)[1:4]:
        path.unlink()
    assert [record.seq for record in found][-1] > first.seq


# --- what is done to it ------------------------------------------------------------------------


@FAST
@given(data=st.data())
def test_any_flipped_bit_is_found(original: Path, tmp_path: Path, data: st.DataObject) -> None:
    directory, head = tmp_path / "audit", head_of(original)
    refill(directory, original)
    path = data.draw(st.sampled_from(files(directory)))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    walk = verify(directory, [head])
    assert walk.broken is not None
    assert walk.broken.file
    if path != files(directory)[-1]:
        place = (files(directory).index(path), raw[:at].count(b"\n") + 1)
        found = [each.name for each in files(directory)].index(walk.broken.file)
        assert (found, walk.broken.line) in {place, (place[0], place[1] + 1), (place[0] + 1, 1)}


@FAST
@given(data=st.data())
def test_any_truncation_is_found(original: Path, tmp_path: Path, data: st.DataObject) -> None:
    directory, head = tmp_path / "audit", head_of(original)
    refill(directory, original)
    path = data.draw(st.sampled_from(files(directory)))
    path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size - 1))])
    walk = verify(directory, [head])
    assert walk.broken is not None
    if path == files(directory)[-1]:
        assert "never had the head" in walk.broken.why


def rewritten(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """The same records in one file, with some change."""
    found = all_lines(directory)
    for path in files(directory)[1:]:
        path.unlink()
    files(directory)[0].write_bytes(b"".join(change(found)))


@dataclass(frozen=True)
class Case:
    says: str
    change: Callable[[list[bytes]], list[bytes]]
    line: int
    why: str
    looks_like: str


def forged(line: bytes) -> bytes:
    return line.replace(b'"n2"', b'"n3"')


CASES = [
    Case("a line removed", lambda x: x[:4] + x[5:], 5, "after record 4 comes 6", "taken away"),
    Case("two removed", lambda x: x[:4] + x[6:], 5, "after record 4 comes 7", "taken away"),
    Case("the first removed", lambda x: x[1:], 1, "begins with record 2", "oldest files"),
    Case("two swapped", lambda x: [*x[:4], x[5], x[4], *x[6:]], 5, "comes 6", "another order"),
    Case("one twice", lambda x: [*x[:5], x[4], *x[5:]], 6, "record 5 comes after 5", "copied"),
    Case(
        "one changed", lambda x: [*x[:4], forged(x[4]), *x[5:]], 6, "record 6 does not name",
        "record 5 was changed",
    ),
    Case(
        "one numbered anew", lambda x: [*x[:4], x[4].replace(b'"seq":5', b'"seq":7'), *x[5:]], 5,
        "record 7 comes in place of 5", "number was changed",
    ),
    Case("one garbled", lambda x: [*x[:4], b"{}\n", *x[5:]], 5, "is no record", "was changed"),
    Case("one in two", lambda x: [*x[:4], x[4][:9] + b"\n" + x[4][9:], *x[5:]], 5, "no record", ""),
    Case("one added", lambda x: [*x[:4], x[9], *x[4:]], 5, "after record 4 comes 10", ""),
    Case("the end cut off", lambda x: x[:-3], 0, "has never had the head", "its end was cut off"),
    Case("all but the end", lambda x: x[-3:], 1, "begins with record", "oldest files"),
    Case("another beginning", lambda x: [x[0].replace(b'"prev":"0', b'"prev":"1'), *x[1:]], 1,
         "record 1 names one before it", "beginning"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_what_was_done_is_named_with_its_place(case: Case, original: Path, tmp_path: Path) -> None:
    directory, head = tmp_path / "audit", head_of(original)
    refill(directory, original)
    rewritten(directory, lambda x: x)
    assert verify(directory, [head]).broken is None
    rewritten(directory, case.change)
    broken = verify(directory, [head]).broken
    assert broken is not None
    assert (broken.file, broken.line) == ("000000000001.jsonl", case.line)
    assert case.why in broken.why
    assert case.looks_like in broken.looks_like


@FAST
@given(data=st.data())
def test_any_other_order_or_choice_of_lines_is_found(
    original: Path, tmp_path: Path, data: st.DataObject
) -> None:
    directory, head = tmp_path / "audit", head_of(original)
    refill(directory, original)
    found = all_lines(directory)
    other = data.draw(st.lists(st.sampled_from(found), max_size=len(found) + 2))
    rewritten(directory, lambda _: other)
    assert (verify(directory, [head]).broken is None) == (other == found)


def test_any_file_taken_away_is_found(original: Path, tmp_path: Path) -> None:
    directory, head = tmp_path / "audit", head_of(original)
    for at in range(len(files(original))):
        refill(directory, original)
        files(directory)[at].unlink()
        assert verify(directory, [head]).broken is not None


def test_more_old_files_taken_away_than_the_trail_says_is_found(tmp_path: Path) -> None:
    written(tmp_path, 40, most_files=4)
    whole(tmp_path)
    files(tmp_path)[0].unlink()
    broken = verify(tmp_path).broken
    assert broken is not None
    assert broken.looks_like == "the oldest files were taken away"


def test_a_trail_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no audit trail is in"):
        verify(tmp_path)


# --- what a crash does to it -------------------------------------------------------------------


def crashes(directory: Path, before: bytes) -> list[bytes]:
    """What the newest file may be after a crash while all behind `before` was written."""
    after = files(directory)[-1].read_bytes()
    assert after.startswith(before)
    return [after[:end] for end in range(len(before), len(after) + 1)]


def test_a_crash_at_any_byte_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    """Also one while the agent owns up to the one before."""
    directory, saved = tmp_path / "audit", tmp_path / "saved"
    made = written(directory, 3, most_bytes=10_000)
    before = files(directory)[-1].read_bytes()
    made.add([("exception", {"text": "ä"}), ("interval", {"number": 4})])
    for raw in crashes(directory, before):
        files(directory)[-1].write_bytes(raw)
        walk = whole(directory)
        assert walk.half == len(raw) - raw.rindex(b"\n") - 1
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(directory, saved)
        link = trail(directory).open()
        after = whole(directory)
        assert (after.link, after.half) == (link, 0)
        assert len(after.cuts) == bool(walk.half)
        assert after.records == walk.records + len(after.cuts)
        for second in crashes(directory, raw)[:: 1 if len(raw) % 128 == 0 else 97]:
            files(directory)[-1].write_bytes(second)
            assert verify(directory).broken is None or second.endswith(b"\n")
            trail(directory, 10_000).add([("start", {})])
            assert whole(directory).half == 0
            assert all_lines(directory)[: walk.records] == all_lines(saved)[: walk.records]
        refill(directory, saved)


@FAST
@given(garbage=st.binary(max_size=60), at=st.integers(0, 5))
def test_whatever_the_disk_makes_of_the_end_the_chain_goes_on(
    tmp_path: Path, garbage: bytes, at: int
) -> None:
    directory = tmp_path / "audit"
    shutil.rmtree(directory, ignore_errors=True)
    for number in range(at):
        trail(directory, 10_000).add([("interval", {"number": number})])
    trail(directory, 10_000).add([])
    with files(directory)[-1].open("ab") as file:
        file.write(garbage)
    trail(directory, 10_000).add([("start", {})])
    walk = whole(directory)
    assert walk.records == at + 1 + bool(garbage)
    assert len(walk.cuts) == bool(garbage)


def test_a_crash_while_a_new_file_is_begun(tmp_path: Path) -> None:
    directory, saved = tmp_path / "audit", tmp_path / "saved"
    written(directory, 9, most_files=3)
    while files(directory)[-1].stat().st_size < 700:
        trail(directory, most_files=3).add([("interval", {"number": 0})])
    shutil.copytree(directory, saved)
    trail(directory, most_files=3).add([("interval", {"number": 1})])
    begun = files(directory)[-1]
    first = lines(begun.read_bytes())[0]
    for end in range(0, len(first) + 1, 3):
        refill(directory, saved)
        begun.write_bytes(first[:end])
        assert verify(directory).broken is None
        made = written(directory, 9, most_files=3)
        assert whole(directory).link.head == made.head
        assert len(files(directory)) == 3


def test_a_full_disk_is_said_and_owned_up_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = written(tmp_path, 3, most_bytes=10_000)
    write, room = audit_trail.os.write, [10]

    def full(descriptor: int, raw: bytes) -> int:
        taken, room[0] = min(len(raw), room[0]), room[0] - min(len(raw), room[0])
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, raw[:taken])

    monkeypatch.setattr(audit_trail.os, "write", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            made.add([("interval", {"number": 3})])
    assert (made.seq, made.head) == (0, "")
    room[0] = 10_000
    made.add([("interval", {"number": 4})])
    walk = whole(tmp_path)
    assert len(walk.cuts) == 1
    assert [each.body["number"] for each in made.records("interval")] == [0, 1, 2, 4]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    directory.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (directory / "000000000001.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        trail(directory).add([("start", {})])
