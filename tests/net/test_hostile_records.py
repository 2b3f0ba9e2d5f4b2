# SPDX-License-Identifier: Apache-2.0
"""Somebody who may write the directory writes what he should not, while pods talk.

n1/p1 ══ TCP, numbered UDP ══▶ n2/p1     nodes/mallory.yaml: refused by name, for a reason
                                         nodes/n2.yaml: says again what is so, before anybody acts
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from pellicle import lab
from pellicle.facts import Epoch, Node, NodeName, Offer
from pellicle.keys import secret as secrets
from pellicle.keys.offers import OwnOffer, prove
from pellicle.keys.secret import Secret
from pellicle.lab import agents, processes
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, PSK, LabNode
from pellicle.sources.manifest import write
from tests import pace
from tests.net.loaded import MARKER, assert_private, dropped, load, until

MakeLab = Callable[..., lab.LabState]
NODES = N1, N2 = LabNode(1), LabNode(2)
MALLORY = NodeName("mallory")
ADDRESS = ip_address("192.168.66.2")
PPS = 1000
MOST_CPU_SECONDS = 1.0
"""That an agent takes for one record at most, with all that it answers meanwhile."""

Text = Callable[[Node, Secret], str]
"""The record that is written in place of `Node`, which the secret would prove."""


@dataclass(frozen=True)
class Hostile:
    says: str
    text: Text
    why: str
    """What the status says of it, in mallory's name."""


def changed(make: Callable[[Node, Secret], Sequence[Offer]]) -> Text:
    """The record with other offers."""
    return lambda node, secret: write(replace(node, offers=tuple(make(node, secret))))


def spelled(make: Callable[[str], str]) -> Text:
    """The record as text that nobody would write."""
    return lambda node, _: make(write(node))


def offer(node: Node, secret: Secret, epoch: int = 1) -> Offer:
    return OwnOffer.make(node.name, Epoch(epoch), os.urandom(16), os.urandom, secret).offer


def low_order(node: Node, secret: Secret) -> list[Offer]:
    """A point with which every shared secret is zero, proven with the right secret."""
    bad = replace(offer(node, secret), public_key=b"\x01" + bytes(31))
    return [replace(bad, proof=prove(secret, node.name, bad))]


def many(count: int) -> Callable[[str], str]:
    """Every offer line so many times, the epochs counted on."""

    def repeat(text: str) -> str:
        head, _, line = text.rstrip("\n").rpartition("\n")
        assert "epoch: 1," in line
        lines = [line.replace("epoch: 1,", f"epoch: {n},") for n in range(1, count + 1)]
        return "\n".join([head, *lines, ""])

    return repeat


CASES = (
    Hostile("forged", changed(lambda n, s: [replace(offer(n, s), proof=bytes(32))]),
            "the proof does not verify"),
    Hostile("by another secret",
            changed(lambda n, _: [offer(n, Secret.derive(os.urandom(32)))]),
            "the proof does not verify"),
    Hostile("of another epoch than it was proven for",
            changed(lambda n, s: [replace(offer(n, s), epoch=Epoch(9))]),
            "the proof does not verify"),
    Hostile("another node's", changed(lambda n, s: [offer(replace(n, name=NodeName("n3")), s)]),
            "the proof does not verify"),
    Hostile("of low order", changed(low_order), "a public key of low order"),
    Hostile("none", changed(lambda _n, _s: []), "publishes no offer"),
    Hostile("cut off", spelled(lambda text: text[: len(text) // 2]), "cut off?"),
    Hostile("two of one epoch",
            spelled(lambda text: many(2)(text).replace("epoch: 2,", "epoch: 1,")),
            "epochs 1, 1 do not ascend"),
    Hostile("backwards", spelled(lambda text: many(2)(text).replace("epoch: 1,", "epoch: 7,")),
            "epochs 7, 2 do not ascend"),
    Hostile("a thousand", spelled(many(1000)), "1000 offers; at most 2"),
    Hostile("ten thousand", spelled(many(10_000)), "more than 256 KiB"),
)  # fmt: skip


def test_hostile_records_are_refused_by_name_and_disturb_nobody(make_lab: MakeLab) -> None:
    make_lab(2, 1)
    secret = secrets.parse(PSK.read_bytes())
    mallory = Node(MALLORY, (ADDRESS,), ())
    mallory = replace(mallory, offers=(offer(mallory, secret),))
    n2 = Node(NodeName("n2"), N2.addresses, N2.pod_cidrs)
    n2 = replace(n2, offers=(offer(n2, secret),))
    mallory_file, n2_file = (CLUSTER / "nodes" / f"{name}.yaml" for name in (MALLORY, "n2"))
    again = CASES[:: pace.amount(3, 5)]
    before, spent = pairs(), {node: cpu_seconds(node) for node in NODES}
    with Sniffer(markers=[MARKER], nonces=True) as wire, load("n1/p1", "n2/p1", 4, pps=PPS) as run:
        for case in CASES:
            put(mallory_file, case.text(mallory, secret))
            until(lambda case=case: case.why in said_of_mallory(), case.says, 10)  # type: ignore[misc]
            mallory_file.unlink()
            until(lambda: said_of_mallory() == "", "it is forgotten", 10)
        so = n2_file.read_text()
        for case in again:
            put(n2_file, case.text(n2, secret))
            until(lambda: n2_file.read_text() == so, "n2 says what is so", 10)
        outcome = run.stop()
        assert_private(wire)
        assert wire.reuses() == ()
    assert outcome.is_intact
    assert outcome.lost == 0, f"{outcome}\n{[dropped(node) for node in NODES]}"
    until(lambda: all(bool(agents.status(node)["healthy"]) for node in NODES), "all is well")
    for node in NODES:
        taken = cpu_seconds(node) - spent[node]
        assert taken < pace.patient(MOST_CPU_SECONDS) * len((*CASES, *again)), node
    assert before <= pairs(), "what was in use still is"


def put(path: Path, text: str) -> None:
    fresh = path.with_name(".hostile")
    fresh.write_text(text)
    fresh.rename(path)


def said_of_mallory() -> str:
    """Everything that n1 says of it, in whatever way."""
    status = agents.status(N1)
    peers = [peer["why"] for peer in status["peers"] if peer["node"] == MALLORY]
    rows = [row["why"] for row in status["rejected"] if str(MALLORY) in row["source"]]
    return " ".join([*peers, *rows])


def pairs() -> set[str]:
    return {peer["pair"] for peer in agents.status(N1)["peers"] if peer["node"] == "n2"}


def cpu_seconds(node: LabNode) -> float:
    """That its agent has used (proc(5), stat fields 14 and 15)."""
    process = processes.read_pid_file(node.pid_file)
    assert process
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
