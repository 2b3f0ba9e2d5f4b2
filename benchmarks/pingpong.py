# SPDX-License-Identifier: Apache-2.0
"""Round trips of one small UDP datagram at a time.  Runs inside pods.  Standard library only.

python pingpong.py serve                    answers everything on PORT, for ever
python pingpong.py ask ADDRESS SECONDS TEXT   a line of JSON: nanoseconds, and how many got lost
"""

from __future__ import annotations

import json
import socket
import sys
import time

PORT = 7201
SIZE = 64
PATIENCE_SECONDS = 1.0
WARM_UP = 50
"""Caches, neighbours, the flow's first event: not what is measured."""


def serve() -> None:
    """Until it is ended from outside."""
    door = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    door.bind(("::", PORT))
    print("ready", flush=True)
    while True:
        data, sender = door.recvfrom(2048)
        door.sendto(data, sender)


def ask(address: str, seconds: float, text: str) -> dict[str, object]:
    """One after the other for `seconds`; the message is the text and a number."""
    door = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    door.settimeout(PATIENCE_SECONDS)
    door.connect((address, PORT))
    times: list[int] = []
    number = lost = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number += 1
        message = text.encode().ljust(SIZE - 8, b".") + number.to_bytes(8)
        begun = time.perf_counter_ns()
        try:
            door.send(message)
            while door.recv(2048) != message:
                pass
        except TimeoutError:
            lost += 1
            continue
        times.append(time.perf_counter_ns() - begun)
    return {"times": times[WARM_UP:], "answered": len(times), "lost": lost}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(ask(sys.argv[2], float(sys.argv[3]), sys.argv[4])), flush=True)
