# SPDX-License-Identifier: Apache-2.0
"""The audit's page for a browser: well-formed, whole in itself, and no name can break out of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pellicle.ui.answers import Audit, Status, read
from pellicle.ui.audit_page import page

from . import recorded
from .conftest import Agent, Pellicle

VOID = {"meta", "rect", "br"}
HOSTILE = """<script>alert("1")</script>'"&amp;<img src=x onerror=1>"""


class Page(HTMLParser):
    """Its elements in order, and its text; every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(answer: dict[str, Any], mode: str = "") -> Page:
    status = read(recorded.HEALTHY | {"audit": mode}, Status)
    return Page(page(status, read(answer, Audit)))


AUDITS = {
    "encrypted": recorded.AUDIT,
    "ruled": recorded.AUDIT_RULED,
    "monitor": recorded.AUDIT_MONITOR,
    "empty": recorded.AUDIT_EMPTY,
}


@pytest.mark.parametrize("name", AUDITS)
def test_nothing_is_fetched_and_nothing_runs(name: str) -> None:
    found = drawn(AUDITS[name])
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "base", "form"}
    for _, attributes in found.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "style"}
        assert not [each for each in attributes if each.startswith("on")]
    policy = [each for tag, each in found.elements if "http-equiv" in each and tag == "meta"]
    assert "default-src 'none'" in str(policy[0]["content"])
    assert not re.search(r"url\(|@import|expression", found.text)


def test_the_sentence_comes_first_and_pictures_have_words() -> None:
    found = drawn(recorded.AUDIT_MONITOR, "monitor")
    told = " ".join(found.text.split())
    sentence = (
        "99.97 % of 122 MB between nodes was encrypted; 31 kB passed in the clear, allowed by "
        "bootstrap but for 900 B; 17 packets were dropped."
    )
    assert sentence in told
    assert told.index(sentence) < told.index("Between nodes") < told.index("Exceptions")
    assert "mode monitor" in told
    pictures = [attributes for tag, attributes in found.elements if tag == "svg"]
    assert len(pictures) >= 5
    assert all(each["role"] == "img" and each["aria-label"] for each in pictures)
    assert "99.97 % of 122 MB" in told
    assert "SEALEDencrypted · 22 not attributed" in told


def test_bars_are_as_long_as_what_they_show() -> None:
    found = drawn(recorded.AUDIT)
    bars, inside = [], False
    for tag, attributes in found.elements:
        if tag == "svg":
            inside = attributes["class"] == "bar"
        elif tag == "rect" and inside:
            bars.append((attributes["class"], float(str(attributes["width"]))))
    assert [kind for kind, _ in bars] == ["good", "wary", "quiet"]
    assert bars[0][1] == pytest.approx(100)
    assert all(0 < width <= 1 for _, width in bars[1:])


def test_names_and_rules_are_text_whatever_they_are() -> None:
    def hostile(row: dict[str, Any]) -> dict[str, Any]:
        names = ("source", "destination", "source_node", "destination_node", "rule", "verdict")
        return row | dict.fromkeys(names, HOSTILE)

    answer = recorded.AUDIT_MONITOR | {
        "node": HOSTILE,
        "trail": {"seq": 1, "head": HOSTILE},
        "rules": {HOSTILE: {"packets": 1, "bytes": 1}},
        "between_nodes": {HOSTILE: {"packets": 1, "bytes": 1}},
        **{
            name: [hostile(row) for row in recorded.AUDIT_MONITOR[name]]
            for name in ("nodes", "endpoints", "exceptions")
        },
        "reasons": [
            row | {"reason": HOSTILE, "words": HOSTILE, "verdict": HOSTILE}
            for row in recorded.AUDIT["reasons"]
        ],
    }
    found = drawn(answer, HOSTILE)
    assert not {tag for tag, _ in found.elements} & {"script", "img"}
    assert found.text.count(HOSTILE) > 10


def test_of_many_peers_the_busiest_are_drawn() -> None:
    rows = [
        recorded.audited(("", ""), "encrypted", "SEALED", 1, size, nodes=("n1", f"peer-{size:03}"))
        for size in range(1, 101)
    ]
    found = drawn(recorded.AUDIT | {"nodes": rows})
    assert "peer-100" in found.text
    assert "peer-061" in found.text
    assert "peer-060" not in found.text
    assert "And 60 nodes with less traffic." in found.text


def test_the_command_writes_it(agent: Agent, pellicle: Pellicle, tmp_path: Path) -> None:
    agent.played = {"status": [recorded.HEALTHY], "audit": [recorded.AUDIT]}
    path = tmp_path / "audit.html"
    result = pellicle("audit", "--html", str(path))
    assert result.exit_code == 0
    assert result.stdout == "All of 122 MB between nodes was encrypted; 17 packets were dropped.\n"
    assert path.read_text() == page(read(recorded.HEALTHY, Status), read(recorded.AUDIT, Audit))
    refused = pellicle("audit", "--html", str(tmp_path / "none" / "audit.html"))
    assert refused.exit_code == 1
    assert "No such file or directory" in refused.stderr
