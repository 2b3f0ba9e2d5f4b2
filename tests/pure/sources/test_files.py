# SPDX-License-Identifier: Apache-2.0
"""Writing into the shared directory: whole files, and one number for one set of labels."""

from __future__ import annotations

import errno
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
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
from pellicle.sources.resources import place, read, write
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


def _claim_all(directory: Path, order: int) -> list[tuple[int, int]]:
    """Claim 40 sets of labels, each process in another order; (labels, number) each."""
    indices = [(index * 7 + order * 11) % 40 for index in range(40)]
    return [
        (index, claim_identity(directory, "default", {"app": f"a{index}"}).number)
        for index in indices
    ]


def test_eight_processes_agree_on_every_number(tmp_path: Path) -> None:
    # Their first candidates are taken, so that the race is about the second ones too.
    for index in range(0, 40, 4):
        wanted = canonical("default", {"app": f"a{index}"})
        taken = Identity(next(candidates(wanted)), canonical("other", {"taken": str(index)}))
        path = tmp_path / place(taken)
        path.parent.mkdir(exist_ok=True)
        path.write_text(write(taken))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(8, mp_context=context) as pool:
        claims = [pool.submit(_claim_all, tmp_path, order) for order in range(8)]
        answers = [dict(claim.result(timeout=120)) for claim in claims]
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0].values())) == 40
    for index, number in answers[0].items():
        wanted = canonical("default", {"app": f"a{index}"})
        assert number == list(islice(candidates(wanted), 2))[1 if index % 4 == 0 else 0]
    assert len(files(tmp_path)) == 50


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
