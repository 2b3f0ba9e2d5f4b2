# SPDX-License-Identifier: Apache-2.0
"""How long to wait on a machine that is slow: PELLICLE_LAB_PATIENCE times as long as usual.

An emulated machine takes twenty times as long for everything. Every limit of waiting in the lab
and in its tests is stretched by this one number; what is waited for stays the same.
"""

from __future__ import annotations

import math
import os
from typing import Final

from pellicle.lab.errors import LabError

VARIABLE: Final = "PELLICLE_LAB_PATIENCE"


def patient(seconds: float) -> float:
    """So many seconds of an ordinary machine, here."""
    return seconds * read(os.environ.get(VARIABLE, "1"))


def read(text: str) -> float:
    """The factor; LabError for what is none."""
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= 1000:
        raise LabError(f"{VARIABLE} is {text!r}: it is a number from 1 to 1000, such as 20")
    return factor
