# SPDX-License-Identifier: Apache-2.0
"""What it costs that the datapath reports flows, which is what the audit is made from.

    .venv/bin/python -m benchmarks.reports [ROUNDS] [SECONDS]      root; some minutes

There is no switch for it: nobody should have an audit that knows nothing. So the same sources are
compiled twice here, as they are and without the lines of `verdict` that report. In a standing lab
both nodes' programs are swapped in place, as an upgrade does it, and loads go one after the other,
in turns: same nodes, same SAs. The agents stay, and read the reports.
"""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import loads
from benchmarks.ways import LEFT, PELLICLE, RIGHT, stand
from build_bpf import ROOT, compile_bpf
from pellicle import lab
from pellicle.datapath import programs
from pellicle.datapath.programs import PINNED_MAPS, Hook, HookName, ProgramTarget, Words
from pellicle.facts import Link
from pellicle.kernel import netns
from pellicle.kernel.bpf import Object
from pellicle.kernel.netlink import Netlink
from pellicle.lab import LabError
from pellicle.lab.topology import UPLINK, LabNode
from pellicle.wire.btf import Btf
from tests.bpf import packets
from tests.bpf.cluster import OVER4, POD4, furnish, put_inbound, put_outbound
from tests.bpf.node import Node, loaded_node
from tests.bpf.tunnel import sealed

ROUNDS: Final = 12
SECONDS: Final = 2.0
INTERVAL_MS: Final = 5000
"""The default of `flow_interval`."""
REPORTING: Final = re.compile(r"\ts->flow\.source = .*?\tflow_report\(s\);\n", re.DOTALL)
REPORTS, SILENT = KINDS = "with reports", "without"
RUNS: Final = 5000
WARM: Final = 5000
"""Packets before those that are measured: as many flows are known then."""
FLOWS: Final = {"one flow": 1, "5,000 flows in turn": WARM, "each a new flow": 1 << 30}
LOADS: Final[dict[str, Callable[..., loads.Figures]]] = {
    "TCP, 1 stream, Gbit/s": lambda path, seconds: loads.tcp(path, 4, 1, seconds),
    "UDP of 64 bytes, kpps": lambda path, seconds: loads.packets(path, 4, seconds),
    "UDP round trip p50, µs": lambda path, seconds: loads.latency(path, 4, seconds),
}
FIGURES: Final = ("tcp", "kpps", "p50")


Samples = dict[str, dict[str, list[float]]]
"""By load and kind of datapath."""


def silent_sources(scratch: Path) -> Path:
    """The datapath's, but that no flow is reported; packets are counted by reason all the same."""
    copy = scratch / "bpf"
    shutil.copytree(ROOT / "bpf", copy)
    header = copy / "verdict.h"
    text, found = REPORTING.subn("", header.read_text())
    if found != 1:
        raise LabError("verdict.h does not report as this benchmark knows it")
    header.write_text(text)
    return copy


def objects(scratch: Path) -> dict[str, Path]:
    """Compiled, by kind."""
    sources = {REPORTS: ROOT / "bpf", SILENT: silent_sources(scratch)}
    return {
        kind: compile_bpf(each / "pellicle.bpf.c", scratch / f"{kind}.bpf.o", include=(each,))
        for kind, each in sources.items()
    }


# --- on the wire ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Datapath:
    """One node's programs, loaded over the maps of those that its agent has loaded."""

    node: LabNode
    bpf: Object
    hooks: dict[HookName, Hook]

    def use(self) -> None:
        """From now on, packets go through these."""
        with netns.inside(self.node.namespace):
            target = ProgramTarget(self.bpf, self.node.bpffs / "links", None)
            for hook, error in target.put(self.hooks).items():
                raise LabError(f"{self.node.name}: {hook}: {error}")

    def reported(self) -> int:
        """Packets in the table of flows."""
        at = self.bpf.btf.struct("flow_row").by_name["packets"].offset
        rows = (row for _, row in self.bpf.map("flows").items())
        return sum(int.from_bytes(row[at : at + 8], "little") for row in rows)


@contextmanager
def loaded(node: LabNode, path: Path) -> Iterator[Datapath]:
    with Netlink(node.namespace) as netlink:
        links = {
            name: Link(name, row.index, "", row.mtu, is_up=True)
            for name, row in netlink.links().items()
        }
    hooks = programs.plan(UPLINK, links)
    words = Words(True, True, False, links[UPLINK].index, INTERVAL_MS, node.addresses)
    rodata = {"config": programs.pack_words(Btf.parse(path.read_bytes()), words)}
    with (
        netns.inside(node.namespace),
        Object.load(path, rodata=rodata, pin_dir=node.bpffs / "maps", pinned=PINNED_MAPS) as bpf,
    ):
        yield Datapath(node, bpf, hooks)


