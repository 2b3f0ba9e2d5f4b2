# SPDX-License-Identifier: Apache-2.0
"""`pellicle encrypt`: keys and security associations."""

from __future__ import annotations

from pathlib import Path

import click

from pellicle.cli.call import answers, one
from pellicle.cli.flush import flush
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json, print_json_line, print_page, understood
from pellicle.cli.status import health, status_of


@click.group()
def encrypt() -> None:
    """Keys: whose stand, and what they carried.

    \b
    Examples:
      pellicle encrypt status
      pellicle encrypt rotate
      pellicle encrypt history
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


@encrypt.command("rotate")
@asks_agent
@speaks_json
def encrypt_rotate(socket: Path, *, as_json: bool) -> None:
    """New keys with every peer, now.

    It shows how many have moved, until all have. Nothing is lost meanwhile: data goes to new keys
    only after a peer has shown that it has them. Ctrl-C ends the watching, not the rotation. A peer
    that does not answer for a minute is stale and no longer waited for.

    \b
    Examples:
      pellicle encrypt rotate
      pellicle encrypt rotate --node n2
      pellicle encrypt rotate --json | jq -r .moved
    """
    from pellicle.ui.answers import Rotation

    for answer in answers(socket, "rotate", is_endless=True):
        shape = understood(answer, Rotation, socket)
        if as_json:
            print_json_line(answer)
        else:
            click.echo(shape.line())


@encrypt.command("history")
@click.option("--peer", metavar="NODE", help="Only what concerns this peer.")
@asks_agent
@speaks_json
def encrypt_history(socket: Path, *, peer: str | None, as_json: bool) -> None:
    """Which keys were in use when.

    Epochs and fingerprints, never a key. It is kept in `state_dir` (keys.jsonl), and outlives
    restarts.

    \b
    Examples:
      pellicle encrypt history
      pellicle encrypt history --peer n2
      pellicle encrypt history --json | jq 'select(.what == "used")'
    """
    from pellicle.ui.answers import KeyEvent

    rows = [row for row in answers(socket, "history") if peer in {None, row.get("peer")}]
    if as_json:
        for row in rows:
            print_json_line(row)
        return
    from pellicle.ui.encrypt import history as page

    events = [understood(row, KeyEvent, socket) for row in rows]
    print_page(lambda width: page(events, width))


encrypt.add_command(flush)
