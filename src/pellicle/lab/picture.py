# SPDX-License-Identifier: Apache-2.0
"""A capture as a picture: time to the right, packets upwards, red what could be read, green ESP.

Plain SVG 1.1, written by hand: opens in any browser, needs no font but a sans-serif.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from typing import Final

from pellicle.lab.frames import Kind

WIDTH, HEIGHT = 1200, 620
LEFT, RIGHT, TOP, BOTTOM = 80, 1170, 150, 520
COLOURS: Final = {
    Kind.CLEAR: "#c8261d",
    Kind.ESP: "#2f9e44",
    Kind.OTHER: "#e8870a",
    Kind.LINK: "#9aa3ad",
}
NAMES: Final = {
    Kind.CLEAR: "cleartext between pods",
    Kind.ESP: "ESP, encrypted",
    Kind.OTHER: "other",
    Kind.LINK: "ARP, neighbour discovery",
}
INK, FAINT = "#20262c", "#6b7480"
BANDS: Final = {
    False: ("#fdeeed", COLOURS[Kind.CLEAR]),
    True: ("#ebf7ee", COLOURS[Kind.ESP]),
    None: ("#ffffff", FAINT),
}
"""Behind a phase, and for its title."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time with a name."""

    title: str
    note: str
    begin: int
    """Nanoseconds since 1970."""
    end: int
    is_encrypted: bool | None
    """None: something is being changed."""


@dataclass(frozen=True, slots=True)
class _Scale:
    begin: int
    end: int
    most: int
    """Packets at the top of the axis."""

    def x(self, at: int) -> float:
        return LEFT + (RIGHT - LEFT) * (at - self.begin) / (self.end - self.begin)

    def y(self, packets: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * packets / self.most


def draw(
    timeline: Mapping[tuple[int, Kind], int],
    bin_ns: int,
    phases: Sequence[Phase],
    title: str,
    verdict: str,
) -> str:
    """`timeline`: packets of each kind by number of the bin (time // `bin_ns`). Returns SVG."""
    begin = min(phase.begin for phase in phases) // bin_ns * bin_ns
    end = max(phase.end for phase in phases) // bin_ns * bin_ns + bin_ns
    shown = {key: packets for key, packets in timeline.items() if begin <= key[0] * bin_ns < end}
    heights: dict[int, int] = {}
    for (number, _), packets in shown.items():
        heights[number] = heights.get(number, 0) + packets
    scale = _Scale(begin, end, _round_up(max(heights.values(), default=1)))
    pieces = [
        *_frame(title, verdict),
        *(piece for phase in phases for piece in _phase(phase, scale)),
        *_axes(scale, bin_ns),
        *_bars(shown, bin_ns, scale),
        *_legend(shown),
        "</svg>",
    ]
    return "\n".join(pieces) + "\n"


def _frame(title: str, verdict: str) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield _text(LEFT, 40, title, size=24, weight="bold")
    yield _text(LEFT, 68, verdict, size=15, fill=FAINT)


def _phase(phase: Phase, scale: _Scale) -> Iterator[str]:
    left, right = scale.x(phase.begin), scale.x(phase.end)
    band, ink = BANDS[phase.is_encrypted]
    yield _box(left, TOP - 50, right - left, BOTTOM - TOP + 50, band)
    middle = (left + right) / 2
    yield _text(middle, TOP - 30, phase.title, size=16, fill=ink, weight="bold", anchor="middle")
    yield _text(middle, TOP - 12, phase.note, size=12, fill=FAINT, anchor="middle")


def _axes(scale: _Scale, bin_ns: int) -> Iterator[str]:
    for step in range(5):
        packets = scale.most * step // 4
        y = scale.y(packets)
        yield f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#d5dae0" stroke-width="1"/>'
        yield _text(LEFT - 10, y + 4, str(packets), size=12, fill=FAINT, anchor="end")
    words = f"packets on the wire, each {bin_ns // 1_000_000} ms"
    yield f'<g transform="translate(26 {(TOP + BOTTOM) / 2}) rotate(-90)">'
    yield _text(0, 0, words, size=13, fill=FAINT, anchor="middle") + "</g>"
    seconds = (scale.end - scale.begin) / 1e9
    step_seconds = max(1, ceil(seconds / 16))
    for second in range(0, int(seconds) + 1, step_seconds):
        x = scale.x(scale.begin + second * 1_000_000_000)
        yield f'<path d="M{x:.1f} {BOTTOM}v5" stroke="{FAINT}"/>'
        yield _text(x, BOTTOM + 20, f"{second} s", size=12, fill=FAINT, anchor="middle")
    yield f'<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="{INK}" stroke-width="1.5"/>'


def _bars(timeline: Mapping[tuple[int, Kind], int], bin_ns: int, scale: _Scale) -> Iterator[str]:
    width = scale.x(scale.begin + bin_ns) - scale.x(scale.begin)
    tops: dict[int, int] = {}
    for kind in COLOURS:
        for number, packets in sorted(
            (at, n) for (at, what), n in timeline.items() if what is kind
        ):
            base = tops.get(number, 0)
            tops[number] = base + packets
            top = scale.y(base + packets)
            x = scale.x(number * bin_ns)
            yield _box(x, top, max(width - 1, 1), scale.y(base) - top, COLOURS[kind])


def _legend(timeline: Mapping[tuple[int, Kind], int]) -> Iterator[str]:
    x: float = LEFT
    for kind, colour in COLOURS.items():
        packets = sum(count for (_, what), count in timeline.items() if what is kind)
        if not packets and kind is Kind.OTHER:
            continue
        label = f"{NAMES[kind]}: {packets:,} packets"
        yield _box(x, BOTTOM + 46, 14, 14, colour)
        yield _text(x + 22, BOTTOM + 58, label, size=14)
        x += 60 + 8.2 * len(label)


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    size: int,
    fill: str = INK,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def _round_up(packets: int) -> int:
    """The next number that four grid lines divide well."""
    magnitude = 4
    while magnitude * 5 < packets:
        magnitude *= 5 if str(magnitude)[0] == "4" else 2
    return ceil(packets / magnitude) * magnitude
