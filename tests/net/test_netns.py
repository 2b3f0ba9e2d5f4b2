# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: made, entered by one thread, left again; seen the same way by `ip netns`."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellicle.kernel import netns
from tests import pace

NAME = f"pellicle-t{os.getpid()}-ns"


@pytest.fixture
def name() -> Iterator[str]:
    netns.create(NAME)
    yield NAME
    netns.delete(NAME)


def here() -> str:
    """The network namespace of this thread."""
    return Path("/proc/thread-self/ns/net").readlink().name


def test_a_namespace_is_what_ip_netns_makes(name: str) -> None:
    assert name in netns.names()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert name in [line.split()[0] for line in listed.stdout.splitlines()]
    inode = netns.path_of(name).stat().st_ino
    with netns.inside(name):
        assert here() == f"net:[{inode}]"


def test_a_namespace_of_ip_netns_can_be_entered_and_deleted() -> None:
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        with netns.inside(NAME):
            assert [each for _, each in socket.if_nameindex()] == ["lo"]
    finally:
        assert netns.delete(NAME) is True
    assert NAME not in netns.names()


def test_a_name_is_given_once(name: str) -> None:
    with pytest.raises(FileExistsError):
        netns.create(name)
    assert name in netns.names()


def test_deleting_what_is_not_there_is_no_error() -> None:
    assert netns.delete("pellicle-never-made") is False


def test_a_name_left_without_a_namespace_can_be_deleted() -> None:
    (netns.DIRECTORY / NAME).touch()
    assert netns.delete(NAME) is True
    assert NAME not in netns.names()


def test_making_one_moves_nobody() -> None:
    before = here()
    netns.create(NAME)
    try:
        assert here() == before
    finally:
        netns.delete(NAME)


def test_only_the_thread_that_enters_is_inside(name: str) -> None:
    outside, seen = here(), []
    entered, looked = threading.Event(), threading.Event()

    def look() -> None:
        entered.wait(pace.patient(10))
        seen.append(here())
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with netns.inside(name):
        entered.set()
        assert looked.wait(pace.patient(10))
        assert here() != outside
    thread.join()
    assert (here(), seen) == (outside, [outside])


def test_a_thread_comes_back_after_an_error(name: str) -> None:
    before = here()
    with pytest.raises(ZeroDivisionError), netns.inside(name):
        _ = 1 // 0
    assert here() == before


@pytest.mark.parametrize("form", ["name", "path", "descriptor"])
def test_a_namespace_is_named_in_three_ways(name: str, form: str) -> None:
    with netns.opened(name) as fd:
        chosen = {"name": name, "path": netns.path_of(name), "descriptor": fd}[form]
        with netns.inside(chosen):
            assert here() == f"net:[{os.fstat(fd).st_ino}]"
        os.fstat(fd)  # still open


def test_a_program_runs_inside_and_keeps_its_file_systems(name: str) -> None:
    ran = netns.run_in(
        name, ["sh", "-c", "readlink /proc/self/ns/net /proc/self/ns/mnt"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    network, mounts = ran.stdout.split()
    assert network == f"net:[{netns.path_of(name).stat().st_ino}]"
    assert mounts == Path("/proc/self/ns/mnt").readlink().name


def test_a_program_is_started_inside(name: str) -> None:
    with netns.start_in(name, ["cat"], stdin=subprocess.PIPE) as process:
        inside = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        process.communicate()
    assert inside == netns.path_of(name).stat().st_ino
    assert process.returncode == 0


def test_a_program_that_is_not_there_is_an_error_and_moves_nobody(name: str) -> None:
    before = here()
    with pytest.raises(FileNotFoundError):
        netns.run_in(name, ["/nonexistent"])
    assert here() == before


def test_a_socket_stays_inside_when_its_maker_leaves(name: str) -> None:
    # The loopback of a new namespace is down; the one outside would take the frame.
    with netns.socket_in(name, socket.AF_PACKET, socket.SOCK_RAW) as door:
        door.bind(("lo", 0))
        with pytest.raises(OSError, match="Network is down"):
            door.send(bytes(14))


def test_settings_belong_to_the_namespace(name: str) -> None:
    setting = "net/ipv4/ip_forward"
    outside = netns.read_sysctl(setting)
    wanted = "0" if outside == "1" else "1"
    netns.write_sysctl(setting, wanted, name)
    assert netns.read_sysctl(setting, name) == wanted
    assert netns.read_sysctl(setting) == outside
    with pytest.raises(FileNotFoundError):
        netns.write_sysctl("net/ipv4/conf/absent/rp_filter", 0, name)
