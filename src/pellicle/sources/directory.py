# SPDX-License-Identifier: Apache-2.0
"""The directory source: a directory of YAML files, shared by all nodes, as snapshots.

    DIR ──▶ files that changed ──▶ Shelf ──▶ judge ──▶ World, World, …

inotify says where to look; every `refresh_seconds` everything is looked at anyway, by
stat, in case a message was lost or the file system sends none. While the directory is
missing, the last world stays in force and `problem` says what is wrong. To be found
here too: what writes into the directory.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

from pellicle.sources.files import (
    claim_identity,
    remove_endpoint,
    remove_node,
    write_endpoint,
    write_node,
)
from pellicle.sources.shelf import Shelf
from pellicle.sources.world import Pending, World

__all__ = [
    "Directory",
    "Pending",
    "World",
    "claim_identity",
    "remove_endpoint",
    "remove_node",
    "write_endpoint",
    "write_node",
]

QUIET_MS = 30
"""Changes are taken up when none has followed for so long,"""
LATEST_MS = 250
"""or after this at the latest."""
GLANCE_SECONDS = 1.0
"""How often to see whether the directory itself is still there."""
WATCHLESS_GLANCES = 60
"""A watch that could not be set is tried again after so many."""


class Directory:
    """All that is written below `path`."""

    def __init__(self, path: Path, refresh_seconds: float) -> None:
        self.path = path
        self.problem: str | None = None
        """What keeps the directory from being read or watched, in words; None when all is well."""
        self._refresh_seconds = refresh_seconds
        self._shelf = Shelf(path)

    async def worlds(self) -> AsyncGenerator[World, None]:
        """The world, once it could be listed, and again after every change; without end.

        Nothing comes before the directory has been listed, so whoever waits for the first
        world never mistakes a missing directory for an empty cluster.
        """
        while True:
            try:
                async with aclosing(self._watched()) as worlds:
                    async for world in worlds:
                        yield world
            except OSError as error:
                self.problem = self._words(error)
            await asyncio.sleep(min(GLANCE_SECONDS, self._refresh_seconds))

    async def _watched(self) -> AsyncGenerator[World, None]:
        """Worlds for as long as the directory stays the same one and can be read."""
        clock = asyncio.get_running_loop().time
        await asyncio.to_thread(self._shelf.look_everywhere)
        self.problem = None
        if self._shelf.take_change():
            yield await asyncio.to_thread(self._shelf.world)
        refreshed = float("-inf")  # What changed before the watch stood is seen at its first word.
        async with aclosing(self._batches()) as batches:
            async for paths in batches:
                if await asyncio.to_thread(self._shelf.has_moved):
                    return
                if clock() >= refreshed + self._refresh_seconds:
                    await asyncio.to_thread(self._shelf.look_everywhere)
                    refreshed = clock()
                elif await asyncio.to_thread(self._shelf.look_at, paths):
                    # A new folder is watched only a moment after it is seen: look once more.
                    refreshed = float("-inf")
                if self._shelf.take_change():
                    yield await asyncio.to_thread(self._shelf.world)

    async def _batches(self) -> AsyncGenerator[set[str], None]:
        """Paths that changed, or nothing when it is time for a glance. May end."""
        glance_ms = int(1000 * min(GLANCE_SECONDS, self._refresh_seconds))
        try:
            changes = awatch(
                self._shelf.root,
                watch_filter=None,
                debounce=LATEST_MS,
                step=QUIET_MS,
                rust_timeout=glance_ms,
                yield_on_timeout=True,
                ignore_permission_denied=True,
            )
            async with aclosing(changes):
                async for batch in changes:
                    yield {path for _, path in batch}
        except (OSError, RuntimeError) as error:
            every = f"looking at every file each {self._refresh_seconds:g} s instead"
            self.problem = f"directory {self.path} cannot be watched ({error}): {every}"
        for _ in range(WATCHLESS_GLANCES):
            yield set()
            await asyncio.sleep(glance_ms / 1000)

    def _words(self, error: OSError) -> str:
        hint = {
            errno.ENOENT: "create it, or mount it",
            errno.ENODEV: "mount it again",
            errno.ENOTDIR: "name a directory, not a file",
            errno.EACCES: "let the agent read it",
        }.get(error.errno or 0, "mend it")
        stays = "; what was last known stays in force" if self._shelf.has_looked else ""
        return f"directory {self.path} cannot be read: {error.strerror}: {hint}{stays}"
