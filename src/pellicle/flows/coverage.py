# SPDX-License-Identifier: Apache-2.0
"""What was encrypted and what was not, summed up: by nodes, by endpoints, by reason, exactly.

A packet is counted once on each node that sees it: as *sent* where it leaves (`from_pod`, `door`,
`to_net`), as *received* where it arrives (`from_net`). The history says by how much each flow has
grown; what it could not say (flows that the kernel forgot between two reports) is the difference
to the datapath's exact counters, and is shown as not attributed.

Verdicts, reasons and rules are data here: one that this version does not know has its row, too.
Memory is bounded: past `capacity` rows, further pairs of endpoints share one row for each pair of
nodes; addresses that nobody in the cluster holds get at most half of the rows, so that no stranger
can push pods' names out of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pellicle.facts import Address
from pellicle.flows.decode import FlowEvent
from pellicle.flows.names import Name
from pellicle.flows.reasons import Verdict

CAPACITY: Final = 65536
NEWS: Final = 256
"""Exceptions that are told one by one between two tellings; the others are only counted."""
OTHERS: Final = "(others)"
"""Ends of all the pairs of endpoints that have no row of their own."""
UNKNOWN_RULE: Final = "(not attributed)"
_ARRIVES: Final = frozenset({"from_net"})
_BY_DESIGN: Final = frozenset({"CLEAR_LOCAL", "CLEAR_LINK", "CLEAR_WORLD"})
"""Never between two nodes of the cluster."""
_NO_DATA: Final = frozenset({"PATH_MTU_RECEIVED"})
"""From a router, not from a node."""


class Direction(StrEnum):
    """As the node sees it that counts."""

    SENT = "sent"
    RECEIVED = "received"


class Key(NamedTuple):
    """What a row sums up."""

    direction: Direction
    source_node: str
    """"" when no node holds the address."""
    destination_node: str
    source: str
    """The pod, else the node, else the address; "" in a row of two nodes."""
    destination: str
    verdict: str
    reason: str
    rule: str
    """What allowed it; "" when nothing had to."""

    @classmethod
    def make(
        cls,
        nodes: tuple[str, str],
        ends: tuple[str, str],
        verdict: str,
        reason: str,
        *,
        rule: str = "",
        direction: Direction = Direction.SENT,
    ) -> Key:
        return cls(direction, *nodes, *ends, verdict, reason, rule)

    @property
    def of_nodes(self) -> Key:
        """The row of the two nodes."""
        return self._replace(source="", destination="")

    @property
    def is_exception(self) -> bool:
        """Between members of the cluster and not encrypted, or dropped."""
        if self.verdict == Verdict.ENCRYPTED or self.reason in _BY_DESIGN:
            return False
        if self.reason == "CLEAR_DISABLED":  # said of everything while encryption is off
            return bool(self.source_node and self.destination_node) and not self.is_on_one_node
        return True

    @property
    def is_between_nodes(self) -> bool:
        """Whether it was on the wire between members of the cluster, encrypted or not."""
        if self.verdict == Verdict.ENCRYPTED:
            return self.reason not in _NO_DATA
        return self.verdict != Verdict.DROPPED and self.is_exception

    @property
    def is_on_one_node(self) -> bool:
        return self.source_node == self.destination_node


@dataclass(slots=True)
class Sum:
    """Of the packets of one row; `first` and `last` are boot time in nanoseconds."""

    packets: int = 0
    octets: int = 0
    first: int = 0
    last: int = 0

    def add(self, packets: int, octets: int, first: int, last: int) -> None:
        if first < self.first or not self.packets:
            self.first = first
        self.last = max(last, self.last)
        self.packets += packets
        self.octets += octets


@dataclass(frozen=True, slots=True)
class Place:
    """The sums that a packet belongs to."""

    row: Sum
    nodes: Sum

    def add(self, packets: int, octets: int, first: int, last: int) -> None:
        self.row.add(packets, octets, first, last)
        self.nodes.add(packets, octets, first, last)


@dataclass(slots=True)
class Coverage:
    """The sums since the datapath's counters began, and what of them has not been told yet."""

    capacity: int = CAPACITY
    rows: dict[Key, Sum] = field(default_factory=dict)
    nodes: dict[Key, Sum] = field(default_factory=dict)
    """All that is in `rows`, by nodes."""
    merged: int = 0
    """Additions that have gone to a row of `OTHERS`."""
    news: list[Key] = field(default_factory=list)
    """Exceptions that were never seen before; at most `NEWS`."""
    more_news: int = 0
    _told: dict[Key, Sum] = field(default_factory=dict)
    """So much of `nodes`."""
    _known: dict[tuple[Any, ...], Place] = field(default_factory=dict)
    """Of those who have rows of their own: most packets belong to somebody who is known."""
    _named: int = 0
    _strange: int = 0

    def add(
        self,
        event: FlowEvent,
        ends: tuple[Name | None, Name | None],
        packets: int,
        octets: int,
        *,
        is_told: bool = False,
    ) -> None:
        """A flow has grown by so much. `is_told`: that was told by the agent before this one."""
        if packets <= 0:
            return
        who = (ends[0] or event.source, ends[1] or event.destination)
        known = (who, event.hook, event.reason.name, event.reason.verdict, event.rule)
        place = self._known.get(known)
        if place is None:
            key = _key(event, ends)
            place = self._place(key, known, is_strange=None in ends, is_news=not is_told)
        place.add(packets, octets, event.first, event.last)
        if is_told:
            nodes = _key(event, ends).of_nodes
            self._told.setdefault(nodes, Sum()).add(packets, octets, event.first, event.last)

    def sum_up(self, key: Key, packets: int, octets: int, first: int, last: int) -> None:
        """Into the row, however many there are."""
        self._at(key).add(packets, octets, first, last)

    def take(self) -> dict[Key, Sum]:
        """What of each pair of nodes is untold, which it then no longer is."""
        taken = {}
        for key, each in self.nodes.items():
            told = self._told.setdefault(key, Sum())
            if each.packets > told.packets:
                taken[key] = Sum(each.packets - told.packets, each.octets - told.octets)
                told.packets, told.octets = each.packets, each.octets
        return taken

    def since(self, boot: float) -> float | None:
        """When the first packet was seen; `boot`: the wall clock's seconds at boot time 0."""
        begun = [each.first for each in self.nodes.values()]
        return boot + min(begun) / 1e9 if begun else None

    def copy(self) -> Coverage:
        """The sums as they are now, to look at in another thread."""
        return Coverage(
            self.capacity,
            {key: replace(each) for key, each in self.rows.items()},
            {key: replace(each) for key, each in self.nodes.items()},
            self.merged,
        )

    def take_news(self) -> tuple[list[Key], int]:
        """New exceptions, and how many more there were."""
        news, self.news, more, self.more_news = self.news, [], self.more_news, 0
        return news, more

    def put_back(self, untold: Mapping[Key, Sum], news: Iterable[Key] = (), more: int = 0) -> None:
        """What was taken could not be told: it is to be told with what follows."""
        for key, each in untold.items():
            self._told[key].packets -= each.packets
            self._told[key].octets -= each.octets
        all_news = [*news, *self.news]
        self.news = all_news[:NEWS]
        self.more_news += more + len(all_news) - len(self.news)

    def _place(self, key: Key, known: tuple[Any, ...], *, is_strange: bool, is_news: bool) -> Place:
        """Where it belongs: its own row, or when there are too many, one that it shares."""
        if key not in self.rows and not self._has_room(is_strange=is_strange):
            self.merged += 1
            key = key._replace(source=OTHERS, destination=OTHERS)
            if key.is_exception and is_news and key not in self.rows:
                self._tell(key)
            return self._at(key)
        if key not in self.rows:
            self._strange += is_strange
            self._named += not is_strange
            if key.is_exception and is_news:
                self._tell(key)
        if len(self._known) > 2 * self.capacity:  # the same ones, under other identities
            self._known.clear()
        place = self._known[known] = self._at(key)
        return place

    def _at(self, key: Key) -> Place:
        return Place(
            self.rows.setdefault(key, Sum()),
            self.nodes.setdefault(key.of_nodes, Sum()),
        )

    def _has_room(self, *, is_strange: bool) -> bool:
        if self._strange + self._named >= self.capacity:
            return False
        return not is_strange or self._strange < self.capacity // 2

    def _tell(self, key: Key) -> None:
        if len(self.news) < NEWS:
            self.news.append(key)
        else:
            self.more_news += 1


