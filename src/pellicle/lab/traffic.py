# SPDX-License-Identifier: Apache-2.0
"""An ordinary application: plain sockets that know nothing of Pellicle.  Runs inside a pod.

    python traffic.py 7007                 answers TCP and UDP on this port in both families
    {"targets": […], "text": "…", …}       a line on stdin: talk to these addresses
    {"to": "10.244.2.2", "protocol": …}    lines on stdout: what was sent and answered

Every message is the text, repeated; every answer must be the same bytes. Standard library only,
started by its path: nothing of the package is imported into the pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Final

MESSAGE_BYTES: Final = 1000
"""Of UDP and ICMP; below every path's MTU."""
STREAM_BYTES: Final = 4000
"""Of TCP in each round: a few segments."""
ANSWER_SECONDS: Final = 5.0
ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}
_ECHO = struct.Struct("!BBHHH")


@dataclass
class Talk:
    """One conversation: a protocol to an address."""

    to: str
    port: int
    protocol: str
    sent: int = 0
    answered: int = 0
    bytes: int = 0
    """Sent and correctly answered."""
    problem: str = ""
    round_trips: list[float] = field(default_factory=list)
    """Seconds."""


class Conversation:
    """Sends one message at a time over its socket and waits for the answer."""

    def __init__(
        self, address: str, port: int, protocol: str, message: bytes, patience: float
    ) -> None:
        self.talk = Talk(address, port, protocol)
        self._message, self._patience = message, patience
        self._family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket: socket.socket | None = None

    def exchange(self) -> None:
        """One message and its answer; what goes wrong is noted and ends the conversation."""
        if self.talk.problem:
            return
        self.talk.sent += 1
        started = time.monotonic()
        try:
            if self._socket is None:
                self._socket = self._connect()
            answer = self._ask(self._socket)
        except OSError as error:
            self.talk.problem = f"{type(error).__name__}: {error}"
            return
        if answer != self._message:
            self.talk.problem = f"a wrong answer of {len(answer)} bytes"
            return
        self.talk.answered += 1
        self.talk.bytes += len(answer)
        self.talk.round_trips.append(time.monotonic() - started)

    def close(self) -> None:
        """End it in order: when this returns, nothing of it is under way any more."""
        if self._socket is None:
            return
        if self.talk.protocol == "TCP" and not self.talk.problem:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                while self._socket.recv(65535):
                    pass
        self._socket.close()

    def _connect(self) -> socket.socket:
        kind, number = {
            "TCP": (socket.SOCK_STREAM, 0),
            "UDP": (socket.SOCK_DGRAM, 0),
            "ICMP": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
        }[self.talk.protocol]
        if kind == socket.SOCK_RAW and self._family == socket.AF_INET6:
            number = socket.IPPROTO_ICMPV6
        connection = socket.socket(self._family, kind, number)
        connection.settimeout(self._patience)
        port = 0 if kind == socket.SOCK_RAW else self.talk.port
        connection.connect((self.talk.to, port))
        return connection

    def _ask(self, connection: socket.socket) -> bytes:
        if self.talk.protocol == "ICMP":
            return self._ping(connection)
        connection.sendall(self._message)
        if self.talk.protocol == "UDP":
            return connection.recv(65535)
        return b"".join(_receive(connection, len(self._message)))

    def _ping(self, connection: socket.socket) -> bytes:
        name = os.getpid() & 0xFFFF
        header = _ECHO.pack(ECHO_REQUEST[self._family], 0, 0, name, self.talk.sent & 0xFFFF)
        request = header + self._message
        if self._family == socket.AF_INET:
            # For ICMPv6 the kernel does this (RFC 3542 §3.1).
            request = request[:2] + _checksum(request).to_bytes(2) + request[4:]
        connection.send(request)
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            packet = connection.recv(65535)
            if self._family == socket.AF_INET:
                packet = packet[(packet[0] & 0x0F) * 4 :]
            if packet[0] == ECHO_REPLY[self._family] and packet[4:8] == request[4:8]:
                return packet[8:]
        raise TimeoutError("no echo reply")


def _receive(connection: socket.socket, length: int) -> Iterator[bytes]:
    while length > 0:
        piece = connection.recv(length)
        if not piece:
            return
        length -= len(piece)
        yield piece


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def talk(
    targets: list[tuple[str, int]],
    text: str,
    rounds: int,
    pause: float,
    protocols: list[str],
    patience: float,
    size: int,
) -> list[Talk]:
    """`rounds` messages by every protocol to every address and port, evenly paced.

    `patience`: how many seconds an answer may take. `size`: of a message in bytes, 0 for the usual.
    """
    conversations = [
        Conversation(
            address,
            port,
            protocol,
            _repeated(text, size or (STREAM_BYTES if protocol == "TCP" else MESSAGE_BYTES)),
            patience,
        )
        for address, port in targets
        for protocol in protocols
    ]
    begun = time.monotonic()
    for number in range(rounds):
        for conversation in conversations:
            conversation.exchange()
        time.sleep(max(0.0, begun + (number + 1) * pause - time.monotonic()))
    for conversation in conversations:
        conversation.close()
    return [conversation.talk for conversation in conversations]


def _repeated(text: str, length: int) -> bytes:
    return (text.encode() * (length // len(text) + 1))[:length]


def echo(port: int, ready: threading.Event) -> None:
    """Answer everything that comes on the port, for ever."""
    selector = selectors.DefaultSelector()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        server = socket.socket(socket.AF_INET6, kind)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            server.listen(64)
        selector.register(server, selectors.EVENT_READ, kind)
    ready.set()
    while True:
        for key, _ in selector.select():
            _serve(selector, key)


def _serve(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    waiting = key.fileobj
    if not isinstance(waiting, socket.socket):
        return
    try:
        if key.data == socket.SOCK_DGRAM:
            data, sender = waiting.recvfrom(65535)
            waiting.sendto(data, sender)
        elif key.data == socket.SOCK_STREAM:
            connection, _ = waiting.accept()
            connection.settimeout(ANSWER_SECONDS)
            selector.register(connection, selectors.EVENT_READ, None)
        elif data := waiting.recv(65535):
            waiting.sendall(data)
        else:
            selector.unregister(waiting)
            waiting.close()
    except OSError:
        if key.data is None:  # the peer went away in the middle
            selector.unregister(waiting)
            waiting.close()


def main() -> None:
    ready = threading.Event()
    threading.Thread(target=echo, args=(int(sys.argv[1]), ready), daemon=True).start()
    ready.wait()
    out = sys.stdout
    out.write('{"ready": true}\n')
    out.flush()
    for line in sys.stdin:
        order = json.loads(line)
        rows = talk(**order)
        out.write(json.dumps([asdict(row) for row in rows]) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
