# SPDX-License-Identifier: Apache-2.0
"""`pellicle demo`: see the promise kept, on this machine, in a minute."""

from __future__ import annotations

from pathlib import Path

import click

from pellicle.cli.lab_access import in_lab
from pellicle.cli.options import speaks_json
from pellicle.cli.trouble import Exit


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where capture and picture go.  [default: here]",
)
@speaks_json
@click.pass_context
def demo(context: click.Context, out: Path, *, as_json: bool) -> None:
    """See it work on this machine, in a minute.

    Three nodes, the same traffic twice, encryption off, then on, and a listener on the wire. What
    the listener could read is shown in a table; its capture (pellicle-demo.pcap) and a picture of
    it (pellicle-demo.svg) are kept; all else is taken down again.

    \b
    Examples:
      pellicle demo
      pellicle demo --json --out /tmp | jq .is_kept

    Exit codes: 0 every promise was kept, 1 one was not.
    """
    with in_lab():
        from pellicle.lab.demo import demo as show

        result = show(json=as_json, out_dir=out)
    context.exit(Exit.WELL if result.is_kept else Exit.DEGRADED)
