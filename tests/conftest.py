# SPDX-License-Identifier: Apache-2.0
"""For all tests: what they must not depend on."""

from __future__ import annotations

import signal

from hypothesis import settings

# An example of Hypothesis may take its time on a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Shells start background jobs with Ctrl-C ignored, which all that they start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
