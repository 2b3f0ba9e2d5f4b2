# SPDX-License-Identifier: Apache-2.0
"""What must be encrypted and cannot be is dropped, under its own name, and nothing is heard.

Each case disturbs one thing, lets a pod speak, and then looks at three places: the wire (silent),
the counters (the right reason, and only that), the flows (the packet, by name).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.bpf import Map
from pellicle.keys import secret as secrets
from pellicle.lab import agents, processes
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, PSK, LabNode
from pellicle.sources.directory import remove_node, write_node
from tests.net.engines import kernel_drops, of
from tests.net.loaded import address_of, until
from tests.net.parcels import is_echoed
from tests.net.test_churn import stranger

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
MARKER = b"nobody-may-read-this-either"
SAY = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
for _ in range(3):
    socket.socket(family, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 4303))
"""


@pytest.fixture(scope="module")
def two(make_lab: MakeLab) -> lab.LabState:
    return make_lab(2, 1, encrypt=True)


@dataclass(frozen=True)
class Case:
    says: str
    reason: str
    disturb: Callable[[], Any]
    """A context manager."""
    to: Callable[[int], str]
    """The destination, by family."""


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def a_peer_without_offers() -> Iterator[None]:
    """Its pods are known, its node publishes no key: as after a restart with encryption off."""
    node = replace(stranger(secrets.parse(PSK.read_bytes()), 7), offers=())
    write_node(CLUSTER, node)
    until(lambda: str(node.addresses[0]) in _known(N1), "the stranger is known")
    try:
        yield
    finally:
        remove_node(CLUSTER, node.name)


@contextmanager
def a_spent_sa() -> Iterator[None]:
    """The way it ends by itself: the row says that its last number has been sent."""
    with Map.open_pinned(N1.bpffs / "maps" / "sa_out") as found:
        rows = found.items()
        spent = [(key, row[:8] + (0).to_bytes(8, "little") + row[16:]) for key, row in rows]
        found.update_batch(spent)
        try:
            yield
        finally:
            # The sequence goes on where the traffic of meanwhile has left it.
            now = dict(found.items())
            found.update_batch(
                [(key, now[key][:8] + row[8:16] + now[key][16:]) for key, row in rows]
            )


@contextmanager
def no_states() -> Iterator[None]:
    """Someone clears the kernel's, and no agent is there to make others."""
    lab.kill_agent("n1")
    _run_on(N1, ["ip", "xfrm", "state", "flush"])
    try:
        yield
    finally:
        lab.start_agent("n1")


@contextmanager
def no_encryption_row() -> Iterator[None]:
    with Map.open_pinned(N1.bpffs / "maps" / "encrypt") as found:
        rows = found.items()
        found.delete_batch([key for key, _ in rows])
        try:
            yield
        finally:
            found.update_batch(rows)


def pod(family: int) -> str:
    return address_of("n2/p1", family)


def nobody(family: int) -> str:
    return "10.244.2.250" if family == 4 else "fd00:244:2::fafa"


def at_the_stranger(family: int) -> str:
    """The gateway of the stranger's pod CIDR."""
    return "10.244.107.1" if family == 4 else "fd00:244:107::1"


CASES = (
    Case("a cluster address that nobody has", "DROP_UNKNOWN_PEER", nothing, nobody),
    Case("a peer without a key", "DROP_NO_KEY", a_peer_without_offers, at_the_stranger),
    Case("a lost row of the encryption table", "DROP_NO_KEY", no_encryption_row, pod),
)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_what_cannot_be_encrypted_is_dropped_by_name(
    two: lab.LabState, case: Case, family: int
) -> None:
    with case.disturb():
        _assert_dropped(case.reason, case.to(family))


@pytest.mark.parametrize("family", [4, 6])
def test_an_sa_of_no_use_lets_nothing_out(two: lab.LabState, family: int) -> None:
    """It is spent; or, where the kernel encrypts, gone: that engine has no last number to reach."""
    if of(N1).name == "bpf":
        with a_spent_sa():
            _assert_dropped("DROP_SA_EXPIRED", pod(family))
        return
    before = kernel_drops(N1)
    with no_states(), _silence():
        _speak("n1/p1", pod(family))
        until(lambda: kernel_drops(N1) != before, "the kernel has no SA for it")
    until(lambda: is_echoed("n1/p1", family, pod(family)), "new keys, and it goes on")


@pytest.mark.parametrize("family", [4, 6])
def test_the_last_door_stops_what_was_routed_past_the_first(two: lab.LabState, family: int) -> None:
    """Someone has a rule of his own for another node's pods: past the door, to the uplink."""
    destination = pod(family)
    rule = ["ip", f"-{family}", "rule", "add", "pref", "1", "to", destination, "lookup", "main"]
    _run_on(N1, rule)
    before = _counts(N1)
    try:
        with Sniffer(markers=[MARKER]) as wire:
            netns.run_in(N1.namespace, [sys.executable, "-c", SAY, destination, MARKER.decode()])
            until(lambda: "DROP_CLEAR_TO_CLUSTER" in _grown(N1, before), "named")
            wire.settle()
            assert wire.marks() == {}
            assert wire.leaks() == ()
    finally:
        _run_on(N1, ["del" if word == "add" else word for word in rule])


