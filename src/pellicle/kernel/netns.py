# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: made and named as `ip netns` does it, entered by one thread at a time.

A thread that is `inside` a namespace does in it whatever it does: opens sockets, starts
processes and threads (which all stay there when it leaves), reads and writes /proc/sys/net.
Nothing else of the process moves, and no file system is mounted or hidden, as `ip netns exec`
would do with /sys. Never await inside: the event loop's other tasks would be in there too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pellicle.kernel import libc

DIRECTORY = Path("/run/netns")

Namespace = str | Path | int
"""A name as in `ip netns`, a path such as /proc/123/ns/net, or an open descriptor."""

T = TypeVar("T")


def path_of(namespace: Namespace) -> Path:
    """Where the namespace can be opened."""
    if isinstance(namespace, int):
        return Path(f"/proc/{os.getpid()}/fd/{namespace}")
    return DIRECTORY / namespace if isinstance(namespace, str) else namespace


def create(name: str) -> Path:
    """Makes a namespace with a name; FileExistsError when the name is taken.

    Its loopback is down, as the kernel makes it.
    """
    _share_directory()
    path = DIRECTORY / name
    path.touch(mode=0o444, exist_ok=False)
    try:
        _in_thread(lambda: _bind_new(path))
    except BaseException:
        path.unlink()
        raise
    return path


def delete(name: str) -> bool:
    """Takes a name away; False when there was none.

    The namespace itself goes with its last process and open descriptor.
    """
    path = DIRECTORY / name
    if not path.exists():
        return False
    # A name left by a crash, or by another mount namespace, has nothing mounted on it.
    with contextlib.suppress(OSError):
        libc.unmount(path)
    path.unlink(missing_ok=True)
    return True


def names() -> list[str]:
    """The named namespaces."""
    return sorted(each.name for each in DIRECTORY.iterdir()) if DIRECTORY.exists() else []


@contextlib.contextmanager
def opened(namespace: Namespace) -> Iterator[int]:
    """A descriptor of the namespace; the caller's own stays open afterwards."""
    if isinstance(namespace, int):
        yield namespace
        return
    fd = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def inside(namespace: Namespace | None) -> Iterator[None]:
    """Moves this thread into a namespace and back; None stays where it is."""
    if namespace is None:
        yield
        return
    with opened(namespace) as there, opened(Path("/proc/thread-self/ns/net")) as here:
        libc.set_network_namespace(there)
        try:
            yield
        finally:
            libc.set_network_namespace(here)


def run_in(
    namespace: Namespace, argv: Sequence[str], **popen: Any
) -> subprocess.CompletedProcess[Any]:
    """Runs a program in a namespace to its end; keywords as for subprocess.run."""
    with inside(namespace):
        return subprocess.run(argv, **popen)  # noqa: PLW1510  `check` is the caller's to give


def start_in(namespace: Namespace, argv: Sequence[str], **popen: Any) -> subprocess.Popen[Any]:
    """Starts a program in a namespace; keywords as for subprocess.Popen."""
    with inside(namespace):
        return subprocess.Popen(argv, **popen)


def socket_in(
    namespace: Namespace | None, family: int, kind: int, protocol: int = 0
) -> socket.socket:
    """A socket that lives in a namespace, for a caller who stays outside."""
    with inside(namespace):
        return socket.socket(family, kind, protocol)


def in_new(act: Callable[[], T]) -> T:
    """Does something in a new namespace without a name, which goes with all that was made in it."""

    def move_and_act() -> T:
        libc.new_network_namespace()
        return act()

    return _in_thread(move_and_act)


def read_sysctl(name: str, namespace: Namespace | None = None) -> str:
    """A setting such as net/ipv4/conf/eth0/rp_filter; with slashes, for devices have dots."""
    with inside(namespace):
        return _sysctl(name).read_text("ascii").strip()


def write_sysctl(name: str, value: str | int, namespace: Namespace | None = None) -> None:
    """Changes a setting; FileNotFoundError when this kernel or namespace has none such."""
    with inside(namespace):
        _sysctl(name).write_text(f"{value}\n", "ascii")


def _sysctl(name: str) -> Path:
    return Path("/proc/sys", name)


def _bind_new(path: Path) -> None:
    libc.new_network_namespace()
    libc.mount("/proc/thread-self/ns/net", path, "none", libc.MS_BIND)


def _share_directory() -> None:
    """Makes new names visible in other mount namespaces, and deletable there."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        libc.mount("", DIRECTORY, "none", libc.MS_SHARED | libc.MS_REC)
    except OSError:  # not a mount point yet
        libc.mount(str(DIRECTORY), DIRECTORY, "none", libc.MS_BIND | libc.MS_REC)
        libc.mount("", DIRECTORY, "none", libc.MS_SHARED | libc.MS_REC)


def _in_thread(act: Callable[[], T]) -> T:
    """Does something in a thread that ends afterwards, whatever it has become meanwhile."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(act())
        except BaseException as error:  # noqa: BLE001  it is raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="new namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
