# SPDX-License-Identifier: Apache-2.0
"""What of Pellicle's is in the kernel's IPsec, and what follows when it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.encryption.remains import PeerCount
from pellicle.ui.grid import Column, grid
from pellicle.ui.sections import bullet

_FOLLOWS: Final = {
    True: "An agent runs here: without them, traffic to these peers is dropped until new keys are "
    "agreed on, which takes a moment.",
    False: "No agent runs here: without them, all that they encrypt is dropped (the device "
    "pellicle_xfrm sends nothing without a policy), until an agent is started.",
}


def remains(rows: Sequence[PeerCount], width: int, *, agent_runs: bool) -> RenderableType:
    """A line for each peer, and what is to be expected."""
    if not rows:
        return Text("nothing of Pellicle's is in the kernel's IPsec here", "quiet")
    columns = [
        Column("peer", shrinks=True),
        Column("states out", is_number=True),
        Column("states in", is_number=True),
        Column("policies", is_number=True),
    ]
    sums = PeerCount(
        None,
        sum(row.states_out for row in rows),
        sum(row.states_in for row in rows),
        sum(row.policies for row in rows),
    )
    lines = [
        *(_cells(str(row.peer) if row.peer else "for all peers", row) for row in rows),
        _cells("together", sums),
    ]
    return Group(grid(columns, lines, width), bullet(Text(_FOLLOWS[agent_runs]), "wary"))


def _cells(name: str, row: PeerCount) -> tuple[Text, str, str, str]:
    return Text(name, "name"), str(row.states_out), str(row.states_in), str(row.policies)
