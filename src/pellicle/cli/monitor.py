# SPDX-License-Identifier: Apache-2.0
"""`pellicle monitor`: one node, live."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pellicle.cli.call import answers, one
from pellicle.cli.flows import chooses_flows
from pellicle.cli.options import asks_agent
from pellicle.cli.printed import understood
from pellicle.cli.trouble import Misused, Trouble

if TYPE_CHECKING:
    from pellicle.ui.monitor import Monitor

REDRAW_SECONDS: Final = 0.25
LEAST_STATUS_SECONDS: Final = 1.0
BUSY: Final = 10
"""An agent that takes long to say how it is, is asked less often: a tenth of its time at most."""
AGAIN_SECONDS: Final = 1.0
MOST_FLOWS: Final = 500
"""Of each quarter of a second: nobody reads more."""


@click.command()
@chooses_flows
@asks_agent
def monitor(
    *, verdict: str | None, source: str | None, destination: str | None, socket: Path
) -> None:
    """Watch a node live: rates, peers, problems, flows.

    Flows come newest first.

    WHO is an address (10.244.1.2), a network (10.244.0.0/16), an identity (4711), a node (n1), a
    pod (web-0, default/web-0), or a pattern for pods and nodes ('default/web-*').

    \b
    Keys:
      q        quit (Ctrl-C does, too)
      p        pause: the flows stay as they are
      e c d …  show encrypted, clear, dropped flows, or do not: the first letter of a verdict
      /        type a text that flows must have in them; Enter ends typing, Escape forgets it
    \b
    Examples:
      pellicle monitor
      pellicle monitor --node n1 --dropped
      pellicle monitor --from 'default/web-*' --to n2
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        hint = "Without one: `pellicle flows --follow --json`."
        raise Misused("the monitor needs a terminal.", hint)
    from pellicle.ui.answers import Status
    from pellicle.ui.monitor import Monitor

    shown = Monitor(frozenset({verdict}) if verdict else None)
    # Whatever is wrong from the beginning is said before the terminal is taken.
    shown.hear(understood(one(socket, "status"), Status, socket), time.monotonic())
    wanted: dict[str, Any] = {"from": source, "to": destination}
    next(answers(socket, "flows", last=1, **wanted), None)
    _start(lambda: _hear_flows(shown, socket, wanted), shown)
    _start(lambda: _hear_status(shown, socket), shown)
    with suppress(KeyboardInterrupt, EOFError):
        _draw(shown)


def _draw(shown: Monitor) -> None:
    """Until somebody quits."""
    from rich.live import Live

    from pellicle.ui.keyboard import keyboard
    from pellicle.ui.screen import console

    screen = console()
    picture = Live(
        get_renderable=lambda: shown.view(screen.width, screen.height, time.time()),
        console=screen,
        screen=True,
        auto_refresh=False,
    )
    with keyboard() as keys, picture:
        drawn = float("-inf")
        while not shown.is_over:
            wait = drawn + REDRAW_SECONDS - time.monotonic()
            if wait > 0:
                shown.press(keys.wait(wait))
                continue
            picture.refresh()
            drawn = time.monotonic()


def _start(listen: Callable[[], None], shown: Monitor) -> None:
    """Listens for ever; an agent that is away for a while is waited for."""

    def again() -> None:
        while not shown.is_over:
            try:
                listen()
            except Trouble as trouble:
                shown.trouble = trouble.message
            time.sleep(AGAIN_SECONDS)

    threading.Thread(target=again, daemon=True).start()


def _hear_flows(shown: Monitor, socket: Path, wanted: dict[str, Any]) -> None:
    from pellicle.ui.answers import Flow

    rows = answers(
        socket, "flows", is_endless=True, follow=True, last=MOST_FLOWS, most=MOST_FLOWS, **wanted
    )
    for row in rows:
        shown.add(understood(row, Flow, socket))


def _hear_status(shown: Monitor, socket: Path) -> None:
    from pellicle.ui.answers import Status

    took = 0.0
    while True:
        time.sleep(max(LEAST_STATUS_SECONDS, BUSY * took))
        asked = time.monotonic()
        status = understood(one(socket, "status"), Status, socket)
        now = time.monotonic()
        shown.hear(status, now)
        took = now - asked
