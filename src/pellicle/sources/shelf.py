# SPDX-License-Identifier: Apache-2.0
"""What the files below a directory say; each is read again only when it changed.

A file that went bad does not take away what it used to say: whatever its good documents
do not say anew stays in force until the file is mended or removed. The same holds for a
folder that cannot be listed. All calls block; they belong into a thread, one at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from pellicle.facts import Rejected
from pellicle.sources.files import contents
from pellicle.sources.resources import Sheet, read, title
from pellicle.sources.world import World, judge
from pellicle.values import printable

SUFFIXES = (".yaml", ".yml")
KEPT = "; what it said before stays in force until it is mended or removed"

Stamp = tuple[int, int, int]
"""(inode, mtime in ns, size): a file with the same stamp says the same."""


@dataclass(frozen=True, slots=True)
class _Filed:
    stamp: Stamp | None
    """None: must be read at the next opportunity."""
    sheet: Sheet


@dataclass(slots=True)
class _Listing:
    """The files below a folder, and the folders that could not be listed."""

    files: dict[str, Stamp | None] = field(default_factory=dict)
    lost: dict[str, OSError] = field(default_factory=dict)


class Shelf:
    """The sheets below `root`, by path relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self._filed: dict[str, _Filed] = {}
        self._lost: dict[str, Rejected] = {}
        self._root_id: tuple[int, int] | None = None
        self._has_changed = True

    def world(self) -> World:
        sheets = [filed.sheet for filed in self._filed.values()]
        documents = chain.from_iterable(sheet.documents for sheet in sheets)
        unreadable = chain.from_iterable(sheet.rejected for sheet in sheets)
        return judge(documents, chain(unreadable, self._lost.values()))

    def take_change(self) -> bool:
        """Whether anything is said that was not said at the last call; true at the first."""
        changed, self._has_changed = self._has_changed, False
        return changed

    @property
    def has_looked(self) -> bool:
        """Whether everything has been looked at once."""
        return self._root_id is not None

    def has_moved(self) -> bool:
        """Whether `root` is gone, or no longer the directory that was looked at."""
        try:
            return _id(Path(self.root).stat()) != self._root_id
        except OSError:
            return True

    def look_everywhere(self) -> None:
        """Stat every file and read those that changed.

        OSError when `root` is not there, or is the bare mount point of what was there
        before: then all that was known stays.
        """
        root_id = _id(Path(self.root).stat())
        listing = self._list("")
        if "" in listing.lost:
            raise listing.lost[""]
        if not listing.files and self._filed and self._is_other_device(root_id):
            raise OSError(errno.ENODEV, "empty, and on another device: unmounted?", self.root)
        self._take(listing, "")
        self._root_id = root_id

    def look_at(self, paths: Iterable[str]) -> bool:
        """Read what stands at each of `paths`, changed or not.

        Whether that was not enough: a folder came or went, and in a moment it will pay
        to look everywhere.
        """
        saw_folder = False
        for path in paths:
            relative = path.removeprefix(self.root).lstrip("/")
            if any(part.startswith(".") for part in relative.split("/")):
                continue
            if _is_folder(path):
                self._take(self._list(relative), relative)
                saw_folder = True
            elif relative.endswith(SUFFIXES):
                self._read(relative)
            else:
                saw_folder |= not os.path.lexists(path)
        return saw_folder

    def _is_other_device(self, root_id: tuple[int, int]) -> bool:
        return self._root_id is not None and self._root_id[0] != root_id[0]

    def _take(self, listing: _Listing, top: str) -> None:
        """Make what is filed below `top` equal to `listing`."""
        # Endpoints before the identities they name, as their writers do it the other way
        # round: an endpoint that is seen never waits for an identity that was not looked at.
        for path, stamp in sorted(listing.files.items()):
            filed = self._filed.get(path)
            if filed is None or filed.stamp is None or filed.stamp != stamp:
                self._read(path)
        kept = tuple(f"{folder}/" for folder in listing.lost)
        within = f"{top}/" if top else ""
        for path in [path for path in self._filed if path not in listing.files]:
            if path.startswith(within) and not path.startswith(kept):
                self._drop(path)
        lost = {f: _refused(_printable(f), error) for f, error in listing.lost.items()}
        others = {f: row for f, row in self._lost.items() if not f"{f}/".startswith(within)}
        if self._lost != (now := others | lost):
            self._lost, self._has_changed = now, True

    def _list(self, top: str) -> _Listing:
        listing = _Listing()
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(f"{self.root}/{folder}") as entries:
                    for entry in entries:
                        path = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(path)
                        elif entry.name.endswith(SUFFIXES):
                            listing.files[path] = _stamp_of(entry)
            except (FileNotFoundError, NotADirectoryError) as error:
                if not folder:
                    listing.lost[folder] = error
            except OSError as error:
                listing.lost[folder] = error
        return listing

    def _read(self, path: str) -> None:
        source = _printable(path)
        try:
            status, raw = contents(f"{self.root}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            self._drop(path)
            return
        except OSError as error:
            self._file(path, _Filed(None, Sheet(rejected=(_refused(source, error),))))
            return
        self._file(path, _Filed(_stamp(status), read(source, raw)))

    def _file(self, path: str, new: _Filed) -> None:
        old = self._filed.get(path)
        if old is not None and new.sheet.rejected:
            new = replace(new, sheet=_with_what_was_good(old.sheet, new.sheet))
        self._has_changed |= old is None or old.sheet != new.sheet
        self._filed[path] = new

    def _drop(self, path: str) -> None:
        if self._filed.pop(path, None) is not None:
            self._has_changed = True


def _with_what_was_good(old: Sheet, new: Sheet) -> Sheet:
    """`new`, and the documents of `old` that it does not replace."""
    names = {title(document.resource) for document in new.documents}
    kept = tuple(d for d in old.documents if title(d.resource) not in names)
    if not kept:
        return new
    rejected = tuple(replace(row, why=row.why + KEPT) for row in new.rejected)
    return Sheet((*new.documents, *kept), rejected)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _refused(source: str, error: OSError) -> Rejected:
    return Rejected(source, "file", f"cannot be read: {error.strerror}")


def _stamp_of(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        return _stamp(entry.stat())
    except OSError:
        return None


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _id(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _printable(path: str) -> str:
    """`path` as text that can be shown, also when it is not UTF-8."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"), len(path))
