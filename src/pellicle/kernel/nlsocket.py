# SPDX-License-Identifier: Apache-2.0
"""A netlink socket in one network namespace: batches, dumps, listening.

Requests go out in batches: a chunk of messages in one datagram, an acknowledgement asked of the
last only. The kernel does each message by itself, in order, and answers those that fail; so 5,000
routes are a handful of system calls and every failure keeps its own errno.

Everything here is synchronous and takes well under a millisecond of the event loop's time,
except dumps and batches of thousands.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

from pellicle.kernel import Held, libc
from pellicle.kernel.netns import Namespace, socket_in
from pellicle.wire import nlmsg

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 10, 11
_CHUNK_BYTES = 64 * 1024
_CHUNK_MESSAGES = 512
_RECEIVE_BYTES = 256 * 1024
_QUEUE_BYTES = 4 * 1024 * 1024
"""Room for an error to every message of a chunk; unread answers end in ENOBUFS."""
_DUMP_TRIES = 10
_LARGE_TABLE = 252
"""RT_TABLE_COMPAT: what stands in the octet for the table of a route when it has no room there."""

R = TypeVar("R", bound=Hashable)
T = TypeVar("T")


class NetlinkSocket(Held):
    """What any family's socket can do."""

    def __init__(
        self, protocol: int, namespace: Namespace | None = None, options: Iterable[int] = ()
    ) -> None:
        self._socket = open_socket(protocol, namespace, options=options)
        self._socket.bind((0, 0))
        self._sequence = 0
        self.port: int = self._socket.getsockname()[0]
        """What the kernel calls this socket; it stands in the events that its requests cause."""

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def batch(self, requests: Iterable[nlmsg.Request]) -> list[OSError | None]:
        """Sends all, in order; for each its error or None."""
        return [
            answer if isinstance(answer, OSError) else None for answer in self.answers(requests)
        ]

    def answers(self, requests: Iterable[nlmsg.Request]) -> list[nlmsg.Reply | OSError | None]:
        """Sends all, in order; for each its error, the row that it asked for, or None."""
        wanted = list(requests)
        answers: list[nlmsg.Reply | OSError | None] = [None] * len(wanted)
        first = self._sequence + 1
        self._sequence += len(wanted)
        for start, datagram in self._chunks(wanted, first):
            self._socket.send(datagram)
            for reply in self._until_acknowledged(start):
                if reply.sequence < first:  # left over from a call that raised
                    continue
                if reply.kind != nlmsg.ERROR:
                    answers[reply.sequence - first] = reply
                    continue
                number, words = reply.error
                if number:
                    answers[reply.sequence - first] = _error(number, words)
        return answers

    def ask(self, request: nlmsg.Request) -> None:
        """Sends one; raises its error."""
        (error,) = self.batch([request])
        if error is not None:
            raise error

    def dump(self, request: nlmsg.Request, read: Callable[[nlmsg.Reply], T | None]) -> list[T]:
        """What `read` makes of all that answers a dump, where that is not None.

        The dump is asked for again while its rows change under our hands.
        """
        for _ in range(_DUMP_TRIES):
            rows, was_interrupted = self._dump_once(request, read)
            if not was_interrupted:
                return rows
        raise OSError(errno.EAGAIN, "the kernel's table changes faster than it can be read")

    def _each(
        self, rows: Iterable[R], request: Callable[[R], nlmsg.Request], *success: int
    ) -> dict[R, OSError]:
        wanted = list(rows)
        errors = self.batch(map(request, wanted))
        return {
            row: error
            for row, error in zip(wanted, errors, strict=True)
            if error is not None and error.errno not in success
        }

    def _chunks(self, requests: Sequence[nlmsg.Request], first: int) -> Iterator[tuple[int, bytes]]:
        """Datagrams, each with the number of its last message, which asks for an answer."""
        parts: list[bytes] = []
        size = 0
        for number, request in enumerate(requests):
            sequence = first + number
            size += len(request.body) + 32
            is_last = (
                number + 1 == len(requests)
                or len(parts) + 1 == _CHUNK_MESSAGES
                or size > _CHUNK_BYTES
            )
            parts.append(request.pack(sequence, nlmsg.ACK if is_last else 0, self.port))
            if is_last:
                yield sequence, b"".join(parts)
                parts, size = [], 0

    def _until_acknowledged(self, last: int) -> Iterator[nlmsg.Reply]:
        """What comes back for a chunk; ends with the answer to its last message."""
        while True:
            for reply in nlmsg.replies(self._socket.recv(_RECEIVE_BYTES)):
                yield reply
                if reply.kind == nlmsg.ERROR and reply.sequence == last:
                    return

    def _dump_once(
        self, request: nlmsg.Request, read: Callable[[nlmsg.Reply], T | None]
    ) -> tuple[list[T], bool]:
        self._sequence += 1
        self._socket.send(request.pack(self._sequence, 0, self.port))
        rows: list[T] = []
        was_interrupted = False
        while True:
            for reply in nlmsg.replies(self._socket.recv(_RECEIVE_BYTES)):
                if reply.sequence != self._sequence:  # left over from a call that raised
                    continue
                was_interrupted |= bool(reply.flags & nlmsg.DUMP_INTERRUPTED)
                if reply.kind in (nlmsg.ERROR, nlmsg.DONE):
                    number, words = reply.error
                    if number:
                        raise _error(number, words)
                    return rows, was_interrupted
                # At once: fifty thousand replies kept are as many for the collector to look at.
                row = read(reply)
                if row is not None:
                    rows.append(row)


