# SPDX-License-Identifier: Apache-2.0
"""No event goes uncounted, however many come."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pellicle.events import AT_ONCE, Events
from pellicle.flows.decode import Decoder, SaConfirmed
from pellicle.flows.history import History
from pellicle.kernel.bpf import RingBuffer
from pellicle.table import Table
from tests.bpf.cluster import OVER4, POD4, WORLD4, furnish, put_inbound
from tests.bpf.node import Node, loaded_node
from tests.bpf.packets import frame, ip
from tests.bpf.tunnel import sealed

MORE_THAN_FIT = 20_000
"""The ring buffer has room for some seven thousand."""

MANY = 800
"""So many reports wait before the reader is woken, about."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Every packet is reported."""
    with loaded_node(tmp_path, flow_interval_ms=0) as loaded:
        furnish(loaded)
        put_inbound(loaded, OVER4)
        loaded.events.close()  # there is one reader of a ring buffer
        yield loaded


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def events(node: Node, told: list[Any]) -> Events:
    decoder = Decoder.of(node.object.btf, {})
    return Events(node.object, decoder, History(), Table("names"), told.append)


def send(node: Node, number: int) -> None:
    """As many reports of one flow."""
    packet = frame(ip(POD4, WORLD4))
    node.object.program("from_pod").test_run(packet, repeat=number)


def lost(node: Node) -> int:
    return sum(row[0] for row in node.object.map("lost_events").values_summed().values())


def is_woken(ring: RingBuffer) -> bool:
    return bool(select.select([ring], [], [], 0.1)[0])


async def followed(events: Events, seconds: float = 0.5) -> None:
    task = asyncio.create_task(events.follow())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_sent_is_read(node: Node, events: Events) -> None:
    send(node, 3 * AT_ONCE + 1)
    await followed(events)
    assert (events.read, events.rejected, lost(node)) == (3 * AT_ONCE + 1, 0, 0)
    (flow,) = events.history.last(10)
    assert flow.packets == 3 * AT_ONCE + 1


async def test_what_does_not_fit_is_counted(node: Node, events: Events) -> None:
    send(node, MORE_THAN_FIT)
    assert lost(node) > MORE_THAN_FIT / 2
    await followed(events)
    assert events.read + lost(node) == MORE_THAN_FIT
    before = events.read
    send(node, 100)
    await followed(events)
    assert events.read == before + 100, "there is room again"
    (flow,) = events.history.last(10)
    assert flow.packets == MORE_THAN_FIT + 100, "no packet is missing in the counts"


async def test_a_flood_while_somebody_reads(node: Node, events: Events) -> None:
    task = asyncio.create_task(events.follow())
    for _ in range(40):
        send(node, 1000)
        await asyncio.sleep(0)
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert events.read + lost(node) == 40_000


async def test_other_events_are_told_in_the_midst_of_it(
    node: Node, events: Events, told: list[Any]
) -> None:
    """The last of the ring buffer is kept for them."""
    send(node, MORE_THAN_FIT)
    opened = node.run("from_net", sealed(OVER4, 1, ip(OVER4.pod4, POD4)))
    assert opened.reasons[-1] == "OPENED"
    await followed(events)
    assert [each.pair for each in told if isinstance(each, SaConfirmed)] == [OVER4.pair]


def test_flows_wake_nobody_until_many_wait(node: Node) -> None:
    with RingBuffer(node.object.map("events")) as ring:
        send(node, MANY // 2)
        assert not is_woken(ring)
        send(node, MANY)
        assert is_woken(ring)
        assert len(ring.consume()) == MANY // 2 + MANY


def test_what_a_peer_has_authenticated_wakes_at_once(node: Node) -> None:
    with RingBuffer(node.object.map("events")) as ring:
        send(node, MANY // 2)
        assert not is_woken(ring)
        node.run("from_net", sealed(OVER4, 1, ip(OVER4.pod4, POD4)))
        assert is_woken(ring)


def test_what_makes_no_sense_is_counted(events: Events) -> None:
    events.take([b"short", bytes(events.decoder.event.size)])
    assert (events.read, events.rejected) == (0, 2)
