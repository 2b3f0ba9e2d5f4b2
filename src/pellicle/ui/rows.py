# SPDX-License-Identifier: Apache-2.0
"""Rows of any map: a column for each field, however deep it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.grid import Column, fitting, grid

_UNTOLD: Final = frozenset({"pad", "pad2", "lock"})
"""Fields that fill a struct and say nothing."""

_HEXADECIMAL: Final = {"pair": "{:016x}", "spi": "0x{:08x}"}
"""As other commands and packet analysers show them."""


def rows(found: Sequence[Mapping[str, Any]], width: int) -> RenderableType:
    """On a narrow terminal the last fields go first, and it is said that they went."""
    if not found:
        return Text("no rows", "quiet")
    flat = [dict(_flat(row)) for row in found]
    names = list(dict.fromkeys(name for row in flat for name in row))
    heads = _heads(names)
    columns = [
        Column(heads[name], rank=at, is_number=_is_number(flat, name), shrinks=True)
        for at, name in enumerate(names)
    ]
    cells = [[_cell(name, row.get(name)) for name in names] for row in flat]
    hidden = len(names) - len(fitting(columns, cells, width))
    table = grid(columns, cells, width)
    if not hidden:
        return table
    return Group(table, Text(f"{hidden} more columns; see them in a pipe or with --json", "quiet"))


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        match value:
            case _ if name in _UNTOLD:
                continue
            case Mapping():
                yield from _flat(value, f"{prefix}{name}.")
            case [Mapping(), *_]:
                fields = {field: [each.get(field) for each in value] for field in value[0]}
                yield from _flat(fields, f"{prefix}{name}.")
            case _:
                yield prefix + name, value


def _heads(names: Sequence[str]) -> dict[str, str]:
    """The names without `key.` and `value.`, where that leaves them apart."""
    short = {name: name.removeprefix("key.").removeprefix("value.") for name in names}
    uses = Counter(short.values())
    return {name: short[name] if uses[short[name]] == 1 else name for name in names}


def _is_number(flat: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row.get(name), int | float) for row in flat)


def _cell(name: str, value: Any) -> Text:
    match value:
        case None:
            return Text("-", "quiet")
        case list() | tuple():
            return Text(" ".join(map(str, value)))
        case int():
            return Text(_HEXADECIMAL.get(name.rpartition(".")[2], "{}").format(value))
        case _:
            return Text(str(value))
