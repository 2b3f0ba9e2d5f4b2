# SPDX-License-Identifier: Apache-2.0
"""The datapath's events as they come: flows into the history, the rest to whoever wants it.

What peers have said wakes the reader, and so do flows when many wait; else it looks by itself, for
to be woken costs the datapath more than a flow does. However fast they come, everything else has
its turn in between. What the ring buffer has no room for the datapath counts; what cannot be read
is counted here: sent = read + rejected + lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pellicle.facts import Address
from pellicle.flows.decode import Decoder, FlowEvent, PathMtu, ProbeSeen, SaConfirmed
from pellicle.flows.history import History
from pellicle.flows.names import Name
from pellicle.kernel.bpf import Object, RingBuffer
from pellicle.table import Table

AT_ONCE = 512
"""A few milliseconds of the event loop."""
LOOK_SECONDS = 0.1
"""A new flow is known so late at most."""

Told = SaConfirmed | ProbeSeen | PathMtu


@dataclass(slots=True)
class Events:
    """`tell`: is given all events but flows."""

    bpf: Object
    decoder: Decoder
    history: History
    names: Table[Address, Name]
    tell: Callable[[Told], None]
    read: int = 0
    rejected: int = 0

    async def follow(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        with RingBuffer(self.bpf.map("events")) as ring:
            loop.add_reader(ring, lambda: self.take(ring.consume(AT_ONCE)))
            try:
                while True:
                    records = ring.consume(AT_ONCE)
                    self.take(records)
                    await asyncio.sleep(LOOK_SECONDS if len(records) < AT_ONCE else 0)
            finally:
                loop.remove_reader(ring)

    def take(self, records: Sequence[bytes]) -> None:
        """Records of the ring buffer, oldest first."""
        if not records:
            return
        decoded = self.decoder.events(records)
        self.read += len(decoded.events)
        self.rejected += len(decoded.rejected)
        names: Mapping[Address, Name] = self.names.rows
        self.history.add((event for event in decoded.events if isinstance(event, FlowEvent)), names)
        for event in decoded.events:
            if not isinstance(event, FlowEvent):
                self.tell(event)
