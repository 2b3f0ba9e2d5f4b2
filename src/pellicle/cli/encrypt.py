# SPDX-License-Identifier: Apache-2.0
"""`pellicle encrypt`: keys and security associations."""

from __future__ import annotations

from pathlib import Path

import click

from pellicle.cli.call import one
from pellicle.cli.flush import flush
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json, print_page, understood
from pellicle.cli.status import health, status_of


@click.group()
def encrypt() -> None:
    """Keys: whose stand, and what they carried.

    \b
    Examples:
      pellicle encrypt status
      pellicle encrypt flush --dry-run
    """


@encrypt.command("status")
@click.option("-v", "--verbose", is_flag=True, help="Each security association by itself.")
@asks_agent
@speaks_json
@click.pass_context
def encrypt_status(context: click.Context, socket: Path, *, verbose: bool, as_json: bool) -> None:
    """This node's offers, and the SAs with each peer.

    Each pair of keys is made from two offers; "epochs" are their numbers, this node's first. Data
    goes out on a pair only after the peer has shown that it can decrypt: "confirmed".

    \b
    Examples:
      pellicle encrypt status
      pellicle encrypt status --verbose --node n2
      pellicle encrypt status --json | jq '[.sas[].auth_failed] | add'

    Exit codes: 0 healthy, 1 degraded, 2 the agent cannot be reached, 3 encryption is off.
    """
    from pellicle.ui.answers import Encrypt

    node = status_of(one(socket, "status"), socket)
    answer = one(socket, "encrypt")
    shape = understood(answer, Encrypt, socket)
    if as_json:
        print_json({"encryption": node.encryption, **answer})
    else:
        from pellicle.ui.encrypt import encrypt as page

        print_page(lambda width: page(node, shape, width, is_verbose=verbose))
    context.exit(health(node))


encrypt.add_command(flush)
