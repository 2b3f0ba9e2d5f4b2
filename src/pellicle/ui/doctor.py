# SPDX-License-Identifier: Apache-2.0
"""What a look at this machine found: a line for each, and what to do below it."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pellicle.doctor.findings import Diagnosis, Finding, Mark
from pellicle.ui.sections import indented

_MARKS: Final = {Mark.WELL: ("✓", "good"), Mark.WARY: ("!", "wary"), Mark.WRONG: ("✗", "bad")}


def doctor(diagnosis: Diagnosis) -> RenderableType:
    """The verdict, then everything that it rests on."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in diagnosis.findings:
        mark, style = _MARKS[finding.mark]
        table.add_row(Text(mark, style), Text(finding.about, "name"), _says(finding))
    return Group(_title(diagnosis), Text(), indented(table))


def _title(diagnosis: Diagnosis) -> Text:
    if diagnosis.choice is None:
        return Text.assemble(("✗ ", "bad"), ("this machine", "title"), "  cannot encrypt as it is")
    engine = str(diagnosis.choice.engine)
    return Text.assemble(
        ("● ", "good"),
        ("this machine", "title"),
        "  can encrypt with the engine ",
        (engine, "good"),
    )


def _says(finding: Finding) -> RenderableType:
    says = Text(finding.says)
    return Group(says, Text(finding.advice, "quiet")) if finding.advice else says
