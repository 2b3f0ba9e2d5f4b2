# SPDX-License-Identifier: Apache-2.0
"""What is summed up is what was counted: nothing twice, nothing invented, what lacks is said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import Address, EndpointName, IdentityNumber, NodeName
from pellicle.flows.coverage import NEWS, OTHERS, UNKNOWN_RULE, Coverage, Key, report
from pellicle.flows.decode import FlowEvent
from pellicle.flows.history import History
from pellicle.flows.names import Name

from .seen import flow_event


def pod(node: str, name: str) -> Name:
    return Name(NodeName(node), IdentityNumber(300), EndpointName("default", name))


A, B, C, WORLD = (ip_address(f"10.244.{each}") for each in ("1.2", "2.2", "1.3", "9.9"))
NAMES: dict[Address, Name] = {A: pod("n1", "a"), B: pod("n2", "b"), C: pod("n1", "c")}
ENDS = (NAMES[A], NAMES[B])
BOTH = st.sampled_from([A, B, C, WORLD])
REASONS = st.sampled_from(["SEALED", "OPENED", "CLEAR_WORLD", "CLEAR_DISABLED", "DROP_NO_KEY"])


def count(reason: str, packets: int, octets: int) -> dict[str, Any]:
    verdict = {"C": "clear", "D": "dropped"}.get(reason[0], "encrypted")
    return {"reason": reason, "verdict": verdict, "packets": packets, "bytes": octets}


@dataclass
class Kernel:
    """The datapath's flow table and counters, with too little room for all flows."""

    room: int
    now: int = 0

    def __post_init__(self) -> None:
        self.flows: dict[tuple[Any, ...], FlowEvent] = {}
        self.counts: dict[str, list[int]] = {}

    def see(self, source: Address, destination: Address, reason: str, packets: int) -> FlowEvent:
        self.now += 1
        key = (source, destination, reason)
        old = self.flows.pop(key, None)
        event = flow_event(
            str(source),
            str(destination),
            reason,
            packets=packets + (old.packets if old else 0),
            octets=10 * packets + (old.octets if old else 0),
            first=old.first if old else self.now,
            last=self.now,
        )
        self.flows[key] = event
        if len(self.flows) > self.room:
            del self.flows[next(iter(self.flows))]
        counted = self.counts.setdefault(reason, [0, 0])
        counted[0] += packets
        counted[1] += 10 * packets
        return event

    def counted(self) -> list[dict[str, Any]]:
        return [count(reason, *each) for reason, each in self.counts.items()]


SEEN = st.lists(st.tuples(BOTH, BOTH, REASONS, st.integers(1, 9), st.booleans()), max_size=40)


@given(
    seen=SEEN,
    begin=st.integers(0, 10),
    room=st.integers(2, 100),
    remembered=st.integers(1, 100),
    capacity=st.integers(1, 12),
)
def test_sums_and_what_is_not_attributed_always_make_the_counters(
    seen: list[tuple[Address, Address, str, int, bool]],
    begin: int,
    room: int,
    remembered: int,
    capacity: int,
) -> None:
    kernel, history = Kernel(room), History(capacity=remembered)
    for at, (source, destination, reason, packets, is_heard) in enumerate(seen):
        if at == begin:
            history.sum_up(NAMES).capacity = capacity
        event = kernel.see(source, destination, reason, packets)
        if is_heard:
            history.add([event], NAMES)
    if history.coverage is None:
        history.sum_up(NAMES)
    coverage = history.coverage
    assert coverage is not None
    history.add(kernel.flows.values(), NAMES)
    for reason, (packets, octets) in kernel.counts.items():
        of_reason = [each for key, each in coverage.rows.items() if key.reason == reason]
        assert sum(each.packets for each in of_reason) <= packets
        assert sum(each.octets for each in of_reason) <= octets
    told = report(coverage, kernel.counted(), 0.0, 1000)
    for row in told["reasons"]:
        assert [row["packets"], row["bytes"]] == kernel.counts[row["reason"]]
        rows = [each for each in told["endpoints"] if each["reason"] == row["reason"]]
        missing = row["not_attributed"]
        assert sum(each["packets"] for each in rows) + missing["packets"] == row["packets"]
        assert sum(each["bytes"] for each in rows) + missing["bytes"] == row["bytes"]
        by_nodes = [each for each in told["nodes"] if each["reason"] == row["reason"]]
        assert sum(each["bytes"] for each in by_nodes) == sum(each["bytes"] for each in rows)
    if room >= 100 and remembered >= 100:
        assert not any(row["not_attributed"]["packets"] for row in told["reasons"])


