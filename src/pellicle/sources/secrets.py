# SPDX-License-Identifier: Apache-2.0
"""Reading a secret from a file that nobody else can read; anything looser is refused.

What is wrong with the file is said in words; what is in it never appears in them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_SECRET = 4096


class SecretFileError(Exception):
    """The file is there but must not, or cannot, be used as a secret. Says what to do."""


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
