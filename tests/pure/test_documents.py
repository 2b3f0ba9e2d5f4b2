# SPDX-License-Identifier: Apache-2.0
"""The documents: links lead somewhere, every room has its line, every command is known."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pellicle.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\((?!https?:)([^)#]+)")
PATH = re.compile(
    r"`((?:bpf|cni|deploy|docs|scripts|src|tests)/[\w./-]+\.(?:md|py|h|c|sh|service))"
)
COMMAND = re.compile(r"^(?:\$ )?pellicle ([a-z][^#|>]*)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_or_named_exists(document: Path) -> None:
    text = document.read_text()
    links = {document.parent / name for name in LINK.findall(text)}
    missing = [
        path for path in links | {ROOT / name for name in PATH.findall(text)} if not path.exists()
    ]
    assert not missing


def test_every_room_is_in_the_architecture() -> None:
    told = (ROOT / "ARCHITECTURE.md").read_text()
    source = ROOT / "src" / "pellicle"
    modules = {path.name for path in source.glob("[!_]*.py")}
    rooms = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert not [name for name in modules | rooms if f"`{name}`" not in told]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_shown_is_one(document: Path) -> None:
    for line in COMMAND.findall(document.read_text()):
        command: click.Command = main
        for word in line.split():
            if isinstance(command, click.Group):
                assert word in command.commands, line
                command = command.commands[word]
