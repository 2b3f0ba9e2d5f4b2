# SPDX-License-Identifier: Apache-2.0
"""The promise, kept before one's eyes: the same traffic, encryption off, then on, and a listener.

Three nodes, two pods each, both families. Every pod talks to every pod of the other nodes by
TCP, UDP and ICMP, and each message carries a marker. With encryption off the listener on the
wire reads the marker in every conversation, which proves that it hears; with encryption on it
must find nothing but ESP. Everything is taken down in the end, whatever happens.
"""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from pellicle.facts import Address
from pellicle.lab import cluster, pods, state
from pellicle.lab.errors import LabError
from pellicle.lab.lock import locked
from pellicle.lab.picture import Phase, draw
from pellicle.lab.report import to_json_line, write_report
from pellicle.lab.sniffer import BIN_NS, Sniffer
from pellicle.lab.speakers import Speakers, Where
from pellicle.lab.topology import nodes_of
from pellicle.lab.verdict import OFF, ON, Promise, Row, Snapshot, Window, judge, rows, sentence

NODES, PODS = 3, 2
ROUNDS, PAUSE = 20, 0.1
FAMILIES: Final = (4, 6)
CAPTURE, PICTURE = "pellicle-demo.pcap", "pellicle-demo.svg"
TITLE: Final = "What a listener on the wire between three nodes sees"


@dataclass(frozen=True, slots=True)
class DemoResult:
    rows: tuple[Row, ...]
    promises: tuple[Promise, ...]
    verdict: str
    seconds: float
    capture: str
    picture: str

    @property
    def is_kept(self) -> bool:
        """Whether every promise held."""
        return all(promise.is_kept for promise in self.promises)

    def to_json(self) -> dict[str, Any]:
        return {"is_kept": self.is_kept, **asdict(self)}


def demo(
    json: bool = False,
    out_dir: Path = Path(),
    progress: Callable[[str], None] | None = None,
) -> DemoResult:
    """Show it, print the table (or one JSON object), write capture and picture to `out_dir`.

    Nothing of the lab is left, also after Ctrl-C and SIGTERM. LabError when a lab of
    somebody's is up already.
    """
    begun = time.monotonic()
    tell = progress or _teller(begun, is_json=json)
    out_dir.mkdir(parents=True, exist_ok=True)
    with locked(), _sigterm_ends():
        if state.read_shape() is not None and state.status().is_up:
            raise LabError("a lab is up, and the demo needs its place: `pellicle lab down` first")
        cluster.down()
        try:
            result = _run(out_dir, tell, begun)
        finally:
            cluster.down()
    if json:
        sys.stdout.write(to_json_line(result.to_json()))
    else:
        write_report(result.rows, result.promises, [result.capture, result.picture])
        sys.stdout.write(f"{result.verdict}\n")
    sys.stdout.flush()
    return result


def _run(out_dir: Path, tell: Callable[[str], None], begun: float) -> DemoResult:
    # Never the same twice: what is found in one phase cannot come from the other.
    markers = {phase: f"pellicle-marker-{secrets.token_hex(8)} " for phase in (OFF, ON)}
    capture, picture = out_dir / CAPTURE, out_dir / PICTURE
    windows: list[Window] = []
    phases: list[Phase] = []
    cluster.up(NODES, PODS, encrypt=False, progress=tell)
    addresses: dict[Where, tuple[Address, ...]] = {
        pod: pods.addresses(pod) for pod in state.standing_pods()
    }
    with (
        Sniffer(
            markers=[marker.strip().encode() for marker in markers.values()],
            nonces=True,
            write=capture,
        ) as sniffer,
        Speakers(addresses) as speakers,
    ):
        for phase in (OFF, ON):
            if phase == ON:
                cluster.up(NODES, PODS, encrypt=True, progress=tell)
            tell(f"{phase}: {len(addresses)} pods talk by TCP, UDP and ICMP, in both families")
            at = time.time_ns()
            windows += _listen(sniffer, speakers, phase, markers[phase])
            phases.append(_phase(windows, phase, at))
        sniffer.settle()
        reuses, timeline = len(sniffer.reuses()), sniffer.timeline()
    found = tuple(
        row for window in windows for row in rows(window, [node.name for node in nodes_of(NODES)])
    )
    said = [each for window in windows for each in window.said]
    promises = judge(found, said, reuses, sniffer.lost())
    seconds = time.monotonic() - begun
    verdict = sentence(found, promises, seconds)
    picture.write_text(draw(timeline, BIN_NS, _with_change(phases), TITLE, verdict))
    return DemoResult(found, promises, verdict, seconds, str(capture), str(picture))


def _listen(sniffer: Sniffer, speakers: Speakers, phase: str, marker: str) -> Iterator[Window]:
    """One window for each family."""
    for family in FAMILIES:
        before = _snapshot(sniffer, marker)
        said = speakers.talk(family, marker, rounds=ROUNDS, pause=PAUSE)
        yield Window(phase, family, before, _snapshot(sniffer, marker), said)


def _snapshot(sniffer: Sniffer, marker: str) -> Snapshot:
    sniffer.settle()
    wanted = marker.strip().encode()
    marks = {flow: n for (flow, found), n in sniffer.marks().items() if found == wanted}
    return Snapshot(sniffer.counts(), marks)


def _phase(windows: Sequence[Window], phase: str, begin: int) -> Phase:
    readable = sum(
        sum(window.after.marks.values()) - sum(window.before.marks.values())
        for window in windows
        if window.phase == phase
    )
    note = f"the pods' words were readable in {readable:,} packets"
    return Phase(phase, note, begin, time.time_ns(), is_encrypted=phase == ON)


def _with_change(phases: Sequence[Phase]) -> Sequence[Phase]:
    off, on = phases
    change = Phase("agents restart", "--enable-encrypt-l3", off.end, on.begin, is_encrypted=None)
    return (off, change, on)


def _teller(begun: float, *, is_json: bool) -> Callable[[str], None]:
    """Progress to stdout, or out of the way of the JSON."""
    out = sys.stderr if is_json else sys.stdout

    def tell(words: str) -> None:
        out.write(f"{time.monotonic() - begun:5.1f} s  {words}\n")
        out.flush()

    return tell


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that everything is taken down."""

    def end(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
