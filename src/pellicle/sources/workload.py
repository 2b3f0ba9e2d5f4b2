# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API: what this node is and whom it may believe, followed.

    Unix socket ──gRPC stream──▶ Response, Response, …        a new one for each renewal

The stream is opened again when it breaks, at first after a second, then ever more rarely. An API
that is down takes nothing away: whoever follows it keeps what it said last, and `problem` says
since when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pellicle.wire.spiffe import HEADER, MAX_RESPONSE, METHOD, REQUEST, Malformed, Response
from pellicle.wire.spiffe import read_response as read

if TYPE_CHECKING:
    import grpc

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 30.0
LONGEST_SAID = 300


class NoGrpc(Exception):  # noqa: N818  it is an answer for the operator
    """The package that speaks gRPC is not installed."""


class WorkloadApi:
    """The API behind one socket."""

    def __init__(self, socket: Path) -> None:
        """NoGrpc when the API cannot be spoken to at all."""
        try:
            import grpc.aio  # noqa: F401, PLC0415  0.2 s and 30 MB, for this key mode alone
        except ImportError as error:
            raise NoGrpc("key_mode spiffe needs grpcio: pip install 'pellicle[spiffe]'") from error
        self.socket = socket
        self.problem: str | None = f"SPIFFE Workload API {socket}: has not answered yet"
        """Why the last that was heard may be old news, in words; None: the stream is open."""
        self._since: str | None = None

    async def responses(self) -> AsyncIterator[Response]:
        """What the API says, each time that it says it; without end."""
        import grpc  # noqa: PLC0415

        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                async with aclosing(self._stream()) as stream:
                    async for response in stream:
                        self.problem = self._since = None
                        pause = FIRST_PAUSE_SECONDS
                        yield response
                why = "it ended the stream"
            except grpc.aio.AioRpcError as error:
                why = _words(error)
            except Malformed as error:
                why = f"its answer cannot be read: {error}"
            self._down(why)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    async def _stream(self) -> AsyncGenerator[Response, None]:
        """One stream, until it ends or breaks."""
        import grpc  # noqa: PLC0415

        options = [
            ("grpc.max_receive_message_length", MAX_RESPONSE),
            ("grpc.enable_http_proxy", 0),
            # A channel of our own each time: its own back-off would add to ours.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.insecure_channel(f"unix:{self.socket}", options) as channel:
            call = channel.unary_stream(
                METHOD, request_serializer=bytes, response_deserializer=bytes
            )
            async for raw in call(REQUEST, metadata=(HEADER,)):
                yield read(raw)

    def _down(self, why: str) -> None:
        self._since = self._since or datetime.now(UTC).isoformat(timespec="seconds")
        goes_on = "keys go on until the SVIDs expire"
        self.problem = f"SPIFFE Workload API {self.socket}: {why} (since {self._since}); {goes_on}"


def _words(error: grpc.aio.AioRpcError) -> str:
    import grpc  # noqa: PLC0415

    said = "".join(c if c.isprintable() else " " for c in error.details() or "")[:LONGEST_SAID]
    code = error.code()
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return f"it has no identity for this workload: register it ({said})"
    return f"{code.name}: {said}" if said else code.name
