# SPDX-License-Identifier: Apache-2.0
"""The agent's socket: whatever comes in, one answer goes out and the next caller is served."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pellicle.serve import MAX_REQUEST, CallError, Request, listen, serve


async def echo(request: Request) -> AsyncIterator[Any]:
    yield dict(request.arguments)


async def count(request: Request) -> AsyncIterator[Any]:
    for number in range(int(request.arguments["to"])):
        yield number


async def refuse(_: Request) -> AsyncIterator[Any]:
    raise CallError(7, "not today", "try tomorrow")
    yield


async def stumble(_: Request) -> AsyncIterator[Any]:
    raise OSError(28, "No space left on device")
    yield


async def read_descriptor(request: Request) -> AsyncIterator[Any]:
    assert request.descriptor is not None
    yield os.read(request.descriptor, 100).decode()


ANSWERS = {
    "echo": echo,
    "count": count,
    "refuse": refuse,
    "stumble": stumble,
    "read": read_descriptor,
}


@asynccontextmanager
async def agent(path: Path) -> AsyncIterator[None]:
    server = listen(path)
    task = asyncio.create_task(serve(server, ANSWERS))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        server.close()


async def say(path: Path, raw: bytes) -> list[Any]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(raw)
    await writer.drain()
    lines = [json.loads(line) async for line in reader]
    writer.close()
    return lines


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b'{"call": "echo", "a": 1}\n', [{"ok": {"a": 1}}]),
        (b'{"call": "count", "to": 3}\n', [{"ok": 0}, {"ok": 1}, {"ok": 2}]),
        (b'{"call": "count", "to": 0}\n', []),
        (
            b'{"call": "refuse"}\n',
            [{"error": {"code": 7, "message": "not today", "hint": "try tomorrow"}}],
        ),
        (
            b'{"call": "stumble"}\n',
            [
                {
                    "error": {
                        "code": 5,
                        "message": "[Errno 28] No space left on device",
                        "hint": "see the agent's log",
                    }
                }
            ],
        ),
    ],
)
async def test_calls_and_their_answers(tmp_path: Path, raw: bytes, lines: list[Any]) -> None:
    async with agent(tmp_path / "agent.sock"):
        assert await say(tmp_path / "agent.sock", raw) == lines


@pytest.mark.parametrize(
    ("raw", "code", "word"),
    [
        (b"not json\n", 6, "not a line of JSON"),
        (b"[1]\n", 6, "not a line of JSON"),
        (b"{}\n", 6, 'names no "call"'),
        (b'{"call": 5}\n', 6, 'names no "call"'),
        (b'{"call": "fly"}\n', 1, "unknown call 'fly'"),
        (b"x" * (MAX_REQUEST + 70000) + b"\n", 6, "not a line of JSON"),
        (b'{"call": "echo", "deep": ' + b"[" * 99999 + b"]" * 99999 + b"}\n", 6, "recursion"),
    ],
)
async def test_bad_requests_get_one_error_and_harm_nobody(
    tmp_path: Path, raw: bytes, code: int, word: str
) -> None:
    path = tmp_path / "agent.sock"
    async with agent(path):
        (line,) = await say(path, raw)
        assert line["error"]["code"] == code
        assert word in line["error"]["message"]
        assert await say(path, b'{"call": "echo"}\n') == [{"ok": {}}]


async def test_a_caller_that_goes_away_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with agent(path):
        for raw in (b"", b'{"call": "count", "to": 1000000}\n'):
            _, writer = await asyncio.open_unix_connection(str(path))
            writer.write(raw)
            writer.close()
        assert await say(path, b'{"call": "echo"}\n') == [{"ok": {}}]


async def test_without_a_descriptor_left_callers_wait_and_are_served_later(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with agent(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"call": "echo"}\n')
        assert await reader.readline() == b'{"ok":{}}\n'
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            await asyncio.get_running_loop().sock_connect(client, str(path))
            await asyncio.sleep(0.1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with client:
            await asyncio.get_running_loop().sock_sendall(client, b'{"call": "echo"}\n')
            answer = await asyncio.get_running_loop().sock_recv(client, 1000)
        assert json.loads(answer) == {"ok": {}}
        writer.close()


async def test_a_descriptor_rides_along_and_is_closed_after(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with agent(path):
        here, there = os.pipe()
        os.write(there, b"from the pipe")
        os.close(there)
        before = _descriptors()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, str(path))
            socket.send_fds(client, [b'{"call": "read"}\n'], [here])
            answer = await asyncio.get_running_loop().sock_recv(client, 1000)
        assert json.loads(answer) == {"ok": "from the pipe"}
        os.close(here)
        async with asyncio.timeout(5):
            while _descriptors() >= before:
                await asyncio.sleep(0.01)


async def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    async with agent(tmp_path / "run" / "agent.sock"):
        mode = stat.S_IMODE((tmp_path / "run" / "agent.sock").stat().st_mode)
        assert mode == 0o600


async def test_a_dead_socket_is_replaced_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    listen(path).close()
    async with agent(path):
        with pytest.raises(OSError, match="another agent answers"):
            await asyncio.to_thread(listen, path)
        assert await say(path, b'{"call": "echo"}\n') == [{"ok": {}}], "undisturbed"


async def test_an_agent_that_ends_takes_its_socket_with_it(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent.sock"):
        assert await say(tmp_path / "agent.sock", b'{"call": "echo"}\n') == [{"ok": {}}]
    assert not (tmp_path / "agent.sock").exists()


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
