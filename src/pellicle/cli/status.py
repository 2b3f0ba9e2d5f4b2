# SPDX-License-Identifier: Apache-2.0
"""`pellicle status`: is this node well?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pellicle.cli.call import one
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json, print_page, understood
from pellicle.cli.trouble import Exit

if TYPE_CHECKING:
    from pellicle.ui.answers import Status


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Every table, every count, every advice.")
@asks_agent
@speaks_json
@click.pass_context
def status(context: click.Context, socket: Path, *, verbose: bool, as_json: bool) -> None:
    """Is this node well, is traffic encrypted?

    Shows the peers and how far their keys are, what the kernel refused, what was dropped and what
    to do about it.

    \b
    Examples:
      pellicle status
      pellicle status --node n1 --verbose
      pellicle status --json | jq '.peers[] | select(.state != "ready")'
      pellicle status >/dev/null || echo "look at $(hostname)"

    Exit codes: 0 healthy, 1 degraded, 2 the agent cannot be reached, 3 encryption is off.
    """
    answer = one(socket, "status")
    shape = status_of(answer, socket)
    if as_json:
        print_json(answer)
    else:
        from pellicle.ui.status import status as page

        print_page(lambda width: page(shape, width, is_verbose=verbose))
    context.exit(health(shape))


def status_of(answer: object, socket: Path) -> Status:
    """The answer in its shape."""
    from pellicle.ui.answers import Status

    return understood(answer, Status, socket)


def health(answer: Status) -> Exit:
    """The exit code that a status means."""
    if answer.encryption == "off":
        return Exit.OFF
    return Exit.WELL if answer.healthy and answer.encryption == "on" else Exit.DEGRADED
