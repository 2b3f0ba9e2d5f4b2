# SPDX-License-Identifier: Apache-2.0
"""YAML as plain trees: nothing is guessed, and what could explode is refused at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.wire.yaml import MAX_DEPTH, Tree, YamlError, documents


@pytest.mark.parametrize(
    ("text", "trees"),
    [
        ("", []),
        ("# nothing\n", []),
        ("---\n", [""]),
        (
            "a: no\nb: 1e5\nc: 12:34:56\nd: ~\ne:\n",
            [{"a": "no", "b": "1e5", "c": "12:34:56", "d": "~", "e": ""}],
        ),
        ('{"json": [1, "two", true]}', [{"json": ["1", "two", "true"]}]),
        ("a: 1\n---\nb: 2\n...\n---\nc: 3\n", [{"a": "1"}, {"b": "2"}, {"c": "3"}]),
        ("t: |\n  one\n  two\n", [{"t": "one\ntwo\n"}]),
        ("\ufeffa: b\n", [{"a": "b"}]),
    ],
)
def test_scalars_stay_text(text: str, trees: list[Tree]) -> None:
    assert list(documents(text)) == trees


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [1]\nb: *x\n", "line 1: anchors and aliases"),
        ("a: *x\n", "line 1: anchors and aliases"),
        ("a: !!python/object:os.system x\n", "line 1: tags"),
        ("a: !mine x\n", "line 1: tags"),
        ("a: 1\nb: 2\na: 3\n", 'line 3: "a" is given twice'),
        ("[1]: 2\n", "line 1: a key must be plain text"),
        ("a:\n\tb: 1\n", "line 2: a tab in the indentation"),
        ("a: {b: 1\n", "ends in the middle"),
        ('a: "b\n', "ends in the middle"),
        ("a: b: c\n", "line 1: not YAML"),
        ("a: 1\n b: 2\n", "line 2: not YAML"),
        ("a: @b\n", "line 1: not YAML"),
        ("a: \x00\n", "control character"),
        ("a: \ud800\n", "text that is not UTF-8"),
        ("[" * (MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} deep"),
    ],
)
def test_faults_are_told_with_their_likely_cause(text: str, why: str) -> None:
    with pytest.raises(YamlError, match=why):
        list(documents(text))


def test_what_stands_before_a_fault_is_read() -> None:
    found = documents("a: 1\n---\nb: *x\n---\nc: 3\n")
    assert next(found) == {"a": "1"}
    with pytest.raises(YamlError):
        next(found)


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 262_144,
        "{a: " * 65_536,
        "- " * 131_072,
        "? " * 131_072,
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "&a [*a]\n",
    ],
)
def test_bombs_do_not_go_off(bomb: str) -> None:
    with pytest.raises(YamlError):
        list(documents(bomb))


@given(st.text())
def test_whatever_the_text_it_is_trees_or_one_error(text: str) -> None:
    try:
        found = list(documents(text))
    except YamlError as error:
        found = [str(error)]
    assert all(isinstance(tree, (str, list, dict)) for tree in found)
