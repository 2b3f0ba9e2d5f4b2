# SPDX-License-Identifier: Apache-2.0
"""Labs for tests.

    def test_something(make_lab):
        state = make_lab(2, 1)

There is one lab on a machine: the session holds its lock, cleans what an earlier one left, and
removes its own at the end, also after Ctrl-C. `make test` has two sessions beside each other, in
what `apart.sh` makes look like two machines. `make_lab` is `lab.up` with the engine of the
command line: a shape that stands already costs a fraction of a second. `bare_wire` gives nodes
and wire without any agent.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import cabling
from pellicle.lab.topology import BPFFS, LOCK, RUN, LabNode, nodes_of

LOCK_SECONDS = 600


@pytest.fixture(scope="session")
def lab_place() -> Iterator[None]:
    """The machine's one place for a lab: ours, and empty."""
    assert os.geteuid() == 0, "a lab makes network namespaces and loads BPF programs: run as root"
    with lab.locked(wait_seconds=LOCK_SECONDS):
        lab.down()
        yield
        lab.down()


@pytest.fixture(scope="module")
def make_lab(lab_place: None, engine: str) -> Iterator[Callable[..., lab.LabState]]:
    """`lab.up`, with `--engine` unless told otherwise; what it made goes with the module."""
    yield partial(lab.up, engine=engine)
    lab.down()


@pytest.fixture
def bare_wire(lab_place: None) -> Iterator[tuple[LabNode, ...]]:
    """Three nodes on the wire, addressed and routed, with nothing of Pellicle in them."""
    lab.down()
    nodes = nodes_of(3)
    cabling.lay_wire()
    for node in nodes:
        cabling.connect_node(node, 1500)
    yield nodes
    lab.down()


@pytest.fixture
def footprint() -> Callable[[], dict[str, set[str]]]:
    """What of a lab can be seen on this machine, by kind."""
    return _footprint


def _footprint() -> dict[str, set[str]]:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    pins = Path("/sys/fs/bpf")
    return {
        "namespaces": {name for name in netns.names() if name.startswith("pellicle-")},
        "links": {line.split(": ")[1] for line in links.splitlines()},
        "processes": set(_lab_processes()),
        "pins": {str(path) for path in pins.rglob("*") if BPFFS.name in path.parts},
        "mounts": {line for line in mounts if "pellicle" in line or "bpf" in line},
        "files": {str(path) for path in (RUN, BPFFS, LOCK) if path.exists()},
    }


def _lab_processes() -> Iterator[str]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(RUN) in words or "pellicle/lab/traffic.py" in words:
                yield f"{path.name} {words}"
