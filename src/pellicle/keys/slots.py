# SPDX-License-Identifier: Apache-2.0
"""Slots: the numbers by which one node's marks name its pairs, from 1 to 65535.

A mark has no room for a pair's 64 bits. A slot means one pair only, and after that rests for as
long as there are others to give: a packet that was marked a moment ago never meets another pair.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

LAST_SLOT = 65535
"""The upper half of a mark."""


class Slots:
    """Which are taken."""

    def __init__(self) -> None:
        self._holders: Counter[int] = Counter()
        """How many pairs have each; two only if rows of an earlier life say so."""
        self._last = 0

    @property
    def has_free(self) -> bool:
        return len(self._holders) < LAST_SLOT

    def keep(self, slot: int) -> None:
        """An adopted pair has this one; 0 is none."""
        if 1 <= slot <= LAST_SLOT:
            self._holders[slot] += 1
            self._last = max(self._last, slot)

    def take(self) -> int:
        """The next free one after the last that was given."""
        turn = chain(range(self._last + 1, LAST_SLOT + 1), range(1, self._last + 1))
        self._last = next(slot for slot in turn if slot not in self._holders)
        self._holders[self._last] = 1
        return self._last

    def free(self, slot: int) -> None:
        """One pair less has this one."""
        self._holders[slot] -= 1
        if self._holders[slot] <= 0:
            del self._holders[slot]
