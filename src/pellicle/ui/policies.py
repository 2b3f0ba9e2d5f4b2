# SPDX-License-Identifier: Apache-2.0
"""Encryption policies as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.answers import Policy
from pellicle.ui.grid import Cell, Column, grid
from pellicle.ui.sections import bullet

_STYLES: Final = {"exempt": "wary", "own-keys": "good"}
_COLUMNS: Final = (
    Column("policy", shrinks=True),
    Column("action"),
    Column("between", shrinks=True),
    Column("and", rank=1, shrinks=True),
    Column("ports", rank=2, shrinks=True),
    Column("here", rank=3, is_number=True),
    Column("in all", rank=3, is_number=True),
    Column("own keys with", rank=1, is_number=True),
)


def policies(rows: Sequence[Policy], width: int) -> RenderableType:
    """A line for each; then what has no keys of its own yet."""
    if not rows:
        return Text("no encryption policy: all that can be encrypted is", "quiet")
    page: list[RenderableType] = [grid(_COLUMNS, [_cells(row) for row in rows], width)]
    page += _idle(rows)
    page += _waiting(rows)
    return Group(*page)


def _cells(row: Policy) -> Sequence[Cell]:
    sides = [side.selector for side in row.between]
    one, other = (*sides, *(["anybody"] if len(sides) == 1 else []), "", "")[:2]
    own = [each for each in row.own_keys if each.encrypts == "own"]
    return (
        Text(row.name, "name"),
        Text(row.action, _STYLES.get(row.action, "")),
        one or "everybody",
        other,
        ", ".join(row.ports),
        "+".join(str(side.here) for side in row.between),
        "+".join(str(side.addresses) for side in row.between),
        f"{len(own)} of {len(row.own_keys)}" if row.own_keys else "",
    )


def _idle(rows: Sequence[Policy]) -> Iterator[RenderableType]:
    for row in rows:
        if row.decides == 0:
            said = f"{row.name} decides nothing here: it names nobody, or others come before it"
            yield bullet(Text(said), "quiet")


def _waiting(rows: Sequence[Policy]) -> Iterator[RenderableType]:
    for row in rows:
        for each in row.own_keys:
            if each.encrypts != "own":
                said = f"{row.name}: to {each.node} {each.encrypts} keys encrypt it"
                if each.encrypts == "nothing":
                    said = f"{row.name}: nothing is sent to {each.node}"
                yield bullet(Text(f"{said}; {each.why}"), "wary")
