# SPDX-License-Identifier: Apache-2.0
"""The table and the verdicts: medians of rounds, and ratios taken within each round.

The machine's speed wanders from minute to minute; what was measured side by side wandered
together. Hence a ratio is never one of medians, but the median of the rounds' own ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from benchmarks.ways import (
    BARE,
    IP_XFRM,
    IP_XFRM_WHOLE,
    OVERLAY,
    PELLICLE,
    PLAIN,
    WIREGUARD,
    XFRM,
    XFRM_CROWD,
    Way,
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the table."""

    name: str
    words: str
    digits: int
    is_rate: bool = True
    """Whether a ratio says something."""


MEASURES: Final = (
    Measure("tcp", "TCP, 1 stream, Gbit/s", 2),
    Measure("tcp_4", "TCP, 4 streams, Gbit/s", 2),
    Measure("retransmits", "  sent again, 1 stream", 0, is_rate=False),
    Measure("retransmits_4", "  sent again, 4 streams", 0, is_rate=False),
    Measure("cpu", "  CPU s per GB, both nodes", 2),
    Measure("p50", "UDP round trip p50, µs", 0),
    Measure("p99", "UDP round trip p99, µs", 0),
    Measure("kpps", "UDP of 64 bytes, kpps", 1),
)
AGAINST: Final = {
    PELLICLE: (WIREGUARD, BARE, PLAIN),
    OVERLAY: (PELLICLE, PLAIN),
    XFRM: (IP_XFRM, IP_XFRM_WHOLE, XFRM_CROWD),
}
SEAL_OPEN_NS: Final = {64: (930, 1230), 512: (2650, 2910), 1400: (5900, 6190)}
"""What sealing and opening may cost, by the inner packet's bytes."""
LEAST_TCP: Final = 1.5
"""Times wireguard-go's."""
MOST_ROUND_TRIP: Final = 1.2
"""Times plaintext's."""
BY_HAND: Final = (
    ("tcp", "TCP, 1 stream", True),
    ("tcp_4", "TCP, 4 streams", True),
    ("cpu", "CPU per byte", False),
    ("p50", "UDP round trip p50", False),
    ("kpps", "UDP of 64 bytes", True),
)
"""Measure, words, whether more is better."""
MOST_WORSE: Final = 0.05
"""Than the same tunnel made by hand: the xfrm engine."""


class Cell(NamedTuple):
    """Where a figure belongs."""

    measure: str
    family: int
    way: str


class Crypto(NamedTuple):
    """Nanoseconds for one packet."""

    size: int
    seal: float
    open: float


Samples = Mapping[Cell, Sequence[float]]
"""One figure for each round, in order."""


def ratio(
    samples: Samples, measure: str, family: int, below: Way, above: Way = PELLICLE
) -> float | None:
    """One way's figure over another's, the median of all rounds; None without figures."""
    ours = samples.get(Cell(measure, family, above.name), ())
    theirs = samples.get(Cell(measure, family, below.name), ())
    rounds = [a / b for a, b in zip(ours, theirs, strict=False) if b]
    return statistics.median(rounds) if rounds else None


def table(samples: Samples, crypto: Sequence[Crypto], ways: Sequence[Way]) -> Iterator[str]:
    """Its lines, readable as they are and as Markdown."""
    compared = [
        (ours, theirs)
        for ours, others in AGAINST.items()
        for theirs in others
        if ours in ways and theirs in ways
    ]
    rows = [
        ["", *(way.name for way in ways), *(_over(*pair) for pair in compared)],
        ["how, pods' MTU", *(f"{way.words}, {way.mtu}" for way in ways), *("" for _ in compared)],
    ]
    for family in sorted({cell.family for cell in samples}):
        for measure in MEASURES:
            row = [
                _cell(samples.get(Cell(measure.name, family, way.name)), measure) for way in ways
            ]
            if any(row):
                row += [_ratio(samples, measure, family, *pair) for pair in compared]
                rows.append([f"IPv{family} {measure.words}", *row])
    for size, seal, seen in crypto:
        for verb, value in (("seal", seal), ("open", seen)):
            row = [f"{value:.0f}" if way is PELLICLE else "" for way in ways]
            rows.append([f"{verb} {size} bytes, ns", *row, *("" for _ in compared)])
    yield from _aligned(rows)


def verdicts(samples: Samples, crypto: Sequence[Crypto]) -> Iterator[str]:
    """What was to be reached, and whether it was."""
    for size, *values in crypto:
        for verb, value, most in zip(("seal", "open"), values, SEAL_OPEN_NS[size], strict=True):
            yield _verdict(f"{verb} {size} bytes", f"{value:.0f} ns", f"≤ {most} ns", value <= most)
    for family in sorted({cell.family for cell in samples}):
        for measure, words in (("tcp", "TCP, 1 stream"), ("tcp_4", "TCP, 4 streams")):
            if (value := ratio(samples, measure, family, WIREGUARD)) is not None:
                what = f"IPv{family} {words}"
                has = f"{value:.2f} x {WIREGUARD.name}"
                yield _verdict(what, has, f"≥ {LEAST_TCP}", value >= LEAST_TCP)
        if (value := ratio(samples, "p50", family, PLAIN)) is not None:
            has, is_met = f"{value:.2f} x {PLAIN.name}", value <= MOST_ROUND_TRIP
            yield _verdict(f"IPv{family} UDP round trip p50", has, f"≤ {MOST_ROUND_TRIP}", is_met)
        for name, words, is_more_better in BY_HAND:
            if (value := ratio(samples, name, family, IP_XFRM, XFRM)) is not None:
                most = 1 - MOST_WORSE if is_more_better else 1 + MOST_WORSE
                is_met = value >= most if is_more_better else value <= most
                wanted = f"{'≥' if is_more_better else '≤'} {most:g}"
                has = f"{value:.2f} x {IP_XFRM.name}"
                yield _verdict(f"IPv{family} {words}, {XFRM.name}", has, wanted, is_met)


def _verdict(what: str, has: str, wanted: str, is_met: bool) -> str:
    return f"{'met    ' if is_met else 'not met'}  {what}: {has} (target {wanted})"


def _over(ours: Way, theirs: Way) -> str:
    return f"x {theirs.name}" if ours is PELLICLE else f"{ours.name} x {theirs.name}"


def _ratio(samples: Samples, measure: Measure, family: int, ours: Way, theirs: Way) -> str:
    value = ratio(samples, measure.name, family, theirs, ours) if measure.is_rate else None
    return "" if value is None else f"{value:.2f}"


def _cell(figures: Sequence[float] | None, measure: Measure) -> str:
    """Median and spread."""
    if not figures:
        return ""
    middle = f"{statistics.median(figures):.{measure.digits}f}"
    if len(figures) == 1:
        return middle
    return f"{middle} ({min(figures):.{measure.digits}f}-{max(figures):.{measure.digits}f})"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (
            f"{cell:{'<' if column == 0 else '>'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            rules = ("-" * (width - 1) + ":" for width in widths[1:])
            yield f"|{'|'.join(['-' * (widths[0] + 2), *(f' {rule} ' for rule in rules)])}|"
