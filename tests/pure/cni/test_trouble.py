# SPDX-License-Identifier: Apache-2.0
"""Agents that refuse, are dead, hang, go away or talk nonsense."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.pure.cni.runtime import COMMANDS, PLUGIN, RESULT, Agent, call, network, says


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [2, 3, 5, 7, 11, 50, 100, 101])
def test_the_agents_errors_pass_through(agent: Agent, command: str, code: int) -> None:
    agent.answer = says({"error": {"code": code, "message": "no", "hint": "do this"}})
    assert call(command, network(agent.path)).error(code) == "no | do this"


def expected(command: str) -> int:
    """Try again later; for STATUS there is a code of its own."""
    return 50 if command == "STATUS" else 11


@pytest.mark.parametrize("command", COMMANDS)
def test_no_agent(tmp_path: Path, command: str) -> None:
    words = call(command, network(tmp_path / "none")).error(expected(command))
    assert "agent is not running on this node" in words
    assert "systemctl status pellicle" in words
    assert '"socket"' in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_stopped(tmp_path: Path, command: str) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    words = call(command, network(path)).error(expected(command))
    assert "agent has stopped: nobody listens" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_goes_away_while_it_answers(agent: Agent, command: str) -> None:
    agent.answer = lambda connection: connection.sendall(b'{"ok"')
    words = call(command, network(agent.path)).error(expected(command))
    assert "went away before it answered" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_hangs(agent: Agent, command: str) -> None:
    enough = threading.Event()
    agent.answer = lambda _: (enough.wait(10), None)[1]
    done = call(command, network(agent.path, timeout=0.3))
    enough.set()
    assert "did not answer within 0.3 s" in done.error(expected(command))
    assert 0.3 <= done.seconds < 5


def test_an_agent_that_sends_a_byte_now_and_then_does_not_prolong_the_time(agent: Agent) -> None:
    def dribble(connection: socket.socket) -> None:
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    agent.answer = dribble
    done = call("ADD", network(agent.path, timeout=0.4))
    assert "did not answer within 0.4 s" in done.error(11)
    assert done.seconds < 3


def test_a_full_queue_is_waited_for_and_not_taken_for_a_dead_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        busy = call("ADD", network(path, timeout=0.3))
        assert "did not answer within 0.3 s" in busy.error(11)
        made = Agent(path, says({"ok": RESULT}))
        waiting = threading.Timer(0.3, lambda: (listener.accept()[0].close(), made.serve(listener)))
        waiting.start()
        done = call("ADD", network(path))
        listener.shutdown(socket.SHUT_RDWR)
        waiting.join(10)
    assert (done.exit, done.document) == (0, RESULT)


GARBAGE = (
    b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"ok": 1}\n', b'{"error": "no"}\n', b"\xff\xfe\n",
    b'{"error": {"code": "7"}}\n', b"[" * 90_000 + b"\n", b"x" * ((1 << 20) + 2),
)  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda raw: repr(raw[:24]))
def test_an_answer_that_is_none_is_named(agent: Agent, garbage: bytes) -> None:
    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it need not read all of it
            connection.sendall(garbage)

    agent.answer = send
    words = call("ADD", network(agent.path)).error(6)
    assert "the agent's answer cannot be read" in words
    assert "of the same version?" in words


def test_without_root_it_says_so(agent: Agent) -> None:
    agent.path.chmod(0)
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        plugin = Path(shutil.copy(PLUGIN, place))
        user = 65534 if os.getuid() == 0 else None
        done = call("ADD", network(agent.path), plugin=plugin, user=user)
    assert "does not run as root" in done.error(11)
