# SPDX-License-Identifier: Apache-2.0
"""The flows of the recent past, in bounded memory.

The datapath's counters are cumulative: each event carries a flow's whole count, so an event
that is lost, or comes twice, changes nothing. Only when the kernel has forgotten a flow in
between does its count start again; `first` tells, and the counts are then added. By how much each
flow grows is summed up in a `Coverage`, whatever becomes of the flow.

The flows stand in the order in which they were last seen, and each change has a number: whoever
follows asks what has changed since the last number it saw, and may be as slow as it likes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, Final

import msgspec

from pellicle.facts import Address, IdentityNumber
from pellicle.flows.coverage import Coverage
from pellicle.flows.decode import FlowEvent
from pellicle.flows.names import Name
from pellicle.flows.selection import Selection

CAPACITY: Final = 65536
"""As many flows as the kernel's own map remembers."""
_PROTOCOLS: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 50: "ESP", 58: "ICMPv6", 132: "SCTP"}
_ICMP: Final = frozenset({1, 58})
_WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""
EVERYTHING: Final = Selection()


class Flow(msgspec.Struct, frozen=True, gc=False):
    """A flow, all of its counts, and the names of its ends when it was last seen."""

    event: FlowEvent
    packets: int
    octets: int
    source: Name | None
    destination: Name | None
    change: int

    @property
    def source_identity(self) -> IdentityNumber:
        return self.event.source_identity or _identity(self.source)

    @property
    def destination_identity(self) -> IdentityNumber:
        return self.event.destination_identity or _identity(self.destination)

    def answer(self, boot: float) -> dict[str, Any]:
        """As the agent's socket says it. `boot`: the wall clock's seconds at boot time 0."""
        event = self.event
        icmp = _icmp(event)
        has_ports = event.protocol in _WITH_PORTS
        ports = (event.source_port, event.destination_port) if has_ports else (None, None)
        return {
            "time": boot + event.last / 1e9,
            "since": boot + event.first / 1e9,
            "source": _end(event.source, ports[0], self.source, self.source_identity),
            "destination": _end(
                event.destination, ports[1], self.destination, self.destination_identity
            ),
            "protocol": _PROTOCOLS.get(event.protocol, str(event.protocol)),
            "icmp": icmp,
            "hook": event.hook,
            "verdict": event.reason.verdict.value,
            "reason": event.reason.name,
            "words": event.reason.words.short,
            "rule": event.rule,
            "packets": self.packets,
            "bytes": self.octets,
            "spi": event.spi,
            "epoch": event.epoch,
            "engine": event.engine,
            "pair": f"{event.pair:016x}",
        }


@dataclass(slots=True)
class History:
    """At most `capacity` flows; the one not seen for the longest time goes first."""

    capacity: int = CAPACITY
    change: int = 0
    """The number of the latest change."""
    forgotten: int = 0
    read_until: int = 0
    """Of the kernel's flow table everything up to this moment was taken over."""
    coverage: Coverage | None = None
    """None: nothing is summed up before `sum_up`."""
    _flows: OrderedDict[bytes, Flow] = field(default_factory=OrderedDict)
    _forgotten_until: int = 0
    """No flow that has begun later was ever forgotten."""

    def __len__(self) -> int:
        return len(self._flows)

    def add(self, events: Iterable[FlowEvent], names: Mapping[Address, Name]) -> None:
        """Remember what was seen, oldest first."""
        for event in events:
            before = self._flows.get(event.key)
            if before is not None and _is_stale(event, before.event):
                continue
            self.change += 1
            flow = _merged(before, event, names, self.change)
            self._flows[event.key] = flow
            self._flows.move_to_end(event.key)
            if self.coverage is not None:
                packets, octets = self._growth(before, flow)
                self.coverage.add(event, (flow.source, flow.destination), packets, octets)
        while len(self._flows) > self.capacity:
            _, gone = self._flows.popitem(last=False)
            self.forgotten += 1
            self._forgotten_until = max(self._forgotten_until, gone.event.last)

    def sum_up(self, names: Mapping[Address, Name], told: int = 0) -> Coverage:
        """Begin with sums of all that is remembered, by the names of now, and go on with them.

        `told`: flows that have begun before that moment are not to be told again.
        """
        self.coverage = coverage = Coverage()
        for flow in self._flows.values():
            ends = (
                names.get(flow.event.source) or flow.source,
                names.get(flow.event.destination) or flow.destination,
            )
            is_told = flow.event.first <= told
            coverage.add(flow.event, ends, flow.packets, flow.octets, is_told=is_told)
        return coverage

    def since(self, change: int = 0, selection: Selection = EVERYTHING) -> list[Flow]:
        """The flows that changed after change number `change`, oldest change first."""
        recent = takewhile(lambda flow: flow.change > change, reversed(self._flows.values()))
        return [flow for flow in recent if is_selected(flow, selection)][::-1]

    def last(self, count: int, selection: Selection = EVERYTHING) -> list[Flow]:
        """The `count` flows seen last, oldest first."""
        newest = reversed(self._flows.values())
        wanted = (flow for flow in newest if is_selected(flow, selection))
        return list(islice(wanted, count))[::-1]

    def _growth(self, before: Flow | None, after: Flow) -> tuple[int, int]:
        """Packets and bytes that were in no report before; never too many.

        What may be a flow that was forgotten counts from here on: how much of it was known is
        not known any more.
        """
        if before is not None:
            return after.packets - before.packets, after.octets - before.octets
        if after.event.first <= self._forgotten_until:
            return 0, 0
        return after.packets, after.octets


def is_selected(flow: Flow, selection: Selection) -> bool:
    """Whether all that the selection asks for holds."""
    event = flow.event
    if selection.verdict is not None and event.reason.verdict is not selection.verdict:
        return False
    source, destination = selection.source, selection.destination
    if source is not None and not source.matches(event.source, flow.source, flow.source_identity):
        return False
    return destination is None or destination.matches(
        event.destination, flow.destination, flow.destination_identity
    )


def _is_stale(event: FlowEvent, known: FlowEvent) -> bool:
    """Says nothing that is not known: a duplicate, or overtaken by a later event."""
    if event.first != known.first:
        return event.first < known.first
    return event.packets <= known.packets


def _merged(
    before: Flow | None, event: FlowEvent, names: Mapping[Address, Name], change: int
) -> Flow:
    source, destination = names.get(event.source), names.get(event.destination)
    if before is None:
        return Flow(event, event.packets, event.octets, source, destination, change)
    packets, octets = before.packets + event.packets, before.octets + event.octets
    if event.first == before.event.first:
        packets, octets = packets - before.event.packets, octets - before.event.octets
    return Flow(
        event, packets, octets, source or before.source, destination or before.destination, change
    )


def _identity(name: Name | None) -> IdentityNumber:
    return IdentityNumber(0) if name is None else name.identity


def _end(
    address: Address, port: int | None, name: Name | None, identity: IdentityNumber
) -> dict[str, Any]:
    return {
        "address": str(address),
        "port": port,
        "pod": str(name.pod) if name and name.pod else None,
        "node": name.node if name else None,
        "identity": identity,
    }


def _icmp(event: FlowEvent) -> dict[str, int] | None:
    if event.protocol not in _ICMP:
        return None
    kind, code = divmod(event.source_port, 256)
    return {"type": kind, "code": code, "identifier": event.destination_port}
