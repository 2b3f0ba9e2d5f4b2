# SPDX-License-Identifier: Apache-2.0
"""The live monitor on a real (pseudo) terminal, against a real socket of the agent's kind."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from pellicle.serve import Request, listen, serve
from pellicle.ui.answers import Flow, Status, read
from pellicle.ui.monitor import Monitor, sparkline

from . import recorded
from .conftest import Pellicle

DEADLINE = 20.0
ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def flow(number: int, verdict: str = "encrypted", reason: str = "SEALED") -> dict[str, Any]:
    return {
        **recorded.FLOWS[0], "time": 1000.0 + number, "verdict": verdict, "reason": reason,
        "source": {"address": f"10.244.1.{number}", "port": 4000 + number},
    }  # fmt: skip


@dataclass
class Agent:
    """What it says next; it counts a thousand packets more each time it is asked."""

    path: Path
    asked: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    more: list[dict[str, Any]] = field(default_factory=list)

    async def status(self, _: Request) -> AsyncIterator[Any]:
        self.count += 1000
        counts = [
            {
                "reason": "SEALED",
                "verdict": "encrypted",
                "packets": self.count,
                "bytes": self.count,
            },
            {"reason": "CLEAR_LINK", "verdict": "clear", "packets": 7, "bytes": 700},
            {"reason": "DROP_NO_KEY", "verdict": "dropped", "packets": 0, "bytes": 0},
        ]
        audited = {"reason": "DROP_NO_KEY", "verdict": "audited", "packets": 9, "bytes": 900}
        yield {**recorded.HEALTHY, "counts": counts, "audited": [audited]}

    async def flows(self, request: Request) -> AsyncIterator[Any]:
        self.asked.append(dict(request.arguments))
        for number in range(1, 4):
            yield flow(number)
        yield flow(4, "dropped", "DROP_NO_KEY")
        yield flow(5, "audited", "DROP_NO_KEY")
        while request.arguments.get("follow"):
            await asyncio.sleep(0.05)
            while self.more:
                yield self.more.pop(0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    playing = Agent(tmp_path / "agent.sock")
    loop = asyncio.new_event_loop()
    server = listen(playing.path)
    task = loop.create_task(serve(server, {"status": playing.status, "flows": playing.flows}))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)

    thread = threading.Thread(target=run)
    thread.start()
    yield playing
    loop.call_soon_threadsafe(task.cancel)
    thread.join()
    server.close()
    loop.close()


class Terminal:
    """A monitor on a terminal of its own."""

    def __init__(
        self,
        agent: Agent,
        *words: str,
        columns: int = 80,
        lines: int = 24,
        run: Sequence[str] = ("-m", "pellicle"),
    ) -> None:
        self.child, self.descriptor = pty.fork()
        if self.child == 0:
            environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8"}
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            argv = [sys.executable, *run, "monitor", "--socket", str(agent.path), *words]
            os.execve(sys.executable, argv, environment)
        self.before = termios.tcgetattr(self.descriptor)
        self.raw, self.code = b"", -1
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def until(self, is_so: Callable[[str], bool], what: str) -> str:
        """Read until the picture is so; the picture."""
        deadline = time.monotonic() + DEADLINE
        self.raw = b""
        while time.monotonic() < deadline:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.raw += os.read(self.descriptor, 65536)
            picture = self.picture
            if is_so(picture):
                return picture
        raise AssertionError(f"never {what}: {self.picture}")

    @property
    def picture(self) -> str:
        """The last whole one, without colours; each is drawn from the home position on."""
        parts = self.raw.split(b"\x1b[H")
        return ESCAPE.sub(b"", parts[-2] if len(parts) > 2 else b"").decode("utf-8", "replace")

    def end(self) -> bytes:
        """All that it says until it ends; its exit code in `code`."""
        said, deadline = b"", time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                if select.select([self.descriptor], [], [], 0.1)[0]:
                    said += os.read(self.descriptor, 65536)
            except OSError:
                break
        else:
            os.kill(self.child, signal.SIGKILL)
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        os.close(self.descriptor)
        return said


def whole(picture: str) -> bool:
    return "quit" in picture and "10.244.1.5" in picture and "packets/s" in picture


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60), (60, 16)])
def test_one_screen_and_no_more(agent: Agent, columns: int, lines: int) -> None:
    terminal = Terminal(agent, columns=columns, lines=lines)
    picture = terminal.until(whole, "whole")
    rows = re.split(r"\r?\n", picture)
    assert len(rows) <= lines
    assert max(map(len, rows)) <= columns
    assert "encryption" in rows[0]
    for verdict in ("encrypted", "clear", "dropped", "audited"):
        assert verdict in picture
    assert picture.index("10.244.1.5") < picture.index("10.244.1.4")
    assert lines < 24 or picture.index("10.244.1.4") < picture.index("10.244.1.1")
    terminal.type(b"q")
    said = terminal.end()
    assert terminal.code == 0
    assert LEAVE_SCREEN in said
    assert SHOW_CURSOR in said


def test_rates_are_those_of_a_second(agent: Agent) -> None:
    terminal = Terminal(agent)
    picture = terminal.until(lambda seen: re.search(r"encrypted +[1-9]", seen) is not None, "rates")
    found = re.search(r"encrypted +([\d.]+)(k?) packets/s", picture)
    assert found
    assert 300 < float(found[1]) * (1000 if found[2] else 1) <= 1100
    terminal.type(b"q")
    terminal.end()


def test_a_terminal_that_becomes_another_size(agent: Agent) -> None:
    terminal = Terminal(agent)
    terminal.until(whole, "whole")
    for columns, lines in ((120, 40), (60, 15), (80, 24)):
        terminal.resize(columns, lines)
        os.kill(terminal.child, signal.SIGWINCH)
        picture = terminal.until(
            lambda seen, n=lines: whole(seen) and len(re.split(r"\r?\n", seen)) == n,
            f"{lines} lines",
        )
        assert max(map(len, re.split(r"\r?\n", picture))) <= columns
    terminal.type(b"q")
    terminal.end()


def test_what_is_pressed_is_done(agent: Agent) -> None:
    terminal = Terminal(agent)
    terminal.until(whole, "whole")
    terminal.type(b"d")
    terminal.until(lambda seen: "○ dropped" in seen and "10.244.1.4" not in seen, "without dropped")
    terminal.type(b"ae")
    terminal.until(lambda seen: "no flow that is asked for" in seen, "without any")
    terminal.type(b"\x1b")
    terminal.until(whole, "all again")
    terminal.type(b"/1.2:4002\r")
    terminal.until(
        lambda seen: "10.244.1.2" in seen and "10.244.1.5" not in seen and "quit" in seen,
        "filtered",
    )
    terminal.type(b"\x1b[A\x1bp\x1bOB")
    terminal.until(lambda seen: "paused" in seen, "paused")
    agent.more.append(flow(9))
    time.sleep(0.6)
    terminal.until(lambda seen: whole(seen) and "10.244.1.9" not in seen, "still")
    terminal.type(b"p")
    terminal.until(lambda seen: "10.244.1.9" in seen, "going on")
    terminal.type(b"q")
    terminal.end()


def test_the_filters_of_flows(agent: Agent) -> None:
    terminal = Terminal(agent, "--dropped", "--from", "n1", "--to", "10.0.0.0/8")
    picture = terminal.until(lambda seen: "10.244.1.4" in seen, "the dropped one")
    assert "10.244.1.5" not in picture
    assert {**agent.asked[-1], "last": 0, "most": 0} == {
        "from": "n1", "to": "10.0.0.0/8", "follow": True, "last": 0, "most": 0,
    }  # fmt: skip
    terminal.type(b"q")
    terminal.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_gets_back_what_it_had(agent: Agent, number: signal.Signals) -> None:
    terminal = Terminal(agent)
    terminal.until(whole, "whole")
    assert not termios.tcgetattr(terminal.descriptor)[3] & termios.ECHO
    if number is signal.SIGINT:
        terminal.type(b"\x03")
    else:
        os.kill(terminal.child, number)
    # What it had is looked at while the other side still has it open.
    deadline = time.monotonic() + DEADLINE
    after = termios.tcgetattr(terminal.descriptor)
    while after != terminal.before and time.monotonic() < deadline:
        with suppress(OSError):
            if select.select([terminal.descriptor], [], [], 0.01)[0]:
                terminal.raw += os.read(terminal.descriptor, 65536)
        after = termios.tcgetattr(terminal.descriptor)
    assert after == terminal.before
    said = terminal.raw + terminal.end()
    assert LEAVE_SCREEN in said
    assert SHOW_CURSOR in said
    assert b"Traceback" not in said
    assert terminal.code == (0 if number is signal.SIGINT else 128 + number)


def test_a_crash_leaves_the_terminal_as_it_was(agent: Agent) -> None:
    broken = (
        "import pellicle.cli, pellicle.ui.monitor as m\n"
        "seen, whole = [], m.Monitor.view\n"
        "def view(*given):\n"
        "    seen.append(1)\n"
        "    if len(seen) > 4: raise ZeroDivisionError('a bug')\n"
        "    return whole(*given)\n"
        "m.Monitor.view = view\n"
        "pellicle.cli.main()"
    )
    terminal = Terminal(agent, run=("-c", broken))
    said = terminal.end()
    assert terminal.code == 1
    assert said.index(SHOW_CURSOR) < said.index(b"a bug")
    assert said.index(ENTER_SCREEN) < said.index(LEAVE_SCREEN) < said.index(b"a bug")


def test_without_a_terminal_it_says_what_else_there_is(pellicle: Pellicle) -> None:
    result = pellicle("monitor")
    assert result.exit_code == 64
    assert "pellicle flows --follow --json" in result.output


def test_an_agent_that_goes_away_and_comes_back(agent: Agent, tmp_path: Path) -> None:
    terminal = Terminal(agent)
    terminal.until(whole, "whole")
    away = tmp_path / "away.sock"
    agent.path.rename(away)
    terminal.until(lambda seen: "no agent runs here" in seen, "told")
    away.rename(agent.path)
    terminal.until(lambda seen: "no agent runs here" not in seen and whole(seen), "well again")
    terminal.type(b"q")
    terminal.end()


def test_bars() -> None:
    assert sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


def test_a_flood_is_remembered_within_bounds() -> None:
    shown = Monitor()
    for number in range(10_000):
        source = {"address": f"10.{number >> 8}.{number & 255}.1", "port": 1}
        shown.add(read({**flow(1), "source": source, "time": float(number)}, Flow))
    shown.hear(read(recorded.HEALTHY, Status), 1.0)
    assert len(shown._flows) < 3000
    shown.view(80, 24, 0.0)
