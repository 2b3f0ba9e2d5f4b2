# SPDX-License-Identifier: Apache-2.0
"""`pellicle agent`: the daemon of a node. Its options are the settings of `pellicle.settings`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pellicle.cli.options import speaks_json
from pellicle.cli.printed import print_json, print_page
from pellicle.cli.trouble import Misused, Trouble

if TYPE_CHECKING:
    from pellicle.config import Config
    from pellicle.settings import Setting


class Configured(click.Command):
    """A command with an option for each setting, looked up only when it is needed."""

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        """The settings first, then the command's own."""
        from pellicle.settings import SETTINGS

        return [*map(_option, SETTINGS), *super().get_params(context)]


def _option(setting: Setting) -> click.Option:
    """What is not given stays None, and environment, file or default decide."""
    default = setting.default if setting.default is not None else setting.unset
    words = f"{setting.words}  [default: {default}]"
    if setting.is_switch:
        negated = setting.flag.replace("--", "--no-", 1)
        return click.Option([f"{setting.flag}/{negated}", setting.name], default=None, help=words)
    return click.Option(
        [setting.flag, setting.name],
        metavar=setting.metavar,
        multiple=setting.is_list,
        type=click.Choice(setting.choices) if setting.choices else str,
        help=words,
    )


@click.command(cls=Configured)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings in YAML, by the names of the options: `uplink: eth0`.",
)
@click.option("--print-config", is_flag=True, help="Show all settings and their origin, and end.")
@speaks_json
def agent(*, file: Path | None, print_config: bool, as_json: bool, **flags: Any) -> None:
    """Be the agent of this node, until SIGTERM or Ctrl-C.

    Settings come from options, else from the environment (--node-name is PELLICLE_NODE_NAME), else
    from --config, else from defaults. Lists may be repeated or separated by commas. When the agent
    ends, or is killed, the datapath goes on as it is.

    \b
    Examples:
      pellicle agent --enable-encrypt-l3 --psk-file /etc/pellicle/psk \\
          --pod-cidrs 10.244.1.0/24 --cluster-cidrs 10.244.0.0/16
      pellicle agent --config /etc/pellicle/agent.yaml
      pellicle agent --config /etc/pellicle/agent.yaml --print-config
    """
    config = _configured(flags, file)
    if print_config:
        _print(config, as_json=as_json)
        return
    _run(config)


def _configured(flags: dict[str, Any], file: Path | None) -> Config:
    from pellicle.config import ConfigError, ConfigFile, load

    try:
        text = ConfigFile(str(file), file.read_text()) if file else None
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"the configuration cannot be read: {error}.") from error
    try:
        return load(flags, os.environ, text, socket.gethostname())
    except ConfigError as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        hint = "`pellicle agent --help` lists the settings."
        raise Misused(f"the configuration cannot be used:\n{lines}", hint) from error


def _print(config: Config, *, as_json: bool) -> None:
    rows = config.explain()
    if as_json:
        print_json({row.name: {"value": row.value, "origin": row.origin} for row in rows})
        return
    from pellicle.ui.grid import Column, grid

    columns = [Column("setting"), Column("value", shrinks=True), Column("from", rank=1)]
    cells = [(row.name, row.value, row.origin) for row in rows]
    print_page(lambda width: grid(columns, cells, width))


def _run(config: Config) -> None:
    import asyncio

    from pellicle.daemon import CannotStart, run
    from pellicle.kernel.bpf import IncompatibleMap

    try:
        asyncio.run(run(config))
    except (CannotStart, IncompatibleMap) as error:
        raise Trouble(f"the agent cannot start: {error}") from error
