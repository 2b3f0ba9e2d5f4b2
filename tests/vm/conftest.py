# SPDX-License-Identifier: Apache-2.0
"""Labs for the tests that need a kernel with ESP: those of tests/net."""

from __future__ import annotations

from tests.net.conftest import lab_place, make_lab

__all__ = ["lab_place", "make_lab"]
