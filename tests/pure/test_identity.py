# SPDX-License-Identifier: Apache-2.0
"""Identities: the same labels, the same numbers, on every node and for ever."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import FIRST_CLAIMED_IDENTITY, IdentityNumber
from pellicle.identity import (
    LAST_CLAIMED_IDENTITY,
    MAX_CANDIDATES,
    NAMESPACE_LABEL,
    LabelError,
    candidates,
    canonical,
    checked,
    is_claimable,
)
from tests.pure.sources.facts_made import dns_labels, labels


@given(dns_labels, labels, st.randoms())
def test_canonical_labels_do_not_depend_on_their_order(
    namespace: str, given_labels: dict[str, str], random: object
) -> None:
    items = list(given_labels.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    one, other = canonical(namespace, given_labels), canonical(namespace, dict(items))
    assert list(one.items()) == list(other.items())
    assert list(candidates(one)) == list(candidates(other))


@given(dns_labels, labels)
def test_every_candidate_can_be_claimed(namespace: str, given_labels: dict[str, str]) -> None:
    found = list(candidates(canonical(namespace, given_labels)))
    assert len(found) == MAX_CANDIDATES
    assert all(is_claimable(number) for number in found)


def test_numbers_are_the_same_in_every_version() -> None:
    """Nodes of two versions must agree: this table may never change."""
    assert list(itertools.islice(candidates(canonical("default", {"app": "web"})), 3)) == [
        15018657,
        11678518,
        11315219,
    ]
    assert next(candidates(canonical("kube-system", {}))) == 5835977


def test_what_looks_alike_when_joined_has_other_numbers() -> None:
    pairs = [{"ab": "c"}, {"a": "bc"}, {"a": "b", "c": ""}, {"a": "", "b": "c"}, {"abc": ""}]
    numbers = {next(candidates(canonical("x", pair))) for pair in pairs}
    assert len(numbers) == len(pairs)


def test_numbers_spread_over_all_that_can_be_claimed() -> None:
    """20,000 sets of labels: some share a first number, and then part at the second."""
    firsts: dict[IdentityNumber, list[dict[str, str]]] = {}
    for i in range(20_000):
        found = {"app": f"a{i}"}
        firsts.setdefault(next(candidates(canonical("x", found))), []).append(found)
    clashes = [group for group in firsts.values() if len(group) > 1]
    # Expected 20000²/2/2²⁴ ≈ 12.
    assert 1 <= len(clashes) <= 40
    for one, other, *_ in clashes:
        seconds = {list(candidates(canonical("x", each)))[1] for each in (one, other)}
        assert len(seconds) == 2


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"": "x"}, "is not a label"),
        ({"a" * 64: "x"}, "is not a label"),
        ({"a": "x" * 64}, "is not a value"),
        ({"-a": "x"}, "is not a label"),
        ({"a": "x y"}, "is not a value"),
        ({"a": "x\n"}, "is not a value"),
        ({"Example.com/a": "x"}, "DNS name in lower case"),
        ({"/a": "x"}, "DNS name in lower case"),
        ({f"{'a.' * 127}a/a": "x"}, "DNS name in lower case"),
        ({NAMESPACE_LABEL: "other"}, "set from the namespace"),
        ({f"l{i}": "" for i in range(257)}, "more than 256"),
    ],
)
def test_what_is_no_label_is_refused(bad: dict[str, str], why: str) -> None:
    with pytest.raises(LabelError, match=why):
        canonical("default", bad)


@pytest.mark.parametrize(
    "good",
    [
        {"a": ""},
        {"a" * 63: "x" * 63},
        {"example.com/a.b_c-d": "X.y_z-1"},
        {NAMESPACE_LABEL: "default"},
    ],
)
def test_what_kubernetes_takes_is_taken(good: dict[str, str]) -> None:
    assert canonical("default", good) == {**good, NAMESPACE_LABEL: "default"}
    assert dict(checked(good)) == good


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (0, False),
        (6, False),
        (FIRST_CLAIMED_IDENTITY - 1, False),
        (FIRST_CLAIMED_IDENTITY, True),
        (LAST_CLAIMED_IDENTITY, True),
        (LAST_CLAIMED_IDENTITY + 1, False),
    ],
)
def test_reserved_numbers_are_nobodys(number: int, answer: bool) -> None:
    assert is_claimable(number) is answer
