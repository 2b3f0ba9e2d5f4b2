# SPDX-License-Identifier: Apache-2.0
"""TCP connections between pods whose both ends the test holds, and transfers that use both ways.

with connected("n1/p1", "n2/p1", 6) as (here, there):
    assert exchange(here, there) == [True, True]
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests import pace
from tests.net.loaded import address_of
from tests.net.parcels import content, open_in

MEGABYTE = content(1 << 20)


@contextmanager
def connected(
    source: str, destination: str, family: int
) -> Iterator[tuple[socket.socket, socket.socket]]:
    kind = socket.SOCK_STREAM
    with open_in(destination, family, kind) as server, open_in(source, family, kind) as here:
        server.bind(("", 0))
        server.listen(1)
        here.connect((address_of(destination, family), server.getsockname()[1]))
        there, _ = server.accept()
        with there:
            for each in (here, there):
                each.settimeout(pace.patient(60))
            yield here, there


def segment(connection: socket.socket) -> int:
    """What of each segment is data, with time stamps (RFC 7323)."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def exchange(here: socket.socket, there: socket.socket, megabytes: int = 6) -> list[bool]:
    """Both send at the same time; whether each got what was sent, in the order of the arguments.

    In a brief run an eighth of it.
    """
    intact = [False, False]
    whole = pace.amount(MEGABYTE * megabytes, MEGABYTE[: megabytes << 17])

    def receive(number: int, connection: socket.socket) -> None:
        got = bytearray()
        while piece := connection.recv(1 << 18):
            got += piece
        intact[number] = bytes(got) == whole

    def send(connection: socket.socket) -> None:
        connection.sendall(whole)
        connection.shutdown(socket.SHUT_WR)

    threads = [
        *(threading.Thread(target=receive, args=row) for row in enumerate((here, there))),
        *(threading.Thread(target=send, args=(each,)) for each in (here, there)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return intact
