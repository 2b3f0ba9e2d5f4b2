# SPDX-License-Identifier: Apache-2.0
"""A real unix socket that plays an agent's recorded answers, and the command line to ask it."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pellicle.cli import main

Played = Mapping[str, Sequence[Any]] | bytes
"""The rows that each call is answered with, or bytes that any call is answered with."""


@dataclass(slots=True)
class Agent:
    """Where it listens, what it plays, and what it was asked."""

    path: Path
    played: Played = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    goes_on: bool = False
    """Whether it keeps the connection after its last row, until the caller goes."""

    def answer(self, request: bytes) -> bytes:
        if isinstance(self.played, bytes):
            return self.played
        asked = json.loads(request)
        self.asked.append(asked)
        rows = self.played.get(asked["call"])
        if rows is None:
            error = {"code": 1, "message": "unknown call", "hint": "known: none"}
            return json.dumps({"error": error}).encode() + b"\n"
        return b"".join(json.dumps({"ok": row}).encode() + b"\n" for row in rows)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    playing = Agent(tmp_path / "agent.sock")

    class Conversation(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(BrokenPipeError):
                self.wfile.write(playing.answer(self.rfile.readline()))
            if playing.goes_on:
                self.rfile.read()

    with socketserver.ThreadingUnixStreamServer(str(playing.path), Conversation) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield playing
        server.shutdown()
        thread.join()


Pellicle = Callable[..., Result]


@pytest.fixture
def pellicle(agent: Agent) -> Pellicle:
    """Run a command line; every command that asks an agent asks `agent`."""

    def run(*words: str, socket: Path | None = agent.path) -> Result:
        environment = {"PELLICLE_RUN_DIR": str(socket.parent)} if socket else {}
        return CliRunner().invoke(main, words, env=environment)

    return run
