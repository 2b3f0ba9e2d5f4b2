# SPDX-License-Identifier: Apache-2.0
"""A flood of new flows: what the agent does with the events, and whether any go uncounted.

    .venv/bin/python -m benchmarks.flows [REPORTS A SECOND] [SECONDS]      root

A process of its own runs `from_pod` on packets of new flows (BPF_PROG_TEST_RUN), a few of each as
one system call is too slow for more, and each is reported: `flow_interval` is nothing. The agent's
reader, decoder, history and audit take the reports in an event loop, as in an agent, while a timer
tells by how much the loop is late. In the end every report must have been read or counted as lost.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import struct
import sys
import time
from ipaddress import ip_address
from typing import Any, Final

from benchmarks import crowd
from benchmarks.turns import watched
from pellicle.datapath.address import to_bytes
from pellicle.kernel.bpf import Object, SkbContext
from pellicle.sight import read_flows

SECONDS: Final = 10.0
RATES: Final = (1_000, 10_000, 30_000, 100_000)
POD: Final = ip_address("10.244.1.2")
FLOWS: Final = 5_000
"""New ones a second at most."""
BATCH_SECONDS: Final = 0.002


def packet(number: int) -> bytes:
    """UDP from a pod to the world; source port and source address make the flow."""
    source = bytes((10, 244, 1, 2))
    host = 0xC6120000 | number >> 16
    ports = struct.pack(">HHHH", number & 0xFFFF, 53, 8, 0)
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, source, host.to_bytes(4, "big")
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack(">H", total) + head[12:]
    return bytes(12) + b"\x08\x00" + head + ports


def send(bpf: Object, rate: int, seconds: float, sent: Any) -> None:
    """In a process of its own: so many reports a second, as evenly as it goes."""
    program, number, begun = bpf.program("from_pod"), 0, time.monotonic()
    context = SkbContext(ifindex=crowd.LOOPBACK).pack()
    each = max(1, rate // FLOWS)
    while (now := time.monotonic() - begun) < seconds:
        due = int(now * rate)
        while number < due and time.monotonic() - begun < seconds:
            program.test_run(packet(number // each), ctx=context, repeat=each)
            number += each
        time.sleep(BATCH_SECONDS)
    sent.value = number


def counts(bpf: Object) -> tuple[int, int]:
    """Packets that were counted by a reason, and events that were lost."""
    packets = sum(row[0] for row in bpf.map("counts").values_summed().values())
    lost = sum(row[0] for row in bpf.map("lost_events").values_summed().values())
    return packets, lost


async def flood(rate: int, seconds: float) -> None:
    with crowd.loaded(flow_interval_ms=0) as bpf:
        endpoint = bpf.btf.maps["endpoints"]
        row = endpoint.value.write({"ifindex": crowd.LOOPBACK})
        bpf.map("endpoints").update(endpoint.key.write({"bytes": to_bytes(POD)}), row)
        sight = crowd.sight_of(bpf, 3)
        sight.history.sum_up({})
        events = crowd.events_of(sight)
        fork = multiprocessing.get_context("fork")
        sent = fork.Value("q", 0)
        sender = fork.Process(target=send, args=(bpf, rate, seconds, sent))
        following = asyncio.create_task(events.follow())
        await asyncio.sleep(0.1)
        async with watched() as flooded:
            sender.start()
            await asyncio.to_thread(sender.join)
        await asyncio.sleep(1)
        async with watched() as asked:
            await read_flows(sight)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        packets, lost = counts(bpf)
    missing = sent.value - events.read - events.rejected - lost
    sent_rate, used = sent.value / flooded.took, flooded.processor / flooded.took
    print(f"{rate:,} reports a second asked for, {sent_rate:,.0f} sent, for {flooded.took:.1f} s")
    print(f"  sent {sent.value:,} = read {events.read:,} + lost {lost:,} + {missing} unexplained")
    print(f"  packets counted  {packets:,}")
    print(f"  agent            {used:.0%} of a core")
    print(f"  the loop waits   {1000 * flooded.latest:.0f} ms at most")
    read_in, waits = 1000 * asked.took, 1000 * asked.latest
    print(f"  flow map         read in {read_in:.0f} ms, the loop waits {waits:.0f} ms at most")


if __name__ == "__main__":
    wanted = [int(sys.argv[1])] if len(sys.argv) > 1 else RATES
    for each in wanted:
        asyncio.run(flood(each, float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS))
