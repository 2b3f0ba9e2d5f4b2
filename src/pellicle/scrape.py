# SPDX-License-Identifier: Apache-2.0
"""Where Prometheus asks: HTTP, of which GET /metrics and GET /healthz are understood.

Whoever can reach the address may ask: there is nothing secret to be had, and little to be worn
out. One request to a connection, of a few kilobytes, within seconds; few connections at a time.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from pellicle.values import Listener

MAX_HEAD = 8192
REQUEST_SECONDS, ANSWER_SECONDS = 5.0, 30.0
MAX_CONNECTIONS = 32
BACKLOG = 32
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN = "text/plain; charset=utf-8"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Response:
    """What one request gets."""

    status: str
    body: bytes
    kind: str = _PLAIN
    more: tuple[str, ...] = ()
    """Further lines of the head."""

    def encode(self, *, has_body: bool = True) -> bytes:
        lines = (
            f"HTTP/1.1 {self.status}",
            f"Content-Type: {self.kind}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *self.more,
        )
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        return head + (self.body if has_body else b"")


def listen(where: Listener) -> socket.socket:
    """A listening socket; OSError says which setting names an address that cannot be had."""
    family = socket.AF_INET6 if where.address.version == 6 else socket.AF_INET
    try:
        return socket.create_server(
            (str(where.address), where.port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        words = error.strerror or str(error)
        why = f"metrics_address {where} cannot be listened on: {words.partition(' (while ')[0]}"
        raise OSError(error.errno or errno.EINVAL, why) from error


async def serve(server: socket.socket, metrics: Callable[[], Awaitable[str]]) -> None:
    """Answer on `server` until cancelled. `metrics`: the exposition."""
    connections: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        connections.add(task)
        try:
            await _converse(reader, writer, metrics)
        finally:
            connections.discard(task)

    listening = await asyncio.start_server(take, sock=server, limit=MAX_HEAD)
    try:
        await listening.serve_forever()
    finally:
        for each in connections:
            each.cancel()


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    metrics: Callable[[], Awaitable[str]],
) -> None:
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await _head(reader)
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(await _answered(head, metrics))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        pass  # whoever asked went away, or is too slow: nothing is owed
    finally:
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to the empty line; nothing of one that is too long."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return b""


async def _answered(head: bytes, metrics: Callable[[], Awaitable[str]]) -> bytes:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return Response("400 Bad Request", b"not a request that is understood here\n").encode()
    method, target, _ = words
    if method not in {"GET", "HEAD"}:
        found = Response("405 Method Not Allowed", b"only GET\n", more=("Allow: GET, HEAD",))
    else:
        found = await _found(target.partition("?")[0], lines[1:], metrics)
    return found.encode(has_body=method != "HEAD")


async def _found(path: str, headers: list[str], metrics: Callable[[], Awaitable[str]]) -> Response:
    match path:
        case "/metrics":
            text = (await metrics()).encode()
            if not _takes_gzip(headers):
                return Response("200 OK", text, PROMETHEUS_TEXT)
            packed = await asyncio.to_thread(gzip.compress, text, 1)
            return Response("200 OK", packed, PROMETHEUS_TEXT, ("Content-Encoding: gzip",))
        case "/healthz":
            return Response("200 OK", b"ok\n")
        case _:
            return Response("404 Not Found", b"there are /metrics and /healthz\n")


def _takes_gzip(headers: list[str]) -> bool:
    pairs = (line.lower().partition(":") for line in headers)
    accepted = ",".join(value for name, _, value in pairs if name == "accept-encoding")
    for each in accepted.split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
