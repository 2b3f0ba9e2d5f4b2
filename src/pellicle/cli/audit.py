# SPDX-License-Identifier: Apache-2.0
"""`pellicle audit`: what was encrypted and what was not, and what allowed it."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pellicle.cli.call import one
from pellicle.cli.options import LAB, asks_agent, lab_node, names_node, speaks_json
from pellicle.cli.printed import print_json, print_page, understood
from pellicle.cli.status import status_of
from pellicle.cli.trouble import Exit

if TYPE_CHECKING:
    from pellicle.ui.answers import Audit, Status

MOST_SHOWN = 20
MOST_TOLD = 100_000
MOST_ON_PAGE = 200
STATE_DIR = "/var/lib/pellicle/state"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class Reports(click.Group):
    """`pellicle audit` alone is its report."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Whoever names no command means `report`."""
        is_bare = not args or (args[0].startswith("-") and args[0] not in context.help_option_names)
        return super().parse_args(context, ["report", *args] if is_bare else args)


def _since(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """A duration before now, or a moment, in seconds since 1970."""
    if value is None:
        return None
    if found := _DURATION.fullmatch(value):
        return time.time() - float(found[1]) * _SECONDS[found[2]]
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither 15m, 2h or 7d, nor a moment") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@click.group(cls=Reports)
def audit() -> None:
    """What was encrypted, what was not, and what allowed it.

    `pellicle audit` alone is `pellicle audit report`.

    \b
    Examples:
      pellicle audit
      pellicle audit report --most 100
      pellicle audit report --since 24h --html audit.html
      pellicle audit report --json | jq '.exceptions[] | {source, destination, reason, rule}'
      pellicle audit verify
    """


@audit.command("report")
@click.option(
    "--most",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Rows of each list, those with most bytes.  [default: {MOST_SHOWN}; with --json, all]",
)
@click.option(
    "--since",
    metavar="WHEN",
    callback=_since,
    help="Only since then: 15m, 2h, 7d, or 2026-11-28T09:00 (UTC, unless it names its offset).",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it as one page for a browser, with pictures; print only the sentence.",
)
@asks_agent
@speaks_json
@click.pass_context
def audit_report(
    context: click.Context,
    socket: Path,
    *,
    most: int | None,
    since: float | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """How much was encrypted, by nodes, by endpoints, by reason.

    It begins with a sentence: how much of what went between this node and the others was encrypted,
    and what was not. Exceptions are what passed in the clear between members of the cluster, with
    the rule that allowed it, and what was dropped. "Sent" is counted where it leaves this node,
    "received" where it arrives, so that nothing counts twice.

    Packets are counted exactly, by reason. What is not attributed was counted, but it is not known
    to whom it belonged: more flows went on at once than the kernel remembers.

    With --since, the audit trail is added up, to the minute and by nodes only.

    \b
    Examples:
      pellicle audit
      pellicle audit report --node n1 --most 100
      pellicle audit report --since 24h
      pellicle audit report --html audit.html
      pellicle audit report --json | jq .between_nodes
      pellicle audit >/dev/null || echo "something passed in the clear"

    Exit codes: 0 all between nodes was encrypted, or a rule allowed it not to be; 1 something
    passed in the clear without a rule; 2 the agent cannot be reached; 3 encryption is off.
    """
    from pellicle.ui.answers import Audit

    node = status_of(one(socket, "status"), socket)
    rows = most or (MOST_TOLD if as_json else MOST_ON_PAGE if html else MOST_SHOWN)
    answer = one(socket, "audit", most=rows, since=since)
    shape = understood(answer, Audit, socket)
    if html:
        from pellicle.ui.audit_page import page as browser_page

        html.write_text(browser_page(node, shape), encoding="utf-8")
    if as_json:
        print_json({"encryption": node.encryption, "mode": node.audit, **answer})
    elif html:
        from pellicle.ui.audit import judged

        click.echo(judged(shape)[1])
    else:
        from pellicle.ui.audit import audit as page

        print_page(lambda width: page(node, shape, width))
    context.exit(_verdict(node, shape))


def _verdict(node: Status, shape: Audit) -> Exit:
    from pellicle.ui.audit import is_allowed

    if node.encryption == "off":
        return Exit.OFF
    return Exit.WELL if is_allowed(shape) else Exit.DEGRADED


@audit.command("verify")
@click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="HASH",
    help="A head that was noted earlier: the chain must have had it. May be given more than once.",
)
@names_node("The trail of this node of the lab, for example n1.")
@speaks_json
@click.pass_context
def audit_verify(
    context: click.Context, directory: Path | None, *, heads: tuple[str, ...], as_json: bool
) -> None:
    """Was the audit trail changed?

    Each record names the hash of the one before it. A record that was changed, taken away, put in
    or moved breaks the chain; this says where, and what it looks like. It needs no agent. DIR is a
    trail or a copy of one, by default $PELLICLE_STATE_DIR/audit, else
    /var/lib/pellicle/state/audit.

    Whether something was cut off at the end, or all of it was written anew, only a head tells that
    was noted elsewhere: it is in `pellicle status --json`, in the report, and each minute in the
    log.

    \b
    Examples:
      pellicle audit verify
      pellicle audit verify /mnt/copy/audit --head 6d0f9c…
      pellicle audit verify --json | jq -r .head

    Exit codes: 0 it is whole, 1 it is broken, or there is none.
    """
    from pellicle.sources.audit_trail import files, verify
    from pellicle.ui.trail import told
    from pellicle.ui.trail import trail as page

    place = directory or _trail_of(lab_node(context))
    kinds: Counter[str] = Counter()
    walk = verify(place, heads, lambda record: kinds.update([record.what]))
    number = len(files(place))
    if as_json:
        print_json(told(str(place), walk, kinds, number))
    else:
        print_page(lambda _: page(str(place), walk, kinds, number))
    context.exit(Exit.DEGRADED if walk.broken else Exit.WELL)


def _trail_of(node: str | None) -> Path:
    if node:
        return LAB / node / "state" / "audit"
    return Path(os.environ.get("PELLICLE_STATE_DIR", STATE_DIR)) / "audit"
