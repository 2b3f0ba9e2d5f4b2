# SPDX-License-Identifier: Apache-2.0
"""What a command's end says to whoever called it: an exit code, one sentence, and what to do.

0   all is well, or done
1   degraded, failed, or refused
2   the agent cannot be reached, or its answer cannot be understood
3   encryption is off
64  the command line is wrong (EX_USAGE)
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import IO, Any

import click

from pellicle.kernel import Unsupported

_JSON = "pellicle.json"


class Exit(IntEnum):
    """The codes."""

    WELL = 0
    DEGRADED = 1
    UNREACHABLE = 2
    OFF = 3
    USAGE = 64


# Click's own choice for a wrong command line is 2, which here says "no agent".
click.UsageError.exit_code = Exit.USAGE


class Trouble(click.ClickException):
    """An expected error; `why` is a sentence, `hint` says what to do about it."""

    exit_code = Exit.DEGRADED

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint
        self.is_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        """To stderr for a person, or as JSON to stdout for whoever reads that."""
        if self.is_json:
            import json

            error = {"code": int(self.exit_code), "message": self.message, "hint": self.hint}
            click.echo(json.dumps({"error": error}, ensure_ascii=False))
            return
        stream = file or sys.stderr
        click.echo(f"{click.style('pellicle:', fg='red', bold=True)} {self.message}", file=stream)
        if self.hint:
            click.echo(click.style(self.hint, dim=True), file=stream)


class Unreachable(Trouble):
    """There is no agent to be asked, or nothing to be made of its answer."""

    exit_code = Exit.UNREACHABLE


class Misused(Trouble):
    """What was asked for cannot be meant."""

    exit_code = Exit.USAGE


def want_json(context: click.Context) -> None:
    """Errors of this command are JSON too."""
    context.meta[_JSON] = True


class Program(click.Group):
    """The root of all commands: what the system refuses or lacks is a sentence, no traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except Trouble as trouble:
            trouble.is_json = context.meta.get(_JSON, False)
            raise
        except BrokenPipeError:
            raise  # whoever read our output has gone; click ends quietly
        except (OSError, Unsupported) as error:
            refused = Trouble(f"{error}.")
            refused.is_json = context.meta.get(_JSON, False)
            raise refused from error
