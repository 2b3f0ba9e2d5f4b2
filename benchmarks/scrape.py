# SPDX-License-Identifier: Apache-2.0
"""What it costs to be asked by Prometheus, and how long the agent's loop waits meanwhile.

.venv/bin/python -m benchmarks.scrape [PEERS]      root; seconds
"""

from __future__ import annotations

import asyncio
import gzip
import resource
import statistics
import sys
import time
from typing import Final

from benchmarks import crowd
from pellicle import metrics
from pellicle.metrics import Metrics

PEERS: Final = 5000
ROUNDS: Final = 10
TICK: Final = 0.001


async def held_up(done: asyncio.Event) -> float:
    """The longest that the loop was late."""
    worst, then = 0.0, time.perf_counter()
    while not done.is_set():
        await asyncio.sleep(TICK)
        now = time.perf_counter()
        worst, then = max(worst, now - then - TICK), now
    return worst


async def measure(peers: int) -> None:
    with crowd.loaded() as bpf:
        sight = crowd.sight_of(bpf, peers)
        answering = Metrics(sight, crowd.events_of(sight))
        await answering.text()
        metrics.FRESH_SECONDS = 0.0
        took, cpu, late, text = [], [], [], ""
        for _ in range(ROUNDS):
            done = asyncio.Event()
            watching = asyncio.create_task(held_up(done))
            await asyncio.sleep(0.01)
            before, used = time.perf_counter(), processor()
            text = await answering.text()
            took.append(time.perf_counter() - before)
            cpu.append(processor() - used)
            done.set()
            late.append(await watching)
    packed = len(gzip.compress(text.encode(), 1))
    print(f"{peers} peers, {sum(1 for line in text.splitlines() if line[0] != '#')} samples")
    print(f"  a scrape        {1000 * statistics.median(took):6.0f} ms")
    print(f"  processor time  {1000 * statistics.median(cpu):6.0f} ms")
    print(f"  the loop waits  {1000 * max(late):6.0f} ms at most")
    print(f"  text            {len(text) / 1e6:6.1f} MB, {packed / 1e6:.2f} MB packed")


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else PEERS))
