# SPDX-License-Identifier: Apache-2.0
"""The events of keys in a file that is only ever added to: one JSON object on each line.

It survives restarts and reboots. Past `MOST_BYTES` it becomes FILE.1, in place of the one before.
A line that was half written when the machine stopped is left out when the file is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from pellicle.keys.history import KeyEvent

MOST_BYTES = 8 << 20
MODE = 0o600
_EVENTS = msgspec.json.Decoder(KeyEvent)  # made before there are threads: see shapes.py


class Trail:
    """One such file; it is made when there is something to write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, rows: Iterable[KeyEvent]) -> None:
        """OSError when they cannot be written."""
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        if not lines:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, MODE)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines  # half a line: it shall not spoil the next one
            os.write(descriptor, lines)
        finally:
            os.close(descriptor)
        if size > MOST_BYTES:
            self.path.replace(self._older)

    def rows(self) -> Iterator[KeyEvent]:
        """Oldest first."""
        for path in (self._older, self.path):
            try:
                lines = path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            for line in lines:
                try:
                    yield _EVENTS.decode(line)
                except msgspec.DecodeError:
                    continue

    @property
    def _older(self) -> Path:
        return self.path.with_name(self.path.name + ".1")
