# SPDX-License-Identifier: Apache-2.0
"""Agents die and come back while pods talk; nobody notices, and nobody can listen.

n1/p1 ──TCP, numbered UDP: IPv4──▶ n2/p1   agents: SIGKILL, restart, SIGTERM, restart, both at once
      ◀──IPv6─────▲──────────────
    the sniffer on the wire, trusted after it has seen the same load in the clear
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

from pellicle import lab
from pellicle.kernel.bpf import Map
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests import pace
from tests.net.engines import of
from tests.net.loaded import MARKER, Outcome, assert_private, both_ways, load, stop, until

MakeLab = Callable[..., lab.LabState]
NODES = ("n1", "n2")
REFRESH = 2


def test_killed_agents_cost_nothing(make_lab: MakeLab) -> None:
    make_lab(2, 1, encrypt=False)
    with Sniffer(markers=[MARKER]) as wire, both_ways(3) as runs:
        baselines = [run.outcome for run in runs]
        wire.settle()
        many, some = pace.amount((1000, 100), (200, 20))
        for family in (4, 6):
            clear = [
                flow for flow in wire.counts() if (flow.kind, flow.family) == (Kind.CLEAR, family)
            ]
            assert any(wire.counts()[flow].packets > many for flow in clear)
            marks = sum(count for (flow, _), count in wire.marks().items() if flow.family == family)
            assert marks > some, "it sees plaintext when there is some"

    make_lab(2, 1, encrypt=True)
    with Sniffer(markers=[MARKER], nonces=True) as wire, both_ways() as runs:
        for node in (*NODES, *NODES):
            lab.kill_agent(node)
            lab.start_agent(node)
        for node in NODES:
            lab.kill_agent(node)
        time.sleep(pace.patient(1))  # nobody is at home: the datapath goes on
        for node in NODES:
            lab.start_agent(node, wait=False)
        until(lambda: all(_is_ready(LabNode(number)) for number in (1, 2)), "both are ready")
        lab.restart_agent("n1", signal.SIGTERM)
        outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    for outcome, baseline in zip(outcomes, baselines, strict=True):
        _assert_unharmed(outcome, baseline)
    for node in NODES:
        _assert_only_probes_were_dropped(node)


def test_no_nonce_is_used_twice_on_the_wire_when_sas_are_lost(make_lab: MakeLab) -> None:
    """Rows, maps, states vanish, agents die meanwhile: new keys, never an old number again."""
    make_lab(2, 1, settings={"refresh_seconds": REFRESH})  # when it is missed, at the latest
    n1 = LabNode(1)
    with Sniffer(nonces=True, markers=[MARKER]) as wire, load("n1/p1", "n2/p1", 4) as run:
        # A connection that is not made yet would be given up, not resumed.
        until(
            lambda: sum(c.packets for c in wire.counts().values()) > pace.amount(1000, 200),
            "the load is on its way",
        )
        for loss in LOSSES[of(n1).name]:
            before = _newest_epoch(n1)
            loss(n1)
            until(lambda before=before: _newest_epoch(n1) > before, "a new offer is made")
            until(lambda: _is_ready(n1), "the peer is ready again")
        assert run.stop().is_intact
        wire.settle()
        assert wire.lost() == 0
        assert wire.reuses() == ()
        assert wire.leaks() == ()
        spis = {spi for source, _, spi in wire.ivs() if source == "192.168.1.2"}
        assert len(spis) >= 3, "the losses made new SAs"


def _delete_sas(node: LabNode) -> None:
    """Someone clears the outbound SAs under a living agent."""
    with Map.open_pinned(node.bpffs / "maps" / "sa_out") as found:
        found.delete_batch([key for key, _ in found.items()])


def _kill_and_delete_sas(node: LabNode) -> None:
    lab.kill_agent(node.name)
    _delete_sas(node)
    lab.start_agent(node.name, wait=False)


def _kill_and_unpin(node: LabNode) -> None:
    lab.kill_agent(node.name)
    for name in ("sa_out", "sa_in"):
        (node.bpffs / "maps" / name).unlink()
    lab.start_agent(node.name, wait=False)


def _flush_states(node: LabNode) -> None:
    """Someone clears the kernel's SAs under a living agent."""
    assert lab.exec_(node.name, ["ip", "xfrm", "state", "flush"]) == 0


def _kill_and_flush_states(node: LabNode) -> None:
    lab.kill_agent(node.name)
    _flush_states(node)
    lab.start_agent(node.name, wait=False)


LOSSES = {
    "bpf": (_delete_sas, _kill_and_delete_sas, _kill_and_unpin, _delete_sas),
    "xfrm": (_delete_sas, _flush_states, _kill_and_flush_states, _kill_and_unpin, _flush_states),
}


def _assert_unharmed(outcome: Outcome, baseline: Outcome) -> None:
    assert outcome.is_intact
    assert outcome.stream_bytes == outcome.stream_sent
    assert outcome.duplicates == 0
    allowed = baseline.lost / baseline.udp_sent * outcome.udp_sent
    assert outcome.lost <= allowed, outcome


def _assert_only_probes_were_dropped(node: str) -> None:
    """Probes on keys that the other side does not have yet are lost; nothing else is."""
    drops = agents.status(LabNode(int(node[1:])))["drops"]
    assert {row["reason"] for row in drops} <= {"DROP_UNKNOWN_SPI"}, json.dumps(drops, indent=1)
    for row in drops:
        assert row["bytes"] == 92 * row["packets"], "no probe is that long"


def _newest_epoch(node: LabNode) -> int:
    rows = agents.ask(node, "encrypt")[0]["offers"]
    return max((int(row["epoch"]) for row in rows), default=0)


def _is_ready(node: LabNode) -> bool:
    return all(peer["state"] == "ready" for peer in agents.status(node)["peers"])
