# SPDX-License-Identifier: Apache-2.0
"""Tables that fit: no cell ever wraps.

When the terminal is too narrow, columns that matter least go first; then names and addresses
are shortened in the middle, where they are least telling. Empty columns are not shown at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

GAP = 2
SHORTEST = 9
"""A shortened cell keeps at least this much."""
COMFORTABLE = 20
"""Columns go before names are shortened below this."""

Cell = str | Text


@dataclass(frozen=True, slots=True)
class Column:
    """`rank` 0 always stays; of the others the highest goes first."""

    head: str
    rank: int = 0
    is_number: bool = False
    shrinks: bool = False


def grid(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int) -> Table:
    """The rows below each other, within `width` if that can be."""
    cells = [[_text(cell) for cell in row] for row in rows]
    shown = fitting(columns, cells, width)
    widths = _widths(columns, cells, shown, width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="head")
    for at in shown:
        column = columns[at]
        table.add_column(
            column.head,
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells:
        table.add_row(*(shortened(row[at], widths[at]) for at in shown))
    return table


def fitting(columns: Sequence[Column], cells: Sequence[Sequence[Text]], width: int) -> list[int]:
    """The columns there is room for, names being shortened as far as they can."""
    shown = [at for at in range(len(columns)) if not cells or any(len(row[at]) for row in cells)]
    least = {at: _natural(columns, cells, at) for at in shown}
    for at in shown:
        if columns[at].shrinks:
            least[at] = min(least[at], COMFORTABLE)
    while _total(least[at] for at in shown) > width:
        going = max(shown, key=lambda at: columns[at].rank, default=None)
        if going is None or columns[going].rank == 0:
            break
        shown.remove(going)
    return shown


def shortened(text: Text, width: int) -> Text:
    """`text`, its middle left out if it is longer than `width`."""
    if text.cell_len <= width:
        return text
    tail = (width - 1) // 2
    return Text.assemble(text[: width - 1 - tail], "…", text[len(text) - tail :])


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _natural(columns: Sequence[Column], cells: Sequence[Sequence[Text]], at: int) -> int:
    return max([len(columns[at].head), *(row[at].cell_len for row in cells)])


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * max(len(found) - 1, 0)


def _widths(
    columns: Sequence[Column], cells: Sequence[Sequence[Text]], shown: list[int], width: int
) -> dict[int, int]:
    """What each column gets: the widest of those that shrink gives first."""
    widths = {at: _natural(columns, cells, at) for at in shown}
    shrinking = [at for at in shown if columns[at].shrinks]
    while _total(widths.values()) > width and shrinking:
        widest = max(shrinking, key=lambda at: widths[at])
        if widths[widest] <= max(SHORTEST, len(columns[widest].head)):
            break
        widths[widest] -= 1
    return widths
