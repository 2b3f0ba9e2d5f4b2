# SPDX-License-Identifier: Apache-2.0
"""Keys change under load, and nobody notices: by age, on demand, by another pre-shared secret.

n1/p1 ══ TCP, numbered UDP: IPv4 ══▶ n2/p1       n3 is a peer of both
      ◀══ IPv6 ═════════════════════
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pellicle import lab
from pellicle.lab import agents, processes
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, PSK, LabNode
from tests import pace
from tests.net.loaded import MARKER, assert_private, both_ways, dropped, stop, until

MakeLab = Callable[..., lab.LabState]
NODES = [LabNode(number) for number in (1, 2, 3)]
N1, N2, N3 = NODES
LIFETIME, DRAIN = 5, 2
"""Seconds."""
BRIEF_DRAIN = {"drain_seconds": f"{DRAIN}s"}
SHORT_LIVED = {"key_lifetime": f"{LIFETIME}s", **BRIEF_DRAIN}


def test_keys_that_end_every_few_seconds(make_lab: MakeLab, pytestconfig: pytest.Config) -> None:
    seconds = pytestconfig.getoption("rotate_for")
    make_lab(3, 1, settings=SHORT_LIVED)
    before = [newest(node) for node in NODES]
    with loaded():
        time.sleep(pace.patient(seconds))
    rotations = [newest(node) - was for node, was in zip(NODES, before, strict=True)]
    assert min(rotations) >= seconds / LIFETIME / 2, "they did end"
    for node in NODES:
        until(lambda node=node: pairs(node) <= 2 * 3, "old keys are gone", 4 * DRAIN)  # type: ignore[misc]


def test_keys_that_end_by_their_number_of_packets(make_lab: MakeLab) -> None:
    limit = pace.amount(40_000, 4_000)
    make_lab(2, 1, settings={"sa_packet_limit": limit})
    before = newest(N1)
    with loaded():
        until(lambda: newest(N1) >= before + 2, "new keys, and again", 120)
    assert "DROP_SA_EXPIRED" not in {row["reason"] for row in agents.status(N1)["drops"]}


def test_keys_that_somebody_wants_to_be_others(make_lab: MakeLab) -> None:
    make_lab(3, 1, settings=BRIEF_DRAIN)
    before = {node: newest(node) for node in NODES}
    with loaded():
        done = pellicle("encrypt", "rotate", "--node", "n1", "--json")
        last = json.loads(done.splitlines()[-1])
        assert (last["done"], last["moved"], last["epoch"]) == (True, 2, before[N1] + 1)
        assert "done, 2 of 2 peers use the new keys" in pellicle("lab", "rotate")
    assert {node: newest(node) for node in NODES} == {
        N1: before[N1] + 2, N2: before[N2] + 1, N3: before[N3] + 1
    }  # fmt: skip
    until(lambda: all(pairs(node) == 2 for node in NODES), "one pair with each peer", 60)
    told = [json.loads(row) for row in pellicle_history("n1")]
    epochs = [row["epoch"] for row in told if row["what"] == "withdrawn"]
    assert epochs[-2:] == [before[N1], before[N1] + 1]
    used = [row for row in told if row["what"] == "used" and row["peer"] == "n2"]
    assert used[-1]["local_epoch"] == before[N1] + 2
    lab.restart_agent("n1")
    assert [json.loads(row) for row in pellicle_history("n1")][: len(told)] == told


def test_agents_that_die_while_keys_change(make_lab: MakeLab) -> None:
    """At any moment of a rotation, each of them, two at once, and all."""
    make_lab(3, 1, settings=SHORT_LIVED)
    dice = random.Random(46)
    together = [["n1", "n2"], ["n2", "n3"], ["n1", "n2", "n3"]]
    with loaded():
        for victims in (["n1"], ["n2"], ["n3"], *together):
            time.sleep(pace.patient(dice.uniform(0, LIFETIME)))
            for victim in victims:
                lab.kill_agent(victim)
            for victim in victims:
                lab.start_agent(victim, wait=victim is victims[-1])
    until(lambda: all(pairs(node) <= 2 * 3 for node in NODES), "old keys are gone", 60)


def test_records_that_come_back_from_the_past(make_lab: MakeLab) -> None:
    """Somebody who may write the directory replays what n2 once said."""
    make_lab(3, 1, settings=BRIEF_DRAIN)
    (record,) = (path for path in CLUSTER.rglob("*.yaml") if path.stem == "n2")
    with loaded():
        for _ in range(3):
            old, before = record.read_text(), newest(N2)
            pellicle("encrypt", "rotate", "--node", "n2")
            assert newest(N2) == before + 1
            forged = record.with_name(".forged")
            forged.write_text(old)
            forged.rename(record)
            until(lambda old=old: record.read_text() != old, "n2 says again what is so")  # type: ignore[misc]
        until(lambda: all(is_settled(node) for node in NODES), "all is well")


def test_records_that_are_read_and_written_late(make_lab: MakeLab) -> None:
    """Each agent in turn hears and says nothing while the others rotate, as behind a slow disk."""
    make_lab(3, 1, settings=SHORT_LIVED)
    before = [newest(node) for node in NODES]
    with loaded():
        for node in NODES:
            with held(node):
                time.sleep(pace.patient(LIFETIME))
        until(lambda: all(map(is_settled, NODES)), "all is well")
        rotations = [newest(node) - was for node, was in zip(NODES, before, strict=True)]
        assert min(rotations) >= 1
        until(lambda: all(pairs(node) <= 2 * 3 for node in NODES), "old keys are gone", 60)


@contextmanager
def held(node: LabNode) -> Iterator[None]:
    """Its agent does nothing."""
    process = processes.read_pid_file(node.pid_file)
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_secret_that_changes_on_one_node_after_the_other(make_lab: MakeLab) -> None:
    """Minutes apart in a real cluster; here as long as everybody takes to make new offers."""
    make_lab(3, 1)
    with new_secret(f"{os.urandom(32).hex()}\n") as fresh, loaded():
        for node in NODES:
            before = newest(node)
            turn_over(node.psk, fresh)
            until(lambda node=node, was=before: newest(node) > was, "a new offer")  # type: ignore[misc]
            time.sleep(pace.patient(1))
        until(lambda: all(is_settled(node) for node in NODES), "all on the new secret")
        for node in NODES:
            turn_over(node.psk, PSK)
        until(lambda: all(is_settled(node) for node in NODES), "and back")


def test_without_any_secret_nodes_agree_and_rotate(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings={"psk_file": "null"})
    assert agents.status(N1)["key_mode"] == "cluster"
    with loaded():
        pellicle("encrypt", "rotate", "--node", "n1")
    assert "whoever may write records is believed" in pellicle("status", "--node", "n1")


def test_a_line_that_is_wrong_changes_nothing_and_is_named(make_lab: MakeLab) -> None:
    make_lab(3, 1)
    before = newest(N1)
    secret = PSK.read_text()
    for text, why in (
        (f"{secret}00112233\n", "line 2 of the pre-shared secret: 4 bytes"),
        ("not a secret at all\n", "the secrets of before stay in use"),
        ("", "is empty"),
    ):
        with new_secret(text) as fresh:
            turn_over(N1.psk, fresh)
            until(lambda why=why: why in said_of_secret(N1), why, 10)  # type: ignore[misc]
            assert bool(agents.status(N1)["healthy"])
    N1.psk.unlink()
    until(lambda: "No such file" in said_of_secret(N1), "named", 10)
    N1.psk.symlink_to(PSK)
    until(lambda: said_of_secret(N1) == "", "all is well", 10)
    assert newest(N1) == before


@contextmanager
def loaded() -> Iterator[None]:
    """TCP and UDP that lose nothing, and a wire that says nothing."""
    with Sniffer(markers=[MARKER], nonces=True) as wire, both_ways() as runs:
        time.sleep(pace.patient(1))
        yield
        outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    for outcome in outcomes:
        assert outcome.is_intact
        assert outcome.stream_bytes == outcome.stream_sent
        assert outcome.lost == 0, f"{outcome}\n{[dropped(node) for node in NODES[:2]]}"


@contextmanager
def new_secret(text: str) -> Iterator[Path]:
    path = PSK.with_name("psk-new")
    path.touch(mode=0o600)
    path.write_text(text)
    try:
        yield path
    finally:
        path.unlink()


def turn_over(link: Path, to: Path) -> None:
    """As the kubelet does: the link becomes another one in one step."""
    fresh = link.with_name("psk.new")
    fresh.symlink_to(to)
    fresh.rename(link)


def newest(node: LabNode) -> int:
    return max(int(offer["epoch"]) for offer in keys(node)["offers"])


def pairs(node: LabNode) -> int:
    """Whose SAs stand in its kernel."""
    return len({sa["pair"] for sa in keys(node)["sas"]})


def is_settled(node: LabNode) -> bool:
    answer = keys(node)
    return len(answer["offers"]) == 1 and all(
        peer["state"] == "ready" and peer["confirmed"] for peer in answer["peers"]
    )


def keys(node: LabNode) -> Any:
    return agents.ask(node, "encrypt")[0]


def said_of_secret(node: LabNode) -> str:
    rows = agents.status(node)["rejected"]
    return " ".join(row["why"] for row in rows if row["source"] == str(node.psk))


def pellicle(*words: str) -> str:
    argv = [sys.executable, "-m", "pellicle", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def pellicle_history(node: str) -> list[str]:
    return pellicle("encrypt", "history", "--node", node, "--json").splitlines()
