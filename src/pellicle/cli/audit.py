# SPDX-License-Identifier: Apache-2.0
"""`pellicle audit`: what was encrypted and what was not, and what allowed it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pellicle.cli.call import one
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json, print_page, understood
from pellicle.cli.status import status_of
from pellicle.cli.trouble import Exit

if TYPE_CHECKING:
    from pellicle.ui.answers import Audit, Status

MOST_SHOWN = 20
MOST_TOLD = 100_000


class Reports(click.Group):
    """`pellicle audit` alone is its report."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Whoever names no command means `report`."""
        is_bare = not args or (args[0].startswith("-") and args[0] not in context.help_option_names)
        return super().parse_args(context, ["report", *args] if is_bare else args)


@click.group(cls=Reports)
def audit() -> None:
    """What was encrypted, what was not, and what allowed it.

    `pellicle audit` alone is `pellicle audit report`.

    \b
    Examples:
      pellicle audit
      pellicle audit report --most 100
      pellicle audit report --json | jq '.exceptions[] | {source, destination, reason, rule}'
    """


@audit.command("report")
@click.option(
    "--most",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Rows of each list, those with most bytes.  [default: {MOST_SHOWN}; with --json, all]",
)
@asks_agent
@speaks_json
@click.pass_context
def audit_report(context: click.Context, socket: Path, *, most: int | None, as_json: bool) -> None:
    """How much was encrypted, by nodes, by endpoints, by reason.

    It begins with a sentence: how much of what went between this node and the others was encrypted,
    and what was not. Exceptions are what passed in the clear between members of the cluster, with
    the rule that allowed it, and what was dropped. "Sent" is counted where it leaves this node,
    "received" where it arrives, so that nothing counts twice.

    Packets are counted exactly, by reason. What is not attributed was counted, but it is not known
    to whom it belonged: more flows went on at once than the kernel remembers.

    \b
    Examples:
      pellicle audit
      pellicle audit report --node n1 --most 100
      pellicle audit report --json | jq .between_nodes
      pellicle audit >/dev/null || echo "something passed in the clear"

    Exit codes: 0 all between nodes was encrypted, or a rule allowed it not to be; 1 something
    passed in the clear without a rule; 2 the agent cannot be reached; 3 encryption is off.
    """
    from pellicle.ui.answers import Audit

    node = status_of(one(socket, "status"), socket)
    answer = one(socket, "audit", most=most or (MOST_TOLD if as_json else MOST_SHOWN))
    shape = understood(answer, Audit, socket)
    if as_json:
        print_json({"encryption": node.encryption, "mode": node.audit, **answer})
    else:
        from pellicle.ui.audit import audit as page

        print_page(lambda width: page(node, shape, width))
    context.exit(_verdict(node, shape))


def _verdict(node: Status, shape: Audit) -> Exit:
    from pellicle.ui.audit import is_allowed

    if node.encryption == "off":
        return Exit.OFF
    return Exit.WELL if is_allowed(shape) else Exit.DEGRADED
