# SPDX-License-Identifier: Apache-2.0
"""For all tests: an example of Hypothesis may take its time on a busy machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
