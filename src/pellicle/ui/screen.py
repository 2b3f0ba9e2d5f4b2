# SPDX-License-Identifier: Apache-2.0
"""The terminal: one console, and the few styles that mean something.

    good    encrypted, ready, in step        green
    wary    in the clear, still confirming   yellow
    bad     dropped, failed                  red
    quiet   there for whoever looks closely  dim

On a terminal everything fits its width. Into a pipe goes whole text, never cut or wrapped.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.theme import Theme

STYLES: Final = {
    "good": "green",
    "wary": "yellow",
    "bad": "bold red",
    "quiet": "dim",
    "name": "bold",
    "head": "dim",
    "title": "bold cyan",
}
UNBOUNDED: Final = 100_000
"""Columns of something that is no terminal."""


def console(*, to_stderr: bool = False) -> Console:
    """Where to print; colours obey NO_COLOR and FORCE_COLOR."""
    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(
        file=stream,
        theme=Theme(STYLES),
        highlight=False,
        markup=False,
        emoji=False,
        width=None if stream.isatty() else UNBOUNDED,
    )


View = Callable[[int, int, float], RenderableType]
"""Made for a width, a height and a moment."""


def live(screen: Console, view: View) -> Live:
    """A view that redraws itself, four times a second, in the terminal's present size."""
    return Live(
        get_renderable=lambda: view(screen.width, screen.height, time.time()),
        console=screen,
        refresh_per_second=4,
        vertical_overflow="crop",
    )
