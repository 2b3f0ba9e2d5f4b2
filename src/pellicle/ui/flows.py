# SPDX-License-Identifier: Apache-2.0
"""Flows: as a table, as a live table that updates in place, as one line each for a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.answers import End, Flow
from pellicle.ui.encrypt import spi
from pellicle.ui.grid import Column, grid
from pellicle.ui.status import VERDICT_STYLES
from pellicle.ui.units import clock, count, octets

_IDLE_SECONDS: Final = 5.0
_FRAME_LINES: Final = 4
"""Lines of the live view that are no flows."""
REMEMBERED: Final = 4096
"""Flows of the live view, shown or not."""
_COLUMNS: Final = (
    Column("time", rank=2),
    Column("from", shrinks=True),
    Column("to", shrinks=True),
    Column("protocol", rank=3),
    Column("verdict"),
    Column("reason", rank=1),
    Column("packets", rank=4, is_number=True),
    Column("bytes", rank=5, is_number=True),
    Column("detail", rank=6),
    Column("at", rank=8),
    Column("nodes", rank=7),
)

_ICMP: Final = {
    ("ICMP", 0): "reply",
    ("ICMP", 3): "unreachable",
    ("ICMP", 8): "echo",
    ("ICMP", 11): "TTL exceeded",
    ("ICMPv6", 1): "unreachable",
    ("ICMPv6", 2): "too big",
    ("ICMPv6", 3): "TTL exceeded",
    ("ICMPv6", 128): "echo",
    ("ICMPv6", 129): "reply",
}

Key = tuple[str, ...]


def table(flows: Sequence[Flow], width: int, now: float | None = None) -> RenderableType:
    """A line for each flow; with `now`, flows that have gone quiet are dimmed."""
    return grid(_COLUMNS, [_row(flow, now) for flow in flows], width)


def page(flows: Sequence[Flow], width: int) -> RenderableType:
    """The table, and a word when there is nothing in it."""
    if not flows:
        return Text("no flows: nothing was sent, or nothing that you ask for", "quiet")
    return table(flows, width)


def line(flow: Flow) -> Text:
    """All about one flow in one line."""
    return Text.assemble(
        (clock(flow.time), "quiet"),
        " ",
        (f"{flow.verdict:<9}", VERDICT_STYLES.get(flow.verdict, "")),
        " ",
        _end(flow.source),
        " → ",
        _end(flow.destination),
        f" {_protocol(flow)} {flow.packets} packets {octets(flow.bytes)} ",
        (f"{flow.reason} {_detail(flow)} at {flow.hook}", "quiet"),
    )


def key(flow: Flow) -> Key:
    """What makes two reports one flow."""
    icmp = (flow.icmp.type, flow.icmp.code, flow.icmp.identifier) if flow.icmp else ()
    ends = (flow.source.address, flow.source.port, flow.destination.address, flow.destination.port)
    return tuple(map(str, (*ends, flow.protocol, flow.hook, flow.reason, *icmp)))


@dataclass(slots=True)
class Live:
    """The flows on the screen: each keeps its line while it is among those seen last.

    One thread adds, another draws.
    """

    flows: dict[Key, Flow] = field(default_factory=dict)
    _turn: Lock = field(default_factory=Lock)

    def add(self, flow: Flow) -> None:
        """One report."""
        with self._turn:
            self.flows[key(flow)] = flow
            while len(self.flows) > REMEMBERED:
                del self.flows[_by_age(self.flows)[0]]

    def view(self, width: int, height: int, now: float) -> RenderableType:
        """As many as fit, and how many there are of each verdict."""
        with self._turn:
            flows = dict(self.flows)
        shown = set(_by_age(flows)[-max(height - _FRAME_LINES, 1) :])
        lines = [flow for name, flow in flows.items() if name in shown]
        verdicts = Counter(flow.verdict for flow in flows.values())
        totals = [
            Text(f"{number} {verdict}", VERDICT_STYLES.get(verdict, ""))
            for verdict, number in sorted(verdicts.items())
        ]
        summary = Text(" · ").join(totals) if totals else Text("no flows yet", "quiet")
        return Group(table(lines, width, now), Text(), summary, Text("Ctrl-C ends", "quiet"))


def _by_age(flows: dict[Key, Flow]) -> list[Key]:
    """The flow that was quiet for the longest time comes first."""
    return sorted(flows, key=lambda name: flows[name].time)


def _row(flow: Flow, now: float | None) -> list[Text]:
    is_idle = now is not None and now - flow.time > _IDLE_SECONDS
    cells = [
        Text(clock(flow.time), "quiet"),
        _end(flow.source),
        _end(flow.destination),
        Text(_protocol(flow)),
        Text(flow.verdict, VERDICT_STYLES.get(flow.verdict, "")),
        Text(_short(flow.reason), "quiet" if flow.verdict == "encrypted" else ""),
        Text(count(flow.packets)),
        Text(octets(flow.bytes)),
        Text(_detail(flow)),
        Text(flow.hook, "quiet"),
        Text(_nodes(flow), "quiet"),
    ]
    if is_idle:
        for cell in cells:
            cell.stylize("quiet")
    return cells


def _end(end: End) -> Text:
    """A pod or node by its name when it has one, else by its address."""
    name = end.pod or end.node or ""
    port = "" if end.port is None else f":{end.port}"
    if name:
        return Text(name + port)
    return Text(f"[{end.address}]{port}" if port and ":" in end.address else end.address + port)


def _protocol(flow: Flow) -> str:
    if flow.icmp is None:
        return flow.protocol
    known = _ICMP.get((flow.protocol, flow.icmp.type))
    return f"{flow.protocol} {known or f'{flow.icmp.type}/{flow.icmp.code}'}"


def _short(reason: str) -> str:
    """DROP_NO_KEY: no key."""
    for prefix in ("CLEAR_", "DROP_"):
        reason = reason.removeprefix(prefix)
    return reason.lower().replace("_", " ")


def _detail(flow: Flow) -> str:
    """Under which key and by which engine, or why not."""
    if flow.verdict != "encrypted":
        return flow.words
    if not flow.spi:
        return ""
    said = (f"epoch {flow.epoch}", f"SPI {spi(flow.spi)}", flow.engine)
    return ", ".join(filter(None, said))


def _nodes(flow: Flow) -> str:
    ends = [flow.source.node, flow.destination.node]
    return " → ".join(end or "-" for end in ends) if any(ends) else ""
