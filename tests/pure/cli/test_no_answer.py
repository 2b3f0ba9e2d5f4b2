# SPDX-License-Identifier: Apache-2.0
"""Which agent is asked, and what becomes of it when there is none, or none that makes sense."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pellicle.cli import call

from . import recorded
from .conftest import Agent, Pellicle

ASKING = [
    ("status",),
    ("encrypt", "status"),
    ("flows",),
    ("map", "list"),
    ("map", "dump", "ipcache"),
    ("metrics",),
]


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_where_no_agent_runs_everything_says_so_and_what_to_do(
    words: tuple[str, ...], tmp_path: Path, pellicle: Pellicle
) -> None:
    missing = tmp_path / "no" / "agent.sock"
    result = pellicle(*words, socket=missing)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"no agent runs here: {missing} does not exist." in result.stderr
    assert "--socket" in result.stderr or "--node" in result.stderr
    assert "Traceback" not in result.stderr

    told = json.loads(pellicle(*words, "--json", socket=missing).stdout)
    assert told["error"]["code"] == 2
    assert told["error"]["hint"]


def test_a_socket_that_its_agent_left_behind_is_told_from_none(
    tmp_path: Path, pellicle: Pellicle
) -> None:
    path = tmp_path / "dead" / "agent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    result = pellicle("status", socket=path)
    assert result.exit_code == 2
    assert "it left its socket behind" in result.stderr


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "ended without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "makes no sense here: HTTP/1.1 400 Bad Request"),
        (b'{"ok": {"node": "n1"}', "broke off in mid-answer"),
        (b'{"well": {}}\n', "makes no sense here"),
        (b'[1, 2]\n{"ok": {}}\n', "makes no sense here"),
        (b'{"error": "no"}\n', "makes no sense here"),
        (b"\xff\xfe\n", "makes no sense here"),
        (b"x" * 5000 + b"\n", "x…"),
        (b'{"ok": {"node": "n1"}}\n', "missing required field `healthy`"),
        (b'{"ok": {"node": 1, "healthy": 7, "encryption": "on"}}\n', "`$.node`"),
    ],
)
def test_a_garbled_answer_is_one_sentence(
    said: bytes, complaint: str, agent: Agent, pellicle: Pellicle
) -> None:
    agent.played = said
    result = pellicle("status")
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr) < 600


def test_what_the_agent_refuses_is_said_in_its_words(agent: Agent, pellicle: Pellicle) -> None:
    error = {"code": 7, "message": "no map 'x'", "hint": "known: counts, ipcache"}
    agent.played = json.dumps({"error": error}).encode() + b"\n"
    result = pellicle("map", "dump", "x")
    assert result.exit_code == 1
    assert "the agent says: no map 'x'" in result.stderr
    assert "known: counts, ipcache" in result.stderr


def test_an_agent_that_hangs_is_not_waited_for(
    tmp_path: Path, pellicle: Pellicle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "PATIENCE", 0.05)
    path = tmp_path / "hung" / "agent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        result = pellicle("status", socket=path)
    assert result.exit_code == 2
    assert "did not answer within" in result.stderr


def test_the_socket_may_be_named_outright(agent: Agent, pellicle: Pellicle) -> None:
    agent.played = {"status": [recorded.HEALTHY], "encrypt": [recorded.ENCRYPT]}
    assert pellicle("status", "--socket", str(agent.path), socket=None).exit_code == 0


def test_node_names_an_agent_of_the_lab(pellicle: Pellicle) -> None:
    result = pellicle("status", "--node", "n999")
    assert "/run/pellicle-lab/n999/agent.sock" in result.stderr


def test_socket_and_node_together_are_refused_in_either_order(pellicle: Pellicle) -> None:
    for words in (("--socket", "/x", "--node", "n1"), ("--node", "n1", "--socket", "/x")):
        result = pellicle("status", *words)
        assert result.exit_code == 64
        assert "give one of them" in result.stderr
