# SPDX-License-Identifier: Apache-2.0
"""What the listener heard, set against what was promised.  Pure: counts in, sentences out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Count, WireFlow
from pellicle.lab.speakers import PROTOCOLS, Said

OFF, ON = "encryption off", "encryption on"
MOST_NAMED: Final = 3
"""Examples in a sentence about what went wrong."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the listener had counted at one moment."""

    counts: Mapping[WireFlow, Count]
    marks: Mapping[WireFlow, int]
    """Frames in which this phase's marker was readable."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time in which the pods talked in one family only."""

    phase: str
    family: int
    before: Snapshot
    after: Snapshot
    said: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Row:
    """One path in one family: what its pods said, and what the wire showed of it."""

    phase: str
    source: str
    destination: str
    family: int
    messages: int
    """Sent by the pods of `source`; the echoes come back on the opposite path."""
    answered: int
    packets: int
    bytes: int
    clear: int
    """Packets that showed a cluster address."""
    encrypted: int
    other: int
    readable: Mapping[str, int]
    """Packets in which the marker could be read, by protocol."""

    @property
    def path(self) -> str:
        return f"{self.source} → {self.destination}"


@dataclass(frozen=True, slots=True)
class Promise:
    says: str
    is_kept: bool
    found: str


def rows(window: Window, nodes: Sequence[str]) -> tuple[Row, ...]:
    """One row for each path between two of `nodes`."""
    return tuple(
        _row(window, source, destination)
        for source in nodes
        for destination in nodes
        if source != destination
    )


def judge(
    found: Sequence[Row], said: Sequence[Said], reuses: int, lost: int
) -> tuple[Promise, ...]:
    """Every promise of the demo, and whether it held."""
    return (
        _answered(said),
        _heard([row for row in found if row.phase == OFF]),
        *_hidden([row for row in found if row.phase == ON]),
        _promise("No nonce protected two packets", [f"{reuses} did"] * bool(reuses), "none"),
        _promise("The listener missed nothing", [f"{lost} packets"] * bool(lost), "0 lost"),
    )


def sentence(found: Sequence[Row], promises: Sequence[Promise], seconds: float) -> str:
    """The whole demo in one line."""
    broken = [promise for promise in promises if not promise.is_kept]
    if broken:
        reasons = "; ".join(f"{promise.says}: {promise.found}" for promise in broken)
        return f"BROKEN after {seconds:.0f} s. {reasons}"
    before = [row for row in found if row.phase == OFF]
    after = [row for row in found if row.phase == ON]
    return (
        f"KEPT in {seconds:.0f} s: {_sum(before, 'clear'):,} cleartext packets before, "
        f"{_sum(after, 'clear')} after; {_sum(after, 'encrypted'):,} ESP packets, "
        "nothing readable, every message answered."
    )


def _row(window: Window, source: str, destination: str) -> Row:
    by_kind: dict[Kind, Count] = dict.fromkeys(Kind, Count())
    readable: dict[str, int] = {}
    for flow, count in window.after.counts.items():
        if (flow.source, flow.destination) != (source, destination):
            continue
        by_kind[flow.kind] += count - window.before.counts.get(flow, Count())
        marked = window.after.marks.get(flow, 0) - window.before.marks.get(flow, 0)
        if marked:
            protocol = "ICMP" if flow.protocol == "ICMPv6" else flow.protocol
            readable[protocol] = readable.get(protocol, 0) + marked
    said = [each for each in window.said if _ends(each) == (source, destination)]
    total = by_kind[Kind.CLEAR] + by_kind[Kind.ESP] + by_kind[Kind.OTHER]
    return Row(
        phase=window.phase,
        source=source,
        destination=destination,
        family=window.family,
        messages=sum(each.sent for each in said),
        answered=sum(each.answered for each in said),
        packets=total.packets,
        bytes=total.bytes,
        clear=by_kind[Kind.CLEAR].packets,
        encrypted=by_kind[Kind.ESP].packets,
        other=by_kind[Kind.OTHER].packets,
        readable=readable,
    )


def _ends(said: Said) -> tuple[str, str]:
    return said.speaker.partition("/")[0], said.listener.partition("/")[0]


def _answered(said: Sequence[Said]) -> Promise:
    wrong = [
        f"{each.speaker} → {each.listener} by {each.protocol} over IPv{each.family}: "
        f"{each.answered} of {each.sent}" + (f" ({each.problem})" if each.problem else "")
        for each in said
        if each.problem or each.answered != each.sent or not each.sent
    ]
    sent = sum(each.sent for each in said)
    return _promise("Every message was answered, byte for byte", wrong, f"{sent:,} messages")


def _heard(before: Sequence[Row]) -> Promise:
    return _promise(
        "Off: the marker is readable on every path, by TCP, UDP and ICMP, in both families",
        [
            f"not on {row.path} by {protocol} over IPv{row.family}"
            for row in before
            for protocol in PROTOCOLS
            if not row.readable.get(protocol)
        ],
        f"in {_sum(before, 'clear'):,} cleartext packets",
    )


def _hidden(after: Sequence[Row]) -> Iterator[Promise]:
    yield _promise(
        "On: the marker is readable nowhere",
        [f"{n} times on {row.path}" for row in after if (n := sum(row.readable.values()))],
        f"searched in {_sum(after, 'packets'):,} packets",
    )
    yield _promise(
        "On: no cluster address shows",
        [f"{row.clear} packets on {row.path}, IPv{row.family}" for row in after if row.clear],
        "0 cleartext packets",
    )
    yield _promise(
        "On: ESP passes on every path, in both families, and nothing else between nodes",
        [
            f"{row.encrypted} ESP and {row.other} other packets on {row.path}, IPv{row.family}"
            for row in after
            if not row.encrypted or row.other
        ],
        f"{_sum(after, 'encrypted'):,} ESP packets",
    )


def _promise(says: str, wrong: Sequence[str], right: str) -> Promise:
    if not wrong:
        return Promise(says, is_kept=True, found=right)
    return Promise(says, is_kept=False, found="; ".join(_some(wrong)))


def _some(sentences: Sequence[str]) -> Iterator[str]:
    yield from sentences[:MOST_NAMED]
    if len(sentences) > MOST_NAMED:
        yield f"and {len(sentences) - MOST_NAMED} more"


def _sum(found: Sequence[Row], column: str) -> int:
    return sum(getattr(row, column) for row in found)
