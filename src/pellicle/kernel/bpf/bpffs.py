# SPDX-License-Identifier: Apache-2.0
"""The BPF file system: where maps, programs and links live while no process holds them."""

from __future__ import annotations

import os
from pathlib import Path

from pellicle.kernel import libc
from pellicle.kernel.bpf.libbpf import check, ffi, lib

_USUAL = Path("/sys/fs/bpf")


def ensure_bpffs(path: Path) -> None:
    """Makes `path` a directory of a BPF file system, mounting one where none is.

    Below /sys/fs/bpf that is where the kernel wants it, elsewhere at `path` itself.
    """
    if path.is_relative_to(_USUAL) and not is_bpffs(_USUAL):
        libc.mount("bpf", _USUAL, "bpf", 0, "mode=0700")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_bpffs(path):
        libc.mount("bpf", path, "bpf", 0, "mode=0700")


def is_bpffs(path: Path) -> bool:
    """Whether `path` lies in a BPF file system."""
    number = path.stat().st_dev
    device = os.major(number), os.minor(number)
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:  # noqa: PTH123
        for line in mounts:
            before, _, after = line.partition(" - ")
            major, minor = before.split()[2].split(":")
            if after.startswith("bpf ") and (int(major), int(minor)) == device:
                return True
    return False


def pin(fd: int, path: Path) -> None:
    """Gives what `fd` refers to a name, atomically; an older pin of that name is replaced."""
    fresh = path.with_name(f"{path.name}-new")
    fresh.unlink(missing_ok=True)
    check(lib.bpf_obj_pin(fd, str(fresh).encode()), f"pinning {path}")
    fresh.rename(path)


def open_pinned(path: Path) -> int:
    """A new descriptor of what is pinned; FileNotFoundError when nothing is."""
    return check(lib.bpf_obj_get(str(path).encode()), f"opening {path}")


def info(fd: int, kind: str) -> object:
    """The kernel's `struct bpf_<kind>_info` about `fd`."""
    row = ffi.new(f"struct bpf_{kind}_info *")
    size = ffi.new("__u32 *", ffi.sizeof(row[0]))
    check(lib.bpf_obj_get_info_by_fd(fd, row, size), f"asking about a {kind}")
    return row
