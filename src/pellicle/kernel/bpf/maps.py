# SPDX-License-Identifier: Apache-2.0
"""Maps: rows of bytes in the kernel, one at a time or 100,000 in a few system calls.

Batches are used wherever the kernel has them for a map's type, and single calls otherwise; a
caller sees no difference. In a per-CPU map a value is that of all possible CPUs in a row, each
padded to 8 bytes. A bpf_spin_lock in a value reads as zero and is left alone by writes;
`lock=True` takes it, so that the rest of the value is seen or written as a whole.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path
from typing import Any, Self

from pellicle.kernel import Held
from pellicle.kernel.bpf import bpffs
from pellicle.kernel.bpf.libbpf import NO_SUCH_OPERATION, check, error_about, ffi, lib

_LOCK = 4
_CHUNK = 16384
"""Rows in one batch call: enough to make the call's own cost vanish."""
_REFILL_SECONDS = 0.02
"""Rows come from a small store, which the kernel refills by interrupt: where there is none for it
(User-mode Linux), at the next tick, and until then there is no memory."""


class MapType(IntEnum):
    """enum bpf_map_type."""

    UNSPEC = 0
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})


class Update(IntFlag):
    """What an update may do; LOCK may be added to any."""

    ANY = 0
    NOEXIST = 1
    EXIST = 2
    LOCK = _LOCK


class BatchError(OSError):
    """A batch stopped at a row; `done` rows before it were written."""

    done: int = 0


@cache
def possible_cpus() -> int:
    """How many values one key of a per-CPU map has."""
    return check(lib.libbpf_num_possible_cpus(), "counting CPUs")


