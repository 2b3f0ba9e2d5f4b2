# SPDX-License-Identifier: Apache-2.0
"""Sources on what only root can make: devices, mounts, other people's files, used-up limits."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import pytest

from pellicle.facts import Link
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.sources.directory import Directory, World, write_node
from pellicle.sources.links import links, snapshot
from pellicle.sources.secrets import SecretFileError, read_secret
from pellicle.wire.link import VethEnd
from tests import pace
from tests.pure.sources.facts_made import n

NAMESPACE = f"pellicle-t{os.getpid()}-links"
DEADLINE_SECONDS = 10.0


@pytest.fixture
def namespace() -> Iterator[str]:
    netns.create(NAMESPACE)
    yield NAMESPACE
    netns.delete(NAMESPACE)


async def follow(
    seen: AsyncGenerator[Mapping[str, Link], None], wanted: Callable[[Mapping[str, Link]], bool]
) -> Mapping[str, Link]:
    async with asyncio.timeout(pace.patient(DEADLINE_SECONDS)):
        async for devices in seen:
            if wanted(devices):
                return devices
    raise AssertionError("the devices ended")


async def test_devices_are_followed_through_all_that_happens_to_them(namespace: str) -> None:
    def ip(*words: str) -> None:
        subprocess.run(["ip", "-n", namespace, *words], check=True)

    with Netlink(namespace) as netlink:
        async with aclosing(links(namespace)) as seen:
            assert list(await follow(seen, lambda _: True)) == ["lo"]
            netlink.add_veth(VethEnd("va", "02:00:00:00:00:01", 1446), VethEnd("vb"))
            devices = await follow(seen, lambda now: {"va", "vb"} <= set(now))
            index = netlink.link("va").index
            assert devices["va"] == Link("va", index, "02:00:00:00:00:01", 1446, is_up=False)
            ip("link", "set", "va", "up")
            await follow(seen, lambda now: now["va"].is_up)
            ip("link", "set", "va", "mtu", "1400")
            await follow(seen, lambda now: now["va"].mtu == 1400)
            # A bridge says of a port that leaves it what the kernel says of a device that goes.
            ip("link", "add", "bridge0", "type", "bridge")
            ip("link", "set", "va", "master", "bridge0")
            await follow(seen, lambda now: "bridge0" in now)
            ip("link", "set", "va", "nomaster")
            ip("link", "set", "vb", "address", "02:00:00:00:00:02")
            devices = await follow(seen, lambda now: now["vb"].mac == "02:00:00:00:00:02")
            assert devices["va"].index == index
            ip("link", "set", "vb", "name", "vc")
            assert "vb" not in await follow(seen, lambda now: "vc" in now)
            ip("link", "del", "va")
            devices = await follow(seen, lambda now: "va" not in now and "vc" not in now)
            assert devices == snapshot(netlink)
            assert set(devices) == {"lo", "bridge0"}


async def test_a_storm_of_devices_ends_in_the_truth(namespace: str) -> None:
    """More events than a socket holds: what is lost must not matter."""
    with Netlink(namespace) as netlink:
        async with aclosing(links(namespace)) as seen:
            await follow(seen, lambda _: True)
            for number in range(150):
                netlink.add_veth(VethEnd(f"a{number}"), VethEnd(f"b{number}"))
            for number in range(0, 150, 2):
                netlink.remove_link(f"a{number}")
            devices = await follow(seen, lambda now: len(now) == 151)
            assert devices == snapshot(netlink)


def mount_at(path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], check=True)


def unmount(path: Path) -> bool:
    return subprocess.run(["umount", str(path)], check=False, capture_output=True).returncode == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mount"
    path.mkdir()
    mount_at(path)
    yield path
    unmount(path)


async def test_an_unmounted_directory_is_not_an_empty_cluster(mount: Path) -> None:
    write_node(mount, n(1))
    directory = Directory(mount, 3600)
    worlds: list[World] = []

    async def collect() -> None:
        async with aclosing(directory.worlds()) as seen:
            async for world in seen:
                worlds.append(world)  # noqa: PERF401 -- it never ends

    async def eventually(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(pace.patient(DEADLINE_SECONDS)):
            while not condition():
                await asyncio.sleep(0.02)

    task = asyncio.create_task(collect())
    await eventually(lambda: len(worlds) == 1)
    assert unmount(mount)
    await eventually(lambda: directory.problem is not None)
    assert "unmounted?: mount it again; what was last known stays" in (directory.problem or "")
    assert len(worlds) == 1
    mount_at(mount)
    write_node(mount, n(2))
    await eventually(lambda: list(worlds[-1].nodes) == ["n2"])
    assert directory.problem is None
    task.cancel()
    await asyncio.wait([task])


UNWATCHED = textwrap.dedent("""
    import asyncio, json, sys
    from pathlib import Path
    from pellicle.sources.directory import Directory, write_node
    from tests.pure.sources.facts_made import n

    async def main(path):
        directory = Directory(path, 0.2)
        worlds = directory.worlds()
        first = await anext(worlds)
        write_node(path, n(1))
        second = await anext(worlds)
        problem = directory.problem
        await worlds.aclose()
        print(json.dumps([list(first.nodes), list(second.nodes), problem]))

    asyncio.run(main(Path(sys.argv[1])))
""")


def test_where_nothing_can_be_watched_the_refresh_finds_changes(tmp_path: Path) -> None:
    """In a user namespace of its own, which may have no inotify instance at all."""
    tmp_path.chmod(0o777)
    script = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "sh", "-ec", script, "sh"]
    done = subprocess.run(
        [*argv, sys.executable, "-c", UNWATCHED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=pace.patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, problem = json.loads(done.stdout)
    assert (first, second) == ([], ["n1"])
    assert "cannot be watched" in problem
    assert "looking at every file each 0.2 s instead" in problem


def test_a_secret_that_belongs_to_someone_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_text("x" * 64)
    path.chmod(0o600)
    assert read_secret(path)
    os.chown(path, 1000, 0)
    with pytest.raises(SecretFileError, match="belongs to uid 1000: chown it to root"):
        read_secret(path)
