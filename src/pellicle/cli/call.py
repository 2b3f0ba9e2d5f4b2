# SPDX-License-Identifier: Apache-2.0
"""A call to the agent: a line of JSON out, lines of JSON in, over its unix socket.

    {"call": "status"}            →
                                  ←  {"ok": …}        each answer
                                  ←  {"error": …}     or why there is none

The agent closes the connection after its last answer. Whatever goes wrong is a `Trouble`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pellicle.cli.options import lab_hint
from pellicle.cli.trouble import Trouble, Unreachable

PATIENCE: Final = 15.0
"""Seconds for an answer; a healthy agent needs milliseconds."""
_LONGEST_LINE: Final = 1 << 28
_SHOWN: Final = 160
"""Characters of an answer that is quoted because it makes no sense."""
LOG_HINT: Final = "Its log says more; if it hangs, restart it: traffic goes on meanwhile."


def one(path: Path, call: str, **arguments: Any) -> Any:
    """The only answer to a call that has one."""
    for answer in answers(path, call, **arguments):
        return answer
    raise Unreachable(f"the agent at {path} ended without an answer.", LOG_HINT)


def answers(path: Path, call: str, *, is_endless: bool = False, **arguments: Any) -> Iterator[Any]:
    """Each answer as it comes. `is_endless`: there may be none for any length of time."""
    with _connected(path) as connection:
        connection.sendall(json.dumps({"call": call, **arguments}).encode() + b"\n")
        connection.settimeout(None if is_endless else PATIENCE)
        with connection.makefile("rb") as lines:
            while line := _line(lines, path):
                yield _read(line, path)


def is_answered(path: Path) -> bool:
    """Whether an agent listens there."""
    try:
        _connected(path).close()
    except Unreachable:
        return False
    return True


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from error
    return connection


def _unreachable(path: Path, error: OSError) -> Trouble:
    match error:
        case FileNotFoundError():
            why = f"no agent runs here: {path} does not exist."
            hint = lab_hint() or "Start one with `pellicle agent`, or name another with --socket."
        case ConnectionRefusedError():
            why = f"no agent answers at {path}: it left its socket behind."
            hint = "It was killed or has crashed; the datapath goes on as it was. See its log."
        case PermissionError():
            why = f"you may not talk to the agent at {path}."
            hint = "Its socket belongs to root: try again with sudo."
        case _:
            why, hint = f"the agent at {path} cannot be reached: {error}.", LOG_HINT
    return Unreachable(why, hint)


def _line(lines: Any, path: Path) -> bytes:
    """The next line, empty at the end."""
    try:
        line: bytes = lines.readline(_LONGEST_LINE)
    except TimeoutError as error:
        why = f"the agent at {path} did not answer within {PATIENCE:.0f} seconds."
        raise Unreachable(why, LOG_HINT) from error
    except OSError as error:
        why = f"the connection to the agent at {path} broke: {error}."
        raise Unreachable(why, LOG_HINT) from error
    if line and not line.endswith(b"\n"):
        raise Unreachable(f"the agent at {path} broke off in mid-answer.", LOG_HINT)
    return line


def _read(line: bytes, path: Path) -> Any:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise garbled(path, line.decode("utf-8", "replace")) from error
    match answer:
        case {"ok": row}:
            return row
        case {"error": {"message": str(message), **more}}:
            raise Trouble(f"the agent says: {message}", str(more.get("hint", "")))
        case _:
            raise garbled(path, line.decode("utf-8", "replace"))


def garbled(path: Path, said: str) -> Unreachable:
    """An answer that this version cannot use; `said` is the answer, or what is wrong with it."""
    quoted = " ".join(said.split())
    if len(quoted) > _SHOWN:
        quoted = f"{quoted[:_SHOWN]}…"
    return Unreachable(
        f"the agent at {path} gave an answer that makes no sense here: {quoted}",
        "Is it another version of Pellicle? `pellicle version` and the agent's log tell.",
    )