class Map(Held):
    """One map; a context manager when it owns its descriptor (`open_pinned`)."""

    def __init__(self, fd: int, name: str | None = None, *, is_owner: bool = False) -> None:
        row: Any = bpffs.info(fd, "map")
        self.fd = fd
        self.name = name or ffi.string(row.name).decode()
        self.type = MapType(row.type)
        self.key_size: int = row.key_size
        self.value_size: int = row.value_size
        self.max_entries: int = row.max_entries
        self.flags: int = row.map_flags
        self.types: tuple[int, int, int] = (
            row.btf_id, row.btf_key_type_id, row.btf_value_type_id,
        )  # fmt: skip
        self._is_owner = is_owner
        self._stride = self.value_size
        if self.type in PER_CPU:
            self._stride = (self.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """The map pinned at `path`; FileNotFoundError when there is none."""
        fd = bpffs.open_pinned(path)
        try:
            return cls(fd, path.name, is_owner=True)
        except BaseException:
            os.close(fd)
            raise

    def __repr__(self) -> str:
        return f"<Map {self.name} {self.type.name.lower()} fd {self.fd}>"

    def close(self) -> None:
        """Closes the descriptor, if it is this map's own."""
        if self._is_owner:
            self._is_owner = False
            os.close(self.fd)

    def pin(self, path: Path) -> None:
        """Names the map in a BPF file system; replaces an older pin."""
        bpffs.pin(self.fd, path)

    def lookup(self, key: bytes, *, lock: bool = False) -> bytes | None:
        """The value of `key`, None when there is none."""
        value = bytearray(self._stride)
        answer = lib.bpf_map_lookup_elem_flags(
            self.fd, self._key(key), ffi.from_buffer(value), _LOCK if lock else 0
        )
        if answer == -errno.ENOENT:
            return None
        self._check(answer, "looking up a key")
        return bytes(value)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """The value of `key` on each possible CPU, None when there is none."""
        whole = self.lookup(key)
        return None if whole is None else self.split_percpu(whole)

    def split_percpu(self, whole: bytes) -> list[bytes]:
        """One value per possible CPU, from what a per-CPU map answered."""
        step = len(whole) // possible_cpus()
        return [whole[at : at + self.value_size] for at in range(0, len(whole), step)]

    def values_summed(self) -> dict[bytes, tuple[int, ...]]:
        """For each key the sums over all CPUs of its value's 64-bit words."""
        return {key: summed(self.split_percpu(value)) for key, value in self.items()}

    def update(self, key: bytes, value: bytes, flags: Update = Update.ANY) -> None:
        """Writes one row. FileExistsError with NOEXIST, FileNotFoundError with EXIST."""
        answer = lib.bpf_map_update_elem(self.fd, self._key(key), self._value(value), flags)
        self._check(answer, "writing a row")

    def delete(self, key: bytes) -> bool:
        """Takes one row away; False when there was none."""
        answer = lib.bpf_map_delete_elem(self.fd, self._key(key))
        if answer == -errno.ENOENT:
            return False
        self._check(answer, "deleting a row")
        return True

    def keys(self) -> list[bytes]:
        """All keys."""
        found: dict[bytes, None] = {}
        key, after = ffi.NULL, bytearray(self.key_size)
        while True:
            answer = lib.bpf_map_get_next_key(self.fd, key, ffi.from_buffer(after))
            if answer == -errno.ENOENT:
                return list(found)
            self._check(answer, "walking")
            # A key deleted meanwhile sends the walk back to the start.
            found[bytes(after)] = None
            key = ffi.from_buffer(bytes(after))

    def items(self, *, lock: bool = False) -> list[tuple[bytes, bytes]]:
        """All rows; each key once. Rows that come or go meanwhile may be in it or not."""
        try:
            return list(self._lookup_batches(lock=lock).items())
        except OSError as error:
            if error.errno not in NO_SUCH_OPERATION and error.errno != errno.EINTR:
                raise
        rows = ((key, self.lookup(key, lock=lock)) for key in self.keys())
        return [(key, value) for key, value in rows if value is not None]

    def update_batch(
        self, pairs: Iterable[tuple[bytes, bytes]], flags: Update = Update.ANY
    ) -> None:
        """Writes many rows, in order; BatchError says how many were written before one failed."""
        rows = list(pairs)
        for key, value in rows:
            self._key(key)
            self._value(value)
        done = 0
        # The kernel takes no NOEXIST or EXIST in a batch (generic_map_update_batch).
        can_batch = not flags & (Update.NOEXIST | Update.EXIST)
        while done < len(rows):
            chunk = rows[done : done + _CHUNK]
            count, answer = self._update_chunk(chunk, flags) if can_batch else (0, -errno.EINVAL)
            if -answer in NO_SUCH_OPERATION and not count:
                can_batch = False
                count, answer = self._update_each(chunk, flags)
            done += count
            if answer == -errno.ENOMEM and count:
                time.sleep(_REFILL_SECONDS)
            elif answer < 0:
                raise self._stopped(-answer, done, "writing rows")

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Takes many rows away; those that are absent count as taken."""
        wanted = list(keys)
        for key in wanted:
            self._key(key)
        done, can_batch = 0, True
        while done < len(wanted):
            chunk = wanted[done : done + _CHUNK]
            count, answer = self._delete_chunk(chunk) if can_batch else (0, -errno.EINVAL)
            done += count
            if answer == -errno.ENOENT:  # a batch stops there; the next may be absent as well
                done += self._delete_each(chunk[count:])
            elif -answer in NO_SUCH_OPERATION and not count:
                can_batch = False
                done += self._delete_each(chunk)
            elif answer < 0:
                raise self._stopped(-answer, done, "deleting rows")

    def _lookup_batches(self, *, lock: bool) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        size = max(1, min(self.max_entries, _CHUNK, (1 << 24) // (self._stride + self.key_size)))
        here, after = ffi.NULL, bytearray(max(self.key_size, 8))
        while True:
            keys, values = bytearray(size * self.key_size), bytearray(size * self._stride)
            count = ffi.new("__u32 *", size)
            answer = lib.bpf_map_lookup_batch(
                self.fd, here, ffi.from_buffer(after), ffi.from_buffer(keys),
                ffi.from_buffer(values), count, _options(lock=lock),
            )  # fmt: skip
            if answer == -errno.ENOSPC:  # one bucket of the hash holds more than `size`
                size *= 2
                continue
            if answer != -errno.ENOENT:
                self._check(answer, "reading rows")
            rows = zip(
                _slices(bytes(keys), self.key_size, count[0]),
                _slices(bytes(values), self._stride, count[0]),
                strict=True,
            )
            found.update(rows)
            if answer == -errno.ENOENT:
                return found
            here = ffi.from_buffer(bytes(after))

    def _update_chunk(self, rows: Sequence[tuple[bytes, bytes]], flags: Update) -> tuple[int, int]:
        count = ffi.new("__u32 *", len(rows))
        keys, values = b"".join(key for key, _ in rows), b"".join(value for _, value in rows)
        answer = lib.bpf_map_update_batch(
            self.fd, ffi.from_buffer(keys), ffi.from_buffer(values), count,
            _options(lock=bool(flags & Update.LOCK)),
        )  # fmt: skip
        return _counted(count[0], answer, len(rows)), answer

    def _update_each(self, rows: Sequence[tuple[bytes, bytes]], flags: Update) -> tuple[int, int]:
        for number, (key, value) in enumerate(rows):
            answer = lib.bpf_map_update_elem(
                self.fd, ffi.from_buffer(key), ffi.from_buffer(value), flags
            )
            if answer < 0:
                return number, answer
        return len(rows), 0

    def _delete_chunk(self, keys: Sequence[bytes]) -> tuple[int, int]:
        count = ffi.new("__u32 *", len(keys))
        answer = lib.bpf_map_delete_batch(
            self.fd, ffi.from_buffer(b"".join(keys)), count, _options(lock=False)
        )
        return _counted(count[0], answer, len(keys)), answer

    def _delete_each(self, keys: Sequence[bytes]) -> int:
        for key in keys:
            self.delete(key)
        return len(keys)

    def _key(self, key: bytes) -> Any:
        if len(key) != self.key_size:
            raise ValueError(f"a key of map {self.name} has {self.key_size} bytes, not {len(key)}")
        return ffi.from_buffer(key)

    def _value(self, value: bytes) -> Any:
        if len(value) != self._stride:
            raise ValueError(
                f"a value of map {self.name} has {self._stride} bytes, not {len(value)}"
            )
        return ffi.from_buffer(value)

    def _check(self, answer: int, doing: str) -> None:
        check(answer, f"map {self.name}: {doing}")

    def _stopped(self, number: int, done: int, doing: str) -> BatchError:
        plain = error_about(number, f"map {self.name}: {doing}, row {done}")
        error = BatchError(*plain.args)
        error.done = done
        return error


def summed(values: Iterable[bytes]) -> tuple[int, ...]:
    """The sums of the 64-bit words of several values, word by word."""
    return tuple(
        map(sum, zip(*(struct.unpack(f"={len(v) // 8}Q", v) for v in values), strict=True))
    )


def _options(*, lock: bool) -> Any:
    options = ffi.new("struct bpf_map_batch_opts *")
    options.sz = ffi.sizeof(options[0])
    options.elem_flags = _LOCK if lock else 0
    return options


def _counted(count: int, answer: int, size: int) -> int:
    """How many rows a batch did; one refused at the door leaves the count as it was given."""
    return 0 if answer < 0 and count == size else count


def _slices(raw: bytes, step: int, count: int) -> list[bytes]:
    return [raw[at : at + step] for at in range(0, step * count, step)]
