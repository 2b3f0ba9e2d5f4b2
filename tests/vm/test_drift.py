# SPDX-License-Identifier: Apache-2.0
"""Someone takes away what the xfrm engine has put into the kernel, under load.

n1/p1 ──TCP, numbered UDP──▶ n2/p1       on n1: ip xfrm state flush, ip link del pellicle_xfrm …
             ▲
    the sniffer on the wire, trusted after it has seen the same load in the clear

Nothing may be readable at any moment; traffic goes on within a refresh; status and metrics name
what had drifted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.loaded import MARKER, Load, assert_private, load, until

MakeLab = Callable[..., lab.LabState]
N1 = LabNode(1)
REFRESH = 5
PPS = 100


@dataclass(frozen=True)
class Drift:
    says: str
    commands: tuple[str, ...]
    tables: frozenset[str]
    """Those that say that they have healed something."""


STATES = Drift("states", ("xfrm state flush",), frozenset({"sas"}))
POLICIES = Drift("policies", ("xfrm policy flush",), frozenset({"policies"}))
RULES = Drift(
    "rules",
    tuple(f"-{family} rule del pref {pref}" for family in (4, 6) for pref in (1, 2)),
    frozenset({"rules"}),
)
PODS, NODES = (
    Drift(
        f"table {table}",
        tuple(f"-{family} route flush table {table}" for family in (4, 6)),
        frozenset({"routes"}),
    )
    for table in (200, 201)
)
DEVICE = Drift("the door's device", ("link del pellicle_xfrm",), frozenset({"xfrm device"}))
EACH = (STATES, POLICIES, RULES, PODS, NODES, DEVICE)
ALL = Drift(
    "all at once",
    tuple(command for drift in EACH[:-1] for command in drift.commands) + DEVICE.commands,
    frozenset({"sas", "policies", "rules", "routes", "xfrm device"}),
)


def test_the_sniffer_hears_the_same_load_in_the_clear(make_lab: MakeLab) -> None:
    make_lab(2, 1, encrypt=False)
    with Sniffer(markers=[MARKER]) as wire, load("n1/p1", "n2/p1", 4, 3, pps=PPS) as run:
        assert run.outcome.is_intact
        wire.settle()
        assert sum(wire.marks().values()) > 10
        assert any(flow.kind is Kind.CLEAR for flow in wire.counts())


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("drift", [*EACH, ALL], ids=lambda drift: drift.says)
def test_drift_leaks_nothing_and_heals(make_lab: MakeLab, drift: Drift, family: int) -> None:
    make_lab(2, 1, engine="xfrm", settings={"refresh_seconds": REFRESH})
    before = _healed()
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", family, 600, pps=PPS) as run,
    ):
        until(lambda: _passing(wire) > 20, "the load is on its way")
        for command in drift.commands:
            # What an earlier command took along is gone already.
            netns.run_in(N1.namespace, ["ip", *command.split()], capture_output=True)
        until(lambda: drift.tables <= _grown(before), f"{set(drift.tables)} name it")
        until(lambda: bool(agents.status(N1)["healthy"]), "all is well again")
        _goes_on(wire, run)
        assert run.stop().is_intact
        assert_private(wire)
        assert wire.reuses() == ()
    text = agents.ask(N1, "metrics")[0]["text"]
    for table in drift.tables:
        assert f'pellicle_rows_healed_total{{table="{table}"}}' in text


def test_lost_states_are_named_by_the_kernels_own_count(make_lab: MakeLab) -> None:
    """Between the loss and the new keys the kernel drops: status says so in words."""
    make_lab(2, 1, engine="xfrm", settings={"refresh_seconds": REFRESH})
    lab.kill_agent("n1")
    netns.run_in(N1.namespace, ["ip", "xfrm", "state", "flush"])
    with Sniffer(markers=[MARKER]) as wire:
        lab.exec_("n1/p1", ["ping", "-c", "3", "-W", "1", "-i", "0.2", "10.244.2.2"])
        wire.settle()
        assert [flow for flow in wire.counts() if flow.kind is Kind.CLEAR] == []
    lab.start_agent("n1")
    drops = {row["reason"]: row for row in agents.status(N1)["kernel_drops"]}
    assert drops["XfrmOutNoStates"]["packets"] >= 3
    assert drops["XfrmOutNoStates"]["words"]


def _healed() -> dict[str, int]:
    return {row["name"]: int(row["healed"]) for row in agents.status(N1)["tables"]}


def _grown(before: dict[str, int]) -> set[str]:
    return {name for name, count in _healed().items() if count > before.get(name, 0)}


def _passing(wire: Sniffer) -> int:
    counts: dict[Any, Any] = dict(wire.counts())
    return sum(int(count.packets) for flow, count in counts.items() if flow.kind is Kind.ESP)


def _goes_on(wire: Sniffer, run: Load) -> None:
    seen = _passing(wire)
    until(lambda: _passing(wire) > seen + 50, "traffic goes on")
    assert run.is_running
