# SPDX-License-Identifier: Apache-2.0
"""`pellicle policies`: encryption policies, and whom they name."""

from __future__ import annotations

from pathlib import Path

import click

from pellicle.cli.call import answers
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json_line, print_page, understood


@click.command()
@asks_agent
@speaks_json
def policies(socket: Path, *, as_json: bool) -> None:
    """Encryption policies, and whom each of them names.

    What no policy names is encrypted with the keys of the nodes. "Here" and "in all" count the
    addresses that each selector names, on this node and in the cluster.

    \b
    Examples:
      pellicle policies
      pellicle policies --node n1
      pellicle policies --json | jq 'select(.action == "exempt") | .name'
    """
    from pellicle.ui.answers import Policy

    rows = list(answers(socket, "policies"))
    if as_json:
        for row in rows:
            print_json_line(row)
        return
    from pellicle.ui.policies import policies as page

    shapes = [understood(row, Policy, socket) for row in rows]
    print_page(lambda width: page(shapes, width))
