# SPDX-License-Identifier: Apache-2.0
"""Load between pods of a lab, and a sniffer whose word counts.

with load("n1/p1", "n2/p1", family=4) as run: …disturb…
run.stop().missing == 0

with both_ways() as runs: …disturb…
all(outcome.missing == 0 for outcome in stop(runs))
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents, pods
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode, node_named, pod_named
from tests import pace

PROGRAM = Path(__file__).with_name("load.py")
MARKER = bytes(range(64, 128))
"""Part of what the TCP load carries."""
ENDLESS_SECONDS = 600.0
BRIEF_PPS = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the server of a load says."""

    stream_bytes: int
    stream_sent: int
    is_intact: bool
    udp_sent: int
    udp_received: int
    missing: int
    first_missing: list[int]
    duplicates: int
    longest_gap: float
    overflowed: int
    """Packets that the machine's own receive queues had no room for meanwhile."""

    @property
    def lost(self) -> int:
        """What is missing and was not thrown away by an overloaded machine before any program."""
        return max(0, self.missing - self.overflowed)


class Load:
    """A load that runs until it ends by itself."""

    def __init__(self, sender: subprocess.Popen[str], server: subprocess.Popen[str]) -> None:
        self._sender, self._server = sender, server
        self._overflowed = _overflowed()
        self._outcome: Outcome | None = None

    @property
    def is_running(self) -> bool:
        return self._sender.poll() is None

    def stop(self) -> Outcome:
        """End it before its time; fails when it had ended already."""
        self.tell_to_stop()
        return self.outcome

    def tell_to_stop(self) -> None:
        assert self.is_running, "the load was over first: nothing was shown"
        assert self._sender.stdin is not None
        self._sender.stdin.close()

    @property
    def outcome(self) -> Outcome:
        """Waits for its end."""
        if self._outcome is None:
            assert self._sender.stdout is not None
            said = self._sender.stdout.read()
            self._sender.wait(timeout=pace.patient(60))
            assert self._sender.returncode == 0, "the connection broke: see above"
            overflowed = _overflowed() - self._overflowed
            self._outcome = Outcome(**json.loads(said), overflowed=overflowed)
        return self._outcome

    def end(self) -> None:
        for process in (self._sender, self._server):
            if process.poll() is None:
                process.kill()
            process.wait()
            for end in (process.stdin, process.stdout):
                if end:
                    end.close()


@contextmanager
def load(
    source: str, destination: str, family: int, seconds: float | None = None, pps: int = 2000
) -> Iterator[Load]:
    """TCP and numbered UDP from pod to pod, for `seconds` or until it is stopped; see load.py."""
    address = address_of(destination, family)
    lasts = seconds or pace.patient(ENDLESS_SECONDS)
    # The stream has some megabytes a second, or a fraction of one.
    rates = (pace.amount(pps, min(pps, BRIEF_PPS)), pace.amount(0.002, 0.1), pace.patient(1))
    with ExitStack() as ends:
        server = _start(destination, "serve")
        ends.callback(server.wait)
        ends.callback(server.kill)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        run = Load(_start(source, "send", address, *map(str, (lasts, *rates))), server)
        ends.callback(run.end)
        yield run


@contextmanager
def both_ways(seconds: float | None = None, pps: int = 1000) -> Iterator[tuple[Load, Load]]:
    """Both families at once, each its own way: a load in IPv4, and one that meets it in IPv6."""
    with (
        load("n1/p1", "n2/p1", 4, seconds, pps) as there,
        load("n2/p1", "n1/p1", 6, seconds, pps) as back,
    ):
        yield there, back


def stop(runs: Sequence[Load]) -> list[Outcome]:
    """End all of them before their time, as `Load.stop` does one."""
    for run in runs:
        run.tell_to_stop()
    return [run.outcome for run in runs]


def address_of(pod: str, family: int) -> str:
    """Of a pod of the standing lab, for example of "n1/p1", or of a node: "n1"."""
    found = pods.addresses(pod_named(pod)) if "/" in pod else node_named(pod).addresses
    return next(str(address) for address in found if address.version == family)


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that happens by itself; an agent on its way up may not answer yet."""
    seconds = pace.patient(seconds)
    end, pause = time.monotonic() + seconds, 0.01
    while True:
        try:
            if condition():
                return
        except (OSError, lab.LabError):
            pass
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def dropped(node: LabNode) -> dict[str, int]:
    """By name: what the datapath and the kernel's IPsec have dropped there."""
    status = agents.status(node)
    rows = (*status["drops"], *status["kernel_drops"])
    return {row["reason"]: int(row["packets"]) for row in rows}


def assert_private(wire: Sniffer, *, may_be: Callable[[str], bool] | None = None) -> None:
    """Nothing of the cluster was readable, and the sniffer heard everything.

    `may_be`: whether what the sniffer says of cleartext is no leak here.
    """
    wire.settle()
    assert wire.lost() == 0, "a deaf sniffer proves nothing"
    leaks = [leak for leak in wire.leaks() if may_be is None or not may_be(leak)]
    assert leaks == []
    assert wire.marks() == {}
    sealed = [flow for flow in wire.counts() if flow.kind is Kind.ESP]
    assert sealed, "no ESP either: the load did not reach the wire"


def _overflowed() -> int:
    """Second column of softnet_stat: a full backlog, of any core (net/core/dev.c)."""
    rows = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(row.split()[1], 16) for row in rows)


def _start(pod: str, *arguments: str) -> subprocess.Popen[str]:
    namespace = f"pellicle-{pod.replace('/', '-')}"
    argv = [sys.executable, "-I", str(PROGRAM), *arguments]
    pipe = subprocess.PIPE
    return netns.start_in(namespace, argv, stdin=pipe, stdout=pipe, text=True)
