# SPDX-License-Identifier: Apache-2.0
"""How a page is built: titles, indented parts, bullets that wrap behind their mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

INDENT: Final = 2


def section(title: str, parts: Sequence[RenderableType]) -> Iterator[RenderableType]:
    """An empty line, the title, the parts below it; nothing at all without parts."""
    if parts:
        yield Text()
        yield Text(title, "title")
        yield from (indented(part) for part in parts)


def indented(part: RenderableType, by: int = INDENT) -> RenderableType:
    return Padding(part, (0, 0, 0, by), expand=False)


def bullet(line: Text, style: str, mark: str = "!") -> RenderableType:
    """A line with a mark before it."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text(mark, style), line)
    return table


def facts(rows: Sequence[tuple[str, str | Text]]) -> RenderableType:
    """Names and values, one below the other; a fact without a value is not shown."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows:
        if value:
            table.add_row(Text(name, "quiet"), value)
    return table
