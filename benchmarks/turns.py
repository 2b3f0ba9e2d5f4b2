# SPDX-License-Identifier: Apache-2.0
"""How long an event loop holds up everything else, and how much its process works."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

TICK: Final = 0.001


@dataclass(slots=True)
class Turns:
    """Seconds by which a timer was late at most, and what the process has worked meanwhile."""

    latest: float = 0.0
    took: float = 0.0
    processor: float = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Turns]:
    """The loop, for as long as this is open; the figures are there at its end."""
    turns = Turns()
    watching = asyncio.create_task(_watch(turns))
    await asyncio.sleep(10 * TICK)
    begun, used = time.perf_counter(), processor()
    yield turns
    turns.took, turns.processor = time.perf_counter() - begun, processor() - used
    await asyncio.sleep(0)  # a timer that is due has its turn
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def _watch(turns: Turns) -> None:
    then = time.perf_counter()
    while True:
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        turns.latest = max(turns.latest, now - then - TICK)
        then = now


def processor() -> float:
    """Seconds that the process has worked, in all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
