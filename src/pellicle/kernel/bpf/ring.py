# SPDX-License-Identifier: Apache-2.0
"""The ring buffer: records that programs left for whoever reads.

`fd` becomes readable when there are some; `loop.add_reader(ring, …)` takes the object itself.
"""

from __future__ import annotations

from typing import Any

from pellicle.kernel import Held
from pellicle.kernel.bpf.libbpf import check, check_pointer, ffi, lib
from pellicle.kernel.bpf.maps import Map

_ENOUGH = -125  # ECANCELED: what the callback says to stop libbpf; it comes out of consume


class RingBuffer(Held):
    """A reader of one ring buffer map. One reader for one map: they would share its position."""

    def __init__(self, ring: Map) -> None:
        self._records: list[bytes] = []
        self._limit = 0
        self._callback = ffi.callback("sample_fn", self._sample, error=_ENOUGH)
        pointer = lib.ring_buffer__new(ring.fd, self._callback, ffi.NULL, ffi.NULL)
        self._pointer: Any = check_pointer(pointer, f"reading ring buffer {ring.name}")
        self.fd: int = lib.ring_buffer__epoll_fd(self._pointer)

    def fileno(self) -> int:
        """For select, epoll and asyncio."""
        return self.fd

    def consume(self, limit: int = 65536) -> list[bytes]:
        """The records waiting, oldest first, at most `limit`; empty when there are none."""
        self._records, self._limit = [], limit
        answer = lib.ring_buffer__consume(self._pointer)
        if answer != _ENOUGH:
            check(answer, "reading a ring buffer")
        return self._records

    def close(self) -> None:
        """Frees the reader; the map and what waits in it stay."""
        if self._pointer is not None:
            lib.ring_buffer__free(self._pointer)
            self._pointer = None

    def _sample(self, _context: Any, data: Any, size: int) -> int:
        self._records.append(ffi.buffer(data, size)[:])
        return _ENOUGH if len(self._records) >= self._limit else 0
