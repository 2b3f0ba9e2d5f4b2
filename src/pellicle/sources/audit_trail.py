# SPDX-License-Identifier: Apache-2.0
"""The audit trail: a chain of records (wire/chain.py) in files that are only ever added to.

    state_dir/audit/000000000001.jsonl     named by the first record in it
                    000000048213.jsonl     the newest one

Each batch of records is on the disk when `add` returns. Past `MOST_BYTES` a new file goes on with
the chain; past `MOST_FILES` the oldest one goes. `verify` needs no agent.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from pellicle.wire.chain import CUT, NO_RECORD, ROTATED, Link, Record, Walk, lines, parsed, span

MOST_BYTES: Final = 8 << 20
MOST_FILES: Final = 64
MODE: Final = 0o600
_NAME: Final = re.compile(r"[0-9]{12}\.jsonl")

Entry = tuple[str, Mapping[str, Any]]
"""What it is, and its body."""


class AuditTrail:
    """One such chain. Any thread may use it."""

    def __init__(
        self,
        directory: Path,
        now: Callable[[], str],
        *,
        most_bytes: int = MOST_BYTES,
        most_files: int = MOST_FILES,
    ) -> None:
        self.directory, self._now = directory, now
        self._most_bytes, self._most_files = most_bytes, most_files
        self._link: Link | None = None
        self._turn = Lock()

    @property
    def seq(self) -> int:
        """The number of the newest record; 0: it cannot be told."""
        return self._link.seq if self._link else 0

    @property
    def head(self) -> str:
        """The hash of the newest record; empty: it cannot be told."""
        return self._link.head if self._link else ""

    def answer(self) -> dict[str, Any]:
        """Where it is and where it stands."""
        return {"directory": str(self.directory), "seq": self.seq, "head": self.head}

    def open(self) -> Link:
        """Find where the chain stands, and own up to half a line that a crash has left."""
        with self._turn:
            return self._open()

    def add(self, entries: Sequence[Entry]) -> Link:
        """Chain them, and return when they are on the disk; OSError when they cannot be."""
        with self._turn:
            link = self._open()
            path = self._newest()
            if path is None or path.stat().st_size >= self._most_bytes:
                link = self._rotate(path, link)
                path = self._newest()
                assert path is not None
            return self._append(path, link, entries)

    def records(self, what: str | None = None, *, after: str = "") -> Iterator[Record]:
        """Oldest first; those that are no records are left out. `after`: a moment, as in `at`."""
        paths = files(self.directory)
        begun = [_first(path) for path in paths]
        for at, path in enumerate(paths):
            following = begun[at + 1] if at + 1 < len(paths) else None
            if following is not None and following.at < after:
                continue
            for line in _lines(path):
                record = parsed(line)
                if record and record.at >= after and what in {None, record.what}:
                    yield record

    def newest(self, what: str) -> Record | None:
        """The last record of that kind."""
        for path in reversed(files(self.directory)):
            for line in reversed(_lines(path)):
                record = parsed(line)
                if record and record.what == what:
                    return record
        return None

    # --- below the lock ---------------------------------------------------------------------------

    def _open(self) -> Link:
        if self._link is not None:
            return self._link
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        link = _end_of(files(self.directory))
        newest = self._newest()
        strange = _end(newest)[1] if newest else b""
        if newest and strange:
            return self._mend(newest, link, strange)
        self._link = link
        return link

    def _mend(self, newest: Path, link: Link, strange: bytes) -> Link:
        """Own up to what a crash has left. It must not become a record by getting an end."""
        end = b"" if strange.endswith(b"\n") else NO_RECORD
        return self._append(newest, link, [(CUT, span(strange + end))], before=end)

    def _newest(self) -> Path | None:
        return next(reversed(files(self.directory)), None)

    def _rotate(self, old: Path | None, link: Link) -> Link:
        """A new file, and its first record; the oldest one goes once that is on the disk."""
        path = self.directory / f"{link.seq + 1:012}.jsonl"
        if old is None:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE))
            _sync(self.directory)
            return link
        kept = files(self.directory)
        going = kept[: max(len(kept) - self._most_files + 1, 0)]
        body: dict[str, Any] = {"from": old.name}
        if going:
            gone = _end_of(going)
            body["gone"] = {"seq": gone.seq, "head": gone.head}
        link = self._append(path, link, [(ROTATED, body)])
        _sync(self.directory)
        for each in going:
            each.unlink(missing_ok=True)
        return link

    def _append(
        self, path: Path, link: Link, entries: Iterable[Entry], before: bytes = b""
    ) -> Link:
        written = [before]
        for what, body in entries:
            record = link.next(self._now(), what, body)
            written.append(record.line)
            link = Link.of(record.line, record)
        self._link = None  # in doubt until all is on the disk
        _write(path, b"".join(written))
        self._link = link
        return link


def files(directory: Path) -> list[Path]:
    """The files of a trail, oldest first."""
    try:
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def verify(
    directory: Path,
    noted: Iterable[str] = (),
    visit: Callable[[Record], object] = lambda _record: None,
) -> Walk:
    """What the trail in `directory` comes to. `noted`: heads that it must have had."""
    walk, paths = Walk(set(noted), visit), files(directory)
    if not paths:
        raise FileNotFoundError(errno.ENOENT, "no audit trail is in", str(directory))
    for path in paths:
        walk.file(path.name, path.read_bytes(), is_newest=path == paths[-1])
    walk.end()
    return walk


def _end(path: Path) -> tuple[Link, bytes]:
    """The last record of a file, and what lies behind it."""
    raw = path.read_bytes()
    end = len(raw)
    for line in reversed(lines(raw)):
        record = parsed(line)
        if record is not None:
            return Link.of(line, record), raw[end:]
        end -= len(line)
    return Link(), raw


def _end_of(paths: Sequence[Path]) -> Link:
    """The last record of all."""
    return next((link for path in reversed(paths) if (link := _end(path)[0]).seq), Link())


def _first(path: Path) -> Record | None:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return parsed(file.readline())
    return None


def _lines(path: Path) -> list[bytes]:
    """None, when the file has just gone because it was the oldest one."""
    with suppress(FileNotFoundError):
        return lines(path.read_bytes())
    return []


def _write(path: Path, raw: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, MODE)
    try:
        while raw:
            raw = raw[os.write(descriptor, raw) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