@given(seen=SEEN, data=st.data())
def test_what_is_taken_piece_by_piece_is_the_whole(
    seen: list[tuple[Address, Address, str, int, bool]], data: st.DataObject
) -> None:
    kernel, history = Kernel(100), History()
    coverage = history.sum_up(NAMES)
    told: Counter[Key] = Counter()
    news: list[Key] = []
    for source, destination, reason, packets, is_heard in seen:
        event = kernel.see(source, destination, reason, packets)
        if is_heard:
            history.add([event], NAMES)
        if data.draw(st.booleans()):
            taken, (new, more) = coverage.take(), coverage.take_news()
            if data.draw(st.booleans()):
                coverage.put_back(taken, new, more)
                continue
            news += new
            told.update({key: each.octets for key, each in taken.items()})
    told.update({key: each.octets for key, each in coverage.take().items()})
    assert coverage.take() == {}
    news += coverage.take_news()[0]
    whole: Counter[Key] = Counter()
    for key, each in coverage.rows.items():
        whole[key.of_nodes] += each.octets
    assert told == whole
    assert whole == {key: each.octets for key, each in coverage.nodes.items()}
    assert sorted(news) == sorted(key for key in coverage.rows if key.is_exception)


@given(strangers=st.integers(0, 50), friends=st.integers(0, 50), capacity=st.integers(0, 20))
def test_rows_are_bounded_and_no_stranger_takes_the_room_of_pods(
    strangers: int, friends: int, capacity: int
) -> None:
    coverage = Coverage(capacity)
    for number in range(strangers):
        event = flow_event(destination=f"203.0.113.{number}", reason="DROP_UNKNOWN_PEER")
        coverage.add(event, (NAMES[A], None), 1, 10)
    for number in range(friends):
        coverage.add(flow_event(), (NAMES[A], pod("n2", f"p{number}")), 1, 10)
    own = [key for key in coverage.rows if key.source != OTHERS]
    assert len(own) <= capacity
    assert len(coverage.rows) <= len(own) + 2
    assert sum("p" in key.destination for key in own) >= min(friends, capacity - capacity // 2)
    assert sum(each.packets for each in coverage.rows.values()) == strangers + friends
    assert coverage.merged == strangers + friends - len(own)


def test_new_exceptions_beyond_any_measure_are_counted() -> None:
    coverage = Coverage()
    for number in range(NEWS + 5):
        coverage.add(flow_event(reason="DROP_NO_KEY"), (NAMES[A], pod("n2", f"p{number}")), 1, 10)
    news, more = coverage.take_news()
    assert (len(news), more) == (NEWS, 5)
    coverage.put_back({}, news, more)
    coverage.add(flow_event(reason="DROP_NO_KEY"), (NAMES[A], pod("n2", "late")), 1, 10)
    again, more = coverage.take_news()
    assert (again, more) == (news, 6)


@dataclass(frozen=True)
class Case:
    says: str
    verdict: str
    reason: str
    nodes: tuple[str, str]
    is_exception: bool
    is_between_nodes: bool


CASES = [
    Case("sealed", "encrypted", "SEALED", ("n1", "n2"), False, True),
    Case("opened, the pod already gone", "encrypted", "OPENED", ("", "n1"), False, True),
    Case("a router's word", "encrypted", "PATH_MTU_RECEIVED", ("", "n1"), False, False),
    Case("on the node", "clear", "CLEAR_LOCAL", ("n1", "n1"), False, False),
    Case("to the world", "clear", "CLEAR_WORLD", ("n1", ""), False, False),
    Case("neighbour discovery", "clear", "CLEAR_LINK", ("n1", "n2"), False, False),
    Case("off, to another node", "clear", "CLEAR_DISABLED", ("n1", "n2"), True, True),
    Case("off, on the node", "clear", "CLEAR_DISABLED", ("n1", "n1"), False, False),
    Case("off, to the world", "clear", "CLEAR_DISABLED", ("n1", ""), False, False),
    Case("exempt", "clear", "CLEAR_EXEMPT", ("n1", "n2"), True, True),
    Case("exempt, to an address of nobody", "clear", "CLEAR_EXEMPT", ("n1", ""), True, True),
    Case("dropped", "dropped", "DROP_NO_KEY", ("n1", "n2"), True, False),
    Case("would be dropped", "audited", "DROP_NO_KEY", ("n1", "n2"), True, True),
    Case("of a later version", "diverted", "MIRRORED", ("n1", "n2"), True, True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_what_an_exception_is_and_what_was_between_nodes(case: Case) -> None:
    key = Key.make(case.nodes, ("a", "b"), case.verdict, case.reason)
    assert (key.is_exception, key.is_between_nodes) == (case.is_exception, case.is_between_nodes)


def verdict_of(event: FlowEvent, verdict: str) -> FlowEvent:
    """The event, with a verdict of a later version."""
    reason = event.reason
    later: Any = type("Later", (), {})()
    later.name, later.verdict, later.words = reason.name, verdict, reason.words
    return msgspec.structs.replace(event, reason=later)


def test_a_reason_may_have_several_verdicts_and_rules_are_told_apart() -> None:
    coverage = Coverage()
    event = flow_event(reason="DROP_NO_KEY")
    coverage.add(event, ENDS, 2, 20)
    coverage.add(verdict_of(event, "audited"), ENDS, 3, 30)
    ruled = msgspec.structs.replace(flow_event(reason="CLEAR_DISABLED"), rule="bootstrap")
    coverage.add(ruled, ENDS, 5, 50)
    audited = count("DROP_NO_KEY", 4, 40) | {"verdict": "audited"}
    counts = [count("DROP_NO_KEY", 2, 20), audited, count("CLEAR_DISABLED", 6, 60)]
    told = report(coverage, counts, 0.0, 100)
    shown = [
        (row["reason"], row["verdict"], row["packets"], row["not_attributed"]["packets"])
        for row in told["reasons"]
    ]
    assert shown == [
        ("DROP_NO_KEY", "dropped", 2, 0),
        ("DROP_NO_KEY", "audited", 4, 1),
        ("CLEAR_DISABLED", "clear", 6, 1),
    ]
    assert told["between_nodes"] == {
        "audited": {"packets": 4, "bytes": 40},
        "clear": {"packets": 5, "bytes": 50},
    }
    assert told["rules"] == {
        "": {"packets": 3, "bytes": 30},
        UNKNOWN_RULE: {"packets": 1, "bytes": 10},
        "bootstrap": {"packets": 5, "bytes": 50},
    }
    assert [row["rule"] for row in told["exceptions"]] == ["bootstrap", "", ""]


def test_what_is_not_attributed_was_on_the_wire_all_the_same() -> None:
    counts = [count("SEALED", 9, 90), count("CLEAR_EXEMPT", 4, 40), count("DROP_NO_KEY", 1, 10)]
    told = report(Coverage(), counts, 0.0, 100)
    assert told["between_nodes"] == {
        "clear": {"packets": 4, "bytes": 40},
        "encrypted": {"packets": 9, "bytes": 90},
    }
    assert list(told["rules"]) == [UNKNOWN_RULE]
    assert told["since"] is None


def test_sent_and_received_are_never_one_row() -> None:
    history = History()
    coverage = history.sum_up(NAMES)
    events = [flow_event(hook="door"), flow_event(reason="OPENED", hook="from_net")]
    history.add(events, NAMES)
    assert {key.direction: key.reason for key in coverage.rows} == {
        "sent": "SEALED",
        "received": "OPENED",
    }


def test_what_the_agent_before_has_told_is_summed_up_but_not_told_again() -> None:
    history = History()
    old = flow_event(packets=5, octets=50, first=10, last=20)
    history.add([old, flow_event(port=1, packets=2, octets=20, first=30, last=40)], {})
    coverage = history.sum_up(NAMES, told=25)
    history.add([flow_event(packets=6, octets=60, first=10, last=50)], NAMES)
    (total,), (untold,) = coverage.rows.values(), coverage.take().values()
    assert (total.packets, total.first, total.last) == (8, 10, 50)
    assert (untold.packets, untold.octets) == (3, 30)


def test_a_flow_that_was_forgotten_and_comes_back_is_never_counted_twice() -> None:
    history = History(capacity=1)
    coverage = history.sum_up(NAMES)
    history.add([flow_event(packets=5, first=1, last=2)], NAMES)
    history.add([flow_event(port=1, first=3, last=3)], NAMES)
    history.add([flow_event(packets=8, first=1, last=4)], NAMES)
    history.add([flow_event(packets=9, first=1, last=5)], NAMES)
    (total,) = coverage.rows.values()
    assert total.packets == 5 + 1 + 0 + 1


def test_a_copy_stays_as_it_was() -> None:
    coverage = Coverage()
    coverage.add(flow_event(), ENDS, 2, 20)
    copy = coverage.copy()
    before = report(copy, [count("SEALED", 2, 20)], 0.0, 9)
    assert before == report(coverage, [count("SEALED", 2, 20)], 0.0, 9)
    coverage.add(flow_event(last=9), ENDS, 5, 50)
    coverage.add(flow_event(reason="DROP_NO_KEY"), ENDS, 1, 10)
    assert report(copy, [count("SEALED", 2, 20)], 0.0, 9) == before


def test_what_no_counter_knows_is_shown_all_the_same() -> None:
    coverage = Coverage()
    coverage.add(verdict_of(flow_event(reason="DROP_NO_KEY"), "diverted"), ENDS, 3, 30)
    (counted, seen) = report(coverage, [count("DROP_NO_KEY", 2, 20)], 0.0, 9)["reasons"]
    assert (counted["verdict"], counted["packets"]) == ("dropped", 2)
    assert (seen["verdict"], seen["packets"], seen["bytes"]) == ("diverted", 3, 30)