def _key(event: FlowEvent, ends: tuple[Name | None, Name | None]) -> Key:
    source, destination = ends
    return Key.make(
        (source.node if source else "", destination.node if destination else ""),
        (_end(source, event.source), _end(destination, event.destination)),
        str(event.reason.verdict),
        event.reason.name,
        rule=event.rule,
        direction=Direction.RECEIVED if event.hook in _ARRIVES else Direction.SENT,
    )


def _end(name: Name | None, address: Address) -> str:
    if name is None:
        return str(address)
    return str(name.pod) if name.pod else name.node


# --- the report ---------------------------------------------------------------------------------


def report(
    coverage: Coverage, counts: Iterable[Mapping[str, Any]], boot: float, most: int
) -> dict[str, Any]:
    """All of it, as the agent's socket says it.

    `counts`: the datapath's counters by reason and verdict; `boot`: the wall clock's seconds at
    boot time 0; `most`: rows in each list, those with most bytes. What a list leaves out is said
    beside it.
    """
    nodes = coverage.nodes
    exceptions = {key: each for key, each in coverage.rows.items() if key.is_exception}
    reasons = list(_reasons(nodes, counts))
    between, rules = _on_wire(nodes, reasons)
    return {
        "since": coverage.since(boot),
        "between_nodes": _volumes(between),
        "rules": _volumes(rules),
        "reasons": reasons,
        "nodes": _rows(nodes, boot, most),
        "endpoints": _rows(coverage.rows, boot, most),
        "exceptions": _rows(exceptions, boot, most),
        "rows": {
            "nodes": len(nodes),
            "endpoints": len(coverage.rows),
            "exceptions": len(exceptions),
        },
        "merged": coverage.merged,
    }


