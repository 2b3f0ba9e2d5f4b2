# SPDX-License-Identifier: Apache-2.0
"""The shelf: only what changed is read, and whatever lies there, the rest goes on."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pellicle.sources.files import write_node
from pellicle.sources.manifest import write
from pellicle.sources.resources import MAX_BYTES
from pellicle.sources.shelf import KEPT, Shelf
from pellicle.sources.world import World
from tests.pure.sources.facts_made import n


def looked(shelf: Shelf) -> World:
    shelf.look_everywhere()
    return shelf.world()


def blind(path: Path) -> tuple[int, int]:
    """Overwrite the file in place, so that its stamp stays: only who reads it again can tell."""
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("192.0.2.", "192.0.3."))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return before.st_ino, before.st_size


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    write_node(tmp_path, n(2))
    shelf = Shelf(tmp_path)
    before = looked(shelf)
    assert shelf.take_change()
    blind(tmp_path / "nodes/n1.yaml")
    assert looked(shelf) == before
    assert not shelf.take_change()
    # Told where to look, it looks.
    shelf.look_at([str(tmp_path / "nodes/n1.yaml")])
    assert shelf.take_change()
    assert str(shelf.world().nodes["n1"].addresses[0]) == "192.0.3.1"  # type: ignore[index]


def test_told_of_one_file_it_reads_no_other(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    write_node(tmp_path, n(2))
    shelf = Shelf(tmp_path)
    looked(shelf)
    (tmp_path / "nodes/n2.yaml").unlink()
    shelf.look_at([str(tmp_path / "nodes/n1.yaml")])
    assert list(shelf.world().nodes) == ["n1", "n2"]
    shelf.look_at([str(tmp_path / "nodes/n2.yaml")])
    assert list(shelf.world().nodes) == ["n1"]


def test_the_same_text_in_another_file_is_no_change(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    shelf = Shelf(tmp_path)
    looked(shelf)
    assert shelf.take_change()
    (tmp_path / "nodes/n1.yaml").unlink()
    write_node(tmp_path, n(1))
    looked(shelf)
    assert not shelf.take_change()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _large(path: Path) -> None:
    path.write_bytes(b"#" * (MAX_BYTES + 1))


def _huge(path: Path) -> None:
    """A file of 1 TiB that takes no room."""
    path.touch()
    os.truncate(path, 1 << 40)


ODD: list[tuple[Callable[[Path], None], str]] = [
    (_pipe, "not a regular file"),
    (_socket, "cannot be read: "),
    (_large, "more than 256 KiB"),
    (_huge, "more than 256 KiB"),
    (lambda path: path.symlink_to("/nowhere/at/all"), ""),
    (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    (lambda path: path.mkdir(), ""),
]


@pytest.mark.parametrize(("make", "why"), ODD, ids=range(len(ODD)))
def test_odd_things_are_named_and_do_not_stop_the_rest(
    tmp_path: Path, make: Callable[[Path], None], why: str
) -> None:
    write_node(tmp_path, n(1))
    make(tmp_path / "nodes/odd.yaml")
    shelf = Shelf(tmp_path)
    for look in (shelf.look_everywhere, lambda: shelf.look_at([str(tmp_path / "nodes/odd.yaml")])):
        look()
        world = shelf.world()
        assert list(world.nodes) == ["n1"]
        assert [row.source for row in world.rejected] == (["nodes/odd.yaml"] if why else [])
        assert all(why in row.why for row in world.rejected)


def test_a_link_to_a_file_is_followed_a_link_to_a_folder_is_not(tmp_path: Path) -> None:
    """The first is how Kubernetes mounts a ConfigMap; the second could go in circles."""
    data = tmp_path / "..data"
    data.mkdir()
    (data / "n1.yaml").write_text(write(n(1)))
    (tmp_path / "n1.yaml").symlink_to("..data/n1.yaml")
    (tmp_path / "loop").symlink_to(tmp_path)
    world = looked(Shelf(tmp_path))
    assert list(world.nodes) == ["n1"]
    assert world.rejected == ()


def test_names_that_are_not_text_are_shown_as_text(tmp_path: Path) -> None:
    for name in (b"\xff\xfe.yaml", b"\x1b[31m.yaml", b"a\nb.yaml"):
        (tmp_path / os.fsdecode(name)).write_text("broken\n")
    rows = looked(Shelf(tmp_path)).rejected
    assert len(rows) == 3
    assert all(row.source.isprintable() for row in rows)


def test_a_file_that_cannot_be_read_for_a_while_keeps_what_it_said(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    path = tmp_path / "nodes/n1.yaml"
    shelf = Shelf(tmp_path)
    looked(shelf)
    aside = path.rename(tmp_path / "aside")
    path.symlink_to(path)
    world = looked(shelf)
    assert list(world.nodes) == ["n1"]
    assert "Too many levels of symbolic links" + KEPT in world.rejected[0].why
    path.unlink()
    aside.rename(path)
    assert looked(shelf).rejected == ()


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that everyone can reach, so that root can look at it as nobody."""
    with tempfile.TemporaryDirectory(prefix="pellicle-shelf-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything: be someone else for a while."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_what_may_not_be_read_keeps_what_it_said(root: Path) -> None:
    write_node(root, n(1))
    (root / "n2.yaml").write_text(write(n(2)))
    (root / "n3.yaml").write_text(write(n(3)))
    shelf = Shelf(root)
    looked(shelf)
    (root / "nodes").chmod(0)
    (root / "n2.yaml").chmod(0)
    (root / "n3.yaml").unlink()
    with as_nobody():
        shelf.look_at([str(root / "nodes"), str(root / "n2.yaml")])
        by_event = shelf.world()
        world = looked(shelf)
    assert list(by_event.nodes) == ["n1", "n2", "n3"]
    assert list(world.nodes) == ["n1", "n2"]
    assert [(row.source, row.why) for row in world.rejected] == [
        ("n2.yaml", f"cannot be read: Permission denied{KEPT}"),
        ("nodes", "cannot be read: Permission denied"),
    ]
    (root / "nodes").chmod(0o755)
    (root / "n2.yaml").chmod(0o644)
    assert looked(shelf).rejected == ()


def test_a_root_that_may_not_be_listed_is_an_error_and_forgets_nothing(root: Path) -> None:
    write_node(root, n(1))
    shelf = Shelf(root)
    looked(shelf)
    root.chmod(0o111)
    with as_nobody(), pytest.raises(PermissionError):
        shelf.look_everywhere()
    assert list(shelf.world().nodes) == ["n1"]


def test_a_root_that_is_gone_is_an_error_and_forgets_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_node(root, n(1))
    shelf = Shelf(root)
    looked(shelf)
    assert not shelf.has_moved()
    root.rename(tmp_path / "away")
    assert shelf.has_moved()
    with pytest.raises(FileNotFoundError):
        shelf.look_everywhere()
    root.touch()
    with pytest.raises(NotADirectoryError):
        shelf.look_everywhere()
    assert list(shelf.world().nodes) == ["n1"]


def test_an_empty_directory_in_its_place_is_believed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write_node(root, n(1))
    shelf = Shelf(root)
    looked(shelf)
    root.rename(tmp_path / "away")
    root.mkdir()
    assert looked(shelf) == World({}, {}, {}, {})


class Cluster(RuleBasedStateMachine):
    """Whatever is done to the files: told where to look, the shelf knows what a new one would."""

    names = st.sampled_from(["a.yaml", "nodes/a.yaml", "nodes/deep/b.yml", "x/y/z.yaml"])
    folders = st.sampled_from(["nodes", "nodes/deep", "x", "x/y", "moved"])

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.shelf = Shelf(self.root)
        self.touched: set[str] = set()
        self.must_look_everywhere = True

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def touch(self, path: Path) -> None:
        self.touched.add(str(path))

    @rule(name=names, numbers=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def write(self, name: str, numbers: list[int]) -> None:
        path = self.root / name
        for parent in reversed(path.relative_to(self.root).parents):
            if not (self.root / parent).exists():
                self.touch(self.root / parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("---\n".join(write(n(number)) for number in numbers))
        self.touch(path)

    @rule(name=names)
    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)
        self.touch(self.root / name)

    @rule(before=folders, after=folders)
    def move(self, before: str, after: str) -> None:
        one, other = self.root / before, self.root / after
        is_free = other.parent.exists() and not other.exists()
        if one.exists() and is_free and one not in other.parents:
            one.rename(other)
            self.touch(one)
            self.touch(other)

    @rule(folder=folders)
    def remove_folder(self, folder: str) -> None:
        if (self.root / folder).exists():
            shutil.rmtree(self.root / folder)
            self.touch(self.root / folder)

    @rule()
    def look_around(self) -> None:
        self.shelf.look_everywhere()
        self.touched.clear()
        self.must_look_everywhere = False

    @rule()
    def look_where_told(self) -> None:
        self.must_look_everywhere |= self.shelf.look_at(sorted(self.touched))
        self.touched.clear()

    @invariant()
    def knows_what_a_new_one_would(self) -> None:
        if not self.touched and not self.must_look_everywhere:
            fresh = Shelf(self.root)
            fresh.look_everywhere()
            assert self.shelf.world() == fresh.world()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
