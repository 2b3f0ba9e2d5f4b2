# SPDX-License-Identifier: Apache-2.0
"""One lab at a time: whoever builds or tears down holds a lock file.

The holder is a process; the kernel lets go of the lock when it dies, whatever way. It may take
the lock again while it has it: a demo holds it all along, and calls `up` and `down`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pellicle.lab.errors import LabError
from pellicle.lab.topology import LOCK

POLL_SECONDS: Final = 0.2


class LabBusyError(LabError):
    """Another process is building or tearing down the lab."""


@dataclass(slots=True)
class _Holding:
    """What this process holds."""

    descriptor: int = -1
    depth: int = 0


_holding = _Holding()
_turn = threading.Lock()


@contextmanager
def locked(wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lab's lock; LabBusyError says who has it when it is not free in time."""
    with _turn:
        if _holding.depth == 0:
            _holding.descriptor = _acquire(time.monotonic() + wait_seconds)
        _holding.depth += 1
    try:
        yield
    finally:
        with _turn:
            _holding.depth -= 1
            if _holding.depth == 0:
                LOCK.unlink(missing_ok=True)
                os.close(_holding.descriptor)


def _acquire(deadline: float) -> int:
    while True:
        descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode() or "?"
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise LabBusyError(
                    f"another process (pid {holder}) is at work on the lab, and a machine has one: "
                    "wait until it has finished, or stop it"
                ) from None
            time.sleep(POLL_SECONDS)


def _is_named(descriptor: int) -> bool:
    """Whether the file locked is still the one with the name: its last holder removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), LOCK.stat())
    except FileNotFoundError:
        return False
