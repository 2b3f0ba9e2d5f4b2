# SPDX-License-Identifier: Apache-2.0
"""Other clusters than the usual one: other hooks, other wires, one IP version only.

All pods talk to all others, by TCP, UDP and ICMP; and the longest packet passes.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pellicle import lab
from pellicle.lab import agents, check
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.engines import inner_mtu
from tests.net.loaded import address_of, assert_private, until
from tests.net.parcels import (
    IP_UDP,
    MAY_FRAGMENT,
    MUST_NOT_FRAGMENT,
    SECRET,
    Echo,
    parcels,
    refusal,
)
from tests.net.streams import connected, exchange

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
NODES = (LabNode(1), LabNode(2))


@pytest.fixture(autouse=True)
def clean(make_lab: MakeLab) -> Iterator[None]:
    lab.down()
    yield
    assert all(agents.status(node)["healthy"] for node in NODES)


def test_clsact_carries_the_same_and_gives_way_to_tcx(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings={"attach": "clsact"})
    assert _attached() == {"clsact"}
    _everything_passes(inner_mtu(1500, 4, NODES), families=(4, 6))
    make_lab(2, 1, settings={"attach": "tcx"})
    assert _attached() == {"tcx"}
    assert check.check().problems == ()


@pytest.mark.parametrize(("mtu", "outer"), [(9000, 4), (1400, 6)])
def test_wires_of_other_sizes(make_lab: MakeLab, mtu: int, outer: int) -> None:
    make_lab(2, 1, mtu=mtu, settings={"outer_family": str(outer)})
    _everything_passes(inner_mtu(mtu, outer, NODES), families=(4, 6))


@pytest.mark.parametrize(("family", "outer"), [(4, 4), (6, 6)])
def test_clusters_of_one_ip_version(make_lab: MakeLab, family: int, outer: int) -> None:
    """In the pods, and between the nodes."""
    make_lab(2, 0)
    for node in NODES:
        _configure(
            node,
            pod_cidrs=[str(cidr) for cidr in node.pod_cidrs if cidr.version == family],
            addresses=[str(each) for each in node.addresses if each.version == outer],
        )
    _restart()
    for node in NODES:
        lab.add_pod(node.name)
    until(lambda: all(map(_knows_both_pods, NODES)), "the pods are known")
    assert [len(pod.addresses) for node in lab.status().nodes for pod in node.pods] == [1, 1]
    _everything_passes(inner_mtu(1500, outer, NODES), families=(family,))


def _attached() -> set[str]:
    return {agents.status(node)["datapath"]["attach"] for node in NODES}


def _everything_passes(inner: int, families: tuple[int, ...]) -> None:
    if len(families) == 2:
        checked = check.check()
        assert checked.problems == ()
        assert checked.encrypted > 100
    with Sniffer(markers=[SECRET], nonces=True) as wire:
        for family in families:
            _longest_passes(family, inner - IP_UDP[family])
            with connected(A, B, family) as (here, there):
                assert exchange(here, there, 2) == [True, True]
        assert_private(wire)
        assert wire.reuses() == ()
        assert {flow.kind for flow in wire.counts()} <= {Kind.ESP, Kind.LINK}


def _longest_passes(family: int, longest: int) -> None:
    with parcels(A, B, family) as post, Echo(B, family, address_of(A, family)) as echo:
        post.discover(MUST_NOT_FRAGMENT)
        assert all(post.carries(size) for size in (1, longest - 1, longest))
        assert refusal(lambda: post.carries(longest + 1)) == errno.EMSGSIZE
        post.discover(MAY_FRAGMENT)
        assert all(post.carries(size) for size in (longest + 1, 9000, 65507))
        assert all(echo.answers(size) for size in (1, longest, 9000))


def _configure(node: LabNode, **settings: Any) -> None:
    """What an administrator would change in this node's file."""
    found: Mapping[str, Any] = json.loads(node.config.read_text())
    node.config.write_text(json.dumps({**found, **settings}))


def _restart() -> None:
    for node in NODES:
        lab.restart_agent(node.name, wait=False)
    shape = lab.status().shape
    assert shape is not None
    until(
        lambda: not any(agents.lacking(agents.status(node), shape) for node in NODES),
        "both are ready",
    )


def _knows_both_pods(node: LabNode) -> bool:
    wanted = {row for each in lab.status().nodes for pod in each.pods for row in pod.addresses}
    return wanted <= {str(address) for address in agents.known_addresses(node)}
