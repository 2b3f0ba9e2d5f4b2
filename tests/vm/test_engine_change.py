# SPDX-License-Identifier: Apache-2.0
"""The engine changes under a running cluster, one node at a time, and agents die meanwhile.

n1/p1 ──TCP, numbered UDP──▶ n2/p1       bpf → xfrm → bpf on n1, then on n2; SIGKILL in between
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from pellicle import lab
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.loaded import MARKER, assert_private, dropped, load, until

MakeLab = Callable[..., lab.LabState]
NODES = (LabNode(1), LabNode(2))
CHANGES = (("xfrm", "bpf"), ("xfrm", "xfrm"), ("bpf", "xfrm"), ("bpf", "bpf"))
"""What n1 and n2 have after each."""
PPS = 100
GAP = 1.0
"""Seconds of UDP that one change may cost at most."""


@pytest.mark.parametrize("family", [4, 6])
def test_engines_change_under_load(make_lab: MakeLab, family: int) -> None:
    make_lab(2, 1, engine="bpf", encrypt=False)
    with Sniffer(markers=[MARKER]) as wire, load("n1/p1", "n2/p1", family, 3, pps=PPS) as run:
        assert run.outcome.is_intact
        wire.settle()
        assert sum(wire.marks().values()) > 10, "it sees plaintext when there is some"
    make_lab(2, 1, engine="bpf")
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", family, 900, pps=PPS) as run,
    ):
        until(lambda: _esp(wire) > 20, "the load is on its way")
        for first, second in CHANGES:
            make_lab(2, 1, engine=f"n1={first},n2={second}")
            assert _engines() == (first, second)
            seen = _esp(wire)
            until(lambda seen=seen: _esp(wire) > seen + 30, "traffic goes on")
        outcome = run.stop()
        assert_private(wire)
        assert wire.reuses() == ()
    assert outcome.is_intact
    print(f"\n  IPv{family}: {outcome.lost} of {outcome.udp_sent} UDP packets lost in "
          f"{len(CHANGES)} changes, longest gap {outcome.longest_gap:.2f} s, "
          f"dropped: {[dropped(node) for node in NODES]}")  # fmt: skip
    assert outcome.lost <= GAP * PPS * len(CHANGES)
    until(_is_swept, "nothing of the kernel's IPsec is left with the bpf engine")


@pytest.mark.parametrize("engine_", ["xfrm", "n1=bpf,n2=xfrm"])
@pytest.mark.parametrize("family", [4, 6])
def test_killed_agents_cost_nothing(make_lab: MakeLab, engine_: str, family: int) -> None:
    make_lab(2, 1, engine=engine_)
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", family, 600, pps=PPS) as run,
    ):
        until(lambda: _esp(wire) > 20, "the load is on its way")
        for node in ("n1", "n2"):
            lab.kill_agent(node)
            lab.start_agent(node)
        lab.restart_agent("n1", signal.SIGTERM)
        until(lambda: all(agents.status(node)["healthy"] for node in NODES), "all is well")
        outcome = run.stop()
        assert_private(wire)
        assert wire.reuses() == ()
    assert outcome.is_intact
    assert outcome.lost == 0, f"{outcome}\n{[dropped(node) for node in NODES]}"


def _engines() -> tuple[str, ...]:
    return tuple(str(agents.status(node)["engine"]) for node in NODES)


def _esp(wire: Sniffer) -> int:
    return sum(count.packets for flow, count in wire.counts().items() if flow.kind is Kind.ESP)


def _is_swept() -> bool:
    for node in NODES:
        with Netlink(node.namespace) as netlink, Xfrm(node.namespace) as xfrm:
            if "pellicle_xfrm" in netlink.links() or xfrm.states() or xfrm.policies():
                return False
    return True