class Alarm(Held):
    """An endless asynchronous iterator: something of these kinds has happened.

    What it was is not told, nor how many; whatever depends on it must be read anew. What the
    sockets with a port in `own` asked for does not count; nor do, of routes and rules, those of
    other tables than `tables`, if any are given.
    """

    def __init__(
        self,
        protocol: int,
        groups: Iterable[int],
        kinds: Iterable[int],
        namespace: Namespace | None = None,
        own: Iterable[int] = (),
        tables: Iterable[int] = (),
    ) -> None:
        self._socket = open_socket(protocol, namespace)
        self._socket.setblocking(False)
        _hear_only(self._socket, kinds, own, tables)
        self._socket.bind((0, sum(1 << group - 1 for group in groups)))

    def close(self) -> None:
        """Stops listening."""
        self._socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        with _losing_some():
            await asyncio.get_running_loop().sock_recv(self._socket, _RECEIVE_BYTES)
        with suppress(BlockingIOError):
            while True:
                with _losing_some():
                    self._socket.recv(_RECEIVE_BYTES)


def open_socket(
    protocol: int,
    namespace: Namespace | None,
    *,
    queue: int = _QUEUE_BYTES,
    options: Iterable[int] = (),
) -> socket.socket:
    """A socket of one netlink family, not yet bound, that answers tersely and with words.

    `options`: more of SOL_NETLINK that shall be on.
    """
    opened = socket_in(namespace, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    so_rcvbufforce = 33
    opened.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, queue)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _CHUNK_BYTES)
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, *options):
        opened.setsockopt(_SOL_NETLINK, option, 1)
    return opened


def _hear_only(
    listening: socket.socket,
    kinds: Iterable[int],
    not_from: Iterable[int],
    tables: Iterable[int],
) -> None:
    """Of the events that a socket hears, drops those of other kinds, caused by these ports, or
    about other tables.

    The kernel does it before it queues them: thousands of our own requests wake nobody, and
    crowd out nothing.
    """
    load, load_half, load_byte = 0x20, 0x28, 0x30  # classic BPF
    jump_if_equal, answer = 0x15, 0x06
    program: list[tuple[int, int, int, int]] = []

    def one_of(what: int, offset: int, values: list[int]) -> None:
        program.append((what, 0, 0, offset))
        program.extend(
            (jump_if_equal, len(values) - at, 0, value) for at, value in enumerate(values)
        )
        program.append((answer, 0, 0, 0))

    one_of(load_half, 4, [socket.htons(kind) for kind in kinds])  # it loads in network order
    if numbers := list(tables):  # in rtmsg and fib_rule_hdr at the same place
        one_of(load_byte, 16 + 4, [min(each, _LARGE_TABLE) for each in numbers])
    ports = [socket.htonl(port) for port in not_from]
    program.append((load, 0, 0, 12))
    program.extend((jump_if_equal, len(ports) - at, 0, port) for at, port in enumerate(ports))
    program += [(answer, 0, 0, 0xFFFFFFFF), (answer, 0, 0, 0)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    memory = libc.ffi.from_buffer(code)
    address = int(libc.ffi.cast("uintptr_t", memory))
    so_attach_filter = 26
    listening.setsockopt(
        socket.SOL_SOCKET, so_attach_filter, struct.pack("@HP", len(program), address)
    )


@contextmanager
def _losing_some() -> Iterator[None]:
    """That events were lost is an event, too."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _error(number: int, words: str) -> OSError:
    reason = os.strerror(number)
    return OSError(number, f"{reason}: {words}" if words else reason)
