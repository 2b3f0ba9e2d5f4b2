# SPDX-License-Identifier: Apache-2.0
"""This node's own record in the directory, kept as the agent wants it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from pellicle.facts import Node, NodeName
from pellicle.sources.directory import write_node
from pellicle.table import Table


class RecordTarget:
    """The own row of `nodes`, written through the directory."""

    def __init__(self, directory: Path, local: NodeName, nodes: Table[NodeName, Node]) -> None:
        self._directory, self._local, self._nodes = directory, local, nodes

    def read(self) -> Mapping[NodeName, Node]:
        own = self._nodes.rows.get(self._local)
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