def on_the_wire(scratch: Path, rounds: int, seconds: float) -> Samples:
    """A figure for each round."""
    samples: Samples = {load: {kind: [] for kind in KINDS} for load in LOADS}
    with ExitStack() as stack:
        stack.enter_context(lab.locked())
        stack.callback(lab.down)
        path = stack.enter_context(stand(PELLICLE, print, refresh_seconds=3600))
        datapaths = {
            kind: [stack.enter_context(loaded(node, compiled)) for node in (LEFT, RIGHT)]
            for kind, compiled in objects(scratch).items()
        }
        for number, load in itertools.product(range(rounds), LOADS):
            for kind in sorted(KINDS, reverse=bool(number % 2)):
                with used(kind, datapaths[kind]):
                    figures = LOADS[load](path, seconds)
                samples[load][kind] += [figures[name] for name in FIGURES if name in figures]
    return samples


@contextmanager
def used(kind: str, datapaths: Iterable[Datapath]) -> Iterator[None]:
    """These programs are at work; LabError if the table of flows says that it is the others."""
    before = []
    for datapath in datapaths:
        datapath.use()
        before.append(datapath.reported())
    yield
    grown = [there.reported() > count for there, count in zip(datapaths, before, strict=True)]
    if set(grown) != {kind == REPORTS}:
        raise LabError(f"{kind}: the table of flows has grown: {grown}")


# --- one program, one packet ----------------------------------------------------------------------


def frames(count: int) -> Iterator[bytes]:
    """UDP from the pod here to one of node 2, 64 bytes long, of so many flows in turn."""
    for number in itertools.count():
        flow = number % count
        body = packets.udp(1024 + flow % 60_000, 1 + flow // 60_000, bytes(36))
        yield packets.ip(POD4, OVER4.pod4, body, protocol=packets.UDP)


def sealing(node: Node, count: int) -> Iterator[int]:
    """Nanoseconds of each packet."""
    program = node.object.program("door")
    for packet in frames(count):
        yield program.test_run(packets.frame(packet)).duration_ns


def opening(node: Node, count: int) -> Iterator[int]:
    """Nanoseconds of each packet; the SA is a fresh one."""
    put_inbound(node, OVER4)
    program = node.object.program("from_net")
    for number, packet in enumerate(frames(count), start=1):
        there = packets.ip(OVER4.pod4, POD4, packet[20:], protocol=packets.UDP)
        yield program.test_run(sealed(OVER4, number, there)).duration_ns


VERBS: Final = {"seal": sealing, "open": opening}


def each_packet(scratch: Path) -> dict[str, dict[str, float]]:
    """By what is done and kind of datapath: the median, both run in turns."""
    medians: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        nodes = {}
        for kind, sources in ((REPORTS, ROOT / "bpf"), (SILENT, silent_sources(scratch))):
            place = scratch / kind
            place.mkdir()
            nodes[kind] = node = stack.enter_context(loaded_node(place, sources=sources))
            furnish(node)
            put_outbound(node, OVER4)
        for (verb, measure), (words, flows) in itertools.product(VERBS.items(), FLOWS.items()):
            runs = {kind: measure(node, flows) for kind, node in nodes.items()}
            taken: dict[str, list[int]] = {kind: [] for kind in KINDS}
            for _ in range(WARM + RUNS):
                for kind in KINDS:
                    taken[kind].append(next(runs[kind]))
                    nodes[kind].events.consume()
            figures = {kind: statistics.median(values[WARM:]) for kind, values in taken.items()}
            medians[f"{verb} 64 bytes, {words}, ns"] = figures
    return medians


def lines(samples: Samples) -> Iterable[str]:
    for load, by_kind in samples.items():
        ours, silent = by_kind[REPORTS], by_kind[SILENT]
        ratios = [one / other for one, other in zip(ours, silent, strict=True)]
        cells = [
            f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
            for values in (ours, silent, ratios)
        ]
        yield f"| {load} | {' | '.join(cells)} |"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    with tempfile.TemporaryDirectory(prefix="pellicle-reports-") as name:
        for part in ("one", "two"):
            (Path(name) / part).mkdir()
        each = each_packet(Path(name) / "one")
        print(f"|  | {REPORTS} | {SILENT} | ratio |\n|---|---:|---:|---:|")
        for words, by_kind in each.items():
            ratio = by_kind[REPORTS] / by_kind[SILENT]
            print(f"| {words} | {by_kind[REPORTS]:.0f} | {by_kind[SILENT]:.0f} | {ratio:.2f} |")
        for line in lines(on_the_wire(Path(name) / "two", rounds, seconds)):
            print(line)


if __name__ == "__main__":
    main()
