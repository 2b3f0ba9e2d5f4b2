# SPDX-License-Identifier: Apache-2.0
"""Secrets from a file that nobody else can read, followed; anything looser is refused.

The path is looked at each second, links and all: editors replace files, and a mounted Kubernetes
secret is a link into a folder that is turned over as a whole. What is wrong with the file is said
in words; what is in it never appears in them.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Generic

from pellicle.facts import Rejected
from pellicle.keys.secret import L, Read, SecretError, parse_all

MAX_SECRET = 4096
LOOK_SECONDS = 1.0


class SecretFileError(Exception):
    """The file is there but must not, or cannot, be used as a secret. Says what to do."""


class SecretFile(Generic[L]):
    """All secrets in a file, one on each line; `now` is what it held when it last held any."""

    def __init__(self, path: Path, read: Read[L]) -> None:
        """SecretFileError, SecretError or OSError when there is nothing to begin with."""
        self.path = path
        self._read_line = read
        self.rejected: tuple[Rejected, ...] = ()
        """What is wrong with it now, by line."""
        self._seen = _look(path)
        self.now = self._read()

    async def changes(self) -> AsyncIterator[tuple[L, ...]]:
        """What it holds, each time that it is another file, or has another content; without end."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            seen = _look(self.path)
            if seen == self._seen:
                continue
            self._seen = seen
            try:
                self.now = self._read()
            except (SecretFileError, SecretError, OSError) as error:
                why = f"{error}; the secrets of before stay in use"
                self.rejected = (Rejected(str(self.path), "secrets", why),)
                continue
            yield self.now

    def _read(self) -> tuple[L, ...]:
        found, wrong = parse_all(read_secret(self.path), self._read_line)
        self.rejected = tuple(Rejected(str(self.path), "secrets", str(each)) for each in wrong)
        return found


def _look(path: Path) -> tuple[int, ...] | None:
    """What differs when the file is another one, or its content is."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size, seen.st_mode, seen.st_uid


def read_secret(path: Path) -> bytes:
    """The content of `path`.

    `SecretFileError` when it may have been seen or set by others, or has no content;
    OSError when it is not there or may not be read.
    """
    # Links are followed: a mounted Kubernetes secret is one. What is judged is the file itself.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(descriptor))
        raw = os.read(descriptor, MAX_SECRET + 1)
    finally:
        os.close(descriptor)
    if len(raw) > MAX_SECRET:
        raise SecretFileError(f"{path} holds more than {MAX_SECRET} bytes: is it the right file?")
    if not raw.strip():
        raise SecretFileError(f"{path} is empty: write the secret into it")
    return raw


def _check(path: Path, status: os.stat_result) -> None:
    """What others could have read or written is no secret."""
    if not stat.S_ISREG(status.st_mode):
        raise SecretFileError(f"{path} is not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        wanted = "root" if os.geteuid() == 0 else f"root or uid {os.geteuid()}"
        raise SecretFileError(f"{path} belongs to uid {status.st_uid}: chown it to {wanted}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise SecretFileError(f"{path} has mode {mode:04o}, open to others: chmod 600 {path}")
