# SPDX-License-Identifier: Apache-2.0
"""What the trail's intervals say is what was summed up, also after a way through JSON."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.audit import Interval, added_up, told_rows, wall
from pellicle.flows.coverage import OTHERS, Coverage, Direction, Key, Sum
from pellicle.wire.chain import NOTHING, Record

NODES = st.sampled_from(["n1", "n2", "n3", ""])
KEYS = st.builds(
    Key,
    st.sampled_from(Direction),
    NODES,
    NODES,
    st.just(""),
    st.just(""),
    st.sampled_from(["encrypted", "clear", "audited"]),
    st.sampled_from(["SEALED", "CLEAR_EXEMPT"]),
    st.sampled_from(["", "bootstrap"]),
)
SUMS = st.builds(Sum, st.integers(1, 10**9), st.integers(1, 10**13), st.just(1), st.just(2))
ROWS = st.dictionaries(KEYS, SUMS, max_size=12)


def interval(rows: dict[Key, Sum], most: int) -> Interval:
    counted = {"SEALED": (7, 70)}
    made = Interval(1.0, 2.5, told_rows(rows, most), counted, 0, "boot", 5, counted)
    body = msgspec.to_builtins(made)
    line = Record(1, wall(0.0), NOTHING, "interval", body).line
    read = Interval.of(msgspec.json.decode(line, type=Record))
    assert read == made
    return read


@given(first=ROWS, second=ROWS, most=st.integers(0, 12))
def test_intervals_add_up_to_what_was_told(
    first: dict[Key, Sum], second: dict[Key, Sum], most: int
) -> None:
    summed, counted = added_up([interval(first, most), interval(second, most)])
    assert counted == {"SEALED": (14, 140)}
    for kept in ("verdict", "reason", "rule", "direction"):
        wanted: dict[str, int] = {}
        for key, each in [*first.items(), *second.items()]:
            name = getattr(key, kept)
            wanted[name] = wanted.get(name, 0) + each.octets
        found: dict[str, int] = {}
        for key, each in summed.rows.items():
            name = getattr(key, kept)
            found[name] = found.get(name, 0) + each.octets
        assert found == wanted
    own = [key for key in summed.rows if key.source_node != OTHERS]
    assert len(own) <= 2 * most
    if most >= 12:
        assert set(own) == {*first, *second}
        assert {(each.first, each.last) for each in summed.rows.values()} <= {(10**9, 25 * 10**8)}


@given(rows=ROWS)
def test_the_heaviest_rows_are_told_by_name(rows: dict[Key, Sum]) -> None:
    named = [row[-1] for row in told_rows(rows, 3) if row[1] != OTHERS]
    heaviest = sorted((each.octets for each in rows.values()), reverse=True)[:3]
    assert sorted(named, reverse=True) == heaviest


@pytest.mark.parametrize(
    "body", [{}, {"since": None}, {"rows": "x"}, {"until": 1.0, "rows": [["sent"]]}]
)
def test_a_record_that_was_tampered_with_is_no_interval(body: dict[str, object]) -> None:
    assert Interval.of(Record(1, "", NOTHING, "interval", body)) is None


def test_no_record_is_no_interval() -> None:
    assert Interval.of(None) is None
    assert added_up([]) == (Coverage(), {})


def test_moments_sort_as_text() -> None:
    moments = [0.0, 0.1, 59.999, 1_795_237_200.25, 1_795_237_200.251]
    assert [wall(each) for each in moments] == sorted(map(wall, moments))
    assert wall(0.25) == "1970-01-01T00:00:00.250+00:00"
