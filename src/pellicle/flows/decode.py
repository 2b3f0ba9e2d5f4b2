# SPDX-License-Identifier: Apache-2.0
"""From the ring buffer's bytes to frozen events.

    struct event ┬ EVENT_FLOW          → FlowEvent     key, counters, SA
                 ├ EVENT_SA_CONFIRMED  → SaConfirmed   first authenticated packet of an inbound SA
                 ├ EVENT_PROBE         → ProbeSeen     what a peer's agent asks or answers
                 └ EVENT_PMTU          → PathMtu       an ICMP error about our ESP

Layouts and numbers come from the object's BTF. Many records are decoded in one pass. The rows
of the map `flows` hold the same counters and make the same FlowEvents: that is how a new agent
knows the flows of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from pellicle.datapath.address import from_bytes
from pellicle.facts import Address, Epoch, IdentityNumber, PairId, Rejected, Spi
from pellicle.flows import reasons
from pellicle.flows.reasons import Reason
from pellicle.wire.btf import Btf
from pellicle.wire.layout import Field, Layout

T = TypeVar("T")

_address = lru_cache(maxsize=65536)(from_bytes)

_KEY: Final = "flow_key"
_ROW: Final = "flow_row"
_EVENT: Final = ("kind", "number", "pair", "probe")
_OF_KEY: Final = (
    "key.source.bytes", "key.destination.bytes", "key.source_port", "key.destination_port",
    "key.protocol", "key.hook", "key.reason", "key.audited",
)  # fmt: skip
_OF_ROW: Final = (
    "row.packets", "row.bytes", "row.first", "row.last", "row.pair", "row.source_identity",
    "row.destination_identity", "row.spi", "row.epoch", "row.engine", "row.rule",
)  # fmt: skip
_LAST: Final = _OF_ROW.index("row.last")


class FlowEvent(msgspec.Struct, frozen=True, gc=False):
    """A flow as the datapath has counted it so far; times are boot time in nanoseconds."""

    key: bytes
    """`struct flow_key` as it is: names the flow."""
    source: Address
    destination: Address
    source_port: int
    """ICMP: type and code."""
    destination_port: int
    """ICMP: identifier."""
    protocol: int
    hook: str
    reason: Reason
    packets: int
    """Since `first`."""
    octets: int
    first: int
    last: int
    pair: PairId
    source_identity: IdentityNumber
    destination_identity: IdentityNumber
    spi: Spi
    epoch: Epoch
    """The sender's."""
    engine: str
    """"bpf" or "xfrm"; "" when none has touched it."""
    rule: str
    """What has let it pass; "" when nothing had to."""


class SaConfirmed(msgspec.Struct, frozen=True):
    """The first packet authenticated on an inbound SA: the peer has this pair's keys."""

    pair: PairId
    number: int


class ProbeSeen(msgspec.Struct, frozen=True):
    """A peer's probe arrived. `kind`: "ask" or "answer"."""

    pair: PairId
    number: int
    kind: str


class PathMtu(msgspec.Struct, frozen=True):
    """A router between the nodes has refused ESP longer than `mtu`."""

    source: Address
    destination: Address
    mtu: int


