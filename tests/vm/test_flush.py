# SPDX-License-Identifier: Apache-2.0
"""`pellicle encrypt flush` with real states: what goes, what stays, and that nothing leaks.

n1/p1 ──TCP, numbered UDP──▶ n2/p1       pellicle encrypt flush --yes --node n1
             ▲
    the sniffer on the wire
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pellicle import lab
from pellicle.encryption import policies
from pellicle.encryption.states import key_of, state_of
from pellicle.facts import Engine
from pellicle.kernel import netns
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from pellicle.wire.xfrm import StateKey
from tests.net.loaded import MARKER, assert_private, load, until
from tests.pure.sas_made import N2, PEER, rows, sa

MakeLab = Callable[..., lab.LabState]
HERE = f"pellicle-t{os.getpid()}-flush"
N1 = LabNode(1)
SAS = [sa(number, direction) for number in range(4) for direction in Direction]
POLICIES = list(policies.plan({Engine.XFRM: True}, rows(*SAS), {N2: PEER}).values())
PPS = 100


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    """A namespace with the states and policies of one peer."""
    try:
        netns.create(HERE)
        with Xfrm(HERE) as opened:
            assert opened.put_policies(POLICIES) == {}
            yield opened
    finally:
        netns.delete(HERE)


def flush(namespace: str | None, *words: str) -> dict[str, Any]:
    """Its answer; that it ended well is in there, too."""
    command = [sys.executable, "-m", "pellicle", "encrypt", "flush", "--yes", "--json", *words]
    with netns.inside(namespace):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if answer["failures"] else 0), done.stderr
    return answer


def keys(xfrm: Xfrm) -> set[StateKey]:
    return {state.key for state, _ in xfrm.states()}


def test_all_of_ours_goes_and_others_states_stay(xfrm: Xfrm) -> None:
    others = {replace(state_of(sa(n)), if_id=n, key=replace(key_of(sa(n)), spi=n + 300))
              for n in (0, 5)}  # fmt: skip
    assert xfrm.put_states([*map(state_of, SAS), *others]) == {}
    answer = flush(HERE)
    assert (answer["states"], answer["policies"]) == (8, len(POLICIES))
    assert answer["failures"] == []
    assert answer["peers"][1] | {"policies": 0} == {
        "peer": "192.0.2.2", "states_out": 4, "states_in": 4, "policies": 0,
    }  # fmt: skip
    assert keys(xfrm) == {state.key for state in others}
    assert xfrm.policies() == []


def test_a_state_that_stands_behind_anothers_is_named(xfrm: Xfrm) -> None:
    ours = state_of(sa(0, Direction.IN))
    front = replace(ours, if_id=0, key=replace(ours.key, mark=None))
    assert xfrm.put_states([ours, front]) == {}
    answer = flush(HERE)
    ((failure),) = answer["failures"]
    assert failure["what"] == "state 192.0.2.2 → 192.0.2.1, SPI 0x00001000"
    assert "another's state" in failure["why"]
    assert keys(xfrm) == {ours.key, front.key}


def test_with_an_agent_new_keys_follow_and_nothing_leaks(make_lab: MakeLab) -> None:
    make_lab(2, 1, engine="xfrm")
    before = {row["spi"] for row in agents.ask(N1, "encrypt")[0]["sas"]}
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", 4, 600, pps=PPS) as run,
    ):
        until(lambda: _passing(wire) > 20, "the load is on its way")
        answer = flush(None, "--node", "n1")
        assert (answer["states"], answer["agent_runs"]) == (8, True)
        until(lambda: _is_renewed(before), "other keys are agreed on")
        seen = _passing(wire)
        until(lambda: _passing(wire) > seen + 50, "traffic goes on")
        assert run.stop().is_intact
        assert_private(wire)
        assert wire.reuses() == ()


def test_without_an_agent_all_is_dropped(make_lab: MakeLab) -> None:
    make_lab(2, 1, engine="xfrm")
    lab.kill_agent("n1")
    assert flush(None, "--node", "n1")["agent_runs"] is False
    with Xfrm(N1.namespace) as xfrm, Sniffer(markers=[MARKER]) as wire:
        assert (xfrm.states(), xfrm.policies()) == ([], [])
        for address in ("10.244.2.2", "fd00:244:2::2"):
            words = ["ping", "-q", "-c", "3", "-W", "1", "-i", "0.2", address]
            assert lab.exec_("n1/p1", words) != 0
        wire.settle()
        kinds = {flow.kind for flow in wire.counts()}
        assert not kinds & {Kind.CLEAR, Kind.ESP}
    lab.start_agent("n1")
    until(lambda: bool(agents.status(N1)["healthy"]), "a new agent agrees on new keys")
    assert lab.exec_("n1/p1", ["ping", "-q", "-c", "3", "10.244.2.2"]) == 0


def _is_renewed(before: set[int]) -> bool:
    sas = agents.ask(N1, "encrypt")[0]["sas"]
    return bool(agents.status(N1)["healthy"]) and len(sas) == 8 and not before & {
        row["spi"] for row in sas
    }  # fmt: skip


def _passing(wire: Sniffer) -> int:
    return sum(int(count.packets) for flow, count in wire.counts().items() if flow.kind is Kind.ESP)
