# SPDX-License-Identifier: Apache-2.0
"""`pellicle encrypt flush`: the kernel's IPsec without anything of Pellicle's, agent or not."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pellicle.cli.call import is_answered
from pellicle.cli.lab_access import known_node
from pellicle.cli.options import asks_agent, lab_node, speaks_json
from pellicle.cli.printed import print_json, print_page
from pellicle.cli.trouble import Exit, Trouble

if TYPE_CHECKING:
    from pellicle.encryption.remains import Failure, Remains
    from pellicle.kernel.xfrm import Xfrm


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@asks_agent
@speaks_json
@click.pass_context
def flush(context: click.Context, socket: Path, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove all that is Pellicle's from the kernel's IPsec.

    Its states and policies go straight from the kernel, in this network namespace or that of a node
    of the lab, whether an agent runs or not. Only what carries Pellicle's number (if_id 0x70656c6c)
    is touched: never anybody else's states or policies.

    It fails closed. States go first, those that send before those that receive; then policies, and
    the blocks, which catch what no other policy fits, last of all. From then on the device
    pellicle_xfrm itself sends nothing, for it knows no policy. With a running agent, traffic to
    these peers is dropped until new keys are agreed on, which takes a moment; without one, it is
    dropped for good. Keys are never put a second time. SAs of the engine bpf are not concerned.

    \b
    Examples:
      pellicle encrypt flush --dry-run
      pellicle encrypt flush
      pellicle encrypt flush --yes --node n1
      pellicle encrypt flush --dry-run --json | jq .states

    Exit codes: 0 done, or nothing there; 1 refused, or something could not be removed.
    """
    if os.geteuid() != 0:
        raise Trouble("states and policies of the kernel belong to root.", "Run it as root.")
    from pellicle.encryption.remains import Remains

    runs = is_answered(socket)
    with _opened(lab_node(context)) as xfrm:
        found = Remains.read(xfrm) if xfrm else Remains((), ())
        must_ask = found.is_any and not dry_run and not yes
        if must_ask and (as_json or not sys.stdin.isatty()):
            raise Trouble("nobody can be asked whether to remove them.", _HINT)
        if not as_json:
            _show(found, agent_runs=runs)
        if must_ask:
            click.confirm("Remove all of it?", abort=True)
        failures = found.remove(xfrm) if xfrm and not dry_run else []
    _report(found, failures, agent_runs=runs, dry_run=dry_run, as_json=as_json)
    context.exit(Exit.DEGRADED if failures else Exit.WELL)


_HINT = "Add --yes to remove them, or --dry-run to only see them."


@contextmanager
def _opened(node: str | None) -> Iterator[Xfrm | None]:
    """None: the kernel was built without XFRM, so that there can be nothing in it."""
    from pellicle.kernel.netns import path_of
    from pellicle.kernel.xfrm import Xfrm

    namespace = known_node(node).namespace if node else None
    if namespace and not path_of(namespace).exists():
        raise Trouble(f"node {node} of the lab does not stand.", "See `pellicle lab status`.")
    try:
        xfrm = Xfrm(namespace)
    except OSError as error:
        if error.errno != errno.EPROTONOSUPPORT:
            raise
        yield None
        return
    with xfrm:
        yield xfrm


def _show(found: Remains, *, agent_runs: bool) -> None:
    from pellicle.ui.remains import remains

    print_page(lambda width: remains(found.by_peer(), width, agent_runs=agent_runs))


def _report(
    found: Remains, failures: list[Failure], *, agent_runs: bool, dry_run: bool, as_json: bool
) -> None:
    if not as_json:
        for failure in failures:
            click.echo(f"could not remove {failure.what}: {failure.why}", err=True)
        if not dry_run and found.is_any:
            gone = len(found.states) + len(found.policies) - len(failures)
            click.echo(f"{gone} removed.")
        return
    peers = [
        {
            "peer": str(row.peer) if row.peer else None,
            "states_out": row.states_out,
            "states_in": row.states_in,
            "policies": row.policies,
        }
        for row in found.by_peer()
    ]
    answer = {
        "states": len(found.states),
        "policies": len(found.policies),
        "peers": peers,
        "agent_runs": agent_runs,
        "removed": not dry_run,
        "failures": [{"what": each.what, "why": each.why} for each in failures],
    }
    print_json(answer)
