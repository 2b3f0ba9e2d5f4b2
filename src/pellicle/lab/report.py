# SPDX-License-Identifier: Apache-2.0
"""The demo's findings as a table for a person, or as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pellicle.lab.verdict import OFF, ON, Promise, Row


def write_report(found: Sequence[Row], promises: Sequence[Promise], files: Sequence[str]) -> None:
    """Print the table, the promises, and what was written."""
    console = Console(highlight=False)
    console.print()
    console.print(_table(found))
    for promise in promises:
        mark = Text("✓ ", "green") if promise.is_kept else Text("✗ ", "bold red")
        console.print(mark + Text(f"{promise.says}: {promise.found}"), soft_wrap=True)
    console.print(Text("written: " + ", ".join(files)), soft_wrap=True)


def to_json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _table(found: Sequence[Row]) -> Table:
    """A line for each path and family, what the wire showed of it before and after."""
    table = Table(
        title="Packets on the wire: in the clear, in ESP, with the marker readable",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name in ("path", "family"):
        table.add_column(f"\n{name}", no_wrap=True)
    for heading in ("off", "on"):
        table.add_column(f"{heading}:\nclear", justify="right", no_wrap=True)
        for name in ("ESP", "kB", "marked"):
            table.add_column(f"\n{name}", justify="right", no_wrap=True)
    for off, on in paired(found):
        table.add_row(off.path, f"IPv{off.family}", *_cells(off), *_cells(on))
    return table


def paired(found: Sequence[Row]) -> Sequence[tuple[Row, Row]]:
    """Each path and family before and after."""
    after = {(row.path, row.family): row for row in found if row.phase == ON}
    return [(row, after[row.path, row.family]) for row in found if row.phase == OFF]


def _cells(row: Row) -> list[Text]:
    readable = sum(row.readable.values())
    return [
        Text(f"{row.clear:,}", "red" if row.clear else ""),
        Text(f"{row.encrypted:,}", "green" if row.encrypted else ""),
        Text(f"{row.bytes / 1000:,.0f}"),
        Text(f"{readable:,}", "red" if readable else ""),
    ]
