# SPDX-License-Identifier: Apache-2.0
"""The cellar: the only room that makes system calls.

What the kernel refuses comes out as OSError with its errno. What it cannot do at all, because
it is too old or was built without it, comes out as `Unsupported`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Held(ABC):
    """Something of the kernel's that is held until `close`, also by a `with`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it; twice is as good as once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class Unsupported(Exception):  # noqa: N818  it says what the kernel is, not that something broke
    """This system lacks a feature; `since` says what would have it."""

    def __init__(self, feature: str, since: str) -> None:
        super().__init__(f"{feature} is not supported here; it needs {since}")
        self.feature = feature
        self.since = since
