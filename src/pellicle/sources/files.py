# SPDX-License-Identifier: Apache-2.0
"""Writing into the directory that all nodes share: whole files or none, never a part.

    nodes/n1.yaml  endpoints/n1/default.p1.yaml  identities/4711.yaml

A file is written beside its place under a name that begins with a dot, synced, renamed,
and the directory synced: a reader sees the old text or the new one, also after a crash.
An identity is linked instead of renamed, because link(2) never replaces: of several
that claim a number at the same time exactly one gets it. Text that is there already is
not written again, so that nobody who writes what he reads goes in circles.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pellicle.facts import Endpoint, Identity, Node, NodeName
from pellicle.identity import candidates, canonical
from pellicle.sources.manifest import write
from pellicle.sources.resources import MAX_BYTES, Resource, place, read

MODE = 0o644


def contents(path: Path | str) -> tuple[os.stat_result, bytes]:
    """What stands there, one byte more than may be read at most; OSError if it is no file."""
    # Without O_NONBLOCK a named pipe would hold the agent up for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return status, file.read(MAX_BYTES + 1)


def read_node(directory: Path, name: NodeName) -> Node | None:
    """What its record says; None: not one node's, alone. FileNotFoundError: there is none."""
    sheet = read("", contents(directory / place(Node(name, (), ())))[1])
    said = [document.resource for document in sheet.documents]
    if sheet.rejected or len(said) != 1 or not isinstance(said[0], Node):
        return None
    return said[0]


def write_node(directory: Path, node: Node) -> bool:
    """Make `node` its record. Whether anything had to be written."""
    return _publish(directory, node)


def remove_node(directory: Path, name: NodeName) -> bool:
    """Take the record of node `name` away; one that is absent is a success."""
    return _remove(directory / place(Node(name, (), ())))


def write_endpoint(directory: Path, endpoint: Endpoint) -> bool:
    """Make `endpoint` its record. Whether anything had to be written."""
    return _publish(directory, endpoint)


def remove_endpoint(directory: Path, endpoint: Endpoint) -> bool:
    """Take the record of `endpoint` away; one that is absent is a success."""
    return _remove(directory / place(endpoint))


def claim_identity(directory: Path, namespace: str, labels: Mapping[str, str]) -> Identity:
    """The identity of an endpoint of `namespace` with `labels`, recorded now if it was not.

    Everyone who asks with the same labels gets the same number, from any node, also at
    the same time. `LabelError` when they are not labels.
    """
    wanted = canonical(namespace, labels)
    for number in candidates(wanted):
        identity = Identity(number, wanted)
        path = directory / place(identity)
        if not path.exists():
            _install(directory, path, write(identity).encode(), _link)
        if _recorded(path) == identity:
            return identity
    raise OSError(errno.ENOSPC, "every candidate number belongs to other labels", str(directory))


def _publish(directory: Path, resource: Resource) -> bool:
    path = directory / place(resource)
    raw = write(resource).encode()
    # One that cannot be read is replaced.
    with suppress(OSError):
        if contents(path)[1] == raw:
            return False
    _install(directory, path, raw, Path.replace)
    return True


def _recorded(path: Path) -> Identity | None:
    """The identity that stands at `path`; None for anything else."""
    try:
        sheet = read("", contents(path)[1])
    except FileNotFoundError:
        return None
    found = [document.resource for document in sheet.documents]
    return found[0] if len(found) == 1 and isinstance(found[0], Identity) else None


def _install(directory: Path, path: Path, raw: bytes, put: Callable[[Path, Path], object]) -> None:
    """Write `raw` beside `path`, then `put` it there, lasting."""
    _make(path.parent, directory)
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(descriptor, MODE)
            os.fsync(descriptor)
        put(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def _make(folder: Path, directory: Path) -> None:
    """Make `folder` below `directory`, which is never made: it may be a mount that is missing."""
    if folder == directory or folder.is_dir():
        return
    _make(folder.parent, directory)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _link(beside: Path, path: Path) -> None:
    # When someone was faster, what he wrote is read next.
    with suppress(FileExistsError):
        path.hardlink_to(beside)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
