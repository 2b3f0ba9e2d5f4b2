# SPDX-License-Identifier: Apache-2.0
"""On real (pseudo) terminals of several widths: nothing is wider, colours mean something."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from dataclasses import dataclass
from fcntl import ioctl

import pytest

from . import recorded
from .conftest import Agent

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEADLINE = 20.0
GREEN, RED = "\x1b[32m", "\x1b[1;31m"


@dataclass(frozen=True, slots=True)
class Seen:
    raw: str
    code: int

    @property
    def lines(self) -> list[str]:
        """Without colours."""
        return [ESCAPE.sub("", line) for line in re.split("[\r\n]+", self.raw)]


def on_terminal(columns: int, *words: str, press: tuple[bytes, bytes] | None = None) -> Seen:
    """Run pellicle on a terminal; `press`: (once this is seen, type that)."""
    child, terminal = pty.fork()
    if child == 0:
        environment = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        environment |= {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
        # What runs in the background hands on that Ctrl-C is ignored; whoever sits here does not.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, "-m", "pellicle", *words], environment)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    raw, deadline = b"", time.monotonic() + DEADLINE
    while select.select([terminal], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the program has ended and with it the terminal
            break
        raw += chunk
        if not chunk:
            break
        if press and press[0] in raw:
            os.write(terminal, press[1])
            press = None
    else:
        os.kill(child, signal.SIGKILL)
    os.close(terminal)
    _, code = os.waitpid(child, 0)
    return Seen(raw.decode(), os.waitstatus_to_exitcode(code))


COMMANDS = [
    ("status",),
    ("status", "-v"),
    ("encrypt", "status", "-v"),
    ("flows",),
    ("audit",),
]


@pytest.mark.parametrize("columns", [50, 80, 140])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_nothing_is_wider_than_the_terminal(
    words: tuple[str, ...], columns: int, agent: Agent
) -> None:
    agent.played = {
        "status": [recorded.DEGRADED],
        "encrypt": [recorded.ENCRYPT],
        "flows": recorded.FLOWS,
        "audit": [recorded.AUDIT_MONITOR],
    }
    seen = on_terminal(columns, *words, "--socket", str(agent.path))
    assert seen.code == (0 if words == ("flows",) else 1), seen.raw
    assert max(map(len, seen.lines)) <= columns


def test_each_flow_is_one_line_however_narrow(agent: Agent) -> None:
    agent.played = {"flows": recorded.FLOWS}
    for columns in (60, 80, 100, 140):
        seen = on_terminal(columns, "flows", "--socket", str(agent.path))
        assert len([line for line in seen.lines if line.strip()]) == 1 + len(recorded.FLOWS)


def test_health_is_green_and_trouble_is_red(agent: Agent) -> None:
    agent.played = {"status": [recorded.HEALTHY]}
    healthy = on_terminal(100, "status", "--socket", str(agent.path)).raw
    assert GREEN in healthy
    assert RED not in healthy
    agent.played = {"status": [recorded.OFF]}
    assert RED in on_terminal(100, "status", "--socket", str(agent.path)).raw


def test_following_is_a_table_in_place_until_ctrl_c(agent: Agent) -> None:
    agent.played = {"flows": recorded.FLOWS}
    agent.goes_on = True
    seen = on_terminal(
        80, "flows", "--follow", "--socket", str(agent.path), press=(b"Ctrl-C ends", b"\x03")
    )
    assert seen.code == 0, seen.raw
    assert "Aborted" not in seen.raw
    assert "1 clear · 1 dropped · 1 encrypted" in ESCAPE.sub("", seen.raw)
    assert max(map(len, seen.lines)) <= 80
