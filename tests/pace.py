# SPDX-License-Identifier: Apache-2.0
"""How long tests wait and how much they try: `--patience N` and `--brief`, for slow machines.

Patience stretches every wait. Brief tries fewer of the same: samples of sizes with all around the
limits, shorter transfers, thinner loads. Neither changes what must be so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pellicle.lab.patience import patient

__all__ = ["amount", "be_brief", "is_brief", "patient", "sizes"]

EVERY = 37
"""In a brief run; prime, so that no alignment is missed for ever."""
AROUND = 2

T = TypeVar("T")

_brief = [False]


def be_brief(wanted: bool) -> None:
    """Said once, before the first test is read."""
    _brief[0] = wanted


def is_brief() -> bool:
    return _brief[0]


def amount(whole: T, brief: T) -> T:
    """How much, how many or how fast."""
    return brief if _brief[0] else whole


def sizes(last: int) -> Sequence[int]:
    """1 … `last`; in a brief run every 37th and all near both ends."""
    if not _brief[0]:
        return range(1, last + 1)
    ends = {*range(1, 2 + AROUND), *range(last - AROUND, last + 1)}
    return sorted({*range(1, last + 1, EVERY), *ends})
