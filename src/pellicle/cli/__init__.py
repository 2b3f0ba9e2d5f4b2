# SPDX-License-Identifier: Apache-2.0
"""The command line: each command asks the agent's socket, or the lab, and shows the answer.

Modules import only click at their top; everything else is imported by the command that needs
it, so that `pellicle --help` and shell completion are instant.
"""

from __future__ import annotations

import click

from pellicle.cli.about import completion, version
from pellicle.cli.agent import agent
from pellicle.cli.audit import audit
from pellicle.cli.demo import demo
from pellicle.cli.doctor import doctor
from pellicle.cli.encrypt import encrypt
from pellicle.cli.flows import flows
from pellicle.cli.lab import lab
from pellicle.cli.maps import map_
from pellicle.cli.metrics import metrics
from pellicle.cli.monitor import monitor
from pellicle.cli.policies import policies
from pellicle.cli.status import status
from pellicle.cli.trouble import Program

__all__ = ["main"]


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Program, context_settings=_SETTINGS)
def main() -> None:
    """Transparent encryption between the nodes of a cluster.

    \b
    See it work on this machine, as root:
      pellicle demo
    What this machine can do, before an agent runs:
      pellicle doctor
    Look at a running agent:
      pellicle status
      pellicle monitor
      pellicle flows --follow
      pellicle encrypt status
      pellicle audit
    Play with a cluster of three nodes in network namespaces:
      pellicle lab up
      pellicle status --node n1

    Exit codes: 0 well, 1 degraded or failed, 2 the agent cannot be reached, 3 encryption is off,
    64 wrong command line or configuration.
    """


for command in (
    agent, audit, completion, demo, doctor, encrypt, flows, lab, map_, metrics, monitor, policies,
    status, version,
):  # fmt: skip
    main.add_command(command)
