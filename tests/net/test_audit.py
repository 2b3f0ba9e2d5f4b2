# SPDX-License-Identifier: Apache-2.0
"""The audit of a real node: every packet that was sent is in it, once, with its bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pellicle import lab
from pellicle.lab.topology import RUN
from pellicle.ui.answers import Audit, AuditRow, Volume, read
from tests import pace

PING = 84
"""Bytes of an IPv4 packet of ping's default size."""


def pellicle(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pellicle", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=pace.patient(60), check=False
    )


def told(node: str, *words: str) -> Audit:
    done = pellicle("audit", "--node", node, "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return read(json.loads(done.stdout), Audit)


def ping(where: str, address: str, count: int) -> int:
    words = ["ping", "-q", "-c", str(count), "-i", "0.02", "-W", "1", address]
    return pellicle("lab", "exec", where, *words).returncode


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + pace.patient(15)
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def two_nodes(make_lab: Callable[..., lab.LabState]) -> dict[str, str]:
    """The IPv4 address of each pod of a lab of two nodes, encryption on."""
    state = make_lab(nodes=2, pods=1)
    return {pod.name: pod.addresses[0] for node in state.nodes for pod in node.pods}


def between(audit: Audit, source: str, destination: str, **wanted: Any) -> list[AuditRow]:
    return [
        row
        for row in audit.endpoints
        if (row.source, row.destination) == (source, destination)
        and all(getattr(row, name) == value for name, value in wanted.items())
    ]


def test_known_packets_are_in_the_report_exactly_once(two_nodes: dict[str, str]) -> None:
    assert ping("n1/p1", two_nodes["n2/p1"], 7) == 0
    assert ping("n1/p1", "10.244.2.199", 2) != 0
    assert ping("n1/p1", "203.0.113.9", 3) != 0
    first, second = "default/n1-p1", "default/n2-p1"
    for node, there, back in (("n1", "sent", "received"), ("n2", "received", "sent")):
        audit = told(node)
        (out,) = between(audit, first, second)
        (home,) = between(audit, second, first)
        assert (out.direction, out.verdict, out.packets, out.bytes) == (
            there, "encrypted", 7, 7 * PING,
        )  # fmt: skip
        assert (home.direction, home.verdict, home.packets) == (back, "encrypted", 7)
        assert (out.source_node, out.destination_node) == ("n1", "n2")
        assert set(audit.between_nodes) == {"encrypted"}
    audit = told("n1")
    (dropped,) = between(audit, first, "10.244.2.199")
    assert (dropped.reason, dropped.packets, dropped.bytes, dropped.is_exception) == (
        "DROP_UNKNOWN_PEER", 2, 2 * PING, True,
    )  # fmt: skip
    (world,) = between(audit, first, "203.0.113.9")
    assert (world.reason, world.packets, world.bytes, world.is_exception) == (
        "CLEAR_WORLD", 3, 3 * PING, False,
    )  # fmt: skip
    assert world.destination_node == ""
    # Probes may come before the peer has read the offer that they ask for.
    unforeseen = {row.reason for row in audit.exceptions} - {"DROP_UNKNOWN_SPI"}
    assert unforeseen == {"DROP_UNKNOWN_PEER"}


def test_nothing_that_was_counted_is_missing(two_nodes: dict[str, str]) -> None:
    assert ping("n2/p1", two_nodes["n1/p1"], 40) == 0
    for node in ("n1", "n2"):
        audit = told(node)
        assert not [each for each in audit.reasons if each.not_attributed.packets]
        for each in audit.reasons:
            name = (each.reason, each.verdict)
            rows = [row for row in audit.endpoints if (row.reason, row.verdict) == name]
            assert sum(row.packets for row in rows) == each.packets
            assert sum(row.bytes for row in rows) == each.bytes


def test_a_new_agent_goes_on_where_the_one_before_was(two_nodes: dict[str, str]) -> None:
    assert ping("n1/p1", two_nodes["n2/p1"], 5) == 0
    before = told("n1")
    lab.kill_agent("n1")
    lab.start_agent("n1")
    assert ping("n1/p1", two_nodes["n2/p1"], 5) == 0
    after = told("n1")
    first, second = "default/n1-p1", "default/n2-p1"
    (was,), (now,) = between(before, first, second), between(after, first, second)
    assert (now.packets, now.bytes) == (was.packets + 5, was.bytes + 5 * PING)
    assert now.first == pytest.approx(was.first, abs=0.1)


def verified(node: str, *words: str) -> dict[str, Any]:
    done = pellicle("audit", "verify", "--node", node, "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sums(audit: Audit) -> dict[tuple[str, ...], tuple[int, int]]:
    """By nodes, without when they were seen."""
    return {
        (row.direction, row.source_node, row.destination_node, row.verdict, row.reason): (
            row.packets,
            row.bytes,
        )
        for row in audit.nodes
    }


def test_the_trail_tells_the_same_as_the_report(two_nodes: dict[str, str]) -> None:
    assert ping("n1/p1", two_nodes["n2/p1"], 3) == 0
    since = told("n2", "--since", "1d")
    whole = told("n2")
    assert sums(since) == sums(whole)
    assert since.between_nodes == whole.between_nodes
    assert since.since is not None
    assert since.since == pytest.approx(whole.since, abs=1.0)
    assert not [each for each in since.reasons if each.not_attributed.packets]


def test_a_killed_agent_leaves_a_good_trail_and_nothing_counts_twice(
    two_nodes: dict[str, str],
) -> None:
    noted = told("n1").trail.head
    assert ping("n1/p1", "10.244.2.201", 1) != 0
    words = ["ping", "-q", "-c", "200", "-i", "0.01", "-W", "1", two_nodes["n2/p1"]]
    command = [sys.executable, "-m", "pellicle", "lab", "exec", "n1/p1", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as traffic:
        wait_for(lambda: any(row.destination == "10.244.2.201" for row in told("n1").exceptions))
        wait_for(lambda: verified("n1")["kinds"].get("exception", 0) >= 1)
        lab.kill_agent("n1")
        killed = verified("n1", "--head", noted)
        lab.start_agent("n1")
        assert traffic.wait(pace.patient(60)) == 0
    since, whole = told("n1", "--since", "1d"), told("n1")
    for each, exact in zip(since.reasons, whole.reasons, strict=True):
        assert (each.reason, each.packets, each.bytes) == (exact.reason, exact.packets, exact.bytes)
        assert not exact.not_attributed.packets
    after = verified("n1", "--head", noted, "--head", killed["head"])
    assert after["kinds"]["start"] == killed["kinds"]["start"] + 1
    assert after["killed"] >= 1
    trail = RUN / "n1" / "state" / "audit"
    told_of = [
        json.loads(line)["body"]["destination"]
        for path in sorted(trail.iterdir())
        for line in path.read_bytes().splitlines()
        if json.loads(line)["what"] == "exception"
    ]
    assert "10.244.2.201" in told_of


def test_what_passes_in_the_clear_is_told_with_the_rule_that_let_it(
    make_lab: Callable[..., lab.LabState],
) -> None:
    lab.down()
    state = make_lab(nodes=2, pods=1, settings={"audit": "monitor", "exempt": ["ping=icmp"]})
    assert ping("n1", "192.168.2.2", 5) == 0
    audit = told("n1")
    assert set(audit.rules) == {"ping=icmp"}
    assert audit.rules["ping=icmp"] == audit.between_nodes["clear"] == Volume(10, 10 * PING)
    (sent,) = between(audit, "n1", "n2", verdict="clear", direction="sent")
    assert (sent.reason, sent.rule, sent.packets, sent.bytes) == (
        "CLEAR_EXEMPT", "ping=icmp", 5, 5 * PING,
    )  # fmt: skip
    pod = state.nodes[0].pods[0]
    assert ping(pod.name, "10.244.2.199", 2) != 0
    done = pellicle("audit", "--node", "n1", "--json")
    assert done.returncode == 1, "something passed without a rule"
    audit = read(json.loads(done.stdout), Audit)
    assert audit.rules[""] == audit.between_nodes["audited"] == Volume(2, 2 * PING)
    wait_for(lambda: verified("n1")["kinds"].get("exception", 0) >= 3)
    told_of = {
        (body["verdict"], body["rule"])
        for path in (RUN / "n1" / "state" / "audit").iterdir()
        for record in map(json.loads, path.read_bytes().splitlines())
        if record["what"] == "exception" and (body := record["body"])
    }
    assert {("clear", "ping=icmp"), ("audited", "")} <= told_of
