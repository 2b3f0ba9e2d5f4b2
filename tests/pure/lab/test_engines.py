# SPDX-License-Identifier: Apache-2.0
"""The words of `--engine`: what each node is asked for, and what is refused."""

from __future__ import annotations

import pytest

from pellicle.lab.agents import configuration, lacking
from pellicle.lab.cluster import _with
from pellicle.lab.engines import parse
from pellicle.lab.topology import LabNode, Shape, nodes_of


@pytest.mark.parametrize(
    ("text", "engines", "short"),
    [
        ("auto", ["auto", "auto", "auto"], "auto"),
        ("xfrm", ["xfrm", "xfrm", "xfrm"], "xfrm"),
        ("n1=bpf,n2=xfrm", ["bpf", "xfrm", "auto"], "n1=bpf,n2=xfrm"),
        ("xfrm,n2=bpf", ["xfrm", "bpf", "xfrm"], "xfrm,n2=bpf"),
        ("n2=bpf, xfrm", ["xfrm", "bpf", "xfrm"], "xfrm,n2=bpf"),
        ("auto,n3=auto", ["auto", "auto", "auto"], "n3=auto"),
    ],
)
def test_each_node_gets_its_own(text: str, engines: list[str], short: str) -> None:
    found = parse(text, 3)
    assert [found.of(node.name) for node in nodes_of(3)] == engines
    assert str(found) == short
    assert parse(short, 3) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not an engine: give auto, bpf or xfrm"),
        ("BPF", "'BPF' is not an engine"),
        ("bpf,", "'' is not an engine"),
        ("n1=wireguard", "'wireguard' is not an engine"),
        ("n1", "'n1' is not an engine"),
        ("n4=bpf", "'n4' is not a node of a lab of 3, which are n1 to n3"),
        ("n0=bpf", "'n0' is not a node"),
        ("n01=bpf", "'n01' is not a node"),
        ("=bpf", "'' is not a node"),
        ("n1=bpf=xfrm", "'n1=bpf' is not a node"),
        ("n1=bpf,n1=xfrm", "node n1 is given two engines, bpf and xfrm"),
        ("n1=bpf,n1=bpf", "node n1 is given two engines"),
        ("bpf,xfrm", "the nodes that are not named are given 2 engines"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Shape(3, 1, engine=text)


def test_an_agent_is_told_its_own_and_only_what_was_chosen() -> None:
    shape = Shape(3, 1, engine="n1=bpf,n2=xfrm")
    told = [configuration(node, shape).get("engine") for node in nodes_of(3)]
    assert told == ["bpf", "xfrm", None]


@pytest.mark.parametrize(
    ("asked", "why"),
    [("auto", []), ("n2=bpf", []), ("xfrm,n2=bpf", []), ("xfrm", ["its engine is bpf, not xfrm"])],
)
def test_an_agent_with_another_engine_than_asked_is_not_ready(asked: str, why: list[str]) -> None:
    peer = {"node": "n1", "state": "ready", "confirmed": True, "why": ""}
    row = {"node": "n2", "encryption": "on", "engine": "bpf", "peers": [peer], "tables": []}
    assert lacking(row, Shape(2, 1, engine=asked)) == why


def test_without_encryption_no_engine_is_asked_for() -> None:
    row = {"node": "n1", "encryption": "off", "engine": "bpf", "tables": []}
    assert lacking(row, Shape(2, 1, engine="xfrm", encrypt=False)) == []


def test_a_node_that_leaves_is_no_longer_named() -> None:
    shape = Shape(3, 1, engine="xfrm,n1=bpf,n3=bpf")
    smaller = _with(shape, nodes=2)
    assert (smaller.nodes, smaller.engine) == (2, "xfrm,n1=bpf")
    assert _with(smaller, nodes=3).engine_of(LabNode(3)) == "xfrm"