def row(key: Key, each: Sum, boot: float) -> dict[str, Any]:
    """One row for whoever reads JSON."""
    return {
        **key._asdict(),
        "is_exception": key.is_exception,
        "is_between_nodes": key.is_between_nodes,
        "packets": each.packets,
        "bytes": each.octets,
        "first": boot + each.first / 1e9,
        "last": boot + each.last / 1e9,
    }


def _on_wire(
    nodes: Mapping[Key, Sum], reasons: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """What was on the wire between members of the cluster: by verdict, and of it by rule what was
    not encrypted. What belongs to no row belongs to no rule that is known, but is not left out.
    """
    between: dict[str, Sum] = {}
    rules: dict[str, Sum] = {}

    def add(key: Key, packets: int, octets: int) -> None:
        if packets and key.is_between_nodes:
            between.setdefault(key.verdict, Sum()).add(packets, octets, 0, 0)
            if key.verdict != Verdict.ENCRYPTED:
                rules.setdefault(key.rule, Sum()).add(packets, octets, 0, 0)

    for key, each in nodes.items():
        add(key, each.packets, each.octets)
    for reason in reasons:
        lost = reason["not_attributed"]
        nobody = ("", "")
        key = Key.make(nobody, nobody, reason["verdict"], reason["reason"], rule=UNKNOWN_RULE)
        add(key, lost["packets"], lost["bytes"])
    return between, rules


def _reasons(
    nodes: Mapping[Key, Sum], counts: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Each counter, and how much of it is in no row; rows that no counter knows come last."""
    seen: dict[tuple[str, str], Sum] = {}
    for key, each in nodes.items():
        name = (key.reason, key.verdict)
        seen.setdefault(name, Sum()).add(each.packets, each.octets, 0, 0)
    for count in counts:
        each = seen.pop((count["reason"], count["verdict"]), Sum())
        packets, octets = count["packets"] - each.packets, count["bytes"] - each.octets
        lost = {"packets": max(packets, 0), "bytes": max(octets, 0)}
        yield {**count, "not_attributed": lost}
    for (reason, verdict), each in seen.items():
        yield {
            "reason": reason,
            "verdict": verdict,
            "packets": each.packets,
            "bytes": each.octets,
            "not_attributed": {"packets": 0, "bytes": 0},
        }


def _volumes(sums: Mapping[str, Sum]) -> dict[str, dict[str, int]]:
    return {
        name: {"packets": each.packets, "bytes": each.octets} for name, each in sorted(sums.items())
    }


def _rows(rows: Mapping[Key, Sum], boot: float, most: int) -> list[dict[str, Any]]:
    ordered = sorted(rows.items(), key=lambda item: (-item[1].octets, item[0]))
    return [row(key, each, boot) for key, each in ordered[:most]]
