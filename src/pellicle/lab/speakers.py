# SPDX-License-Identifier: Apache-2.0
"""Ordinary applications in the lab's pods and nodes, and what they say to each other.

One `traffic.py` process runs in each pod, the same from beginning to end: that encryption is
switched on or off is none of its business. On a node there may be two: a service of the node's own,
and one in a pod that shares the node's network.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

from pellicle.facts import Address
from pellicle.kernel import netns
from pellicle.lab import traffic
from pellicle.lab.errors import LabError
from pellicle.lab.patience import patient
from pellicle.lab.topology import LabNode, LabPod

PROTOCOLS: Final = ("TCP", "UDP", "ICMP")
PORT: Final = 7007
HOST_POD_PORT: Final = 7008
"""In the node's network there is one of each port."""
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class OnNode:
    """An application in a node's network: the node's own, or that of a pod which has no other."""

    node: LabNode
    is_pod: bool = False

    @property
    def name(self) -> str:
        return f"{self.node.name}/host" if self.is_pod else self.node.name

    @property
    def namespace(self) -> str:
        return self.node.namespace


Where = LabPod | OnNode


@dataclass(frozen=True, slots=True)
class Said:
    """One conversation, as the one who began it tells it."""

    speaker: str
    """n1/p1"""
    listener: str
    family: int
    protocol: str
    sent: int
    answered: int
    bytes: int
    """Sent and correctly answered."""
    problem: str
    round_trips: tuple[float, ...]
    """Seconds."""


class Speakers:
    """The applications; end them with `close`."""

    def __init__(self, addresses: Mapping[Where, Sequence[Address]]) -> None:
        self._addresses = addresses
        self._names = {
            (str(address), _port(where)): where.name
            for where in addresses
            for address in addresses[where]
        }
        self._processes: dict[Where, subprocess.Popen[str]] = {}
        try:
            for pod in addresses:
                self._processes[pod] = _start(pod)
            for pod in addresses:
                self._answer(pod, time.monotonic() + patient(START_SECONDS))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def talk(
        self,
        family: int,
        text: str,
        *,
        rounds: int,
        pause: float,
        protocols: Sequence[str] = PROTOCOLS,
        size: int = 0,
    ) -> tuple[Said, ...]:
        """Each talks to each on the other nodes in this family, all at the same time.

        `size`: of a message in bytes; 0: the usual.
        """
        for speaker, process in self._processes.items():
            order = {
                "targets": self._targets(speaker, family),
                "text": text,
                "rounds": rounds,
                "pause": pause,
                "protocols": list(protocols),
                "patience": patient(traffic.ANSWER_SECONDS),
                "size": size,
            }
            pipe(process.stdin).write(json.dumps(order) + "\n")
            pipe(process.stdin).flush()
        # A conversation that gets no answer gives up after one patience, the next one begins then.
        most = traffic.ANSWER_SECONDS * len(protocols) * len(self._addresses) + START_SECONDS
        deadline = time.monotonic() + rounds * pause + patient(most)
        return tuple(
            self._said(pod, family, row)
            for pod in self._processes
            for row in self._answer(pod, deadline)
        )

    def close(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(patient(STOP_SECONDS))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(patient(STOP_SECONDS))
            for end in (process.stdin, process.stdout, process.stderr):
                pipe(end).close()
        self._processes.clear()

    def _targets(self, speaker: Where, family: int) -> list[tuple[str, int]]:
        return [
            (str(address), _port(pod))
            for pod, addresses in self._addresses.items()
            if pod.node != speaker.node
            for address in addresses
            if address.version == family
        ]

    def _said(self, pod: Where, family: int, row: Mapping[str, Any]) -> Said:
        return Said(
            speaker=pod.name,
            listener=self._names[row["to"], row["port"]],
            family=family,
            protocol=row["protocol"],
            sent=row["sent"],
            answered=row["answered"],
            bytes=row["bytes"],
            problem=row["problem"],
            round_trips=tuple(row["round_trips"]),
        )

    def _answer(self, pod: Where, deadline: float) -> Any:
        """The next line that the application in `pod` writes."""
        process = self._processes[pod]
        out = pipe(process.stdout)
        poll = select.poll()
        poll.register(out, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise LabError(f"the application in {pod.name} says nothing")
        answer = out.readline()
        if not answer:
            raise LabError(f"the application in {pod.name} broke: {pipe(process.stderr).read()}")
        return json.loads(answer)


def pipe(end: IO[str] | None) -> IO[str]:
    """One end of a pipe that was asked for."""
    assert end is not None
    return end


def _port(where: Where) -> int:
    return HOST_POD_PORT if isinstance(where, OnNode) and where.is_pod else PORT


def _start(pod: Where) -> subprocess.Popen[str]:
    # -I: nothing of the environment; in a session of its own, Ctrl-C is ours to handle.
    return netns.start_in(
        pod.namespace,
        [sys.executable, "-I", str(Path(traffic.__file__)), str(_port(pod))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
