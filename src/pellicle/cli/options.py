# SPDX-License-Identifier: Apache-2.0
"""Options that many commands share: which agent to ask, and how to say the answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pellicle.cli.trouble import want_json

RUN_DIR: Final = "/run/pellicle"
LAB: Final = Path("/run/pellicle-lab")
SOCKET_NAME: Final = "agent.sock"

Command = TypeVar("Command", bound=Callable[..., Any])


def names_node(words: str) -> Callable[[Command], Command]:
    """--node, which `lab_node` tells."""
    return click.option(
        "--node",
        metavar="NODE",
        is_eager=True,
        expose_value=False,
        callback=_lab_node,
        shell_complete=_lab_nodes,
        help=words,
    )


def asks_agent(command: Command) -> Command:
    """--socket and --node, as the one argument `socket`."""
    node = names_node("Ask the agent of this node of the lab, for example n1.")
    path = click.option(
        "--socket",
        type=click.Path(path_type=Path),
        metavar="PATH",
        callback=_socket,
        help="The agent's socket.  [default: $PELLICLE_RUN_DIR/agent.sock, "
        f"else {RUN_DIR}/{SOCKET_NAME}]",
    )
    return path(node(command))


def speaks_json(command: Command) -> Command:
    """--json, as the argument `as_json`; errors are then JSON as well."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_json,
        is_eager=True,
        help="Say it in JSON, numbers as they are.",
    )(command)


def lab_nodes() -> list[str]:
    """Nodes of a lab that runs on this machine, n1 before n10."""
    found = [path.parent.name for path in LAB.glob(f"n*/{SOCKET_NAME}")]
    return sorted(found, key=lambda name: (len(name), name))


def lab_node(context: click.Context) -> str | None:
    """What --node said."""
    node: str | None = context.meta.get("pellicle.node")
    return node


def lab_hint() -> str:
    """Whom to ask instead, when a lab runs here."""
    nodes = lab_nodes()
    if not nodes:
        return ""
    names = nodes[0] if len(nodes) == 1 else f"{nodes[0]} to {nodes[-1]}"
    return f"A lab runs on this machine ({names}): try --node {nodes[0]}."


def _json(context: click.Context, _option: click.Parameter, value: bool) -> bool:
    if value:
        want_json(context)
    return value


def _lab_node(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    context.meta["pellicle.node"] = value


def _socket(context: click.Context, _option: click.Parameter, value: Path | None) -> Path:
    node = lab_node(context)
    if node and value:
        raise click.UsageError("--socket and --node both say whom to ask: give one of them.")
    if node:
        return LAB / node / SOCKET_NAME
    return value or Path(os.environ.get("PELLICLE_RUN_DIR", RUN_DIR)) / SOCKET_NAME


def _lab_nodes(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in lab_nodes() if name.startswith(incomplete)]
