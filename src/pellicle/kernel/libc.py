# SPDX-License-Identifier: Apache-2.0
"""The few calls of the C library that Python 3.11 does not offer."""

from __future__ import annotations

import os
from typing import Any

import cffi

CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH = 2

ffi: Any = cffi.FFI()
ffi.cdef("""
int vasprintf(char **text, const char *format, void *arguments);
void free(void *memory);
int mount(const char *source, const char *target, const char *type, unsigned long flags,
          const void *data);
int umount2(const char *target, int flags);
int setns(int fd, int kind);
int unshare(int flags);
int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
""")
lib: Any = ffi.dlopen(None)


def mount(source: str, target: os.PathLike[str], kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    answer = lib.mount(
        source.encode(), os.fsencode(target), kind.encode(), flags, data.encode() or ffi.NULL
    )
    _check(answer, f"mounting {kind} at {target}")


def unmount(target: os.PathLike[str]) -> None:
    """Takes a mount away; whoever still uses it keeps it (MNT_DETACH)."""
    _check(lib.umount2(os.fsencode(target), MNT_DETACH), f"unmounting {target}")


def set_network_namespace(fd: int) -> None:
    """Moves this thread."""
    _check(lib.setns(fd, CLONE_NEWNET), "entering a network namespace")


def new_network_namespace() -> None:
    """Moves this thread into a new network namespace."""
    _check(lib.unshare(CLONE_NEWNET), "making a network namespace")


def forbid_core_dumps() -> None:
    """Keeps this process's memory out of core files, and away from other users' debuggers."""
    pr_set_dumpable = 4
    _check(lib.prctl(pr_set_dumpable, 0, 0, 0, 0), "forbidding core dumps")


def _check(answer: int, what: str) -> None:
    if answer:
        raise OSError(ffi.errno, f"{what}: {os.strerror(ffi.errno)}")
