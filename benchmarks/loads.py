# SPDX-License-Identifier: Apache-2.0
"""What is measured on a path: TCP, round trips, small packets, and what they cost the machine.

Every load counts for itself what came out at the far end, and afterwards asks the path how much
of it was encrypted: a figure is only given when that agrees with what the path claims to be.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import sysconf
from pathlib import Path as File
from typing import Any, Final

from benchmarks.ways import CLIENT, SERVER, Path, process_in, round_trips
from pellicle.kernel import netns
from pellicle.lab import LabError
from pellicle.lab.patience import patient

PORT: Final = 5201
START_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = 30.0
LISTENING: Final = f":{PORT:04X} 00000000000000000000000000000000:0000 0A"
"""In /proc/net/tcp6: local port, no peer, TCP_LISTEN."""
SMALL: Final = 64
COUNTERS: Final = {4: ("net/snmp", "Udp:", "InDatagrams"), 6: ("net/snmp6", "Udp6InDatagrams", "")}

Figures = dict[str, float]
"""By the measure's name."""


def tcp(path: Path, family: int, streams: int, seconds: float) -> Figures:
    """Gbit/s of payload received, segments sent again, and CPU seconds for each GB of it."""
    before, busy = path.protected_bytes(), busy_seconds()
    end = _iperf(path, family, seconds, "-P", str(streams))["end"]
    spent = busy_seconds() - busy
    received = end["sum_received"]["bytes"]
    _must_agree(path, received, path.protected_bytes() - before)
    suffix = "" if streams == 1 else f"_{streams}"
    figures = {f"tcp{suffix}": end["sum_received"]["bits_per_second"] / 1e9}
    figures[f"retransmits{suffix}"] = end["sum_sent"]["retransmits"]
    if streams == 1:
        figures["cpu"] = spent / (received / 1e9)
    return figures


def latency(path: Path, family: int, seconds: float) -> Figures:
    """Microseconds from sending one datagram to having its echo."""
    before = path.protected_bytes()
    said = round_trips(path, family, seconds)
    _must_agree(path, 64 * said["answered"], path.protected_bytes() - before)
    percentiles = statistics.quantiles(said["times"], n=100)
    return {"p50": percentiles[49] / 1e3, "p99": percentiles[98] / 1e3}


def packets(path: Path, family: int, seconds: float) -> Figures:
    """Small UDP datagrams that a socket in the far pod receives, in thousands a second.

    The sender sends as fast as its core lets it, and shares the cores with everything else.
    """
    protected, before = path.protected_bytes(), _datagrams(family)
    arguments = ("-u", "-b", "0", "-l", str(SMALL))
    end = _iperf(path, family, seconds, *arguments)["end"]
    arrived = _datagrams(family) - before
    _must_agree(path, SMALL * arrived, path.protected_bytes() - protected)
    return {"kpps": arrived / end["sum"]["seconds"] / 1e3}


def busy_seconds() -> float:
    """What all cores of this machine have worked since it started, steal time left out."""
    words = File("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, words[:7])
    return (user + nice + system + irq + softirq) / sysconf("SC_CLK_TCK")


def _must_agree(path: Path, received: int, protected: int) -> None:
    """All of it was encrypted, or nothing, as the wire was seen to carry it."""
    is_clear = path.way.is_clear
    if received <= 0:
        raise LabError(f"{path.way.name}: nothing arrived")
    if (protected > 0) if is_clear else (protected < received):
        words = f"{received} bytes arrived, {protected} were encrypted"
        raise LabError(f"{path.way.name} is not what it should be: {words}")


def _iperf(path: Path, family: int, seconds: float, *more: str) -> dict[str, Any]:
    """What a client in one pod says of its talk with a server in the other."""
    with _serving():
        address = path.addresses[family]
        argv = ["iperf3", "--json", "-c", address, "-t", f"{seconds:g}", *more]
        with process_in(CLIENT, argv) as client:
            try:
                said, _ = client.communicate(timeout=seconds + patient(PATIENCE_SECONDS))
            except subprocess.TimeoutExpired as error:
                raise LabError(f"{path.way.name}: iperf3 does not come to an end") from error
    answer: dict[str, Any] = json.loads(said)
    if client.returncode or "error" in answer:
        raise LabError(f"{path.way.name}: iperf3 says {answer.get('error', client.returncode)}")
    return answer


@contextmanager
def _serving() -> Iterator[None]:
    with process_in(SERVER, ["iperf3", "--json", "-s", "-1"]) as server:
        deadline = time.monotonic() + patient(START_SECONDS)
        while LISTENING not in File(f"/proc/{server.pid}/net/tcp6").read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"the iperf3 server does not start: {server.communicate()[0]}")
            time.sleep(0.02)
        yield


def _datagrams(family: int) -> int:
    """UDP datagrams that sockets in the server's pod have received."""
    name, row, column = COUNTERS[family]
    with netns.inside(SERVER.namespace):
        lines = File("/proc/thread-self", name).read_text().splitlines()
    if not column:
        return next(int(line.split()[1]) for line in lines if line.startswith(row))
    names, values = (line.split() for line in lines if line.startswith(row))
    counts: Mapping[str, str] = dict(zip(names, values, strict=True))
    return int(counts[column])