Event = FlowEvent | SaConfirmed | ProbeSeen | PathMtu


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events, in their order, and what could not be read."""

    events: Sequence[Event]
    rejected: Sequence[Rejected]


@dataclass(frozen=True, slots=True)
class Decoder:
    """Knows one object's layouts and numbers."""

    event: Layout
    key: Layout
    row: Layout
    key_at: int
    """Where the flow's key lies in an event."""
    reasons: Mapping[int, Reason]
    hooks: Mapping[int, str]
    kinds: Mapping[int, str]
    probes: Mapping[int, str]
    engines: Mapping[int, str]
    rules: Mapping[int, str]
    audited: int
    """What is added to a reason that monitor mode has let through."""

    @staticmethod
    def of(btf: Btf, rules: Mapping[int, str]) -> Decoder:
        """ValueError when the object's events are not those that this version reads.

        `rules`: their names, by the numbers that the datapath has.
        """
        event, key, row = btf.struct("event"), btf.struct(_KEY), btf.struct(_ROW)
        return Decoder(
            _chosen("event", event, (*_EVENT, *_OF_KEY, *_OF_ROW)),
            _chosen(_KEY, key, _OF_KEY, "key."),
            _chosen(_ROW, row, _OF_ROW, "row."),
            event.by_name["key"].offset,
            reasons.read(btf),
            _words(btf, "hook", "HOOK_"),
            _words(btf, "event_kind", "EVENT_"),
            _words(btf, "probe_kind", "PROBE_"),
            {0: "", **_words(btf, "engine", "ENGINE_")},
            rules,
            btf.enum(reasons.ENUM)["REASON_COUNT"],
        )

    def events(self, records: Sequence[bytes]) -> Decoded:
        """Records of the ring buffer, oldest first."""
        size, at, key_size = self.event.size, self.key_at, self.key.size
        whole = [record for record in records if len(record) == size]
        rejected = [
            Rejected("events", "struct event", f"a record of {len(record)} bytes, not {size}")
            for record in records
            if len(record) != size
        ]
        values = self.event.unpack_values(b"".join(whole))
        rows = (
            (record[at : at + key_size], row) for record, row in zip(whole, values, strict=True)
        )
        return _decoded(rows, rejected, self._event)

    def flows(self, items: Iterable[tuple[bytes, bytes]]) -> Decoded:
        """Keys and rows of the map `flows`; the flow seen last comes last."""
        whole, rejected = [], []
        for key, row in items:
            if (len(key), len(row)) == (self.key.size, self.row.size):
                whole.append((key, row))
                continue
            why = f"{len(key)} and {len(row)} bytes, not {self.key.size} and {self.row.size}"
            rejected.append(Rejected("flows", "struct flow_key, flow_row", why))
        keys = self.key.unpack_values(b"".join(key for key, _ in whole))
        rows = self.row.unpack_values(b"".join(row for _, row in whole))
        fields = zip((raw for raw, _ in whole), keys, rows, strict=True)
        ordered = sorted(fields, key=lambda each: each[2][_LAST])
        flat = ((raw, (*key, *row)) for raw, key, row in ordered)
        return _decoded(flat, rejected, self._flow)

    def _event(self, key: bytes, row: Sequence[Any]) -> Event:
        kind, number, pair, probe, *flow = row
        match _known(self.kinds, "kind", kind):
            case "flow":
                return self._flow(key, flow)
            case "sa_confirmed":
                return SaConfirmed(pair, number)
            case "probe":
                return ProbeSeen(pair, number, _known(self.probes, "probe", probe))
            case "pmtu":
                return PathMtu(_address(flow[0]), _address(flow[1]), number)
            case kind:
                raise LookupError(f"{kind} is an event that this version does not know")

    def _flow(self, key: bytes, row: Sequence[Any]) -> FlowEvent:
        (
            source, destination, source_port, destination_port, protocol, hook, reason,
            audited, packets, octets, first, last, pair, source_identity, destination_identity,
            spi, epoch, engine, rule,
        ) = row  # fmt: skip
        return FlowEvent(
            key,
            _address(source),
            _address(destination),
            source_port,
            destination_port,
            protocol,
            _known(self.hooks, "hook", hook),
            _known(self.reasons, "reason", reason + self.audited if audited else reason),
            packets,
            octets,
            first,
            last,
            pair,
            source_identity,
            destination_identity,
            spi,
            epoch,
            _known(self.engines, "engine", engine),
            self.rules.get(rule, "a rule that is no more") if rule else "",
        )


def _decoded(
    rows: Iterable[tuple[bytes, Sequence[Any]]],
    rejected: list[Rejected],
    event: Callable[[bytes, Sequence[Any]], Event],
) -> Decoded:
    events: list[Event] = []
    for key, row in rows:
        try:
            events.append(event(key, row))
        except LookupError as error:
            rejected.append(Rejected("events", "struct event", str(error)))
    return Decoded(events, rejected)


def _known(table: Mapping[int, T], what: str, number: int) -> T:
    if number not in table:
        raise LookupError(f"{what} {number} is not one that this version knows")
    return table[number]


def _words(btf: Btf, enum: str, prefix: str) -> Mapping[int, str]:
    """The numbers of an enum, each with its name in lower case and without the prefix."""
    return {number: name.removeprefix(prefix).lower() for name, number in btf.enum(enum).items()}


def _chosen(what: str, layout: Layout, names: Sequence[str], prefix: str = "") -> Layout:
    """These fields, in this order; ValueError when the object's struct has another shape."""
    there = {field.name: field for field in _flat(layout, prefix)}
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"struct {what} has no {', '.join(sorted(missing))}")
    return Layout(layout.name, layout.size, tuple(there[name] for name in names))


def _flat(layout: Layout, prefix: str = "", start: int = 0) -> Iterator[Field]:
    """The fields of a struct and of the structs in it, as one list with dotted names.

    Rows are decoded by one pass of the struct module, without a dict for each struct inside.
    """
    for field in layout.fields:
        if field.is_alternative:
            continue
        name, at = prefix + field.name, start + field.offset
        if isinstance(field.kind, Layout):
            yield from _flat(field.kind, f"{name}.", at)
        else:
            yield Field(name, at, field.kind)
