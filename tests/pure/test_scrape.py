# SPDX-License-Identifier: Apache-2.0
"""The metrics' address: whatever comes in, Prometheus is answered the next time."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from pellicle import scrape
from pellicle.values import FieldError, Listener, listener

TEXT = "# TYPE pellicle_flows gauge\npellicle_flows 7.0\n"


@asynccontextmanager
async def served(
    text: Callable[[], str] = lambda: TEXT, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Its port."""

    async def metrics() -> str:
        return text()

    server = scrape.listen(listener("metrics_address", f"{host}:{free_port()}"))
    port: int = server.getsockname()[1]
    task = asyncio.create_task(scrape.serve(server, metrics))
    try:
        yield port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def ask(port: int, request: bytes, host: str = "127.0.0.1") -> bytes:
    """All that comes back, until the other side closes."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@dataclass(frozen=True)
class Case:
    says: str
    request: bytes
    status: bytes
    body: bytes | None = None


CASES = [
    Case("metrics", b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n", b"200", TEXT.encode()),
    Case("an old caller", b"GET /metrics HTTP/1.0\r\n\r\n", b"200", TEXT.encode()),
    Case("with a query", b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", b"200", TEXT.encode()),
    Case("health", b"GET /healthz HTTP/1.1\r\n\r\n", b"200", b"ok\n"),
    Case("only the head", b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200", b""),
    Case("nothing else", b"GET / HTTP/1.1\r\n\r\n", b"404"),
    Case("no way out", b"GET /../../etc/shadow HTTP/1.1\r\n\r\n", b"404"),
    Case("nothing is written", b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
    Case("no HTTP", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
    Case("an empty line", b"\r\n\r\n", b"400"),
    Case("a long head", b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b""),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
async def test_what_is_asked(case: Case) -> None:
    async with served() as port:
        answer = await ask(port, case.request)
        if case.status:
            assert answer.startswith(b"HTTP/1.1 " + case.status), answer
        else:
            assert b"200" not in answer[:20]
        if case.body is not None:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert body == case.body
            length = len(case.body) or len(TEXT)
            assert f"Content-Length: {length}".encode() in head
        assert TEXT.encode() in await ask(port, CASES[0].request)


async def test_what_is_long_is_packed_for_who_can_unpack_it() -> None:
    long = TEXT * 10_000
    request = b"GET /metrics HTTP/1.1\r\nAccept-Encoding: deflate, gzip;q=0.8\r\n\r\n"
    refused = b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip;q=0\r\n\r\n"
    async with served(lambda: long) as port:
        head, _, body = (await ask(port, request)).partition(b"\r\n\r\n")
        assert b"Content-Encoding: gzip" in head
        assert gzip.decompress(body).decode() == long
        assert len(body) < len(long) / 10
        assert (await ask(port, refused)).endswith(long.encode())


async def test_who_says_nothing_is_hung_up_on_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.3)
    async with served() as port:
        silent = [asyncio.create_task(ask(port, b"GET /metr")) for _ in range(10)]
        await asyncio.sleep(0.05)
        assert TEXT.encode() in await ask(port, CASES[0].request)
        assert await asyncio.gather(*silent) == [b""] * 10


async def test_more_connections_than_there_may_be_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrape, "REQUEST_SECONDS", 0.5)
    async with served() as port:
        silent = [asyncio.create_task(ask(port, b"GET")) for _ in range(scrape.MAX_CONNECTIONS)]
        await asyncio.sleep(0.2)
        assert await ask(port, CASES[0].request) == b"", "there is no room"
        await asyncio.gather(*silent)
        assert TEXT.encode() in await ask(port, CASES[0].request)


async def test_over_ipv6() -> None:
    async with served(host="[::1]") as port:
        assert TEXT.encode() in await ask(port, CASES[0].request, "::1")


def test_an_address_that_cannot_be_had_is_named() -> None:
    with pytest.raises(OSError, match=r"metrics_address 192\.0\.2\.77:9465"):
        scrape.listen(listener("metrics_address", "192.0.2.77:9465"))


@pytest.mark.parametrize(
    "text", ["9465", ":9465", "127.0.0.1", "::1:9465", "[127.0.0.1]:1", "127.0.0.1:0",
             "127.0.0.1:65536", "127.0.0.1:-1", "localhost:80", "[::1]", "1.2.3.4:5:6", ""],
)  # fmt: skip
def test_what_is_no_address_and_port(text: str) -> None:
    with pytest.raises(FieldError, match="metrics_address"):
        listener("metrics_address", text)


@pytest.mark.parametrize("text", ["127.0.0.1:9465", "0.0.0.0:1", "[::]:65535", "[fd00::1]:9465"])
def test_addresses_are_said_as_they_are_written(text: str) -> None:
    found = listener("metrics_address", text)
    assert isinstance(found, Listener)
    assert str(found) == text
