# SPDX-License-Identifier: Apache-2.0
"""Writing into the shared directory: whole files, and one number for one set of labels."""

from __future__ import annotations

import errno
import multiprocessing
from dataclasses import replace
from itertools import count, islice
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from pellicle.facts import Identity, NodeName
from pellicle.identity import candidates, canonical
from pellicle.sources.directory import (
    claim_identity,
    remove_endpoint,
    remove_node,
    write_endpoint,
    write_node,
)
from pellicle.sources.manifest import write
from pellicle.sources.resources import place, read
from tests.pure.sources.facts_made import n, offer, pod

P1 = pod("p1", "n1", "10.244.1.2", app="web")


def files(directory: Path) -> set[str]:
    """Everything below `directory`, temporary files too."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)) for path in found}


def test_records_lie_where_the_design_says(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    write_endpoint(tmp_path, P1)
    found = claim_identity(tmp_path, "default", {"app": "web"})
    assert files(tmp_path) == {
        "nodes/n1.yaml",
        "endpoints/n1/default.p1.yaml",
        f"identities/{found.number}.yaml",
    }
    for path in tmp_path.rglob("*.yaml"):
        assert path.stat().st_mode & 0o7777 == 0o644
        assert read("", path.read_bytes()).rejected == ()
        assert path.stat().st_nlink == 1


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    assert write_node(tmp_path, n(1)) is True
    before = (tmp_path / "nodes/n1.yaml").stat()
    assert write_node(tmp_path, n(1)) is False
    assert (tmp_path / "nodes/n1.yaml").stat() == before
    assert write_node(tmp_path, replace(n(1), offers=())) is True


def test_what_is_absent_is_removed_already(tmp_path: Path) -> None:
    assert remove_endpoint(tmp_path, P1) is False
    write_endpoint(tmp_path, P1)
    assert remove_endpoint(tmp_path, P1) is True
    assert remove_endpoint(tmp_path, P1) is False
    write_node(tmp_path, n(1))
    assert remove_node(tmp_path, NodeName("n1")) is True
    assert remove_node(tmp_path, NodeName("n1")) is False
    assert files(tmp_path) == set()


def test_a_directory_that_is_missing_is_not_made(tmp_path: Path) -> None:
    """It may be a mount that is not there; whatever were written would be hidden by it."""
    gone = tmp_path / "gone"
    for call in (
        lambda: write_node(gone, n(1)),
        lambda: write_endpoint(gone, P1),
        lambda: claim_identity(gone, "default", {}),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    assert not gone.exists()


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "nodes/n1.yaml").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_node(tmp_path, n(1))
    assert files(tmp_path) == set()


def _rewrite(directory: Path, times: int) -> None:
    for number in range(times):
        write_node(directory, replace(n(1), offers=(offer(1 + number % 250),)))


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    path = tmp_path / "nodes/n1.yaml"
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=_rewrite, args=(tmp_path, 1000))
    writer.start()
    seen = set()
    while writer.is_alive():
        sheet = read("nodes/n1.yaml", path.read_bytes())
        assert sheet.rejected == ()
        seen.add(sheet.documents[0].resource.offers[0].epoch)  # type: ignore[union-attr]
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 10, "the reader did not read while the writer wrote"
    assert files(tmp_path) == {"nodes/n1.yaml"}


Rivals = tuple[dict[str, str], dict[str, str]]
PROCESSES = 8


def rivals(wanted: int) -> list[Rivals]:
    """Pairs of labels whose first candidate is the same number."""
    firsts: dict[int, dict[str, str]] = {}
    found: list[Rivals] = []
    for number in count():
        labels = {"app": f"a{number}"}
        first = next(candidates(canonical("default", labels)))
        if first in firsts:
            found.append((firsts.pop(first), labels))
            if len(found) == wanted:
                return found
        firsts.setdefault(first, labels)
    raise AssertionError("unreachable")


def _claim_each(
    directory: Path, pairs: list[Rivals], side: int, together: Barrier, answers: SimpleQueue[object]
) -> None:
    """Claim one side of every pair, each at the same moment as all the other processes."""
    numbers = []
    for pair in pairs:
        together.wait(60)
        numbers.append(claim_identity(directory, "default", pair[side]).number)
    answers.put((side, numbers))


def test_processes_that_race_for_a_number_agree_on_who_has_it(tmp_path: Path) -> None:
    pairs = rivals(60)
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(PROCESSES), context.SimpleQueue()
    processes = [
        context.Process(target=_claim_each, args=(tmp_path, pairs, i % 2, together, answers))
        for i in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    said = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    sides = [{tuple(numbers) for side, numbers in said if side == which} for which in (0, 1)]
    assert [len(side) for side in sides] == [1, 1], "the same labels have several numbers"
    for pair, *numbers in zip(pairs, sides[0].pop(), sides[1].pop(), strict=True):
        assert numbers[0] != numbers[1], "one number for two sets of labels"
        for labels, number in zip(pair, numbers, strict=True):
            wanted = Identity(number, canonical("default", labels))
            assert number in list(islice(candidates(wanted.labels), 2))
            assert (tmp_path / place(wanted)).read_text() == write(wanted)
    assert len(files(tmp_path)) == 2 * len(pairs)


@pytest.mark.parametrize("content", [b"", b"\xff", b"kind: Identity\n", write(n(1)).encode()])
def test_a_number_whose_record_is_broken_is_passed_over(tmp_path: Path, content: bytes) -> None:
    """Its labels are not known: they may be anyone's."""
    first, second = islice(candidates(canonical("default", {"app": "web"})), 2)
    (tmp_path / "identities").mkdir()
    (tmp_path / f"identities/{first}.yaml").write_bytes(content)
    assert claim_identity(tmp_path, "default", {"app": "web"}).number == second
    assert (tmp_path / f"identities/{first}.yaml").read_bytes() == content


def test_when_no_number_is_left_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "identities").mkdir()
    for number in candidates(canonical("default", {})):
        (tmp_path / f"identities/{number}.yaml").write_text(
            write(Identity(number, canonical("other", {})))
        )
    with pytest.raises(OSError, match="belongs to other labels") as caught:
        claim_identity(tmp_path, "default", {})
    assert caught.value.errno == errno.ENOSPC


def test_a_link_that_leads_nowhere_is_not_followed_by_a_claim(tmp_path: Path) -> None:
    first, second = islice(candidates(canonical("default", {})), 2)
    (tmp_path / "identities").mkdir()
    (tmp_path / f"identities/{first}.yaml").symlink_to(tmp_path / "elsewhere")
    assert claim_identity(tmp_path, "default", {}).number == second
    assert not (tmp_path / "elsewhere").exists()
