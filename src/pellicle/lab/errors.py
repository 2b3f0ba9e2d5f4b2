# SPDX-License-Identifier: Apache-2.0
"""What a lab says when it cannot do what it was asked."""

from __future__ import annotations


class LabError(Exception):
    """The world did not play along; the text is for a person and says what to look at."""
