# SPDX-License-Identifier: Apache-2.0
"""A BPF map as a reconciler's target: a codec for its rows, and nothing else.

The codecs work on dictionaries named like the fields of bpf/tables.h; layouts and
byte orders come from the object's BTF.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pellicle.kernel.bpf import Map

from pellicle.wire.layout import Layout

K = TypeVar("K")
R = TypeVar("R")
Fields = dict[str, Any]

BPF_ANY = 0
BPF_NOEXIST = 1


@dataclass(frozen=True)
class MapTarget(Generic[K, R]):
    """Rows of one map. `flags`: BPF_NOEXIST for rows that must never be overwritten."""

    map: Map
    key_layout: Layout
    row_layout: Layout
    to_key: Callable[[K], Fields]
    to_row: Callable[[K, R], Fields]
    from_fields: Callable[[Fields, Fields], tuple[K, R]]
    flags: int = BPF_ANY

    def read(self) -> Mapping[K, R]:
        return dict(
            self.from_fields(self.key_layout.unpack(key), self.row_layout.unpack(row))
            for key, row in self.map.items()
        )

    def put(self, rows: Mapping[K, R]) -> Mapping[K, OSError]:
        packed = [(key, self._key(key), self._row(key, row)) for key, row in rows.items()]
        try:
            self.map.update_batch(
                [(raw_key, raw_row) for _, raw_key, raw_row in packed], self.flags
            )
        except OSError:
            return self._put_one_by_one(packed)
        return {}

    def remove(self, keys: Collection[K]) -> Mapping[K, OSError]:
        raw = {key: self._key(key) for key in keys}
        try:
            self.map.delete_batch(list(raw.values()))
        except OSError:
            return _each(raw.items(), self.map.delete)
        return {}

    def _put_one_by_one(self, packed: list[tuple[K, bytes, bytes]]) -> Mapping[K, OSError]:
        """A batch stops at its first error and does not say where: find every culprit."""
        if self.flags & BPF_NOEXIST:
            # What the batch did put before it stopped is ours and not an error.
            present = {raw for raw, _ in self.map.items()}
            packed = [row for row in packed if row[1] not in present]
        return _each(
            ((key, (raw_key, raw_row)) for key, raw_key, raw_row in packed),
            lambda pair: self.map.update(pair[0], pair[1], self.flags),
        )

    def _key(self, key: K) -> bytes:
        return self.key_layout.pack(**self.to_key(key))

    def _row(self, key: K, row: R) -> bytes:
        return self.row_layout.pack(**self.to_row(key, row))


A = TypeVar("A")


def _each(items: Iterable[tuple[K, A]], act: Callable[[A], object]) -> dict[K, OSError]:
    errors: dict[K, OSError] = {}
    for key, argument in items:
        try:
            act(argument)
        except OSError as error:
            errors[key] = error
    return errors
