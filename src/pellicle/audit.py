# SPDX-License-Identifier: Apache-2.0
"""The audit of a node: what was encrypted, what was not and why, since when.

The flows are summed up (`flows/coverage.py`) from the moment when the cluster's nodes and pods are
known, so that every row has names; what the kernel counted before that is in the sums, too.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import msgspec

from pellicle.answers import Sight, events_lost, packet_counts, read_flows
from pellicle.flows import coverage
from pellicle.flows.coverage import Coverage
from pellicle.serve import Answer, CallError, Request
from pellicle.table import Table

DEFAULT_ROWS = 1000


class Wanted(msgspec.Struct, frozen=True):
    """The arguments of the call `audit`."""

    most: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_ROWS


class Audit:
    """Of one node."""

    def __init__(self, sight: Sight) -> None:
        self._sight = sight
        self._coverage: Coverage | None = None

    async def run(self) -> None:
        """Begin as soon as the addresses have names."""
        names = self._sight.names
        with Table.bell(names) as changed:
            while not names.listed:
                changed.clear()
                await changed.wait()
        read_flows(self._sight)
        self._coverage = self._sight.history.sum_up(names.rows)

    def answers(self) -> Mapping[str, Answer]:
        """The calls that concern the audit."""
        return {"audit": self._answer}

    async def _answer(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        try:
            wanted = msgspec.convert(request.arguments, Wanted)
        except ValueError as error:
            raise CallError(7, str(error)) from error
        yield self.report(wanted.most)

    def report(self, most: int) -> dict[str, Any]:
        """All since the datapath's counters began; of each list the `most` weighty rows."""
        if self._coverage is None:
            why = "nothing is summed up yet: the nodes of the cluster are not known"
            raise CallError(7, why, "a moment after the start that is so; else see the directory")
        sight, now = self._sight, time.time()
        # In this order, so that no packet is attributed that is not counted.
        read_flows(sight)
        counts = packet_counts(sight)
        boot = now - time.clock_gettime(time.CLOCK_BOOTTIME)
        return {
            "node": sight.config.node_name,
            "until": now,
            **coverage.report(self._coverage, counts, boot, most),
            "events_lost": events_lost(sight),
        }
