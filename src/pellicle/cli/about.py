# SPDX-License-Identifier: Apache-2.0
"""`pellicle version` and `pellicle completion`: about the program itself."""

from __future__ import annotations

import platform

import click

from pellicle.cli.options import speaks_json
from pellicle.cli.printed import print_json
from pellicle.cli.trouble import Trouble

SHELLS = ("bash", "zsh", "fish")


@click.command()
@speaks_json
def version(*, as_json: bool) -> None:
    """Which version this is, and what it runs on.

    The agent's own version is in `pellicle status`.

    \b
    Examples:
      pellicle version
      pellicle version --json | jq -r .version
    """
    from importlib.metadata import version as installed

    facts = {
        "version": installed("pellicle"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(
            "pellicle {version}  (Python {python}, Linux {kernel}, {machine})".format(**facts)
        )


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, nodes of the lab and names of maps.

    \b
    Examples:
      pellicle completion bash >/etc/bash_completion.d/pellicle
      pellicle completion zsh >"${fpath[1]}/_pellicle"
      pellicle completion fish >~/.config/fish/completions/pellicle.fish
      source <(pellicle completion bash)        # only for this shell
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise Trouble(f"there is no completion for {shell}.")
    root = context.find_root()
    click.echo(kind(root.command, {}, "pellicle", "_PELLICLE_COMPLETE").source())
