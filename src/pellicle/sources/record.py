# SPDX-License-Identifier: Apache-2.0
"""This node's own record in the directory, kept as the agent wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from pellicle.facts import Node, NodeName
from pellicle.sources.files import read_node, write_node
from pellicle.table import Reconciler, Table

REST_SECONDS = 2.0
"""After a correction: two agents that take themselves for one node do not keep all others busy."""


class RecordTarget:
    """The file of the own record; `nodes` is what the directory says of all."""

    def __init__(self, directory: Path, local: NodeName, nodes: Table[NodeName, Node]) -> None:
        self._directory, self._local, self._nodes = directory, local, nodes

    def read(self) -> Mapping[NodeName, Node]:
        try:
            own = read_node(self._directory, self._local)
        except FileNotFoundError:
            # Of a directory that is not mounted, all that was known is so still.
            own = self._nodes.rows.get(self._local)
        except OSError:
            own = None  # a pipe, a link to nowhere: `put` replaces it, or says why it cannot
        return {} if own is None else {self._local: own}

    def put(self, rows: Mapping[NodeName, Node]) -> Mapping[NodeName, OSError]:
        errors: dict[NodeName, OSError] = {}
        for name, node in rows.items():
            try:
                write_node(self._directory, node)
            except OSError as error:
                errors[name] = error
        return errors

    def remove(self, keys: Collection[NodeName]) -> Mapping[NodeName, OSError]:
        """A record outlives its agent: whoever takes the node out of the cluster removes it."""
        return {}


async def defend(record: Reconciler[NodeName, Node], news: asyncio.Event) -> None:
    """What somebody writes over our record is corrected before others act on it, for ever.

    `news`: set whenever the directory says something else.
    """
    while True:
        await news.wait()
        news.clear()
        while record.applied.listed and record.target.read() != record.applied.rows:
            record.doubt()
            await asyncio.sleep(REST_SECONDS)
