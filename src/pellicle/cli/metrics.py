# SPDX-License-Identifier: Apache-2.0
"""`pellicle metrics`: what Prometheus would read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pellicle.cli.call import garbled, one
from pellicle.cli.options import asks_agent, speaks_json
from pellicle.cli.printed import print_json


@click.command()
@asks_agent
@speaks_json
def metrics(socket: Path, *, as_json: bool) -> None:
    """The agent's metrics in Prometheus' text format.

    \b
    Examples:
      pellicle metrics
      pellicle metrics >/var/lib/node_exporter/pellicle.prom
      pellicle metrics --json | jq '.[] | select(.value > 0)'
    """
    match one(socket, "metrics"):
        case {"text": str(text)}:
            print_json(_samples(text, socket)) if as_json else click.echo(text, nl=False)
        case strange:
            raise garbled(socket, str(strange))


def _samples(text: str, socket: Path) -> list[dict[str, Any]]:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return [
            {"name": sample.name, "labels": sample.labels, "value": sample.value}
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    except ValueError as error:
        raise garbled(socket, f"metrics: {error}") from error
