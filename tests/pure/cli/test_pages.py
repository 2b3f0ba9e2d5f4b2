# SPDX-License-Identifier: Apache-2.0
"""Numbers in human units, tables that fit, and the live view."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.text import Text
from rich.theme import Theme

from pellicle.lab.check import Cell, Checked
from pellicle.lab.state import LabState, NodeState, PodState
from pellicle.lab.topology import Shape
from pellicle.ui import units
from pellicle.ui.answers import Flow, Policy, PolicyKeys, PolicySide, read
from pellicle.ui.flows import REMEMBERED, Live, line
from pellicle.ui.grid import Column, grid, shortened
from pellicle.ui.lab import checked, lab
from pellicle.ui.policies import policies
from pellicle.ui.rows import rows
from pellicle.ui.screen import STYLES

from . import recorded


@pytest.mark.parametrize(
    ("say", "number", "words"),
    [
        (units.count, 0, "0"),
        (units.count, 999, "999"),
        (units.count, 1000, "1.0k"),
        (units.count, 1249, "1.2k"),
        (units.count, 9949, "9.9k"),
        (units.count, 9951, "10k"),
        (units.count, 999_499, "999k"),
        (units.count, 999_501, "1.0M"),
        (units.count, 1 << 64, "18E"),
        (units.octets, 0, "0 B"),
        (units.octets, 1500, "1.5 kB"),
        (units.octets, 61_203_554, "61 MB"),
        (lambda t: units.clock(t, UTC), 0, "00:00:00"),
        (lambda t: units.clock(t, UTC), 1_795_230_847.25, "03:14:07"),
    ],
)
def test_three_digits_are_enough(say: Callable[[float], str], number: float, words: str) -> None:
    assert say(number) == words


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 7, "0 %"), (7, 7, "100 %"), (1, 3, "33.33 %"), (999_999_999, 10**9, "99.99 %"),
        (1, 10, "10 %"), (1, 1000, "0.10 %"), (0, 0, "100 %"),
    ],
)  # fmt: skip
def test_only_the_whole_is_a_hundred_percent(part: int, whole: int, words: str) -> None:
    assert units.share(part, whole) == words


@given(st.integers(0, 1 << 64))
def test_no_number_takes_more_than_six_columns(number: int) -> None:
    assert len(units.count(number)) <= 4
    assert len(units.octets(number)) <= 6


def drawn(page: RenderableType, width: int) -> list[str]:
    screen = Console(width=width, color_system=None, theme=Theme(STYLES))
    with screen.capture() as capture:
        screen.print(page)
    return capture.get().splitlines()


WORD = st.text("abcdefgh-/.:0123456789", max_size=60)
RANKS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(ranks=RANKS, data=st.data(), width=st.integers(20, 200))
def test_a_table_is_one_line_a_row_and_never_wider(
    ranks: list[int], data: st.DataObject, width: int
) -> None:
    columns = [Column(f"c{at}", rank, shrinks=True) for at, rank in enumerate(ranks)]
    some = st.lists(st.tuples(*[WORD] * len(ranks)), min_size=1, max_size=5)
    cells = data.draw(some)
    lines = drawn(grid(columns, cells, width), width)
    if any(any(row) for row in cells):
        assert len(lines) == 1 + len(cells)
    assert all(len(line) <= width for line in lines)


@given(row=st.tuples(*[WORD.filter(bool)] * 4))
def test_with_room_nothing_is_left_out_or_shortened(row: tuple[str, ...]) -> None:
    columns = [Column(str(at), at, shrinks=True) for at in range(len(row))]
    (_, line) = drawn(grid(columns, [row], 1000), 1000)
    assert line.split() == list(row)


def test_of_narrow_tables_the_column_that_matters_least_goes_first() -> None:
    columns = [Column("name"), Column("least", rank=2), Column("less", rank=1)]
    row = ("n" * 10, "x" * 10, "y" * 10)
    heads = {width: drawn(grid(columns, [row], width), width)[0].split() for width in (40, 25, 12)}
    assert heads == {40: ["name", "least", "less"], 25: ["name", "less"], 12: ["name"]}


@given(text=WORD, width=st.integers(3, 70))
def test_shortening_keeps_both_ends(text: str, width: int) -> None:
    short = shortened(Text(text), width).plain
    if len(text) <= width:
        assert short == text
        return
    head, tail = short.split("…")
    assert len(short) == width
    assert text.startswith(head)
    assert text.endswith(tail)


def test_rows_of_a_map_say_when_columns_do_not_fit() -> None:
    row = {"key": {"spi": 7, "pad": 0}, "value": {f"field{at}": "x" * 20 for at in range(9)}}
    lines = drawn(rows([row], 80), 80)
    assert "pad" not in lines[0]
    assert lines[-1].startswith("6 more columns")


def test_names_of_key_and_value_stay_apart_when_they_clash() -> None:
    row = {"key": {"source": "a", "pair": 1}, "value": {"source": "b", "bytes": 2}}
    assert drawn(rows([row], 80), 80)[0].split() == [
        "key.source",
        "pair",
        "value.source",
        "bytes",
    ]


def flows(count: int, time: float = 1000.0) -> list[Flow]:
    ends = [{**recorded.FLOWS[0]["source"], "port": port} for port in range(count)]
    return [
        read(recorded.FLOWS[0] | {"source": end, "time": time + at}, Flow)
        for at, end in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("engine", "end"), [("xfrm", "c9102, xfrm at door"), ("", "c9102 at door")]
)
def test_a_flow_names_its_engine_when_the_agent_does(engine: str, end: str) -> None:
    answer = recorded.flow("encrypted", "SEALED", "encrypted", engine=engine)
    assert line(read(answer, Flow)).plain.endswith(end)


def test_the_live_view_fits_and_shows_the_flows_seen_last() -> None:
    live = Live()
    for flow in flows(40):
        live.add(flow)
    lines = drawn(live.view(100, 14, 1000.0), 100)
    assert len(lines) == 14
    assert [f":{port}" in "".join(lines) for port in (29, 30, 39)] == [False, True, True]
    assert "40 encrypted" in lines[-2]


def test_a_flow_keeps_its_line_while_it_goes_on() -> None:
    live = Live()
    first, second = flows(2)
    for flow in (first, second, read(recorded.FLOWS[0] | {"time": 2000.0}, Flow), first):
        live.add(flow)
    lines = drawn(live.view(140, 30, 2000.0), 140)
    assert [line.split()[1].rsplit(":", 1)[1] for line in lines[1:4]] == ["0", "1", "43210"]


def test_the_live_view_remembers_a_bounded_number_of_flows() -> None:
    live = Live()
    for flow in flows(REMEMBERED + 3):
        live.add(flow)
    assert len(live.flows) == REMEMBERED
    assert min(flow.source.port or 0 for flow in live.flows.values()) == 3


def test_with_nothing_to_show_the_live_view_says_so() -> None:
    assert "no flows yet" in "".join(drawn(Live().view(80, 24, 0.0), 80))


def node(number: int, problem: str = "", *, has_agent: bool = True) -> NodeState:
    addresses = (f"10.244.{number}.2", f"fd00:244:{number}::2")
    pod = PodState(f"n{number}/p1", f"default/n{number}-p1", f"pellicle-n{number}-p1", addresses)
    return NodeState(
        name=f"n{number}",
        namespace=f"pellicle-n{number}",
        addresses=(f"192.168.{number}.2",),
        pod_cidrs=(f"10.244.{number}.0/24",),
        pid=4711 if has_agent else None,
        agent={"encryption": "on", "engine": "bpf"} if has_agent else None,
        problem=problem,
        pods=(pod,),
    )


@pytest.mark.parametrize(
    ("state", "shows", "hides"),
    [
        (LabState(None, ()), ["no lab is up; start one with `pellicle lab up`"], ["Nodes"]),
        (
            LabState(Shape(2, 1, "xfrm,n1=bpf"), (node(1), node(2))),
            [
                "● lab  ready  encryption on",
                "2 of 2 nodes, 1 pod each, engine xfrm, n1=bpf, MTU 1500",
                "pellicle lab exec n1/p1 ping -c 3 10.244.2.2",
            ],
            ["Problems"],
        ),
        (
            LabState(Shape(2, 1), (node(1), node(2, "no agent runs", has_agent=False))),
            ["◐ lab  not ready", "! n2: no agent runs", "✗ not ready"],
            ["pellicle lab exec"],
        ),
        (
            LabState(Shape(3, 2, encrypt=False), (node(1),)),
            ["◐ lab  not ready  encryption off", "1 of 3 nodes, 2 pods each"],
            ["Try"],
        ),
    ],
    ids=["none", "ready", "an agent is dead", "half of it"],
)
def test_a_lab_at_a_glance(state: LabState, shows: list[str], hides: list[str]) -> None:
    for width in (60, 80, 140):
        lines = drawn(lab(state, width), width)
        assert all(len(line) <= width for line in lines)
    page = "\n".join(lines)
    assert [text for text in shows if text not in page] == []
    assert [text for text in hides if text in page] == []


def checks(**other: object) -> Checked:
    found = {
        "encrypt": True,
        "pods": 6,
        "conversations": 144,
        "messages": 432,
        "answered": 432,
        "encrypted": 2356,
        "clear": 0,
        "cells": tuple(
            Cell("pod", "node", family, protocol, size, 6, 6)
            for family in (4, 6)
            for protocol in ("TCP", "ICMP")
            for size in ("small", "large")
        ),
        "problems": (),
        "seconds": 0.7,
    }
    return Checked(**(found | other))  # type: ignore[arg-type]


POLICIES = [
    Policy(
        "payments", "own-keys", [PolicySide("namespace shop", 2, 20), PolicySide("app=db", 0, 4)],
        ["tcp/5432"], 3, [PolicyKeys("n2", "own"), PolicyKeys("n3", "nothing", "is gone")],
    ),
    Policy("probes", "exempt", [PolicySide("10.0.5.0/24", 0, 0)], [], 0),
    Policy("rest", "encrypt"),
]  # fmt: skip


def test_policies_say_whom_they_name_and_what_is_missing() -> None:
    page = drawn(policies(POLICIES, 120), 120)
    words = [" ".join(line.split()) for line in page]
    assert words[:4] == [
        "policy action between and ports here in all own keys with",
        "payments own-keys namespace shop app=db tcp/5432 2+0 20+4 1 of 2",
        "probes exempt 10.0.5.0/24 anybody 0 0",
        "rest encrypt everybody",
    ]
    notes = words[4:]
    said = " ".join(notes)
    assert "probes decides nothing here: it names nobody, or others come before it" in said
    assert "payments: nothing is sent to n3; is gone" in said
    assert "no encryption policy" in drawn(policies([], 80), 80)[0]


@given(st.integers(40, 200))
def test_policies_fit(width: int) -> None:
    assert all(len(line) <= width for line in drawn(policies(POLICIES, width), width))


def test_a_check_says_what_was_heard_and_what_is_wrong() -> None:
    well = "\n".join(drawn(checked(checks(), 80), 80))
    assert "● lab  encryption on  as it should be" in well
    assert "432 of 432 messages, 144 conversations" in well
    assert "2,356 ESP · 0 clear" in well
    assert "Problems" not in well
    assert "pod → node  ● ●       ● ●        ● ●       ● ●" in well
    square = Cell("node", "host-network pod", 4, "UDP", "small", 3, 2)
    leak = "cleartext on the wire, from n1: 10.244.1.2 > 10.244.2.2 ICMP"
    leaking = "\n".join(drawn(checked(checks(clear=3, problems=(leak,), cells=(square,)), 80), 80))
    assert "✗ lab  encryption on  not as it should be" in leaking
    assert f"! {leak}" in leaking
    assert "node → host-network pod  2/3" in leaking
