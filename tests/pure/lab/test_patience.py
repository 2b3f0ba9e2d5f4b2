# SPDX-License-Identifier: Apache-2.0
"""One number stretches every wait; nonsense is refused before anything waits."""

from __future__ import annotations

import pytest

from pellicle.lab import LabError
from pellicle.lab.patience import VARIABLE, patient


def test_waits_are_as_long_as_usual_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert patient(5.0) == 5.0
    monkeypatch.setenv(VARIABLE, "20")
    assert patient(5.0) == 100.0


@pytest.mark.parametrize("text", ["", "slow", "0", "0.5", "-1", "nan", "inf"])
def test_what_is_no_factor_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(LabError, match="a number from 1 to 1000"):
        patient(5.0)
