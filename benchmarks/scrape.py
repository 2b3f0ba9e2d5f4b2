# SPDX-License-Identifier: Apache-2.0
"""What it costs to be asked by Prometheus, and how long the agent's loop waits meanwhile.

.venv/bin/python -m benchmarks.scrape [PEERS]      root; seconds
"""

from __future__ import annotations

import asyncio
import gzip
import statistics
import sys
from typing import Final

from benchmarks import crowd
from benchmarks.turns import Turns, watched
from pellicle import metrics
from pellicle.metrics import Metrics

PEERS: Final = 5000
ROUNDS: Final = 10


async def measure(peers: int) -> None:
    with crowd.loaded() as bpf:
        sight = crowd.sight_of(bpf, peers)
        answering = Metrics(sight, crowd.events_of(sight))
        await answering.text()
        metrics.FRESH_SECONDS = 0.0
        rounds: list[Turns] = []
        text = ""
        for _ in range(ROUNDS):
            async with watched() as turns:
                text = await answering.text()
            rounds.append(turns)
    packed = len(gzip.compress(text.encode(), 1))
    print(f"{peers} peers, {sum(1 for line in text.splitlines() if line[0] != '#')} samples")
    print(f"  a scrape        {1000 * statistics.median(each.took for each in rounds):6.0f} ms")
    print(
        f"  processor time  {1000 * statistics.median(each.processor for each in rounds):6.0f} ms"
    )
    print(f"  the loop waits  {1000 * max(each.latest for each in rounds):6.0f} ms at most")
    print(f"  text            {len(text) / 1e6:6.1f} MB, {packed / 1e6:.2f} MB packed")


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else PEERS))
