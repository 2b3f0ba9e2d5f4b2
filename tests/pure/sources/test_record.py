# SPDX-License-Identifier: Apache-2.0
"""A node's own record: what somebody writes over it does not stand for long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pellicle.facts import Node, NodeName
from pellicle.sources import record
from pellicle.sources.directory import Directory, write_node
from pellicle.sources.manifest import write
from pellicle.sources.record import RecordTarget, defend
from pellicle.sources.resources import place
from pellicle.table import Reconciler, Table, reconcile
from tests.pure.sources.facts_made import n

DEADLINE_SECONDS = 10.0
NEVER = 3600.0
"""A refresh that will not come."""
N1 = n(1)
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
}


@asynccontextmanager
async def agent_of(directory: Path) -> AsyncIterator[Table[NodeName, Node]]:
    """As much of it as keeps the record of n1, and what it knows of all."""
    nodes: Table[NodeName, Node] = Table("nodes")
    wanted: Table[NodeName, Node] = Table("record")
    news = asyncio.Event()
    target = RecordTarget(directory, N1.name, nodes)
    ours: Reconciler[NodeName, Node] = Reconciler(wanted, target, Table("record up"))

    async def follow() -> None:
        async for world in Directory(directory, NEVER).worlds():
            nodes.replace(world.nodes)
            news.set()

    wanted.replace({N1.name: N1})
    works = (follow(), reconcile(ours, time.monotonic, NEVER), defend(ours, news))
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield nodes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "text",
    [write(replace(N1, pod_cidrs=())), write(N1)[:40], "", None, *NO_FILES],
    ids=["another", "cut off", "empty", "gone", *NO_FILES],
)
async def test_what_is_written_over_our_record_is_corrected(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "REST_SECONDS", 0.2)
    path = tmp_path / place(N1)
    write_node(tmp_path, n(2))
    async with agent_of(tmp_path) as nodes:
        for _ in range(2):  # the second time, it rests first
            await until(lambda: path.is_file() and path.read_text() == write(N1))
            await until(lambda: nodes.rows.get(N1.name) == N1)
            if text is None:
                path.unlink()
            elif text in NO_FILES:
                path.unlink()
                NO_FILES[text](path)
            else:
                path.write_text(text)
        await until(lambda: path.is_file() and path.read_text() == write(N1))
    assert (tmp_path / place(n(2))).read_text() == write(n(2)), "others' are theirs"
