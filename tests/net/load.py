# SPDX-License-Identifier: Apache-2.0
"""Load between two pods that misses nothing: numbered UDP, and one TCP connection of known bytes.

    python load.py serve             in one pod: count what comes
    python load.py send ADDRESS      in another: a line of JSON with what was lost
        SECONDS                      for so long, or until its stdin ends
        PPS PAUSE                    datagrams a second; seconds between pieces of the stream
        PATIENCE                     this many times as long for what is under way

UDP datagrams carry a number; the server says which numbers never came. The TCP stream carries a
pattern that the server checks byte by byte. Everything ends by itself. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time

UDP_PORT, TCP_PORT = 7101, 7102
NUMBER = struct.Struct("!Q")
PATTERN = bytes(range(256)) * 64
SIZE = 600
UNDER_WAY_SECONDS = 1.0
STUCK_SECONDS = 60.0


def serve() -> None:
    """One run: answers its questions on the TCP connection, then ends."""
    udp = _dual(socket.SOCK_DGRAM, UDP_PORT)
    udp.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: the server must not lose any
    tcp = _dual(socket.SOCK_STREAM, TCP_PORT)
    tcp.listen(1)
    print("ready", flush=True)
    connection, _ = tcp.accept()
    got: set[int] = set()
    counts = {"duplicates": 0, "longest_gap": 0.0}
    stop = threading.Event()
    reader = threading.Thread(target=_count, args=(udp, got, counts, stop))
    reader.start()
    received, is_intact = _drain(connection)
    stop.set()
    reader.join()
    numbers = sorted(set(range(max(got, default=-1) + 1)) - got)
    answer = {"stream_bytes": received, "is_intact": is_intact, "udp_received": len(got)}
    answer |= {"missing": len(numbers), "first_missing": numbers[:20], **counts}
    connection.sendall(json.dumps(answer).encode())
    connection.close()


def send(address: str, seconds: float, pps: int, pause: float, patience: float) -> None:
    """Both kinds at once for `seconds`; prints what the server says and what was sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    stream = socket.socket(family, socket.SOCK_STREAM)
    stream.settimeout(STUCK_SECONDS * patience)
    stream.connect((address, TCP_PORT))
    end = threading.Event()
    threading.Timer(seconds, end.set).start()
    threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
    said = {"stream_sent": 0}
    writer = threading.Thread(target=_fill, args=(stream, end, pause, said))
    writer.start()
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.connect((address, UDP_PORT))
    number = _pace(udp, end, pps)
    writer.join()
    time.sleep(UNDER_WAY_SECONDS * patience)
    stream.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: stream.recv(65536), b"")))
    print(json.dumps({**answer, **said, "udp_sent": number}), flush=True)
    os._exit(0)  # the timer and the reader of stdin need not end first


def _pace(udp: socket.socket, end: threading.Event, pps: int) -> int:
    number, started = 0, time.monotonic()
    while not end.is_set():
        due = int((time.monotonic() - started) * pps)
        while number < due:
            udp.send(NUMBER.pack(number) + bytes(SIZE))
            number += 1
        time.sleep(max(0.001, 0.5 / pps))
    return number


def _fill(stream: socket.socket, end: threading.Event, pause: float, said: dict[str, int]) -> None:
    while not end.is_set():
        stream.sendall(PATTERN)
        said["stream_sent"] += len(PATTERN)
        time.sleep(pause)  # a load, not a benchmark


def _drain(connection: socket.socket) -> tuple[int, bool]:
    received, is_intact = 0, True
    while chunk := connection.recv(65536):
        at = received % len(PATTERN)
        expected = (PATTERN * (2 + len(chunk) // len(PATTERN)))[at : at + len(chunk)]
        is_intact &= chunk == expected
        received += len(chunk)
    return received, is_intact


def _count(
    udp: socket.socket, got: set[int], counts: dict[str, float], stop: threading.Event
) -> None:
    udp.settimeout(0.2)
    last = None
    while not stop.is_set():
        try:
            (number,) = NUMBER.unpack(udp.recv(2048)[: NUMBER.size])
        except TimeoutError:
            continue
        now = time.monotonic()
        counts["longest_gap"] = max(counts["longest_gap"], now - last if last else 0.0)
        last = now
        counts["duplicates"] += number in got
        got.add(number)


def _dual(kind: socket.SocketKind, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    return made


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        send(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), *map(float, sys.argv[5:7]))
