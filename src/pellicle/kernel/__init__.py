# SPDX-License-Identifier: Apache-2.0
"""The cellar: the only room that makes system calls.

What the kernel refuses comes out as OSError with its errno. What it cannot do at all, because
it is too old or was built without it, comes out as `Unsupported`.
"""


class Unsupported(Exception):  # noqa: N818  it says what the kernel is, not that something broke
    """This system lacks a feature; `since` says what would have it."""

    def __init__(self, feature: str, since: str) -> None:
        super().__init__(f"{feature} is not supported here; it needs {since}")
        self.feature = feature
        self.since = since
