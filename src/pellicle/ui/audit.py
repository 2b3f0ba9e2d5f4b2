# SPDX-License-Identifier: Apache-2.0
"""The audit: how much between nodes was encrypted, what was not, and what allowed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.answers import Audit, AuditReason, AuditRow, Status, Volume
from pellicle.ui.grid import Column, grid
from pellicle.ui.sections import INDENT, facts, indented, section
from pellicle.ui.status import VERDICT_STYLES, title
from pellicle.ui.units import count, moment, octets, share

ENCRYPTED: Final = "encrypted"
DROPPED: Final = "dropped"
NO_NODE: Final = "(no node)"
"""Where no node holds the address."""
_VERDICTS: Final = {**VERDICT_STYLES, "audited": "bad"}
_ORDER: Final = ("encrypted", "clear", "audited", "dropped")

_COLUMNS: Final = (
    Column("from", shrinks=True),
    Column("to", shrinks=True),
    Column("seen", rank=5),
    Column("verdict"),
    Column("packets", rank=2, is_number=True),
    Column("bytes", is_number=True),
    Column("rule", rank=1, shrinks=True),
    Column("why", rank=3, shrinks=True),
    Column("first", rank=6),
    Column("last", rank=4),
)


@dataclass(slots=True)
class Pair:
    """What went from one node to another."""

    source: str
    destination: str
    verdicts: dict[str, Volume] = field(default_factory=dict)

    @property
    def encrypted(self) -> Volume:
        return self.verdicts.get(ENCRYPTED, Volume())

    @property
    def dropped(self) -> Volume:
        return self.verdicts.get(DROPPED, Volume())

    @property
    def readable(self) -> Volume:
        """On the wire and not encrypted."""
        return sum(
            (
                each
                for verdict, each in self.verdicts.items()
                if verdict not in {ENCRYPTED, DROPPED}
            ),
            Volume(),
        )

    @property
    def on_wire(self) -> Volume:
        return self.encrypted + self.readable


def audit(node: Status, answer: Audit, width: int) -> RenderableType:
    """The sentence first, then what it was made from."""
    inner = width - INDENT
    style, sentence = judged(answer)
    return Group(
        title(node),
        indented(Text(sentence, style)),
        indented(_facts(node, answer)),
        *section("Between nodes", list(_pairs(answer, inner))),
        *section("Exceptions", list(_exceptions(answer, inner))),
        *section("Reasons", list(_reasons(answer.reasons, inner))),
        *section("Endpoints", list(_endpoints(answer, inner))),
    )


def judged(answer: Audit) -> tuple[str, str]:
    """The audit in a sentence, and how good that is: "good", "wary" or "bad"."""
    all_pairs = Pair("", "", answer.between_nodes)
    whole, readable = all_pairs.on_wire, all_pairs.readable
    refused = sum(each.packets for each in answer.reasons if each.verdict == DROPPED)
    end = f"; {count(refused)} packets were dropped." if refused else "."
    if not whole.packets:
        return "wary", f"Nothing was sent or received between nodes{end}"
    if not readable.packets:
        return "good", f"All of {octets(whole.bytes)} between nodes was encrypted{end}"
    part = share(whole.bytes - readable.bytes, whole.bytes)
    allowed = allowed_by(answer)
    return (
        "wary" if is_allowed(answer) else "bad",
        (
            f"{part} of {octets(whole.bytes)} between nodes was encrypted; "
            f"{octets(readable.bytes)} passed in the clear, {allowed}{end}"
        ),
    )


def is_allowed(answer: Audit) -> bool:
    """Whether a rule allowed each packet that passed in the clear between nodes."""
    return "" not in answer.rules


def allowed_by(answer: Audit) -> str:
    """By which rules, and how much by none."""
    without = answer.rules.get("", Volume())
    rules = ", ".join(rule for rule in answer.rules if rule)
    if not rules:
        return "without a rule"
    return f"allowed by {rules}" + (f" but for {octets(without.bytes)}" if without.packets else "")


def pairs(rows: Sequence[AuditRow]) -> list[Pair]:
    """What went over the wire, or was dropped, by nodes."""
    found: dict[tuple[str, str], Pair] = {}
    for row in rows:
        if row.is_between_nodes or row.is_exception:
            ends = (row.source_node or NO_NODE, row.destination_node or NO_NODE)
            verdicts = found.setdefault(ends, Pair(*ends)).verdicts
            verdicts[row.verdict] = verdicts.get(row.verdict, Volume()) + row.volume
    return [pair for _, pair in sorted(found.items())]


def _facts(node: Status, answer: Audit) -> RenderableType:
    lost = f"{count(answer.events_lost)} reports of flows lost (their packets are still counted)"
    trail = answer.trail
    begun = moment(answer.since) if answer.since is not None else "nothing was counted yet"
    return facts(
        [
            ("since", begun),
            ("until", moment(answer.until)),
            ("mode", node.audit),
            ("trail", f"record {trail.seq}, head {trail.head}" if trail.seq else ""),
            ("events", Text(lost if answer.events_lost else "", "wary")),
        ]
    )


def _pairs(answer: Audit, width: int) -> Iterator[RenderableType]:
    found = pairs(answer.nodes)
    if not found:
        yield Text("nothing yet", "quiet")
        return
    columns = [
        Column("from", shrinks=True),
        Column("to", shrinks=True),
        Column("encrypted", is_number=True),
        Column("bytes", rank=1, is_number=True),
        Column("packets", rank=3, is_number=True),
        Column("in the clear", is_number=True),
        Column("dropped", rank=2, is_number=True),
    ]
    yield grid(columns, [_pair(pair) for pair in found], width)
    yield from _more(len(answer.nodes), answer.rows.nodes, "rows of nodes")


def _pair(pair: Pair) -> list[str | Text]:
    whole, readable, dropped = pair.on_wire, pair.readable, pair.dropped
    style = "bad" if readable.packets else "good"
    return [
        Text(pair.source, "name"),
        Text(pair.destination, "name"),
        Text(share(pair.encrypted.bytes, whole.bytes), style) if whole.packets else "",
        octets(pair.encrypted.bytes) if whole.packets else "",
        count(pair.encrypted.packets) if whole.packets else "",
        Text(octets(readable.bytes), "bad") if readable.packets else "",
        Text(f"{count(dropped.packets)} packets", "wary") if dropped.packets else "",
    ]


def _exceptions(answer: Audit, width: int) -> Iterator[RenderableType]:
    if not answer.exceptions:
        yield Text("none: nothing passed in the clear, nothing was dropped", "good")
        return
    yield grid(_COLUMNS, [_row(row, answer.words) for row in answer.exceptions], width)
    yield from _more(len(answer.exceptions), answer.rows.exceptions, "exceptions")


def _endpoints(answer: Audit, width: int) -> Iterator[RenderableType]:
    if answer.endpoints:
        rows = [_row(row, answer.words) for row in answer.endpoints]
        yield grid(_COLUMNS, rows, width)
        yield from _more(len(answer.endpoints), answer.rows.endpoints, "pairs of endpoints")


def _row(row: AuditRow, words: dict[str, str]) -> list[str | Text]:
    return [
        row.source or row.source_node or NO_NODE,
        row.destination or row.destination_node or NO_NODE,
        Text(row.direction, "quiet"),
        verdict(row.verdict),
        count(row.packets),
        octets(row.bytes),
        row.rule,
        Text(words.get(row.reason) or row.reason, "quiet"),
        Text(moment(row.first), "quiet"),
        Text(moment(row.last), "quiet"),
    ]


def _reasons(reasons: Sequence[AuditReason], width: int) -> Iterator[RenderableType]:
    seen = sorted((each for each in reasons if each.packets), key=by_verdict)
    if not seen:
        return
    columns = [
        Column("verdict"),
        Column("reason", shrinks=True),
        Column("packets", is_number=True),
        Column("bytes", is_number=True),
        Column("not attributed", rank=1, is_number=True),
        Column("words", rank=2, shrinks=True),
    ]
    rows: list[list[str | Text]] = [
        [
            verdict(each.verdict),
            each.reason,
            count(each.packets),
            octets(each.bytes),
            Text(
                f"{count(each.not_attributed.packets)} packets"
                if each.not_attributed.packets
                else ""
            ),
            Text(each.words, "quiet"),
        ]
        for each in seen
    ]
    yield grid(columns, rows, width)


def by_verdict(reason: AuditReason) -> tuple[int, int]:
    """Encrypted first, dropped last, the most bytes first."""
    known = reason.verdict in _ORDER
    return _ORDER.index(reason.verdict) if known else len(_ORDER), -reason.bytes


def verdict(name: str) -> Text:
    """In its colour."""
    return Text(name, _VERDICTS.get(name, "wary"))


def _more(shown: int, there: int, what: str) -> Iterator[RenderableType]:
    if there > shown:
        yield Text(f"{there - shown} more {what}: see them with --most {there}", "quiet")
