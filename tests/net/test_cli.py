# SPDX-License-Identifier: Apache-2.0
"""The command line against real agents: what it says of them is so."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from pellicle import lab
from pellicle.flows.reasons import WORDS
from pellicle.lab.topology import node_named
from pellicle.ui.answers import Encrypt, Flow, Status, read
from tests import pace

DEADLINE = 15.0


def pellicle(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pellicle", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=pace.patient(60), check=False
    )


def told(*words: str) -> Any:
    """The JSON of a command that ends well."""
    done = pellicle(*words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def flows(*words: str) -> list[Flow]:
    done = pellicle("flows", *words, "--json")
    assert done.returncode == 0, done.stderr
    return [read(json.loads(line), Flow) for line in done.stdout.splitlines()]


def ping(where: str, address: str, count: int = 3) -> int:
    words = ["ping", "-q", "-c", str(count), "-i", "0.05", "-W", "1", address]
    return pellicle("lab", "exec", where, *words).returncode


@pytest.fixture(scope="module")
def two_nodes(make_lab: Callable[..., lab.LabState]) -> dict[str, str]:
    """The IPv4 address of each pod of a lab of two nodes, encryption on."""
    state = make_lab(nodes=2, pods=1)
    return {pod.name: pod.addresses[0] for node in state.nodes for pod in node.pods}


def test_status_of_a_healthy_node(two_nodes: dict[str, str]) -> None:
    status = read(told("status", "--node", "n1"), Status)
    assert (status.node, status.healthy, status.encryption) == ("n1", True, "on")
    assert [(peer.node, peer.state) for peer in status.peers] == [("n2", "ready")]
    assert (status.datapath.mtu.v4, status.datapath.mtu.v6) == (1446, 1426)
    assert {count.reason for count in status.counts} == set(WORDS)
    shown = pellicle("status", "--node", "n1")
    assert shown.returncode == 0
    assert "● n1  encryption on  healthy" in shown.stdout


def test_keys_are_told_and_secrets_are_not(two_nodes: dict[str, str]) -> None:
    answer = told("encrypt", "status", "--node", "n1")
    encrypt = read(answer, Encrypt)
    assert answer["encryption"] == "on"
    assert {(sa.direction, sa.number) for sa in encrypt.sas} == {
        (direction, number) for direction in ("in", "out") for number in range(4)
    }
    assert all(sa.peer == "n2" for sa in encrypt.sas)
    assert [offer.state for offer in encrypt.offers] == ["current"]
    for name in ("sa_in", "sa_out"):
        rows = told("map", "dump", name, "--node", "n1")
        assert len(rows) == 4
        assert {row["value"]["key"] for row in rows} == {"(secret)"}
        assert {row["value"]["salt"] for row in rows} == {"(secret)"}


def test_a_ping_is_a_flow_with_names_verdict_and_key(two_nodes: dict[str, str]) -> None:
    assert ping("n1/p1", two_nodes["n2/p1"]) == 0
    (sealed,) = flows("--node", "n1", "--encrypted", "--from", "n1-p1", "--to", "default/n2-p1")
    assert (sealed.reason, sealed.hook, sealed.protocol) == ("SEALED", "door", "ICMP")
    assert sealed.icmp is not None
    assert (sealed.icmp.type, sealed.packets, sealed.bytes) == (8, 3, 3 * 84)
    assert (sealed.source.node, sealed.destination.node) == ("n1", "n2")
    assert sealed.source.identity >= 256
    spis = {sa.spi for sa in read(told("encrypt", "status", "--node", "n1"), Encrypt).sas}
    assert sealed.spi in spis
    assert abs(sealed.time - time.time()) < 60
    (opened,) = flows("--node", "n2", "--from", two_nodes["n1/p1"], "--to", "n2")
    assert (opened.reason, opened.hook, opened.packets) == ("OPENED", "from_net", 3)
    assert opened.spi == sealed.spi


def test_what_is_dropped_is_named_with_what_to_do(two_nodes: dict[str, str]) -> None:
    assert ping("n1/p1", "10.244.2.199", count=2) != 0
    (flow,) = flows("--node", "n1", "--dropped", "--to", "10.244.2.199")
    assert (flow.verdict, flow.reason, flow.packets) == ("dropped", "DROP_UNKNOWN_PEER", 2)
    shown = pellicle("status", "--node", "n1").stdout
    assert "2 packets, 168 B: a cluster address nobody holds (DROP_UNKNOWN_PEER)" in shown
    assert WORDS["DROP_UNKNOWN_PEER"].advice in shown
    assert "a cluster address nobody holds" in pellicle("flows", "--node", "n1").stdout


def test_following_hears_a_flow_as_it_happens(two_nodes: dict[str, str]) -> None:
    words = ["flows", "--node", "n2", "--follow", "--json", "--last", "1", "--to", "n1-p1"]
    with subprocess.Popen(
        [sys.executable, "-m", "pellicle", *words], stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        try:
            asked = time.time()
            deadline = time.monotonic() + pace.patient(DEADLINE)
            while time.monotonic() < deadline:
                assert ping("n2/p1", two_nodes["n1/p1"], count=1) == 0
                if select.select([follower.stdout], [], [], 1.0)[0]:
                    flow = read(json.loads(follower.stdout.readline()), Flow)
                    if flow.time > asked:
                        break
            else:
                pytest.fail("no flow was heard in time")
            assert (flow.reason, flow.source.pod) == ("SEALED", "default/n2-p1")
        finally:
            follower.terminate()


def test_every_map_is_listed_and_all_but_the_ring_can_be_dumped(
    two_nodes: dict[str, str],
) -> None:
    listed = told("map", "list", "--node", "n1")
    rows = {row["name"]: row["rows"] for row in listed}
    assert {"ipcache", "cluster_cidrs", "encrypt", "sa_in", "sa_out", "flows"} <= rows.keys()
    for name, count in rows.items():
        if count is None:
            assert "no rows to show" in pellicle("map", "dump", name, "--node", "n1").stderr
            continue
        found = told("map", "dump", name, "--node", "n1")
        assert name in {"flows", "counts"} or len(found) == count
        assert pellicle("map", "dump", name, "--node", "n1").returncode == 0
    addresses = {row["key"] for row in told("map", "dump", "ipcache", "--node", "n1")}
    assert set(two_nodes.values()) <= addresses


def test_metrics_agree_with_status(two_nodes: dict[str, str]) -> None:
    samples = told("metrics", "--node", "n1")
    status = read(told("status", "--node", "n1"), Status)
    metrics = {
        sample["labels"]["reason"]: sample["value"]
        for sample in samples
        if sample["name"] == "pellicle_packets_total"
    }
    assert metrics.keys() == {count.reason for count in status.counts}
    sealed = next(count for count in status.counts if count.reason == "SEALED")
    assert 0 < metrics["SEALED"] <= sealed.packets


def test_the_lab_itself_is_shown_and_checked(two_nodes: dict[str, str]) -> None:
    assert told("lab", "status")["is_ready"] is True
    assert "● n2" not in pellicle("lab", "status").stdout
    assert two_nodes["n2/p1"] in pellicle("lab", "status").stdout
    found = told("lab", "check")
    assert (found["is_well"], found["clear"], found["problems"]) == (True, 0, [])
    assert found["answered"] == found["messages"] > 0
    assert found["encrypted"] > 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("n1/p1", "sh", "-c", "exit 7"), 7),
        (("n1/p1", "--", "sh", "-c", "exit 7"), 7),
        (("n1", "ip", "link", "show", "eth0"), 0),
        (("wire", "false"), 1),
        (("n1/p9", "true"), 1),
        (("bogus", "true"), 64),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exec_ends_as_its_command_does(
    words: tuple[str, ...], code: int, two_nodes: dict[str, str]
) -> None:
    assert pellicle("lab", "exec", *words).returncode == code


def test_a_dead_agent_is_told_from_a_sick_one(two_nodes: dict[str, str]) -> None:
    lab.kill_agent("n2")
    done = pellicle("status", "--node", "n2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it left its socket behind" in done.stderr
    assert pellicle("lab", "status").returncode == 1
    assert ping("n1/p1", two_nodes["n2/p1"]) == 0, "the datapath needs no agent"
    lab.start_agent("n2")
    assert pellicle("status", "--node", "n2").returncode == 0


def test_an_agent_that_cannot_start_says_why_in_a_sentence(two_nodes: dict[str, str]) -> None:
    config = str(node_named("n1").config)
    second = pellicle(
        "lab", "exec", "n1", sys.executable, "-m", "pellicle", "agent", "--config", config
    )
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert "another agent answers at" in second.stderr
    lost = pellicle("agent", "--config", config, "--uplink", "nowhere0")
    assert lost.returncode == 1
    assert lost.stderr.startswith(
        "pellicle: the agent cannot start: uplink nowhere0 is not a device"
    )


def test_encryption_off_has_its_own_exit_code(
    make_lab: Callable[..., lab.LabState], two_nodes: dict[str, str]
) -> None:
    make_lab(nodes=2, pods=1, encrypt=False)
    done = pellicle("status", "--node", "n1")
    assert done.returncode == 3
    assert "✗ n1  encryption off" in done.stdout
    assert pellicle("encrypt", "status", "--node", "n1").returncode == 3
    assert told("lab", "check")["clear"] > 0
