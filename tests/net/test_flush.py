# SPDX-License-Identifier: Apache-2.0
"""`pellicle encrypt flush` against the kernel's policies, in a namespace of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pellicle.encryption import policies
from pellicle.facts import Engine
from pellicle.kernel import netns
from pellicle.kernel.xfrm import Xfrm
from pellicle.wire.xfrm import Policy
from tests.pure.cli.test_terminal import Seen, on_terminal
from tests.pure.sas_made import N2, PEER, rows, sa

HERE = f"pellicle-t{os.getpid()}-flush"
OURS = set(
    policies.plan({Engine.XFRM: True}, rows(*(sa(n) for n in range(4))), {N2: PEER}).values()
)  # fmt: skip
OTHERS = {replace(policy, if_id=if_id) for policy in OURS for if_id in (0, 0x70656C6D)}


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    assert os.geteuid() == 0, "network namespaces are made: run as root"
    try:
        netns.create(HERE)
        with Xfrm(HERE) as opened:
            assert opened.put_policies([*OURS, *OTHERS]) == {}
            yield opened
    finally:
        netns.delete(HERE)


def standing(xfrm: Xfrm) -> set[Policy]:
    return set(xfrm.policies())


def flush(*words: str, run_dir: Path = Path("/nowhere")) -> subprocess.CompletedProcess[str]:
    """Without a terminal."""
    return netns.run_in(
        HERE,
        [sys.executable, "-m", "pellicle", "encrypt", "flush", *words],
        env={**os.environ, "PELLICLE_RUN_DIR": str(run_dir)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_what_is_ours_goes_and_what_is_not_stays(xfrm: Xfrm) -> None:
    done = flush("--yes")
    assert done.returncode == 0, done.stderr
    assert standing(xfrm) == OTHERS
    assert ["192.0.2.2", "0", "0", str(len(OURS) - 4)] in map(str.split, done.stdout.splitlines())
    assert "No agent runs here" in done.stdout
    assert f"{len(OURS)} removed." in done.stdout
    again = flush()
    assert (again.returncode, standing(xfrm)) == (0, OTHERS)
    assert "nothing of Pellicle's" in again.stdout


def test_a_dry_run_removes_nothing(xfrm: Xfrm) -> None:
    done = flush("--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert standing(xfrm) == OURS | OTHERS
    answer = told(done)
    assert (answer["policies"], answer["removed"], answer["failures"]) == (len(OURS), False, [])
    assert [row["peer"] for row in answer["peers"]] == [None, "192.0.2.2"]


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["words", "JSON"])
def test_with_nobody_to_ask_it_refuses_and_says_what_to_add(
    xfrm: Xfrm, words: tuple[str, ...]
) -> None:
    done = flush(*words)
    assert done.returncode == 1
    assert standing(xfrm) == OURS | OTHERS
    assert "Add --yes" in (told(done)["error"]["hint"] if words else done.stderr)


def test_json_says_what_was_removed_and_that_an_agent_runs(xfrm: Xfrm, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen()
        answer = told(flush("--yes", "--json", run_dir=tmp_path))
    assert (answer["policies"], answer["removed"]) == (len(OURS), True)
    assert answer["agent_runs"] is True
    assert standing(xfrm) == OTHERS


def answered(answer: bytes) -> Seen:
    """On a terminal, with somebody who answers."""
    with netns.inside(HERE):
        return on_terminal(100, "encrypt", "flush", press=(b"[y/N]", answer))


def test_on_a_terminal_it_asks_first(xfrm: Xfrm) -> None:
    refused = answered(b"\n")
    assert (refused.code, standing(xfrm)) == (1, OURS | OTHERS)
    agreed = answered(b"y\n")
    assert (agreed.code, standing(xfrm)) == (0, OTHERS)
    assert f"{len(OURS)} removed." in agreed.raw
