# SPDX-License-Identifier: Apache-2.0
"""The demo's verdict, from invented counts: each broken promise is noticed and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

import pytest

from pellicle.lab.frames import Header, Kind, read_header
from pellicle.lab.picture import Phase, draw
from pellicle.lab.sniff import parse_filter
from pellicle.lab.sniffer import Count, WireFlow
from pellicle.lab.speakers import PROTOCOLS, Said
from pellicle.lab.verdict import OFF, ON, Row, Snapshot, Window, judge, rows, sentence

NOTHING = Snapshot({}, {})


def _said(**changes: object) -> Said:
    said = Said("n1/p1", "n2/p1", 4, "TCP", 5, 5, 500, "", (0.001,))
    return replace(said, **changes)


def _row(phase: str, **changes: object) -> Row:
    is_on = phase == ON
    row = Row(
        phase, "n1", "n2", 4, 10, 10, 100, 9000,
        clear=0 if is_on else 100,
        encrypted=100 if is_on else 0,
        other=0,
        readable={} if is_on else dict.fromkeys(PROTOCOLS, 3),
    )  # fmt: skip
    return replace(row, **changes)


@dataclass(frozen=True)
class Broken:
    says: str
    found: Sequence[Row] = (_row(OFF), _row(ON))
    said: Sequence[Said] = (_said(),)
    reuses: int = 0
    lost: int = 0


CASES = (
    Broken("Every message was answered", said=(_said(answered=4),)),
    Broken("Every message was answered", said=(_said(problem="timed out"),)),
    Broken("Every message was answered", said=(_said(sent=0, answered=0),)),
    Broken("readable on every path", (_row(OFF, readable={"TCP": 3, "UDP": 1}), _row(ON))),
    Broken("the marker is readable nowhere", (_row(OFF), _row(ON, readable={"UDP": 1}))),
    Broken("no cluster address shows", (_row(OFF), _row(ON, clear=1))),
    Broken("ESP passes on every path", (_row(OFF), _row(ON, encrypted=0))),
    Broken("nothing else between nodes", (_row(OFF), _row(ON, other=2))),
    Broken("No nonce", reuses=1),
    Broken("The listener missed nothing", lost=9),
)


def test_a_good_run_keeps_every_promise() -> None:
    found = (_row(OFF), _row(ON))
    promises = judge(found, [_said()], reuses=0, lost=0)
    assert all(promise.is_kept for promise in promises)
    assert sentence(found, promises, 41.2).startswith("KEPT in 41 s: 100 cleartext packets before")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_one_wrong_thing_breaks_exactly_one_promise(case: Broken) -> None:
    promises = judge(case.found, case.said, case.reuses, case.lost)
    (broken,) = [promise for promise in promises if not promise.is_kept]
    assert case.says in broken.says
    line = sentence(case.found, promises, 1)
    assert line.startswith("BROKEN")
    assert broken.says in line
    assert "\n" not in line


def test_rows_hold_what_came_in_their_window_on_their_path() -> None:
    clear = WireFlow("n1", "n2", 4, Kind.CLEAR, "UDP")
    six = WireFlow("n1", "n2", 6, Kind.CLEAR, "ICMPv6")
    esp = WireFlow("n2", "n1", 4, Kind.ESP, "ESP")
    link = WireFlow("n1", "?", 4, Kind.LINK, "ARP")
    before = Snapshot({clear: Count(5, 500)}, {clear: 2})
    after = Snapshot(
        {clear: Count(8, 800), six: Count(1, 90), esp: Count(4, 444), link: Count(9, 9)},
        {clear: 3, six: 1},
    )
    said = (_said(), _said(speaker="n2/p2", listener="n1/p1", sent=3, answered=2))
    there, back = rows(Window(OFF, 4, before, after, said), ["n1", "n2"])
    assert (there.path, there.packets, there.bytes, there.clear) == ("n1 → n2", 4, 390, 4)
    assert there.readable == {"UDP": 1, "ICMP": 1}
    assert (there.messages, there.answered) == (5, 5)
    assert (back.encrypted, back.clear, back.messages, back.answered) == (4, 0, 3, 2)


def test_an_empty_window_breaks_the_promise_of_esp() -> None:
    found = [*rows(Window(ON, 4, NOTHING, NOTHING, ()), ["n1", "n2"]), _row(OFF)]
    broken = [each.says for each in judge(found, [_said()], 0, 0) if not each.is_kept]
    assert len(broken) == 1
    assert "ESP passes" in broken[0]


def test_the_picture_is_well_formed_and_as_high_as_the_counts() -> None:
    second = 1_000_000_000
    phases = [
        Phase("encryption off", "a < b & c", 100 * second, 102 * second, is_encrypted=False),
        Phase("agents restart", "", 102 * second, 103 * second, is_encrypted=None),
        Phase("encryption on", "", 103 * second, 105 * second, is_encrypted=True),
    ]
    timeline = {(1000, Kind.CLEAR): 50, (1000, Kind.LINK): 50, (1035, Kind.ESP): 25}
    picture = ET.fromstring(draw(timeline, second // 10, phases, "Title", "verdict"))
    bars = {
        box.get("fill"): float(box.get("height", 0))
        for box in picture.iter("{http://www.w3.org/2000/svg}rect")
        if box.get("height") != "14.0"  # those are the legend's
    }
    red, green, grey = bars["#c8261d"], bars["#2f9e44"], bars["#9aa3ad"]
    assert red == pytest.approx(grey, abs=0.2)
    assert green == pytest.approx(red / 2, abs=0.2)
    words = "".join(picture.itertext())
    assert "a < b & c" in words
    assert "ESP, encrypted: 25 packets" in words


FLOW = WireFlow("n1", "n2", 4, Kind.CLEAR, "ICMP")
HEADER = read_header(
    b"\0" * 12
    + b"\x08\x00"
    + bytes.fromhex("4500001c000000004001000001020304")
    + bytes((9, 9, 9, 9))
)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("clear", True),
        ("esp", False),
        ("not esp", True),
        ("ICMP ipv4", True),
        ("icmp ipv6", False),
        ("n1", True),
        ("n2 clear", True),
        ("n3", False),
        ("not n1", False),
        ("1.2.3.4", True),
        ("9.9.9.9 not link", True),
        ("1.2.3.5", False),
    ],
)
def test_a_filter_is_words_that_must_all_hold(text: str, passes: bool) -> None:
    test: Callable[[WireFlow, Header], bool] = parse_filter(text)
    assert test(FLOW, HEADER) == passes


@pytest.mark.parametrize("text", ["port", "esp or link", "not", "n0", "10.0.0.0/8"])
def test_a_filter_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="filter"):
        parse_filter(text)
