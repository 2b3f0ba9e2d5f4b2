# SPDX-License-Identifier: Apache-2.0
"""C has the numbers, Python has the words: neither may know a reason that the other does not."""

from __future__ import annotations

import pytest

from pellicle.flows import reasons
from pellicle.flows.reasons import WORDS, Verdict
from pellicle.wire.btf import Btf


def test_every_number_of_the_object_has_words_and_no_words_are_left_over(btf: Btf) -> None:
    constants = btf.enum("reason")
    read = reasons.read(btf)
    count, first_drop = constants["REASON_COUNT"], constants["DROP_FIRST"]
    audited = range(first_drop + count, 2 * count)
    assert sorted(read) == [*range(1, count), *audited]
    assert {reason.name for reason in read.values()} == set(WORDS)
    assert all(constants[reason.name] == number % count for number, reason in read.items())
    assert all((number in audited) == (r.verdict is Verdict.AUDITED) for number, r in read.items())


def test_names_and_numbers_tell_the_same_verdict(btf: Btf) -> None:
    for number, reason in reasons.read(btf).items():
        if number >= btf.enum("reason")["REASON_COUNT"]:
            continue
        is_drop, is_clear = reason.name.startswith("DROP_"), reason.name.startswith("CLEAR_")
        expected = Verdict.DROPPED if is_drop else Verdict.CLEAR if is_clear else Verdict.ENCRYPTED
        assert reason.verdict is expected, reason.name


@pytest.mark.parametrize(
    ("replacement", "says"),
    [
        ({"DROP_NEW": 99}, r"only in C \['DROP_NEW'\], only in Python \[\]"),
        ({"SEALED": None}, r"only in C \[\], only in Python \['SEALED'\]"),
    ],
)
def test_an_object_with_other_reasons_is_refused_by_name(
    btf: Btf, monkeypatch: pytest.MonkeyPatch, replacement: dict[str, int | None], says: str
) -> None:
    constants = {**btf.enum("reason"), **replacement}
    present = {name: number for name, number in constants.items() if number is not None}
    monkeypatch.setattr(Btf, "enum", lambda self, name: present)
    with pytest.raises(ValueError, match=says):
        reasons.read(btf)


@pytest.mark.parametrize("name", WORDS)
def test_words_are_short_and_advice_is_sentences(name: str) -> None:
    words = WORDS[name]
    assert 0 < len(words.short) <= 40
    assert words.advice.endswith(".")
    assert words.advice[0].isupper()
