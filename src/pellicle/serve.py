# SPDX-License-Identifier: Apache-2.0
"""The agent's one socket: a line of JSON in, lines of JSON out, then the end.

    {"call": "status"}                    the request, one line; a file descriptor may ride along
    {"ok": {...}}                         each answer, one line
    {"error": {"code": 7, "message": "…", "hint": "…"}}

A request that cannot be read gets an error line; the next connection is served all the
same. Only the socket's owner may connect (mode 0600).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

MAX_REQUEST = 1 << 20
REQUEST_SECONDS = 10.0
ACCEPT_SECONDS = 0.5
"""Between two tries, when a connection could not be taken."""
BACKLOG = 128

log = structlog.get_logger()


class CallError(Exception):
    """A request that cannot be answered: goes to the caller as it is."""

    def __init__(self, code: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `descriptor`: a file descriptor that came along, closed after the call."""

    call: str
    arguments: Mapping[str, Any]
    descriptor: int | None = None


Answer = Callable[[Request], AsyncIterator[Any]]


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, in place of a dead one; OSError when another agent has it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.setblocking(False)
    if path.exists() and _is_answering(path):
        server.close()
        why = f"another agent answers at {path}: stop it, or give this one its own run_dir"
        raise OSError(errno.EADDRINUSE, why)
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(mask)
    server.listen(BACKLOG)
    return server


async def serve(server: socket.socket, answers: Mapping[str, Answer]) -> None:
    """Answer calls on `server` until cancelled; only an agent that was killed leaves its socket."""
    try:
        await _accept(server, answers)
    finally:
        _remove(server)


async def _accept(server: socket.socket, answers: Mapping[str, Answer]) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as conversations:
        while True:
            try:
                connection, _ = await loop.sock_accept(server)
            except OSError as error:  # no descriptor left, for example: the next one may be luckier
                log.warning("call not taken", error=str(error))
                await asyncio.sleep(ACCEPT_SECONDS)
                continue
            connection.setblocking(False)
            talk = conversations.create_task(_converse(connection, answers))
            # Also when it is cancelled before it has begun.
            talk.add_done_callback(partial(_hang_up, connection))


def _remove(server: socket.socket) -> None:
    Path(server.getsockname()).unlink(missing_ok=True)


def _hang_up(connection: socket.socket, _talk: asyncio.Task[None]) -> None:
    connection.close()


async def _converse(connection: socket.socket, answers: Mapping[str, Answer]) -> None:
    loop = asyncio.get_running_loop()
    descriptors: list[int] = []
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            line = await _read_line(connection, descriptors)
        async for row in _answered(line, descriptors, answers):
            await loop.sock_sendall(connection, msgspec.json.encode(row) + b"\n")
    except (OSError, TimeoutError):
        pass  # the caller went away: nothing is owed
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _answered(
    line: bytes, descriptors: list[int], answers: Mapping[str, Answer]
) -> AsyncIterator[dict[str, Any]]:
    try:
        request = _parse(line, descriptors)
        if request.call not in answers:
            known = ", ".join(sorted(answers))
            raise CallError(1, f"unknown call {request.call!r}", f"known: {known}")
        async for row in answers[request.call](request):
            yield {"ok": row}
    except CallError as error:
        yield {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    except OSError as error:
        log.warning("call failed", error=str(error))
        yield {"error": {"code": 5, "message": str(error), "hint": "see the agent's log"}}


def _parse(line: bytes, descriptors: list[int]) -> Request:
    try:
        body = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CallError(6, f"the request is not a line of JSON: {error}") from error
    call = body.pop("call", None)
    if not isinstance(call, str):
        raise CallError(6, 'the request names no "call"')
    return Request(call, body, descriptors[0] if descriptors else None)


async def _read_line(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Up to a newline or the end; of one that is too long only the beginning, which is no JSON."""
    buffer = bytearray()
    while True:
        try:
            chunk, received, _, _ = socket.recv_fds(connection, 65536, 4)
        except BlockingIOError:
            await _readable(connection)
            continue
        descriptors.extend(received)
        buffer += chunk if len(buffer) < MAX_REQUEST else b""
        if not chunk or b"\n" in chunk:
            return bytes(buffer)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


def _is_answering(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
