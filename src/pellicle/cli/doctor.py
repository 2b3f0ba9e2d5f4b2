# SPDX-License-Identifier: Apache-2.0
"""`pellicle doctor`: can this machine run Pellicle, and with which engine?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pellicle.cli.options import speaks_json
from pellicle.cli.printed import print_json, print_page
from pellicle.cli.trouble import Exit

if TYPE_CHECKING:
    from pellicle.doctor.findings import Diagnosis


@click.command()
@click.option(
    "--uplink",
    metavar="DEVICE",
    shell_complete=lambda _c, _p, text: [name for name in _devices() if name.startswith(text)],
    help="The device to other nodes.  [default: of the default route]",
)
@speaks_json
@click.pass_context
def doctor(context: click.Context, uplink: str | None, *, as_json: bool) -> None:
    """What works on this machine, what lacks, and what to do.

    Needs no agent and leaves everything as it is: BPF programs are loaded and attached, ESP states
    and an xfrm interface are made, all in namespaces that are gone a moment later. It says which
    engine `--engine auto` would take, and what others have set up that would meet pods' packets.

    ✓ is well, ! works without or is worth a word, ✗ must be put right before an agent can run.

    \b
    Examples:
      pellicle doctor
      pellicle doctor --uplink eth1
      pellicle doctor --json | jq -r '.findings[] | select(.mark != "well") | .advice'

    Exit codes: 0 an engine runs here, 1 none does, or it could not be tried without root.
    """
    from pellicle.doctor.findings import diagnose
    from pellicle.doctor.look import look

    found = diagnose(look(uplink))
    if as_json:
        print_json(_json(found))
    else:
        from pellicle.ui.doctor import doctor as page

        print_page(lambda _width: page(found))
    context.exit(Exit.WELL if found.choice else Exit.DEGRADED)


def _devices() -> list[str]:
    import socket

    return sorted(name for _, name in socket.if_nameindex())


def _json(found: Diagnosis) -> dict[str, Any]:
    choice = found.choice
    return {
        "engine": choice.engine if choice else None,
        "engine_why": choice.why if choice else None,
        "ciphers": choice.ciphers if choice else (),
        "findings": [
            {"mark": each.mark, "about": each.about, "says": each.says, "advice": each.advice}
            for each in found.findings
        ],
    }
