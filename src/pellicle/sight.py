# SPDX-License-Identifier: Apache-2.0
"""All of a running agent that may be looked at, and what the datapath and the kernel have counted.

Counters come from the kernel's maps at the moment of asking. Nothing here changes anything but the
history, which takes over the flows that the kernel knows.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pellicle.config import Config
from pellicle.datapath.programs import ProgramTarget
from pellicle.encryption.engine import Choice
from pellicle.encryption.keying import Keying
from pellicle.encryption.sas import SaTarget
from pellicle.encryption.states import States
from pellicle.encryption.svids import Svids
from pellicle.facts import Address, Endpoint, EndpointName, Link, Node, NodeName, Rejected
from pellicle.flows.decode import Decoder, FlowEvent
from pellicle.flows.history import History
from pellicle.flows.kernel_reasons import words_of
from pellicle.flows.names import Name
from pellicle.kernel.bpf import Object
from pellicle.keys.pairing import PeerKeys
from pellicle.sources.audit_trail import AuditTrail
from pellicle.table import Reconciler, Table

VERSION = "0.1.0"
OVERLAP = 10**9
"""Nanoseconds that are read again: a row may bear a moment that is older than itself."""
AT_ONCE = 256
"""Flows that are taken over before everything else has its turn: a few milliseconds."""


@dataclass(slots=True)
class Sight:
    """All that may be asked about."""

    config: Config
    uplink: str
    choice: Choice
    longest: int
    """Packet that the engine seals."""
    bpf: Object
    decoder: Decoder
    programs: ProgramTarget
    sas: SaTarget
    states: States | None
    """None: the kernel has no IPsec."""
    keying: Keying | None
    """None: encryption is off."""
    peers: Table[NodeName, PeerKeys]
    nodes: Table[NodeName, Node]
    endpoints: Table[EndpointName, Endpoint]
    names: Table[Address, Name]
    links: Table[str, Link]
    rejected: Callable[[], Sequence[Rejected]]
    reconcilers: Sequence[Reconciler[Any, Any]]
    history: History
    problems: Callable[[], Iterable[str]]
    """What is wrong now, in words."""
    svids: Svids | None = None
    """None: the key mode is not spiffe."""
    key_events: Counter[str] = field(default_factory=Counter)
    """How often what has become of keys."""
    trail: AuditTrail | None = None


@contextmanager
def no_collection() -> Iterator[None]:
    """Tens of thousands of rows come and go, none in a cycle: looking for cycles among them, and
    all that the agent has, would hold up the loop for longer than all the rest.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def read_flows(sight: Sight) -> None:
    """Take over what the kernel's flow table has counted; its rows are newer than the events."""
    with no_collection():
        changed = await asyncio.to_thread(changed_flows, sight)
        for start in range(0, len(changed), AT_ONCE):
            know_flows(sight, changed[start : start + AT_ONCE])
            await asyncio.sleep(0)


def changed_flows(sight: Sight) -> list[tuple[bytes, bytes]]:
    """Keys and rows of the flow table that have changed since it was last read, oldest first."""
    at, until = sight.decoder.row.by_name["row.last"].offset, sight.history.read_until - OVERLAP

    def last(each: tuple[bytes, bytes]) -> int:
        return int.from_bytes(each[1][at : at + 8], "little")

    return sorted((each for each in sight.bpf.map("flows").items() if last(each) > until), key=last)


def know_flows(sight: Sight, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Take over these, each not older than the one before."""
    decoded = sight.decoder.flows(rows)
    flows = [event for event in decoded.events if isinstance(event, FlowEvent)]
    sight.history.add(flows, sight.names.rows)
    if flows:
        sight.history.read_until = max(sight.history.read_until, flows[-1].last)


def packet_counts(sight: Sight) -> list[dict[str, Any]]:
    """Packets and bytes by reason and verdict, all there are."""
    summed = sight.bpf.map("counts").values_summed()
    rows = []
    for number, reason in sight.decoder.reasons.items():
        packets, octets = summed.get(number.to_bytes(4, "little"), (0, 0))
        rows.append(
            {
                "reason": reason.name,
                "words": reason.words.short,
                "advice": reason.words.advice,
                "verdict": reason.verdict.value,
                "packets": packets,
                "bytes": octets,
            }
        )
    return rows


def kernel_drops(sight: Sight) -> list[dict[str, Any]]:
    """What the kernel's IPsec has dropped in this namespace, ours or not."""
    counted = sight.states.xfrm.errors() if sight.states else {}
    return [
        {
            "reason": name,
            "words": words_of(name).short,
            "advice": words_of(name).advice,
            "packets": packets,
        }
        for name, packets in counted.items()
        if packets
    ]


def events_lost(sight: Sight) -> int:
    """Events that the ring buffer had no room for."""
    return sum(value[0] for value in sight.bpf.map("lost_events").values_summed().values())


def all_rejected(sight: Sight) -> list[Rejected]:
    """What of sources, secrets and offers is not used."""
    plan = sight.keying.plan if sight.keying else None
    return [*sight.rejected(), *(plan.rejected if plan else ())]
