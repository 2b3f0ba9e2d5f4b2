# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the rules ask for nothing that no agent says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import crowd
from pellicle.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "pellicle.json"
RULES = DEPLOY / "prometheus" / "pellicle-rules.yml"
DOCUMENT = DEPLOY.parent / "docs" / "cli.md"
OF_PROMETHEUS = {"up"}

TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
      | (?P<range>\[[^\]]*\])
      | (?P<name>[a-zA-Z_:][\w:]*)
      | (?P<number>\d[\w.]*)
      | (?P<mark>[{}(),=~!<>+\-*/%^$@])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}


def metrics_in(expression: str) -> set[str]:
    """What a PromQL expression asks for: names that are no function, keyword or label."""
    tokens = list(_tokens(expression))
    names, at = set(), 0
    while at < len(tokens):
        kind, text = tokens[at]
        after = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if text == "{":
            at = _after(tokens, at, "}")
            continue
        if text in LABEL_LISTS and after == "(":
            at = _after(tokens, at, ")")
            continue
        if kind == "name" and text.lower() not in WORDS | LABEL_LISTS:
            is_call = after == "(" or (after in {"by", "without"} and text.islower())
            if not is_call:
                names.add(text)
        at += 1
    return names


def _after(tokens: list[tuple[str, str]], at: int, closing: str) -> int:
    while tokens[at][1] != closing:
        at += 1
    return at + 1


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(expression):
        found = TOKEN.match(expression, at)
        assert found, f"no PromQL: {expression[at:]}"
        assert found.lastgroup
        if found.lastgroup != "space":
            yield found.lastgroup, found[0]
        at = found.end()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up == 0", {"up"}),
        ('sum by (a, b) (rate(x_total{c="d{e}"}[5m])) / on (f) group_left (g) y', {"x_total", "y"}),
        ("topk(10, sum(z) by (peer)) > 0 and on () time() - s offset 5m", {"z", "s"}),
        ("a:b:rate5m{} unless bool_thing", {"a:b:rate5m", "bool_thing"}),
        ("-1.5e3 * x", {"x"}),
    ],
)
def test_names_are_told_from_functions_and_labels(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Every sample that an agent can say, with its labels; families without samples by name."""
    import asyncio

    with crowd.loaded() as bpf:
        sight = crowd.sight_of(bpf, 3)
        sight.key_events["published"] = 1
        text = asyncio.run(Metrics(sight, crowd.events_of(sight)).text())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.setdefault(name, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def test_rules_ask_for_what_there_is(exposed: dict[str, set[str]]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        asked = metrics_in(rule["expr"])
        assert asked, rule
        assert asked <= exposed.keys() | recorded | OF_PROMETHEUS, rule


def test_each_alert_says_what_and_how_bad() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert {"summary", "description"} == rule["annotations"].keys()


def test_every_metric_of_our_documents_is_there_and_every_other_way_round(
    exposed: dict[str, set[str]],
) -> None:
    told = set(re.findall(r"\bpellicle_(?!host\b|net\b|xfrm\b)\w+", DOCUMENT.read_text()))
    assert told <= exposed.keys()
    assert {name for name in exposed if name.startswith("pellicle_")} <= told


def test_the_dashboard_asks_for_what_there_is(exposed: dict[str, set[str]]) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    for expression in expressions(dashboard):
        asked = metrics_in(expression)
        assert asked, expression
        assert asked <= exposed.keys() | OF_PROMETHEUS, expression
    for legend in re.findall(r"{{(\w+)}}", DASHBOARD.read_text()):
        labels = set().union(*exposed.values()) | {"instance", "job"}
        assert legend in labels, legend


def expressions(dashboard: Mapping[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(found) > 20
    return found


def test_the_dashboard_has_the_shape_that_grafana_imports() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["title"] == "Pellicle"
    assert "id" not in dashboard, "of another installation"
    assert dashboard["schemaVersion"] >= 36
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"row", "timeseries", "stat", "table"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["refId"]
            used = re.findall(r"\$(\w+)", target["expr"])
            assert set(used) <= {*variables, "__rate_interval"}
