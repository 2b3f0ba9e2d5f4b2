# SPDX-License-Identifier: Apache-2.0
"""The lab at a glance: its nodes, their agents, their pods."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.lab.check import Cell, Checked
from pellicle.lab.speakers import PROTOCOLS
from pellicle.lab.state import LabState, NodeState
from pellicle.ui.grid import Column, grid
from pellicle.ui.sections import INDENT, bullet, facts, indented, section


def lab(state: LabState, width: int) -> RenderableType:
    """One line for each node and each pod, and what is wrong."""
    if state.shape is None and not state.nodes:
        return Text("no lab is up; start one with `pellicle lab up`", "quiet")
    inner = width - INDENT
    problems = [
        bullet(Text.assemble((f"{node.name}: ", "name"), node.problem), "bad")
        for node in state.nodes
        if node.problem
    ]
    return Group(
        _head(state),
        *section("Problems", problems),
        *section("Nodes", [_nodes(state, inner)] if state.nodes else []),
        *section("Pods", [_pods(state, inner)] if any(node.pods for node in state.nodes) else []),
        *section("Try", [_examples(state)] if state.is_ready else []),
    )


def checked(found: Checked, width: int) -> RenderableType:
    """What a check has found."""
    style = "good" if found.is_well else "bad"
    talk = Text(f"{found.answered:,} of {found.messages:,}", "" if found.is_well else style)
    wire = Text.assemble(
        (f"{found.encrypted:,} ESP", "good" if found.encrypted else "quiet"),
        " · ",
        (f"{found.clear:,} clear", "bad" if found.clear else "quiet"),
    )
    title = Text.assemble(
        (f"{'●' if found.is_well else '✗'} ", style),
        ("lab", "title"),
        "  encryption ",
        ("on", "good") if found.encrypt else ("off", "bad"),
        "  ",
        ("as it should be" if found.is_well else "not as it should be", style),
    )
    rows: list[tuple[str, str | Text]] = [
        ("answered", Text.assemble(talk, f" messages, {found.conversations} conversations")),
        ("on the wire", wire),
        ("took", f"{found.seconds:.1f} s"),
    ]
    problems = [bullet(Text(problem), "bad") for problem in found.problems]
    return Group(
        title,
        indented(facts(rows)),
        *section("Problems", problems),
        *section("Answered, small/usual/large", [_matrix(found.cells, width - INDENT)]),
    )


def _matrix(cells: Sequence[Cell], width: int) -> RenderableType:
    """A row for each path, a column for each family and protocol."""
    squares: dict[tuple[str, str], dict[tuple[int, int, str], list[Text]]] = {}
    for cell in cells:
        row = squares.setdefault((cell.source, cell.destination), {})
        row.setdefault((cell.family, _RANK[cell.protocol], cell.protocol), []).append(_square(cell))
    heads = sorted({head for row in squares.values() for head in row})
    rows = [
        [Text(" → ".join(path)), *(Text(" ").join(squares[path].get(head, ())) for head in heads)]
        for path in sorted(squares, key=lambda path: [_ORDER.index(end) for end in path])
    ]
    columns = [Column("path"), *(Column(f"IPv{family} {name}") for family, _, name in heads)]
    return grid(columns, rows, width)


def _square(cell: Cell) -> Text:
    if cell.is_well:
        return Text("●", "good")
    return Text(f"{cell.answered}/{cell.sent}", "bad")


_RANK = {protocol: rank for rank, protocol in enumerate(PROTOCOLS)}
_ORDER = ("pod", "node", "host-network pod")


def _head(state: LabState) -> RenderableType:
    style = "good" if state.is_ready else "wary"
    words = "ready" if state.is_ready else "not ready"
    head = Text.assemble((f"{'●' if state.is_ready else '◐'} ", style), ("lab", "title"))
    head.append(f"  {words}", style)
    if state.shape is None:
        return head
    shape = state.shape
    pods = "1 pod" if shape.pods == 1 else f"{shape.pods} pods"
    encryption = Text("on", "good") if shape.encrypt else Text("off", "bad")
    return Group(
        Text.assemble(head, "  encryption ", encryption),
        indented(
            Text(
                f"{len(state.nodes)} of {shape.nodes} nodes, {pods} each, "
                f"engine {shape.engine.replace(',', ', ')}, MTU {shape.mtu}",
                "quiet",
            )
        ),
    )


def _nodes(state: LabState, width: int) -> RenderableType:
    columns = [
        Column("node"),
        Column("agent"),
        Column("encryption"),
        Column("engine"),
        Column("address", rank=1, shrinks=True),
        Column("pods", rank=2, shrinks=True),
        Column("pid", rank=3, is_number=True),
    ]
    return grid(columns, [_node(node) for node in state.nodes], width)


def _node(node: NodeState) -> list[Text]:
    agent = node.agent or {}
    encryption = str(agent.get("encryption", "-"))
    return [
        Text(node.name, "name"),
        Text("✗ not ready", "bad") if node.problem else Text("● ready", "good"),
        Text(encryption, {"on": "good", "off": "bad"}.get(encryption, "wary")),
        Text(str(agent.get("engine", "-"))),
        Text(", ".join(node.addresses)),
        Text(", ".join(node.pod_cidrs)),
        Text(str(node.pid or "-")),
    ]


def _pods(state: LabState, width: int) -> RenderableType:
    columns = [
        Column("pod"),
        Column("addresses", shrinks=True),
        Column("in the cluster", rank=1),
        Column("namespace", rank=2),
    ]
    rows = [
        (
            Text(pod.name, "name"),
            ", ".join(pod.addresses) or Text("not plugged in", "bad"),
            pod.cluster_name,
            Text(pod.namespace, "quiet"),
        )
        for node in state.nodes
        for pod in node.pods
    ]
    return grid(columns, rows, width)


def _examples(state: LabState) -> RenderableType:
    pods = [pod for node in state.nodes for pod in node.pods if pod.addresses]
    lines = ["pellicle status --node n1", "pellicle lab sniff"]
    if len(pods) > 1:
        far = pods[-1].addresses[0]
        lines.insert(0, f"pellicle lab exec {pods[0].name} ping -c 3 {far}")
    return Text("\n".join(lines))
