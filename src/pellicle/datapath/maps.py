# SPDX-License-Identifier: Apache-2.0
"""A BPF map as a reconciler's target: a codec for its rows, and nothing else.

The codecs work on dictionaries named like the fields of bpf/tables.h; layouts and
byte orders come from the object's BTF.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pellicle.kernel.bpf import BatchError, Map, Update
from pellicle.wire.layout import Layout

K = TypeVar("K")
R = TypeVar("R")
Fields = dict[str, Any]


@dataclass(frozen=True)
class MapTarget(Generic[K, R]):
    """Rows of one map. `flags`: NOEXIST for rows that must never be overwritten."""

    map: Map
    key_layout: Layout
    row_layout: Layout
    to_key: Callable[[K], Fields]
    to_row: Callable[[K, R], Fields]
    from_fields: Callable[[Fields, Fields], tuple[K, R]]
    flags: Update = Update.ANY

    def read(self) -> Mapping[K, R]:
        return dict(
            self.from_fields(self.key_layout.unpack(key), self.row_layout.unpack(row))
            for key, row in self.map.items()
        )

    def put(self, rows: Mapping[K, R]) -> Mapping[K, OSError]:
        pairs = [(self._key(key), self._row(key, row)) for key, row in rows.items()]
        return _each(list(rows), pairs, lambda part: self.map.update_batch(part, self.flags))

    def remove(self, keys: Collection[K]) -> Mapping[K, OSError]:
        return _each(list(keys), [self._key(key) for key in keys], self.map.delete_batch)

    def raw(self, key: K) -> bytes | None:
        """The row as it is, None when there is none."""
        return self.map.lookup(self._key(key))

    def _key(self, key: K) -> bytes:
        return self.key_layout.pack(**self.to_key(key))

    def _row(self, key: K, row: R) -> bytes:
        return self.row_layout.pack(**self.to_row(key, row))


A = TypeVar("A")


def _each(
    keys: Sequence[K], packed: Sequence[A], act: Callable[[Sequence[A]], None]
) -> dict[K, OSError]:
    """Act on all; a batch stops at its first bad row, the rest is then tried without it.

    In smaller batches, so that a map that is full costs no more than a call for each row.
    """
    errors: dict[K, OSError] = {}
    start, size = 0, len(packed)
    while start < len(packed):
        part = packed[start : start + size]
        try:
            act(part)
        except BatchError as error:
            start += error.done
            errors[keys[start]] = error
            start += 1
            size = max(1, size // 8)
        else:
            start += len(part)
            size *= 2
    return errors
