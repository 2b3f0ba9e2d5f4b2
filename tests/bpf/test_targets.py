# SPDX-License-Identifier: Apache-2.0
"""Maps as targets of a reconciler: what fits stands, what does not is named, in little time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pellicle.datapath import endpoints
from pellicle.datapath.endpoints import EndpointRow
from pellicle.facts import Address, IdentityNumber
from tests.bpf.node import Node, loaded_node

ROOM = 4096
"""Of the map `endpoints`."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with loaded_node(tmp_path) as loaded:
        yield loaded


def rows(first: int, count: int, ifindex: int = 7) -> dict[Address, EndpointRow]:
    row = EndpointRow(ifindex, IdentityNumber(300), "02:00:00:00:00:01", "02:00:00:00:00:02")
    return {IPv4Address(0x0A000000 + number): row for number in range(first, first + count)}


def test_a_full_map_takes_what_it_can_and_names_the_rest(node: Node) -> None:
    target = endpoints.target(node.object)
    many = rows(0, ROOM + 15_000)
    begin = time.monotonic()
    errors = target.put(many)
    took = time.monotonic() - begin
    standing = target.read()
    assert len(standing) == ROOM
    assert standing.keys() | errors.keys() == many.keys()
    assert not standing.keys() & errors.keys()
    assert took < 10, "a call for each that fails, not one for all the others too"


def test_rows_that_stand_are_changed_in_a_full_map(node: Node) -> None:
    target = endpoints.target(node.object)
    assert target.put(rows(0, ROOM)) == {}
    mixed = {**rows(ROOM, 3), **rows(0, 10, ifindex=8), **rows(ROOM + 3, 2)}
    errors = target.put(mixed)
    assert errors.keys() == {*rows(ROOM, 5)}
    assert [row.ifindex for row in target.read().values()].count(8) == 10


def test_taking_away_what_is_not_there_is_a_success(node: Node) -> None:
    target = endpoints.target(node.object)
    assert target.put(rows(0, 10)) == {}
    assert target.remove([*rows(5, 10)]) == {}
    assert target.read() == rows(0, 5)
