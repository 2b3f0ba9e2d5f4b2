# SPDX-License-Identifier: Apache-2.0
"""Does the lab that stands do what it should?  Every pod talks to every other, a listener hears.

With encryption on, no message may go unanswered, nothing on the wire may be readable, and no
nonce may protect two packets. With encryption off only the answers count.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pellicle.lab import pods, state
from pellicle.lab.errors import LabError
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.speakers import Said, Speakers

ROUNDS, PAUSE = 3, 0.05
FAMILIES: Final = (4, 6)
MOST_NAMED: Final = 5


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
    """Packets on the wire that showed a cluster address."""
    problems: tuple[str, ...]
    seconds: float

    @property
    def is_well(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"is_well": self.is_well, **asdict(self)}


def check(progress: Callable[[str], None] = lambda _line: None) -> Checked:
    """Let all pods of different nodes talk, by TCP, UDP and ICMP, in both families."""
    began = time.monotonic()
    shape = state.must_read_shape()
    addresses = {pod: pods.addresses(pod) for pod in state.standing_pods()}
    if len({pod.node for pod in addresses}) < 2:
        raise LabError("there are no pods on two nodes that could talk: `pellicle lab up` first")
    marker = f"pellicle-check-{secrets.token_hex(8)} "
    said: list[Said] = []
    with Sniffer(markers=[marker.strip().encode()], nonces=True) as sniffer:
        with Speakers(addresses) as speakers:
            for family in FAMILIES:
                progress(f"{len(addresses)} pods talk by TCP, UDP and ICMP over IPv{family}")
                said += speakers.talk(family, marker, rounds=ROUNDS, pause=PAUSE)
        sniffer.settle()
        problems = [*_unanswered(said), *(_heard(sniffer) if shape.encrypt else ())]
        counts = sniffer.counts()
    return Checked(
        encrypt=shape.encrypt,
        pods=len(addresses),
        conversations=len(said),
        messages=sum(each.sent for each in said),
        answered=sum(each.answered for each in said),
        encrypted=sum(count.packets for flow, count in counts.items() if flow.kind is Kind.ESP),
        clear=sum(count.packets for flow, count in counts.items() if flow.kind is Kind.CLEAR),
        problems=tuple(problems),
        seconds=time.monotonic() - began,
    )


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
