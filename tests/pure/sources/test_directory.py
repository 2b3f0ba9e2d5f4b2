# SPDX-License-Identifier: Apache-2.0
"""The directory source, on real files and inotify: what is written comes out, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pellicle.sources.directory import (
    Directory,
    World,
    claim_identity,
    remove_endpoint,
    write_endpoint,
    write_node,
)
from pellicle.sources.manifest import write
from pellicle.sources.resources import place
from pellicle.sources.shelf import KEPT
from tests.pure.sources.facts_made import n, node, pod

DEADLINE_SECONDS = 10.0
NEVER = 3600.0
"""A refresh that will not come: only inotify can have told."""
P1 = pod("p1", "n1", "10.244.1.2", app="web")


class Watch:
    """Worlds as they come, until one is as wanted."""

    def __init__(self, worlds: AsyncGenerator[World, None]) -> None:
        self._worlds = worlds
        self.seen: list[World] = []

    async def until(self, wanted: Callable[[World], bool]) -> World:
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for world in self._worlds:
                self.seen.append(world)
                if wanted(world):
                    return world
        raise AssertionError("the worlds ended")

    async def silence(self, seconds: float) -> None:
        """Nothing new comes for `seconds`."""
        task = asyncio.ensure_future(anext(self._worlds))
        done, _ = await asyncio.wait([task], timeout=seconds)
        task.cancel()
        await asyncio.wait([task])
        assert not done, f"a world that nobody asked for: {task.result()}"


@asynccontextmanager
async def watching(directory: Directory) -> AsyncGenerator[Watch, None]:
    async with aclosing(directory.worlds()) as worlds:
        yield Watch(worlds)


async def settled(watch: Watch, path: Path) -> None:
    """The watch stands, and whatever is looked at once more at the start has been."""
    for resource in (n(101), n(102)):
        write_node(path, resource)
        await watch.until(lambda world, name=resource.name: name in world.nodes)  # type: ignore[misc]
        (path / place(resource)).unlink()
        await watch.until(lambda world, name=resource.name: name not in world.nodes)  # type: ignore[misc]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def has_nodes(*names: str) -> Callable[[World], bool]:
    return lambda world: list(world.nodes) == list(names)


async def test_an_empty_directory_is_an_empty_world(tmp_path: Path) -> None:
    async with watching(Directory(tmp_path, NEVER)) as watch:
        assert await watch.until(lambda _: True) == World({}, {}, {}, {})


async def test_everything_written_comes_out(tmp_path: Path) -> None:
    async with watching(Directory(tmp_path, NEVER)) as watch:
        await watch.until(has_nodes())
        write_node(tmp_path, n(1))
        assert (await watch.until(has_nodes("n1"))).nodes["n1"] == n(1)
        identity = claim_identity(tmp_path, "default", {"app": "web"})
        write_endpoint(tmp_path, P1)
        world = await watch.until(lambda world: len(world.endpoints) == 1)
        assert world.endpoints[P1.name] == P1
        assert world.identities[identity.number] == identity
        remove_endpoint(tmp_path, P1)
        await watch.until(lambda world: not world.endpoints)
        (tmp_path / "nodes/n1.yaml").unlink()
        await watch.until(has_nodes())


async def test_files_anywhere_count_and_only_yaml(tmp_path: Path) -> None:
    for path, resource in {
        "nodes/n1.yaml": n(1),
        "more/by/hand/n2.yml": n(2),
        "n3.yaml": n(3),
        ".n4.yaml": n(4),
        ".hidden/n5.yaml": n(5),
        "n6.yaml.tmp": n(6),
        "n7.yaml~": n(7),
        "n8.json": n(8),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(write(resource))
    async with watching(Directory(tmp_path, NEVER)) as watch:
        world = await watch.until(lambda _: True)
        assert list(world.nodes) == ["n1", "n2", "n3"]
        assert world.rejected == ()


async def test_a_hundred_nodes_join_and_leave(tmp_path: Path) -> None:
    async with watching(Directory(tmp_path, NEVER)) as watch:
        await watch.until(has_nodes())
        for number in range(1, 101):
            write_node(tmp_path, n(number))
        await watch.until(lambda world: len(world.nodes) == 100)
        for number in range(1, 101, 2):
            (tmp_path / f"nodes/n{number}.yaml").unlink()
        world = await watch.until(lambda world: len(world.nodes) == 50)
        assert world.rejected == ()
        # A burst is a few worlds, not one for each file.
        assert len(watch.seen) < 50


async def test_a_folder_that_is_moved_in_brings_its_files(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    (outside / "nodes/deep").mkdir(parents=True)
    (outside / "nodes/deep/n1.yaml").write_text(write(n(1)))
    async with watching(Directory(inside, NEVER)) as watch:
        await watch.until(has_nodes())
        (outside / "nodes").rename(inside / "nodes")
        await watch.until(has_nodes("n1"))
        write_node(inside, n(2))
        await watch.until(has_nodes("n1", "n2"))
        (inside / "nodes").rename(outside / "nodes")
        await watch.until(has_nodes())


async def test_a_bad_edit_takes_nothing_away(tmp_path: Path) -> None:
    write_node(tmp_path, n(1))
    path = tmp_path / "nodes/n1.yaml"
    async with watching(Directory(tmp_path, NEVER)) as watch:
        await watch.until(has_nodes("n1"))
        for broken in ("", "apiVersion: pell", write(n(1)).replace("podCIDRs", "podCIDR")):
            path.write_text(broken)
            world = await watch.until(lambda world: world.rejected != ())
            assert world.nodes["n1"] == n(1)
            assert world.rejected[0].why.endswith(KEPT)
            path.write_text(write(n(1)))
            await watch.until(lambda world: world.rejected == ())
        path.write_text("broken")
        await watch.until(lambda world: world.rejected != ())
        changed = replace(n(1), offers=())
        path.write_text(write(changed))
        assert (await watch.until(lambda world: not world.rejected)).nodes["n1"] == changed
        path.write_text("broken")
        await watch.until(lambda world: world.rejected != ())
        path.unlink()
        await watch.until(has_nodes())


async def test_a_file_that_was_bad_from_the_start_has_nothing_to_keep(tmp_path: Path) -> None:
    (tmp_path / "n1.yaml").write_text("broken")
    async with watching(Directory(tmp_path, NEVER)) as watch:
        world = await watch.until(lambda _: True)
        assert [row.source for row in world.rejected] == ["n1.yaml"]
        assert KEPT not in world.rejected[0].why


async def test_in_a_file_of_many_only_the_broken_one_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(f"{write(n(1))}---\n{write(n(2))}")
    async with watching(Directory(tmp_path, NEVER)) as watch:
        await watch.until(has_nodes("n1", "n2"))
        moved = node("n1", "192.0.2.101", cidrs=("10.244.1.0/24",))
        path.write_text(f"{write(moved)}---\n{write(n(2)).replace('spec', 'spce')}")
        world = await watch.until(lambda world: world.rejected != ())
        assert world.nodes == {"n1": moved, "n2": n(2)}


async def test_a_missing_directory_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "later"
    directory = Directory(path, NEVER)
    async with watching(directory) as watch:
        waiting = asyncio.ensure_future(watch.until(has_nodes("n1")))
        await eventually(lambda: directory.problem is not None)
        assert str(path) in (directory.problem or "")
        assert "create it, or mount it" in (directory.problem or "")
        assert not watch.seen, "a missing directory was taken for an empty cluster"
        path.mkdir()
        write_node(path, n(1))
        await waiting
        assert directory.problem is None


async def test_a_directory_that_vanishes_leaves_the_last_world_in_force(tmp_path: Path) -> None:
    path, away = tmp_path / "cluster", tmp_path / "away"
    path.mkdir()
    write_node(path, n(1))
    directory = Directory(path, NEVER)
    async with watching(directory) as watch:
        await settled(watch, path)
        path.rename(away)
        next_one = asyncio.ensure_future(watch.until(lambda _: True))
        await eventually(lambda: directory.problem is not None)
        assert "stays in force" in (directory.problem or "")
        assert not next_one.done()
        write_node(away, n(2))
        away.rename(path)
        assert list((await next_one).nodes) == ["n1", "n2"]
        assert directory.problem is None
        await settled(watch, path)


async def test_another_directory_in_its_place_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "cluster"
    path.mkdir()
    write_node(path, n(1))
    async with watching(Directory(path, NEVER)) as watch:
        await settled(watch, path)
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        write_node(fresh, n(2))
        shutil.rmtree(path)
        fresh.rename(path)
        await watch.until(has_nodes("n2"))
        await settled(watch, path)


async def test_whoever_writes_what_he_reads_does_not_go_in_circles(tmp_path: Path) -> None:
    async with watching(Directory(tmp_path, 0.2)) as watch:
        await watch.until(has_nodes())
        write_node(tmp_path, n(1))
        world = await watch.until(has_nodes("n1"))
        write_node(tmp_path, world.nodes["n1"])
        os.utime(tmp_path / "nodes/n1.yaml")
        (tmp_path / "nodes/.draft.tmp").touch()
        # Several refreshes pass in this time.
        await watch.silence(1.5)


async def test_closing_is_prompt(tmp_path: Path) -> None:
    directory = Directory(tmp_path, NEVER)

    async def follow() -> None:
        async with watching(directory) as watch:
            await watch.until(lambda world: bool(world.nodes))

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    async with asyncio.timeout(3):
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
