# SPDX-License-Identifier: Apache-2.0
"""Does the lab that stands do what it should?  Everybody talks to everybody, a listener hears.

    pod, node, host-network pod  ─▶  pod, node, host-network pod of every other node
    by IPv4 and IPv6, by TCP, UDP and ICMP, small, usual, and larger than any packet

With encryption on, no message may go unanswered, nothing on the wire may be readable, and no
nonce may protect two packets. With encryption off only the answers count.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pellicle.facts import Address
from pellicle.lab import pods, state
from pellicle.lab.errors import LabError
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.speakers import OnNode, Said, Speakers, Where

ROUNDS, PAUSE = 2, 0.02
FAMILIES: Final = (4, 6)
SIZES: Final = {"small": 64, "usual": 1000, "large": 5000}
"""In bytes: the last must be cut into fragments or segments."""
MOST_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Cell:
    """One square of the matrix."""

    source: str
    """"pod", "node" or "host-network pod"."""
    destination: str
    family: int
    protocol: str
    size: str
    sent: int
    answered: int

    @property
    def is_well(self) -> bool:
        return 0 < self.sent == self.answered


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found."""

    encrypt: bool
    """What the lab was asked for."""
    pods: int
    conversations: int
    messages: int
    answered: int
    encrypted: int
    """Packets on the wire that were ESP."""
    clear: int
    """Packets on the wire that showed who in the cluster talks to whom."""
    cells: tuple[Cell, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def is_well(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"is_well": self.is_well, **asdict(self)}


def check(progress: Callable[[str], None] = lambda _line: None) -> Checked:
    """Let all pods and nodes talk to those of other nodes, in every way that there is."""
    began = time.monotonic()
    shape = state.must_read_shape()
    addresses: dict[Where, Sequence[Address]] = {
        pod: pods.addresses(pod) for pod in state.standing_pods()
    }
    nodes = {where.node for where in addresses}
    if len(nodes) < 2:
        raise LabError("there are no pods on two nodes that could talk: `pellicle lab up` first")
    count = len(addresses)
    for node in nodes:
        addresses |= {OnNode(node, is_pod): node.addresses for is_pod in (False, True)}
    marker = f"pellicle-check-{secrets.token_hex(8)} "
    said: dict[str, list[Said]] = {size: [] for size in SIZES}
    with Sniffer(markers=[marker.strip().encode()], nonces=True) as sniffer:
        with Speakers(addresses) as speakers:
            for family in FAMILIES:
                progress(f"{count} pods and {len(nodes)} nodes talk over IPv{family}")
                for size, octets in SIZES.items():
                    said[size] += speakers.talk(
                        family, marker, rounds=ROUNDS, pause=PAUSE, size=octets
                    )
        sniffer.settle()
        all_said = [each for rows in said.values() for each in rows]
        problems = [*_unanswered(all_said), *(_heard(sniffer) if shape.encrypt else ())]
        counts = sniffer.counts()
    return Checked(
        encrypt=shape.encrypt,
        pods=count,
        conversations=len(all_said),
        messages=sum(each.sent for each in all_said),
        answered=sum(each.answered for each in all_said),
        encrypted=sum(count.packets for flow, count in counts.items() if flow.kind is Kind.ESP),
        clear=sum(count.packets for flow, count in counts.items() if flow.kind is Kind.CLEAR),
        cells=tuple(_cells(said)),
        problems=tuple(problems),
        seconds=time.monotonic() - began,
    )


def _cells(said: dict[str, list[Said]]) -> Iterator[Cell]:
    sent: Counter[tuple[str, str, int, str, str]] = Counter()
    answered: Counter[tuple[str, str, int, str, str]] = Counter()
    for size, rows in said.items():
        for each in rows:
            ends = _kind(each.speaker), _kind(each.listener)
            key = (*ends, each.family, each.protocol, size)
            sent[key] += each.sent
            answered[key] += each.answered
    for key, number in sent.items():
        yield Cell(*key, number, answered[key])


def _kind(name: str) -> str:
    """Of whoever is called n1, n1/host or n1/p1."""
    _, slash, rest = name.partition("/")
    if not slash:
        return "node"
    return "host-network pod" if rest == "host" else "pod"


def _unanswered(said: Sequence[Said]) -> Iterator[str]:
    silent = [each for each in said if each.problem or each.answered < each.sent]
    for each in silent[:MOST_NAMED]:
        what = f"{each.speaker} → {each.listener} by {each.protocol} over IPv{each.family}"
        yield f"{what}: {each.answered} of {each.sent} answered; {each.problem or 'lost'}"
    if len(silent) > MOST_NAMED:
        yield f"{len(silent) - MOST_NAMED} more conversations lost messages"


def _heard(sniffer: Sniffer) -> Iterator[str]:
    """What a listener must not have heard."""
    leaks, marks = sniffer.leaks(), sum(sniffer.marks().values())
    yield from (f"cleartext on the wire, from {leak}" for leak in leaks[:MOST_NAMED])
    if marks:
        yield f"what the pods said could be read in {marks} packets"
    yield from (
        f"{reuse.field} {reuse.number} under SPI 0x{reuse.spi:08x} protected two packets"
        for reuse in sniffer.reuses()[:MOST_NAMED]
    )
    if sniffer.lost():
        yield f"the listener was too slow for {sniffer.lost()} packets and cannot vouch for them"
