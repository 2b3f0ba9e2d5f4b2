# SPDX-License-Identifier: Apache-2.0
"""The shelf: only what changed is read, and whatever lies there, the rest goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pellicle.sources.files import write_node
from pellicle.sources.resources import MAX_BYTES, write
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
    assert looked(shelf) == World({}, {}, {})
