# SPDX-License-Identifier: Apache-2.0
"""`pellicle map`: the datapath's BPF maps, as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pellicle.cli.call import answers
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json, print_page

MAPS = (
    "cluster_cidrs", "counts", "encrypt", "endpoints", "flows", "ipcache", "lost_events", "sa_in",
    "sa_out",
)  # fmt: skip
"""For completion; the agent knows for sure."""


@click.group("map")
def map_() -> None:
    """The datapath's BPF maps, decoded.

    Keys and salts are never shown.

    \b
    Examples:
      pellicle map list
      pellicle map dump ipcache
    """


@map_.command("list")
@asks_agent
@speaks_json
def list_(socket: Path, *, as_json: bool) -> None:
    """Which maps there are, and how full they are.

    \b
    Examples:
      pellicle map list
      pellicle map list --node n1 --json
    """
    _show(list(answers(socket, "map")), as_json=as_json)


@map_.command("dump")
@click.argument("name", shell_complete=lambda _c, _p, text: [n for n in MAPS if n.startswith(text)])
@asks_agent
@speaks_json
def dump(name: str, socket: Path, *, as_json: bool) -> None:
    """Every row of map NAME. Addresses, numbers and byte orders are decoded through BTF.

    A map that counts on each CPU by itself has one column for each.

    \b
    Examples:
      pellicle map dump ipcache
      pellicle map dump sa_out --node n1
      pellicle map dump flows --json | jq 'sort_by(-.value.packets)[:10]'
    """
    _show(list(answers(socket, "map", name=name)), as_json=as_json)


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    from pellicle.ui.rows import rows

    print_page(lambda width: rows(found, width))
