# SPDX-License-Identifier: Apache-2.0
"""Pellicle against plaintext and wireguard-go: one table from one run, on one machine.

    make bench                                   everything, as root, some minutes
    benchmarks/run.py --quick                    one short round: does it work at all?
    benchmarks/run.py --only pellicle --only tcp one way, one load
    make bench KERNEL=uml                        the kernel's ESP, on a kernel that has it

The ways take turns, round by round, in the same lab with the same wire. Each node has one core of
this machine, the wire between them has what they leave: figures compare ways of doing things,
they are no promise for hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from benchmarks import esp_ns, loads, report
from benchmarks.report import Cell, Crypto
from benchmarks.ways import PELLICLE, WAYS, Way, lack, stand
from pellicle import lab
from pellicle.lab import LabError
from pellicle.lab import state as lab_state
from tests.bpf.cluster import OVER4, furnish, put_outbound
from tests.bpf.node import loaded_node

LOADS: Final[dict[str, Callable[..., loads.Figures]]] = {
    "tcp": lambda path, family, seconds: loads.tcp(path, family, 1, seconds),
    "tcp4": lambda path, family, seconds: loads.tcp(path, family, 4, seconds),
    "latency": loads.latency,
    "packets": loads.packets,
}
CRYPTO: Final = "esp"
PROGRAMS: Final = {"iperf3": "iperf3", "wireguard-go": "wireguard-go", "wg": "wireguard-tools"}
QUIET_SECONDS: Final = 1.0
BATCHES: Final = 7


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    rounds: int
    seconds: float
    families: tuple[int, ...]
    ways: tuple[Way, ...]
    loads: tuple[str, ...]
    crypto_runs: int


def main() -> int:
    """The command; its exit code."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _end)
    try:
        plan = _plan(arguments)
        _must_run()
        result = run(plan)
    except (LabError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; the lab is taken down", file=sys.stderr)
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def run(plan: Plan) -> dict[str, Any]:
    """Measure, print the table, and answer everything that was measured."""
    crypto = _crypto(plan.crypto_runs) if plan.crypto_runs else []
    samples: dict[Cell, list[float]] = {}
    others = [_others()]
    if plan.loads:
        with lab.locked():
            if lab_state.read_shape() is not None:
                raise LabError("a lab is up, and this needs its place: `pellicle lab down` first")
            try:
                for number in range(1, plan.rounds + 1):
                    _round(plan, number, samples)
                    others.append(_others())
            finally:
                lab.down()
    print(f"\n{_how(plan, others)}\n")
    for line in report.table(samples, crypto, plan.ways):
        print(line)
    print()
    for line in report.verdicts(samples, crypto):
        print(line)
    rows = [{**cell._asdict(), "rounds": figures} for cell, figures in samples.items()]
    return {"others": others, "samples": rows, "crypto": [each._asdict() for each in crypto]}


def _round(plan: Plan, number: int, samples: dict[Cell, list[float]]) -> None:
    for way in plan.ways:
        with stand(way, lambda words: tell(f"round {number}/{plan.rounds}  {words}")) as path:
            for family in plan.families:
                found: loads.Figures = {}
                for name in plan.loads:
                    found |= LOADS[name](path, family, plan.seconds)
                for measure, figure in found.items():
                    samples.setdefault(Cell(measure, family, way.name), []).append(figure)
                words = ", ".join(f"{measure} {figure:.4g}" for measure, figure in found.items())
                tell(f"round {number}/{plan.rounds}  {way.name} IPv{family}: {words}")


def _crypto(runs: int) -> list[Crypto]:
    """What one packet costs to seal and to open, without any device; IPv4 in IPv4.

    The best of some batches' medians: what disturbs a batch only ever makes it slower.
    """
    with (
        tempfile.TemporaryDirectory(prefix="pellicle-bench-") as scratch,
        loaded_node(Path(scratch)) as node,
    ):
        furnish(node)
        put_outbound(node, OVER4)
        tell(f"sealing and opening {BATCHES} x {runs} packets of each size")
        batches: dict[int, list[tuple[float, float]]] = {size: [] for size in report.SEAL_OPEN_NS}
        for _ in range(BATCHES):
            idle = esp_ns.overhead(Path(scratch), runs)
            for size, rows in batches.items():
                seal, seen = esp_ns.measure(node, OVER4, 4, size, runs)
                rows.append((seal - idle, seen - idle))
        return [Crypto(size, *map(min, zip(*rows, strict=True))) for size, rows in batches.items()]


def tell(words: str) -> None:
    """Progress; the table alone is on stdout."""
    print(f"  {words}", file=sys.stderr, flush=True)


def _others() -> float:
    """Cores that are busy although nothing is being measured."""
    before = loads.busy_seconds()
    time.sleep(QUIET_SECONDS)
    cores = (loads.busy_seconds() - before) / QUIET_SECONDS
    tell(f"other work on this machine: {cores:.2f} of {os.cpu_count()} cores")
    return cores


def _how(plan: Plan, others: Sequence[float]) -> str:
    system = os.uname()
    return (
        f"Median (least-most) of {plan.rounds} rounds, {plan.seconds:g} s a load; x is Pellicle's "
        f"figure over the other's, median of the rounds' ratios.\n"
        f"Linux {system.release} {system.machine}, {os.cpu_count()} cores, one for each node; "
        f"{min(others):.2f} to {max(others):.2f} of them busy with other work between rounds.\n"
        f"Sealing and opening: IPv4 in IPv4, best of {BATCHES} batches' medians."
    )


def _plan(arguments: argparse.Namespace) -> Plan:
    only = set(arguments.only)
    ways = tuple(way for way in WAYS if way.name in only)
    if lacking := [f"{way.name}: {words}" for way in ways if (words := lack(way))]:
        raise LabError(f"this kernel has no ESP for {'; '.join(lacking)}")
    ways = ways or tuple(way for way in WAYS if not lack(way))
    names = (*LOADS, CRYPTO)
    chosen = tuple(name for name in names if name in only) or names
    is_quick = arguments.quick
    families = {"4": (4,), "6": (6,), "both": (4, 6)}[arguments.family]
    return Plan(
        rounds=arguments.rounds or (1 if is_quick else 5),
        seconds=arguments.seconds or (1.0 if is_quick else 3.0),
        families=families,
        ways=ways,
        loads=tuple(name for name in chosen if name in LOADS),
        crypto_runs=(200 if is_quick else 1000) if CRYPTO in chosen and PELLICLE in ways else 0,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").splitlines()[0])
    names = [*(way.name for way in WAYS), *LOADS, CRYPTO]
    add = parser.add_argument
    add("--rounds", type=int, help="how often all ways take their turn (default 5)")
    add("--seconds", type=float, help="of each load (default 3)")
    add("--family", choices=("4", "6", "both"), default="4", help="of the pods (default 4)")
    add("--only", action="append", default=[], choices=names, help="a way or a load; repeatable")
    add("--quick", action="store_true", help="one round of one second each")
    add("--json", type=Path, metavar="FILE", help="write every figure of every round there")
    return parser


def _must_run() -> None:
    """LabError says what lacks."""
    if os.geteuid() != 0:
        raise LabError("it makes network namespaces and loads BPF programs: run it as root")
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        raise LabError(f"missing: {', '.join(missing)}; scripts/setup.sh bench installs them")


def _end(_number: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds as Ctrl-C does."""
    raise SystemExit(128 + signal.SIGTERM)
