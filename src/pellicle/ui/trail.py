# SPDX-License-Identifier: Apache-2.0
"""An audit trail: is it whole, what is in it, and where is it broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.sections import facts, indented
from pellicle.ui.status import MARKS
from pellicle.wire.chain import Walk


def trail(directory: str, walk: Walk, kinds: Mapping[str, int], files: int) -> RenderableType:
    """The judgement first."""
    style = "bad" if walk.broken else "good"
    verdict = "the chain is broken" if walk.broken else "the chain is whole"
    title = Text.assemble((f"{MARKS[style]} ", style), (directory, "title"), "  ", (verdict, style))
    return Group(title, indented(facts(_facts(walk, kinds, files))))


def told(directory: str, walk: Walk, kinds: Counter[str], files: int) -> dict[str, Any]:
    """The same for programs."""
    broken = walk.broken
    return {
        "directory": directory,
        "whole": broken is None,
        "broken": broken
        and {
            "file": broken.file,
            "line": broken.line,
            "why": broken.why,
            "looks_like": broken.looks_like,
        },
        "files": files,
        "records": walk.records,
        "kinds": dict(kinds),
        "first": {"seq": walk.first.seq, "at": walk.first.at} if walk.first else None,
        "last": {"seq": walk.last.seq, "at": walk.last.at} if walk.last else None,
        "head": walk.link.head,
        "cuts": walk.cuts,
        "half": walk.half,
        "killed": killed(kinds),
    }


def killed(kinds: Mapping[str, int]) -> int:
    """How often an agent ended without last words; the one that runs has said none yet."""
    return max(kinds.get("start", 0) - kinds.get("stop", 0) - 1, 0)


def _facts(walk: Walk, kinds: Mapping[str, int], files: int) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = []
    if (broken := walk.broken) is not None:
        place = f"{broken.file}, line {broken.line}" if broken.line else "at its end"
        rows += [
            ("where", Text(place, "bad")),
            ("why", broken.why),
            ("looks like", broken.looks_like),
            ("good", f"up to record {walk.link.seq}"),
        ]
    if walk.first is None or walk.last is None:
        return [*rows, ("records", "none")]
    inside = ", ".join(f"{number} {what}" for what, number in sorted(kinds.items()))
    begun = f"record {walk.first.seq}, {walk.first.at}"
    if walk.first.seq > 1:
        begun += "; those before were removed, as a later record says"
    half = f"{walk.half} bytes of a record that was not finished; the next agent says so"
    return [
        *rows,
        ("records", f"{walk.records} in {files} files: {inside}"),
        ("begins at", begun),
        ("ends at", f"record {walk.last.seq}, {walk.last.at}"),
        ("head", walk.link.head),
        ("killed", f"{killed(kinds)} times the agent had no last words" if killed(kinds) else ""),
        ("crashes", f"half a line, owned up to, at {', '.join(walk.cuts)}" if walk.cuts else ""),
        ("unfinished", Text(half if walk.half else "", "wary")),
    ]
