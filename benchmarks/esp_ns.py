# SPDX-License-Identifier: Apache-2.0
"""How long the datapath takes to seal and to open one packet, in nanoseconds on one core.

Every packet is a fresh one and runs once (BPF_PROG_TEST_RUN, repeat 1): a sealed one could not be
sealed again as it was, and an opened one would be refused as replayed.  What the measuring itself
costs is measured with the same program told to let everything pass, and taken off.  The median of
many runs; caches are as a system call leaves them, so a busy node does rather better.

    python -m benchmarks.esp_ns [--runs 2000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from pellicle.kernel.bpf import Program
from tests.bpf import packets
from tests.bpf.cluster import PEERS, Peer, furnish, pod, put_inbound, put_outbound
from tests.bpf.node import Node, loaded_node
from tests.bpf.tunnel import sealed

SIZES = (64, 512, 1400)


def median_ns(program: Program, runs: int, frame: Callable[[int], bytes]) -> float:
    """Of `runs` packets, after some to warm up."""
    frames = [frame(number) for number in range(1, runs + 201)]
    times = [program.test_run(each).duration_ns for each in frames]
    return statistics.median(times[200:])


def inner(source: str, destination: str, size: int) -> bytes:
    payload = bytes(size - (40 if ":" in source else 20))
    return packets.ip(source, destination, payload)


def measure(node: Node, peer: Peer, version: int, size: int, runs: int) -> tuple[float, float]:
    """Sealing and opening, with the measuring in it."""
    put_inbound(node, peer)
    there, here = peer.pod(version), pod(version)
    out = packets.frame(inner(here, there, size))
    seal = median_ns(node.object.program("door"), runs, lambda _: out)
    back = inner(there, here, size)
    from_net = node.object.program("from_net")
    seen = median_ns(from_net, runs, lambda number: sealed(peer, number, back))
    return seal, seen


def overhead(scratch: Path, runs: int) -> float:
    """Of a test run: from_net with encryption off lets the packet pass at once."""
    with loaded_node(scratch, encrypt=0) as node:
        frame = packets.frame(inner("192.0.2.7", "192.0.2.1", 64))
        return median_ns(node.object.program("from_net"), runs, lambda _: frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="packets of each kind")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name, loaded_node(Path(name)) as node:
        furnish(node)
        for peer in PEERS.values():
            put_outbound(node, peer)
        idle = overhead(Path(name), runs)
        print(f"overhead of a test run, taken off: {idle:.0f} ns; median of {runs}")
        print("inner  outer  bytes  seal ns  open ns  seal Gbit/s  open Gbit/s")
        for outer, peer in PEERS.items():
            for version in (4, 6):
                for size in SIZES:
                    seal, seen = (t - idle for t in measure(node, peer, version, size, runs))
                    rates = f"{size * 8 / seal:11.2f}  {size * 8 / seen:11.2f}"
                    print(
                        f"IPv{version}   IPv{outer}   {size:5}  {seal:7.0f}  {seen:7.0f}  {rates}"
                    )


if __name__ == "__main__":
    main()
