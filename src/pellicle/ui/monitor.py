# SPDX-License-Identifier: Apache-2.0
"""The live monitor: rates and peers above, flows below, newest first.

    ● n1  encryption on  healthy
      encrypted   1.2k packets/s   890 kB/s  ▁▂▃▅▇▆▅▃
      …
      n2  ● ready   out 420 kB/s   in 12 kB/s
    time  from  to  verdict  …
    q quits  p pauses  …

`Monitor` is told what the agent says and what is typed, and makes the picture; it neither asks nor
reads. One thread adds flows, another statuses, a third draws. Verdicts are what the agent says
there are.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.answers import Flow, Peer, Status
from pellicle.ui.flows import Key, key, line, table
from pellicle.ui.grid import Column, grid
from pellicle.ui.status import VERDICT_STYLES, title
from pellicle.ui.units import count, octets

REMEMBERED: Final = 2048
"""Flows, shown or not."""
HISTORY: Final = 60
"""Points of a sparkline."""
LEAST_FLOWS: Final = 5
"""Lines of flows that peers leave on a small terminal."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDE: Final = 64
"""From here on there is room for sparklines."""
_USUAL: Final = ("encrypted", "clear", "dropped")
_STATES: Final = {"ready": "good"}
_ESCAPE, _ENTER, _ERASE = "\x1b", "\r\n", "\x7f\b"
_PEERS: Final = (
    Column("peer", shrinks=True),
    Column("state"),
    Column("out/s", is_number=True),
    Column("in/s", is_number=True),
    Column("engine", rank=2),
    Column("cipher", rank=3),
    Column("why", rank=1),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """A second's worth."""

    packets: float = 0.0
    octets: float = 0.0


@dataclass(slots=True)
class Monitor:
    """`verdicts`: those that are shown; None: all."""

    verdicts: frozenset[str] | None = None
    filter: str = ""
    is_typing: bool = False
    is_paused: bool = False
    is_over: bool = False
    trouble: str = ""
    """Why nothing is heard of the agent at the moment."""
    status: Status | None = None
    _at: float = 0.0
    _rates: dict[str, deque[Rate]] = field(default_factory=dict)
    _peers: dict[str, Rate] = field(default_factory=dict)
    """Of each, bytes a second: out as packets, in as octets."""
    _flows: OrderedDict[Key, Flow] = field(default_factory=OrderedDict)
    _paused: tuple[Flow, ...] = ()
    _turn: Lock = field(default_factory=Lock)

    # --- what the agent says --------------------------------------------------------------------

    def add(self, flow: Flow) -> None:
        """One report."""
        with self._turn:
            self._flows[key(flow)] = flow
            self._flows.move_to_end(key(flow))
            while len(self._flows) > REMEMBERED:
                self._flows.popitem(last=False)

    def hear(self, status: Status, now: float) -> None:
        """What the agent says of itself; `now` in seconds of any clock."""
        with self._turn:
            before, seconds = self.status, now - self._at
            self.status, self._at, self.trouble = status, now, ""
            if before is None or seconds <= 0:
                return
            was, is_ = _by_verdict(before), _by_verdict(status)
            for verdict, whole in is_.items():
                points = self._rates.setdefault(verdict, deque(maxlen=HISTORY))
                points.append(_rate(was.get(verdict, Rate()), whole, seconds))
            old = {peer.node: peer for peer in before.peers}
            self._peers = {
                peer.node: _rate(
                    Rate(old[peer.node].bytes_out, old[peer.node].bytes_in),
                    Rate(peer.bytes_out, peer.bytes_in),
                    seconds,
                )
                for peer in status.peers
                if peer.node in old
            }

    # --- what is typed ---------------------------------------------------------------------------

    def press(self, text: str) -> None:
        """Keys, in their order."""
        for each in text:
            if self.is_typing:
                self._type(each)
            elif each in "qQ":
                self.is_over = True
            elif each in "pP ":
                self._pause()
            elif each == "/":
                self.is_typing, self.filter = True, ""
            elif each == _ESCAPE:
                self.filter, self.verdicts = "", None
            else:
                self._toggle(each)

    def _type(self, each: str) -> None:
        if each in _ENTER:
            self.is_typing = False
        elif each == _ESCAPE:
            self.is_typing, self.filter = False, ""
        elif each in _ERASE:
            self.filter = self.filter[:-1]
        elif each.isprintable():
            self.filter += each

    def _pause(self) -> None:
        self.is_paused = not self.is_paused
        with self._turn:
            self._paused = tuple(self._flows.values()) if self.is_paused else ()

    def _toggle(self, each: str) -> None:
        known = self._known()
        named = {verdict for verdict in known if verdict.startswith(each.lower())}
        if not named:
            return
        shown = (self.verdicts if self.verdicts is not None else known) ^ named
        self.verdicts = None if shown == known else frozenset(shown)

    def _known(self) -> frozenset[str]:
        with self._turn:
            of_flows = {flow.verdict for flow in self._flows.values()}
            return frozenset({*_verdicts(self.status), *of_flows})

    # --- the picture ---------------------------------------------------------------------------

    def view(self, width: int, height: int, now: float) -> RenderableType:
        """No more than `height` lines; `now`: the wall clock."""
        with self._turn:
            flows = self._paused if self.is_paused else tuple(self._flows.values())
            status, rates, peers = self.status, self._rates, self._peers
            top = [_head(status, self.is_paused, self.trouble, width)]
            top += _of_rates(rates, status, width)
        if status is not None:
            top += _problems(status, width, 1 if height < 20 else 3)
        room = height - len(top) - LEAST_FLOWS - 4
        shown = _busiest(status.peers, peers)[: max(min(room, height // 4), 0)] if status else ()
        parts: list[RenderableType] = [*top]
        used = len(top)
        if shown:
            parts += [Text(), _of_peers(shown, peers, width)]
            used += len(shown) + 2
        room = height - used - 3  # an empty line, the heads, and the foot
        chosen = [flow for flow in reversed(flows) if self._is_shown(flow)][: max(room, 0)]
        parts += [Text(), _of_flows(chosen, width, now, has_any=bool(flows))]
        used += 2 + len(chosen)
        parts += [Text()] * (height - used - 1)
        parts.append(self._foot(width))
        return Group(*parts)

    def _is_shown(self, flow: Flow) -> bool:
        if self.verdicts is not None and flow.verdict not in self.verdicts:
            return False
        return not self.filter or self.filter.lower() in line(flow).plain.lower()

    def _foot(self, width: int) -> Text:
        if self.is_typing:
            return _cut(Text.assemble("/", (self.filter, "name"), ("▏", "quiet")), width)
        known = sorted(self._known(), key=_order)
        keys = Text.assemble(
            ("q", "name"), " quit  ", ("p", "name"), " pause  ", ("/", "name"),
            f" {self.filter}  " if self.filter else " filter  ",
        )  # fmt: skip
        for verdict in known:
            is_on = self.verdicts is None or verdict in self.verdicts
            style = VERDICT_STYLES.get(verdict, "") if is_on else "quiet"
            mark = "●" if is_on else "○"
            keys.append_text(
                Text.assemble((verdict[0], "name"), " ", (f"{mark} {verdict}  ", style))
            )
        return _cut(keys, width)


def _head(status: Status | None, is_paused: bool, trouble: str, width: int) -> Text:
    if status is None:
        return Text("asking the agent …", "quiet")
    head = title(status)
    if is_paused:
        head.append("  paused", "wary")
    if trouble:
        head = Text.assemble(("✗ ", "bad"), trouble)
    return _cut(head, width)


def _of_rates(rates: dict[str, deque[Rate]], status: Status | None, width: int) -> Iterator[Text]:
    """A line for each verdict, also while nothing is known."""
    for verdict in sorted(_verdicts(status), key=_order):
        points = rates.get(verdict, deque())
        now = points[-1] if points else Rate()
        style = VERDICT_STYLES.get(verdict, "wary")
        row = Text.assemble(
            (f"  {verdict:<10}", style if now.packets else "quiet"),
            f"{count(now.packets):>6} packets/s  {octets(now.octets) + '/s':>9}  ",
        )
        if width >= _WIDE:
            room = min(HISTORY, width - row.cell_len)
            row.append(sparkline([point.packets for point in points][-room:]), style)
        yield _cut(row, width)


def sparkline(points: Sequence[float]) -> str:
    """A bar for each; the highest is the most there was."""
    most = max(points, default=0.0)
    if most <= 0:
        return _BARS[0] * len(points)
    return "".join(_BARS[min(int(point / most * 8), 7) if point else 0] for point in points)


def _problems(status: Status, width: int, most: int) -> Iterator[Text]:
    for problem in status.problems[:most]:
        yield _cut(Text.assemble(("  ! ", "wary"), problem), width)
    more = len(status.problems) - most
    if more > 0:
        yield Text(f"    {more} more: see `pellicle status`", "quiet")


def _busiest(peers: Sequence[Peer], rates: dict[str, Rate]) -> list[Peer]:
    """Those that want a look first, then those with the most traffic."""

    def weight(peer: Peer) -> tuple[bool, float, str]:
        rate = rates.get(peer.node, Rate())
        return (peer.state == "ready", -(rate.packets + rate.octets), peer.node)

    return sorted(peers, key=weight)


def _of_peers(peers: Sequence[Peer], rates: dict[str, Rate], width: int) -> RenderableType:
    rows = []
    for peer in peers:
        rate = rates.get(peer.node, Rate())
        is_ready = peer.state == "ready"
        rows.append(
            (
                Text(peer.node, "name"),
                Text(peer.state, _STATES.get(peer.state, "wary")),
                Text(octets(rate.packets)),
                Text(octets(rate.octets)),
                Text(peer.engine or ""),
                Text(peer.cipher or ""),
                Text("" if is_ready else peer.why or "", "quiet"),
            )
        )
    return grid(_PEERS, rows, width)


def _of_flows(flows: Sequence[Flow], width: int, now: float, *, has_any: bool) -> RenderableType:
    if flows:
        return table(flows, width, now)
    return Text("no flow that is asked for" if has_any else "no flows yet", "quiet")


def _by_verdict(status: Status) -> dict[str, Rate]:
    sums: dict[str, Rate] = {}
    for row in (*status.counts, *status.audited):
        was = sums.get(row.verdict, Rate())
        sums[row.verdict] = Rate(was.packets + row.packets, was.octets + row.bytes)
    return sums


def _verdicts(status: Status | None) -> frozenset[str]:
    """Those of a node in its usual mode, and whatever else the agent speaks of."""
    told = (*status.counts, *status.audited) if status else ()
    return frozenset({*_USUAL, *(row.verdict for row in told)} - {""})


def _rate(was: Rate, whole: Rate, seconds: float) -> Rate:
    return Rate(
        max(whole.packets - was.packets, 0) / seconds, max(whole.octets - was.octets, 0) / seconds
    )


def _order(verdict: str) -> tuple[int, str]:
    """As they are listed everywhere, then those that are new."""
    known = list(VERDICT_STYLES)
    return (known.index(verdict) if verdict in known else len(known), verdict)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text
