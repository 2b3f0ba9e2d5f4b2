# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the one that started them, and are never mistaken for another.

A process is its pid together with its start time: a pid that was given to somebody else
has another start time. Signals go through a pidfd (pidfd_open(2)), so that nothing can
change between the look and the signal.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from pellicle.kernel import netns

DEFAULTED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGQUIT, signal.SIGHUP)
"""Whatever the starter ignores or blocks, its child begins like any program."""
PROC: Final = Path("/proc")
REAP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int
    """Clock ticks after boot (proc(5), stat field 22)."""


_spawned: set[Process] = set()
"""Ours to reap; a dead child that nobody waits for stays as a zombie."""
_ends: dict[Process, int] = {}
"""The exit codes of those that were reaped here, negative for a signal."""
_reaping = threading.Lock()


def spawn(argv: Sequence[str], namespace: str, log: Path, pid_file: Path) -> Process:
    """Start `argv` in a network namespace and its own session, its output appended to `log`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # The child inherits the namespace of the thread that starts it.
    with netns.inside(namespace):
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=DEFAULTED,
        )
    process = Process(pid, _started(pid) or 0)
    _spawned.add(process)
    fresh = pid_file.with_suffix(".new")
    fresh.write_text(json.dumps({"pid": process.pid, "started": process.started}))
    fresh.rename(pid_file)
    return process


def read_pid_file(pid_file: Path) -> Process | None:
    """The process that `pid_file` names, if it still runs."""
    process = _named(pid_file)
    return process if process is not None and is_running(process) else None


def how_ended(pid_file: Path) -> str:
    """How the process that `pid_file` names came to its end, in words; empty when it runs, or when
    the file is gone, because it was stopped on purpose.
    """
    process = _named(pid_file)
    if process is None or is_running(process):
        return ""
    deadline = monotonic() + REAP_SECONDS
    while process in _spawned and monotonic() < deadline:
        # One of many threads can be told from a dead one by the first, and reaped after the last.
        sleep(REAP_SECONDS / 100)
        _reap(process)
    if process in _spawned:
        return "its first thread is gone, and others live on"
    code = _ends.get(process)
    if code is None:
        return "how, only the command that started it could tell"
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def is_running(process: Process) -> bool:
    """Whether exactly this process lives. A dead one that was spawned here is reaped."""
    _reap(process)
    return _started(process.pid) == process.started


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone."""
    with _handle(process) as pidfd:
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        return True


def stop(processes: Iterable[Process], seconds: float) -> tuple[Process, ...]:
    """SIGTERM to all, SIGKILL after `seconds`. Returns those that had to be killed."""
    running = [process for process in processes if send_signal(process, signal.SIGTERM)]
    deadline = monotonic() + seconds
    stubborn = tuple(row for row in running if not wait_end(row, deadline - monotonic()))
    kill(stubborn, seconds)
    return stubborn


def kill(processes: Sequence[Process], seconds: float) -> None:
    """SIGKILL to all; TimeoutError if one does not end of it within `seconds`."""
    for process in processes:
        send_signal(process, signal.SIGKILL)
    for process in processes:
        if not wait_end(process, seconds):
            raise TimeoutError(f"process {process.pid} does not die, even of SIGKILL")


def wait_end(process: Process, seconds: float) -> bool:
    """Whether it ended within `seconds`."""
    with _handle(process) as pidfd:
        if pidfd is not None:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, seconds) * 1000):
                return False
    is_running(process)
    return True


def inside(namespaces: Iterable[str]) -> tuple[Process, ...]:
    """Every process that lives in one of these network namespaces, ourselves excepted."""
    wanted = {inode for name in namespaces if (inode := _inode(netns.path_of(name)))}
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    found = [
        Process(pid, started)
        for pid in pids
        if pid != os.getpid()
        and wanted
        and (started := _started(pid)) is not None
        and _inode(PROC / str(pid) / "ns/net") in wanted
    ]
    # Looked at once more: the pid could have changed hands between the two looks.
    return tuple(process for process in found if _started(process.pid) == process.started)


def lives_in(process: Process, namespace: str) -> bool:
    """Whether it is in the network namespace that has this name now."""
    there = _inode(netns.path_of(namespace))
    return there is not None and _inode(PROC / str(process.pid) / "ns/net") == there


def _named(pid_file: Path) -> Process | None:
    try:
        row = json.loads(pid_file.read_text())
        return Process(int(row["pid"]), int(row["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reap(process: Process) -> None:
    """If it has ended and is ours: its exit code is kept, and nothing else is left of it."""
    with _reaping:
        if process not in _spawned:
            return
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:  # somebody here waits for whatever child ends
            _spawned.discard(process)
            return
        if pid:
            _ends[process] = os.waitstatus_to_exitcode(status)
            _spawned.discard(process)


@contextmanager
def _handle(process: Process) -> Iterator[int | None]:
    """A pidfd of exactly this process, None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The start time is read while the pidfd is held: if it is right, the pidfd is.
        yield pidfd if _started(process.pid) == process.started else None
    finally:
        os.close(pidfd)


def _started(pid: int) -> int | None:
    """Start time of a living process; None for a dead one, a zombie included."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and brackets: what follows the last bracket is regular.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
