# SPDX-License-Identifier: Apache-2.0
"""The file of key events: only added to, and read whatever became of its last line."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pellicle.keys.history import Happened, KeyEvent
from pellicle.sources import trail
from pellicle.sources.trail import Trail

EVENTS = [KeyEvent(f"t{number}", Happened.MADE, number, f"{number:08x}") for number in range(50)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.jsonl"


def test_what_was_added_is_read_in_order_by_whoever_comes_next(path: Path) -> None:
    Trail(path).add(EVENTS[:2])
    Trail(path).add(EVENTS[2:3])
    assert list(Trail(path).rows()) == EVENTS[:3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_makes_no_file(path: Path) -> None:
    Trail(path).add([])
    assert list(Trail(path).rows()) == []
    assert not path.exists()


def test_half_a_line_spoils_nothing(path: Path) -> None:
    """The machine stopped in the middle of one."""
    Trail(path).add(EVENTS[:3])
    path.write_bytes(path.read_bytes()[:-9])
    Trail(path).add(EVENTS[3:4])
    assert list(Trail(path).rows()) == [*EVENTS[:2], EVENTS[3]]


def test_a_line_of_another_version_is_left_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"at": "t", "what": "unheard of"}\n[]\n\n\xff\n')
    Trail(path).add(EVENTS[:1])
    assert list(Trail(path).rows()) == EVENTS[:1]


def test_it_does_not_grow_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail, "MOST_BYTES", 500)
    for event in EVENTS:
        Trail(path).add([event])
    kept = list(Trail(path).rows())
    assert 5 < len(kept) < len(EVENTS)
    assert kept == EVENTS[-len(kept) :]
    assert sum(each.stat().st_size for each in path.parent.iterdir()) < 2 * 700


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Trail(path).add(EVENTS[:1])
