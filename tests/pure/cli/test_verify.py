# SPDX-License-Identifier: Apache-2.0
"""`pellicle audit verify`: it needs no agent, and says where a trail is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pellicle.cli import main
from pellicle.sources.audit_trail import AuditTrail, files


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    made = AuditTrail(tmp_path / "state" / "audit", lambda: "2026-11-28T00:00:00.000+00:00")
    for what in ("start", "interval", "exception", "start", "interval", "stop", "start"):
        made.add([(what, {"text": "ü" * 9})])
    return made


def verify(directory: Path | str, *words: str) -> Result:
    return CliRunner().invoke(main, ["audit", "verify", str(directory), *words])


def test_a_whole_trail(trail: AuditTrail) -> None:
    result = verify(trail.directory, "--head", trail.head)
    assert result.exit_code == 0, result.output
    for words in (
        "audit  the chain is whole",
        "7 in 1 files: 1 exception, 2 interval, 3 start, 1 stop",
        "record 1, 2026-11-28T00:00:00.000+00:00",
        trail.head,
        "1 times the agent had no last words",
    ):
        assert words in result.stdout
    told = json.loads(verify(trail.directory, "--json").stdout)
    assert (told["whole"], told["head"], told["killed"]) == (True, trail.head, 1)
    assert (told["first"]["seq"], told["last"]["seq"], told["broken"]) == (1, 7, None)


def test_a_changed_line(trail: AuditTrail) -> None:
    (path,) = files(trail.directory)
    path.write_bytes(path.read_bytes().replace(b'"exception"', b'"exceptiom"'))
    result = verify(trail.directory)
    assert result.exit_code == 1
    assert "the chain is broken" in result.stdout
    assert "000000000001.jsonl, line 4" in result.stdout
    assert "record 3 was changed, or record 4 was" in result.stdout
    told = json.loads(verify(trail.directory, "--json").stdout)
    assert told["broken"]["line"] == 4
    assert not told["whole"]


def test_an_end_that_was_cut_off_is_known_by_a_head(trail: AuditTrail) -> None:
    head, (path,) = trail.head, files(trail.directory)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(trail.directory).exit_code == 0
    result = verify(trail.directory, "--head", head)
    assert result.exit_code == 1
    assert "at its end" in result.stdout
    assert f"has never had the head {head}" in result.stdout


def test_half_a_line_is_no_break(trail: AuditTrail) -> None:
    (path,) = files(trail.directory)
    path.write_bytes(path.read_bytes()[:-30])
    result = verify(trail.directory)
    assert result.exit_code == 0
    assert "bytes of a record that was not finished" in result.stdout
    AuditTrail(trail.directory, lambda: "later").open()
    result = verify(trail.directory)
    assert result.exit_code == 0
    assert "owned up to, at 000000000001.jsonl:7" in result.stdout


def test_where_there_is_none(tmp_path: Path) -> None:
    result = verify(tmp_path)
    assert result.exit_code == 1
    assert "no audit trail is in" in result.stderr


def test_the_place_comes_from_the_environment_or_the_lab(trail: AuditTrail) -> None:
    state = {"PELLICLE_STATE_DIR": str(trail.directory.parent)}
    assert CliRunner().invoke(main, ["audit", "verify"], env=state).exit_code == 0
    result = CliRunner().invoke(main, ["audit", "verify", "--node", "n999"], env=state)
    assert "/run/pellicle-lab/n999/state/audit" in result.stderr
