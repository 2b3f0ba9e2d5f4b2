# SPDX-License-Identifier: Apache-2.0
"""The demo's findings as a table for a person, or as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pellicle.lab.verdict import Promise, Row


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
    table = Table(title="On the wire between the nodes", title_justify="left", box=None)
    for name in ("phase", "path", "family"):
        table.add_column(name)
    for name in ("messages", "answered", "packets", "bytes", "clear", "encrypted", "readable"):
        table.add_column(name, justify="right")
    previous = ""
    for row in found:
        table.add_row(*_cells(row, is_new=row.phase != previous))
        previous = row.phase
    return table


def _cells(row: Row, *, is_new: bool) -> list[str | Text]:
    readable = sum(row.readable.values())
    return [
        row.phase if is_new else "",
        row.path,
        f"IPv{row.family}",
        f"{row.messages:,}",
        f"{row.answered:,}",
        f"{row.packets:,}",
        f"{row.bytes:,}",
        Text(f"{row.clear:,}", "red" if row.clear else ""),
        Text(f"{row.encrypted:,}", "green" if row.encrypted else ""),
        Text(f"{readable:,}", "red" if readable else ""),
    ]
