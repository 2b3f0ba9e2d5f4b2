# SPDX-License-Identifier: Apache-2.0
"""A flow's counts are right whatever is lost on the way, and memory stays bounded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import Endpoint, EndpointName, IdentityNumber, Node, NodeName
from pellicle.flows import names
from pellicle.flows.decode import FlowEvent
from pellicle.flows.history import History
from pellicle.flows.names import Name
from pellicle.flows.selection import Selection

from .seen import flow_event

LIVES = st.lists(
    st.lists(st.integers(1, 1000), min_size=1, max_size=6), min_size=1, max_size=4
)  # growth of the packet count between reports, for each time the kernel knew the flow


def reports(lives: list[list[int]]) -> list[list[FlowEvent]]:
    """What the datapath reports: in each life the count grows from zero."""
    told, now = [], 0
    for growth in lives:
        now += 1
        first, packets, life = now, 0, []
        for more in growth:
            now, packets = now + 1, packets + more
            life.append(flow_event(packets=packets, octets=packets * 10, first=first, last=now))
        told.append(life)
    return told


@given(lives=LIVES, data=st.data())
def test_losing_repeating_and_reordering_reports_loses_no_count(
    lives: list[list[int]], data: st.DataObject
) -> None:
    told = reports(lives)
    history = History()
    for life in told:
        kept = data.draw(st.lists(st.sampled_from(life), max_size=8))
        heard = data.draw(st.permutations([*kept, life[-1]]))
        history.add(heard, {})
    (flow,) = history.last(10)
    assert flow.packets == sum(map(sum, lives))
    assert flow.octets == flow.packets * 10
    assert flow.event.last == told[-1][-1].last


def test_a_report_of_an_earlier_life_that_comes_late_changes_nothing() -> None:
    history = History()
    history.add([flow_event(packets=5, first=10), flow_event(packets=4, first=2)], {})
    (flow,) = history.last(10)
    assert (flow.packets, history.change) == (5, 1)


@given(
    ports=st.lists(st.integers(1, 12), max_size=60),
    capacity=st.integers(1, 8),
)
def test_the_flows_seen_last_are_the_ones_remembered(ports: list[int], capacity: int) -> None:
    history = History(capacity)
    for now, port in enumerate(ports, 1):
        history.add([flow_event(port=port, packets=now, first=1, last=now)], {})
    latest = list(dict.fromkeys(reversed(ports)))[:capacity][::-1]
    assert [flow.event.source_port for flow in history.last(100)] == latest
    assert len(history) == len(latest)
    assert (history.forgotten == 0) == (len(set(ports)) <= capacity)


@given(batches=st.lists(st.lists(st.integers(1, 5), max_size=5), max_size=12), data=st.data())
def test_whoever_follows_at_any_pace_learns_of_every_change(
    batches: list[list[int]], data: st.DataObject
) -> None:
    history = History()
    heard: dict[int, int] = {}
    change = now = 0
    for batch in batches:
        for port in batch:
            now += 1
            history.add([flow_event(port=port, packets=now, first=1, last=now)], {})
        if data.draw(st.booleans()):
            fresh = history.since(change)
            assert all(flow.change > change for flow in fresh)
            assert [flow.change for flow in fresh] == sorted(flow.change for flow in fresh)
            heard |= {flow.event.source_port: flow.packets for flow in fresh}
            change = history.change
    heard |= {flow.event.source_port: flow.packets for flow in history.since(change)}
    assert heard == {flow.event.source_port: flow.packets for flow in history.last(1000)}


def test_last_counts_only_what_is_selected() -> None:
    history = History()
    history.add(
        [flow_event(port=n, reason="SEALED" if n % 3 else "DROP_NO_KEY", last=n) for n in range(9)],
        {},
    )
    dropped = Selection.parse("dropped", None, None)
    assert [flow.event.source_port for flow in history.last(2, dropped)] == [3, 6]
    assert [flow.event.source_port for flow in history.since(5, dropped)] == [6]


def test_a_flow_keeps_the_name_of_a_pod_that_has_gone_and_takes_that_of_its_successor() -> None:
    address = flow_event().source
    first = Name(NodeName("n1"), IdentityNumber(300), EndpointName("default", "old"))
    second = Name(NodeName("n1"), IdentityNumber(301), EndpointName("default", "new"))
    history = History()
    for packets, known in enumerate(({address: first}, {}, {address: second}), 1):
        history.add([flow_event(packets=packets)], known)
        (flow,) = history.last(1)
        assert flow.source == (known.get(address) or first)


NODE_1 = Node(NodeName("n1"), (flow_event("192.168.1.2").source,), ())


def test_names_say_who_holds_each_address() -> None:
    pod = Endpoint(
        EndpointName("default", "web"), NodeName("n1"), (flow_event().source,), IdentityNumber(300)
    )
    named = names.plan(NodeName("n1"), {NODE_1.name: NODE_1}, {pod.name: pod})
    assert named[flow_event().source] == Name(NodeName("n1"), IdentityNumber(300), pod.name)
    assert named[NODE_1.addresses[0]] == Name(NodeName("n1"), IdentityNumber(1))
    elsewhere = names.plan(NodeName("n2"), {NODE_1.name: NODE_1}, {})
    assert elsewhere[NODE_1.addresses[0]].identity == 6


ANSWER = {
    "time": 1003.0,
    "since": 1001.0,
    "source": {
        "address": "10.244.1.2",
        "port": 40000,
        "pod": "default/web",
        "node": "n1",
        "identity": 300,
    },
    "destination": {
        "address": "10.244.2.2",
        "port": 80,
        "pod": None,
        "node": None,
        "identity": 77,
    },
    "protocol": "TCP",
    "icmp": None,
    "hook": "door",
    "verdict": "encrypted",
    "reason": "SEALED",
    "words": "encrypted",
    "rule": "",
    "packets": 1,
    "bytes": 100,
    "spi": 4096,
    "epoch": 3,
    "engine": "xfrm",
    "pair": "0000000000000abc",
}


@pytest.mark.parametrize(
    ("protocol", "port", "differs"),
    [
        (6, 40000, {}),
        (17, 40000, {"protocol": "UDP"}),
        (47, 40000, {"protocol": "47"}),
        (1, 0x0800, {"protocol": "ICMP", "icmp": {"type": 8, "code": 0, "identifier": 80}}),
        (58, 0x8001, {"protocol": "ICMPv6", "icmp": {"type": 128, "code": 1, "identifier": 80}}),
    ],
)
def test_the_answer_names_everything(protocol: int, port: int, differs: dict[str, Any]) -> None:
    web = Name(NodeName("n1"), IdentityNumber(300), EndpointName("default", "web"))
    event = flow_event(
        protocol=protocol, port=port, first=10**9, last=3 * 10**9, identities=(0, 77)
    )
    history = History()
    history.add([event], {event.source: web})
    expected = ANSWER | differs
    if expected["protocol"] not in {"TCP", "UDP"}:
        expected["source"] = expected["source"] | {"port": None}
        expected["destination"] = expected["destination"] | {"port": None}
    assert history.last(1)[0].answer(boot=1000.0) == expected