@pytest.mark.parametrize("family", [4, 6])
def test_without_the_door_nothing_from_a_pod_reaches_a_node_in_the_clear(
    two: lab.LabState, family: int
) -> None:
    """The main table knows a way to every node."""
    node = "192.168.2.2" if family == 4 else "fd00:168:2::2"
    with Sniffer(markers=[MARKER]) as wire:
        _run_on(N1, ["ip", "link", "del", of(N1).door])
        for _ in range(5):
            _speak("n1/p1", node)
        _run_on(N1, ["ip", f"-{family}", "rule", "del", "pref", "1"])
        for _ in range(5):
            _speak("n1/p1", node)
        wire.settle()
        assert wire.marks() == {}
    lab.restart_agent("n1")
    until(lambda: bool(agents.status(N1)["healthy"]), "it is mended")


def test_an_agent_without_maps_and_directory_lets_no_cluster_address_out(
    two: lab.LabState,
) -> None:
    """As after an upgrade that makes the maps anew, while the directory is away."""
    lab.kill_agent("n1")
    for pin in (N1.bpffs / "maps").iterdir():
        pin.unlink()
    away = CLUSTER.with_name("away")
    CLUSTER.rename(away)
    try:
        lab.start_agent("n1", wait=False)
        until(lambda: _table(N1, "programs")["applied"] >= 4, "the new programs are in place")
        with Sniffer(markers=[MARKER]) as wire:
            for destination in (pod(4), pod(6), "10.244.77.7", "fd00:244:77::7"):
                _speak("n1/p1", destination)
                netns.run_in(
                    N1.namespace, [sys.executable, "-c", SAY, destination, MARKER.decode()]
                )
            wire.settle()
            assert wire.marks() == {}
    finally:
        away.rename(CLUSTER)
    until(lambda: bool(agents.status(N1)["healthy"]), "it is mended")


def test_without_the_doors_program_nothing_passes(make_lab: MakeLab) -> None:
    """Someone detaches it: what is routed there ends there, until the next refresh heals it."""
    make_lab(2, 1, settings={"refresh_seconds": 2})
    link, destinations = N1.bpffs / "links" / of(N1).link, (pod(4), pod(6))
    agent = processes.read_pid_file(N1.pid_file)
    assert agent is not None
    processes.send_signal(agent, signal.SIGSTOP)  # the refresh shall not come too early
    try:
        link.unlink()
        with _silence() as wire:
            for destination in destinations:
                _speak("n1/p1", destination)
            wire.settle()
            assert [
                flow for flow in wire.counts() if (flow.source, flow.kind) == ("n1", Kind.ESP)
            ] == []
    finally:
        processes.send_signal(agent, signal.SIGCONT)
    until(link.exists, "healed")


def test_encryption_off_is_never_silent(make_lab: MakeLab) -> None:
    make_lab(2, 1, encrypt=False)
    row = agents.status(N1)
    assert (row["encryption"], row["healthy"]) == ("off", False)
    assert any("OFF" in problem for problem in row["problems"])
    argv = [sys.executable, "-m", "pellicle", "status", "--node", "n1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "off" in done.stdout.lower()
    _speak("n1/p1", pod(4))
    until(lambda: _counts(N1)["CLEAR_DISABLED"] > 0, "reported as clear because it is off")


def _assert_dropped(reason: str, destination: str) -> None:
    """What a pod says to it is counted under this reason alone, and is a flow by that name."""
    before = _counts(N1)
    with _silence():
        _speak("n1/p1", destination)
        until(lambda: _grown(N1, before) == {reason}, f"{reason}, and only that")
    flows = [row for row in agents.ask(N1, "flows", verdict="dropped") if row["reason"] == reason]
    assert any(row["destination"]["address"] == destination for row in flows)


@contextmanager
def _silence() -> Iterator[Sniffer]:
    """Nothing is heard on the wire meanwhile."""
    with Sniffer(markers=[MARKER]) as wire:
        yield wire
        wire.settle()
        assert wire.marks() == {}
        assert wire.leaks() == ()
        assert [flow for flow in wire.counts() if flow.kind is Kind.CLEAR] == []


def _speak(where: str, destination: str) -> None:
    assert lab.exec_(where, [sys.executable, "-c", SAY, destination, MARKER.decode()]) == 0


def _run_on(node: LabNode, argv: list[str]) -> None:
    assert netns.run_in(node.namespace, argv).returncode == 0


def _counts(node: LabNode) -> dict[str, int]:
    return {row["reason"]: int(row["packets"]) for row in agents.status(node)["counts"]}


def _grown(node: LabNode, before: dict[str, int]) -> set[str]:
    """The reasons under which something was dropped since."""
    now = _counts(node)
    return {name for name in now if name.startswith("DROP_") and now[name] > before[name]}


def _table(node: LabNode, name: str) -> dict[str, Any]:
    return next(row for row in agents.status(node)["tables"] if row["name"] == name)


def _known(node: LabNode) -> set[str]:
    return {str(row["key"]) for row in agents.ask(node, "map", name="ipcache")}
