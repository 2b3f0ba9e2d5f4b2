# SPDX-License-Identifier: Apache-2.0
"""Single keys from the terminal, and a terminal that is afterwards as it was before."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SEQUENCE: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O[@-~])")
"""What a terminal sends for keys without a character (ECMA-48 §5.4)."""


class Keyboard:
    """What is typed, as it is typed. Ctrl-C still interrupts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, seconds: float) -> str:
        """What was typed, at the latest after `seconds`; EOFError when the terminal is gone."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return ""
        typed = os.read(self._descriptor, 1024)
        if not typed:
            raise EOFError
        # None of the arrows and their like means anything here, and Escape alone does.
        return _SEQUENCE.sub("", typed.decode("utf-8", "replace"))


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Keys come one by one, and are not shown. However this ends, also by SIGTERM or because the
    terminal hangs up, the terminal gets back what it had.
    """
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    signals = {each: signal.signal(each, _leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield Keyboard(descriptor)
    finally:
        for each, handler in signals.items():
            signal.signal(each, handler)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
