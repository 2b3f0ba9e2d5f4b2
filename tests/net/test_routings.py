# SPDX-License-Identifier: Apache-2.0
"""Nodes that differ in their routing, as all do while it is changed: nothing is readable.

    n1: direct ─▶ ESP (a pod's packet) ──────────────▶ n2: DROP_WRONG_ROUTING
    n1: nobody listens ◀─ ESP (UDP (VXLAN (a pod's packet))) ◀─ n2: overlay

All that the overlay has made on a node goes with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.loaded import (
    MARKER,
    Load,
    address_of,
    assert_private,
    both_ways,
    dropped,
    stop,
    until,
)
from tests.net.parcels import SECRET, is_echoed

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
OVERLAY = {"routing": "overlay"}
DEVICE, PORT = "pellicle_tunnel", 4789
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@both
def test_who_differs_is_refused_and_nothing_is_readable(make_lab: MakeLab, family: int) -> None:
    make_lab(2, 1, encrypt=False, settings=OVERLAY)
    with Sniffer(markers=[SECRET]) as wire:
        assert is_echoed("n1/p1", family, address_of("n2/p1", family))
        wire.settle()
        assert wire.marks(), "a listener would hear it"
    make_lab(2, 1, settings=OVERLAY)
    turn(N1, "direct")
    before = dropped(N2).get("DROP_WRONG_ROUTING", 0)
    with Sniffer(markers=[SECRET]) as wire:
        for source, sink in (("n1/p1", "n2/p1"), ("n2/p1", "n1/p1"), ("n1", "n2/p1")):
            assert not is_echoed(source, family, address_of(sink, family), seconds=0.5)
        assert is_echoed("n1", family, address_of("n2", family))
        assert_private(wire)
    until(lambda: dropped(N2).get("DROP_WRONG_ROUTING", 0) > before, "n2 says why")


def test_a_running_cluster_changes_its_routing_and_back(make_lab: MakeLab) -> None:
    """Node by node, under load: what goes on meanwhile is lost, and what was said is not."""
    make_lab(2, 1)
    with Sniffer(markers=[MARKER], nonces=True) as wire:
        with both_ways(pps=500) as runs:
            for routing in ("overlay", "direct"):
                for node in (N1, N2):
                    goes_on(wire, runs)
                    turn(node, routing)
                until(lambda: all(map(is_carried, (4, 6))), "pods hear each other again")
                goes_on(wire, runs)
                assert [remains(node) for node in (N1, N2)] == [
                    {"device", "programs", "routes", "socket"} if routing == "overlay" else set()
                ] * 2
            outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    assert all(outcome.is_intact for outcome in outcomes)
    assert all(outcome.stream_bytes == outcome.stream_sent for outcome in outcomes)


# --- what it takes -------------------------------------------------------------------------------


def turn(node: LabNode, routing: str) -> None:
    """Its agent restarts with this routing; the pods stay."""
    config: dict[str, Any] = json.loads(node.config.read_text())
    node.config.write_text(json.dumps({**config, "routing": routing}) + "\n")
    lab.restart_agent(node.name)
    until(lambda: bool(agents.status(node)["healthy"]), f"{node.name} is in order")
    assert bool(agents.status(node)["datapath"]["overlay"]) == (routing == "overlay")


def is_carried(family: int) -> bool:
    return is_echoed("n1/p1", family, address_of("n2/p1", family), seconds=0.5)


def goes_on(wire: Sniffer, runs: tuple[Load, ...]) -> None:
    """There is something to be heard while it changes."""

    def heard() -> int:
        return sum(n.packets for flow, n in wire.counts().items() if flow.kind is Kind.ESP)

    seen = heard()
    until(lambda: heard() > seen + 20, "the load is on its way")
    assert all(run.is_running for run in runs)


def remains(node: LabNode) -> set[str]:
    """Of the overlay on this node."""
    with Netlink(node.namespace) as netlink:
        device = netlink.links().get(DEVICE)
        routes = [
            route
            for table in (200, 201)
            for route in netlink.routes(table)
            if device is not None and route.device == device.index
        ]
    argv = ["ss", "-Hlnu", f"sport = :{PORT}"]
    listens = netns.run_in(node.namespace, argv, capture_output=True, text=True, check=True).stdout
    found = {
        "device": device,
        "programs": list((node.bpffs / "links").glob(f"*_{DEVICE}")),
        "routes": routes,
        "socket": listens,
    }
    return {what for what, there in found.items() if there}
