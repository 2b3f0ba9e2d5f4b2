# SPDX-License-Identifier: Apache-2.0
"""Answers on their way to stdout: as a page for a person, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pellicle.cli.call import garbled

if TYPE_CHECKING:
    from rich.console import RenderableType

Shape = TypeVar("Shape")


def print_json(answer: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_json_line(answer: Any) -> None:
    """One line of a JSON stream, at once."""
    click.echo(json.dumps(answer, ensure_ascii=False))


def print_page(page: Callable[[int], RenderableType]) -> None:
    """What `page` makes for the terminal's width."""
    from pellicle.ui.screen import console

    screen = console()
    if screen.is_terminal:
        screen.print(page(screen.width))
        return
    with screen.capture() as capture:
        screen.print(page(screen.width))
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def understood(answer: object, shape: type[Shape], socket: Path) -> Shape:
    """The answer in its shape; a Trouble names what does not fit."""
    import msgspec

    from pellicle.ui.answers import read

    try:
        return read(answer, shape)
    except msgspec.ValidationError as error:
        raise garbled(socket, str(error)) from error
