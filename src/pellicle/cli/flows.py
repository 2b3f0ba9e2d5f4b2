# SPDX-License-Identifier: Apache-2.0
"""`pellicle flows`: who talks to whom, encrypted, in the clear or dropped, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pellicle.cli.call import answers
from pellicle.cli.options import Command, asks_agent, speaks_json
from pellicle.cli.printed import print_json_line, print_page, understood

if TYPE_CHECKING:
    from pellicle.ui.answers import Flow


def chooses_flows(command: Command) -> Command:
    """--encrypted … --audited as `verdict`, --from as `source`, --to as `destination`."""
    for option in (
        click.option("--to", "destination", metavar="WHO", help="Only flows to WHO."),
        click.option("--from", "source", metavar="WHO", help="Only flows from WHO."),
        click.option(
            "--audited",
            "verdict",
            flag_value="audited",
            help="Only flows that monitor mode let through though enforce mode would drop them.",
        ),
        click.option("--dropped", "verdict", flag_value="dropped", help="Only dropped flows."),
        click.option("--clear", "verdict", flag_value="clear", help="Only flows in the clear."),
        click.option(
            "--encrypted", "verdict", flag_value="encrypted", help="Only encrypted flows."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on showing flows as they change.")
@chooses_flows
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Begin with the N flows seen last.",
)
@asks_agent
@speaks_json
def flows(
    *,
    follow: bool,
    verdict: str | None,
    source: str | None,
    destination: str | None,
    last: int,
    socket: Path,
    as_json: bool,
) -> None:
    """Who talks to whom, and was it encrypted?

    WHO is an address (10.244.1.2), a network (10.244.0.0/16), an identity (4711), a node (n1), a
    pod (web-0, default/web-0), or a pattern for pods and nodes ('default/web-*').

    Counts are those of the whole flow so far. On a terminal, --follow is a table that updates in
    place; into a pipe it is a line for each change. --json is a line of JSON for each flow or
    change.

    \b
    Examples:
      pellicle flows --last 20
      pellicle flows --dropped
      pellicle flows --follow --from default/web-0 --to n2
      pellicle flows --clear --json | jq -r '[.source.address, .destination.address, .words] | @tsv'
    """
    wanted = {"verdict": verdict, "from": source, "to": destination, "last": last}
    rows = answers(socket, "flows", is_endless=follow, follow=follow, **wanted)
    if as_json:
        with suppress(KeyboardInterrupt):
            for row in rows:
                print_json_line(row)
        return
    found = (understood(row, _flow(), socket) for row in rows)
    if not follow:
        _table(list(found))
    elif sys.stdout.isatty():
        _live(found)
    else:
        _lines(found)


def _flow() -> type[Flow]:
    from pellicle.ui.answers import Flow

    return Flow


def _table(flows: list[Flow]) -> None:
    from pellicle.ui.flows import page

    print_page(lambda width: page(flows, width))


def _lines(flows: Iterator[Flow]) -> None:
    from pellicle.ui.flows import line
    from pellicle.ui.screen import console

    screen = console()
    with suppress(KeyboardInterrupt):
        for flow in flows:
            screen.print(line(flow))


def _live(flows: Iterator[Flow]) -> None:
    from pellicle.ui.flows import Live
    from pellicle.ui.screen import console, live

    shown, screen = Live(), console()
    with suppress(KeyboardInterrupt), live(screen, shown.view):
        for flow in flows:
            shown.add(flow)
