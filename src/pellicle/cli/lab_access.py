# SPDX-License-Identifier: Apache-2.0
"""What all commands about the lab share: who may, what is meant, how refusals are said."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pellicle.cli.options import lab_nodes
from pellicle.cli.trouble import Trouble

if TYPE_CHECKING:
    from pellicle.lab.topology import LabNode

Command = TypeVar("Command", bound=Callable[..., Any])


def node_argument(command: Command) -> Command:
    """NODE, a node of the lab."""
    return click.argument(
        "node", shell_complete=lambda _c, _p, text: [n for n in lab_nodes() if n.startswith(text)]
    )(command)


@contextmanager
def in_lab() -> Iterator[None]:
    """What the lab refuses is said in its own words."""
    if os.geteuid() != 0:
        raise Trouble("the lab makes network namespaces and loads BPF programs.", "Run it as root.")
    from pellicle.lab import LabError

    try:
        yield
    except LabError as error:
        raise Trouble(str(error)) from error


@contextmanager
def as_meant() -> Iterator[None]:
    """What was asked for is looked at before anything is done: nonsense is a usage error."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def known_node(name: str) -> LabNode:
    """The node of that name; whether it stands is another question."""
    from pellicle.lab.topology import node_named

    with as_meant():
        return node_named(name)


def progress(line: str) -> None:
    """One line for each step, where it disturbs nobody who reads stdout."""
    click.echo(click.style(f"  {line}", dim=True), err=True)
