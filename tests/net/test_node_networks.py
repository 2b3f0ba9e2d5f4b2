# SPDX-License-Identifier: Apache-2.0
"""A node of which there is no record yet is no stranger from the world: it gets no cleartext.

n1, its agent up, directory empty ═══ router 192.168.1.1 ═══ n2, no agent yet

All three lie in `node_cidrs`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest

from pellicle import lab
from pellicle.lab import agents, cabling
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, LabNode
from tests.net.loaded import address_of, assert_private, until
from tests.net.parcels import SECRET, content, is_echoed, parcels
from tests.net.test_paths import asked, served

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
NETWORKS = ["192.168.0.0/16", "fd00:168::/32"]
ROUTER = {4: "192.168.1.1", 6: "fd00:168:1::1"}
WORLD = {4: "198.51.100.7", 6: "2001:db8:ffff::7"}
ETCD = 2379
PATHS = (("n1", "n2"), ("n1/p1", "n2"), ("n2", "n1"))
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def alone(make_lab: MakeLab) -> None:
    """n1 starts for the first time; n2 has its addresses, and nothing of Pellicle."""
    make_lab(2, 1, settings={"node_cidrs": NETWORKS})
    for node in ("n1", "n2"):
        lab.power_off(node)
    shutil.rmtree(CLUSTER)
    CLUSTER.mkdir(mode=0o755)
    cabling.connect_node(N2, 1500)
    lab.power_on("n1", wait=False)
    until(lambda: N1.addresses[0] in agents.known_addresses(N1), "n1 is up")
    assert not agents.known_addresses(N1) & set(N2.addresses)


@both
def test_nothing_is_said_to_it_and_nothing_heard_of_it(alone: None, family: int) -> None:
    before = _drops()
    with Sniffer(markers=[SECRET]) as wire:
        for source, sink in PATHS:
            with parcels(source, sink, family) as post:
                for size in (40, 1000):
                    with suppress(OSError):  # dropped at its own uplink: ENOBUFS
                        post.send(content(size))
                assert not is_echoed(source, family, address_of(sink, family), 0.5)
                assert post.is_silent, (source, sink)
        wire.settle()
        assert wire.lost() == 0
        said = {flow.source for flow, _ in wire.marks()}
        assert said == {"n2"}, "the sniffer hears it, and n1 says nothing"
    assert _grown(before) == {
        "DROP_CLEAR_TO_CLUSTER",
        "DROP_UNKNOWN_PEER",
        "DROP_CLEAR_FROM_CLUSTER",
    }


@both
def test_what_is_exempt_reaches_it(alone: None, family: int) -> None:
    """The store of the records may be there."""
    with served(N2, family, ETCD) as to, asked(N1, family, to) as said:
        assert said == content(5000)
    flows = agents.ask(N1, "flows", verdict="clear", to=address_of("n2", family))
    assert {row["reason"] for row in flows} == {"CLEAR_EXEMPT"}
    assert {row["rule"].split("=")[0] for row in flows} == {"etcd"}


@both
@pytest.mark.parametrize("source", ["n1", "n1/p1"])
def test_a_router_there_forwards_and_says_why_it_could_not(
    alone: None, source: str, family: int
) -> None:
    with parcels(source, "n2", family, WORLD[family]) as post:
        post.send(content(100))
        error = post.error()
    assert error is not None
    assert error.offender == ROUTER[family]


@both
def test_as_a_member_it_is_spoken_to_and_heard(alone: None, family: int) -> None:
    lab.power_on("n2")
    lab.start_agent("n1")  # it runs: this waits until it is ready
    with Sniffer(markers=[SECRET]) as wire:
        for source, sink in PATHS:
            with parcels(source, sink, family) as post:
                assert all(post.carries(size) for size in (40, 1000))
            assert is_echoed(source, family, address_of(sink, family))
        assert_private(wire)


@both
def test_with_a_router_itself_nobody_speaks_unless_it_is_left_out(
    make_lab: MakeLab, family: int
) -> None:
    make_lab(2, 1, settings={"node_cidrs": NETWORKS})
    assert not is_echoed("n1", family, ROUTER[family], 0.5)
    but = [ROUTER[family]]
    make_lab(2, 1, settings={"node_cidrs": NETWORKS, "node_cidrs_except": but})
    assert is_echoed("n1", family, ROUTER[family])


def _drops() -> Mapping[str, int]:
    counts = agents.status(N1)["counts"]
    return {row["reason"]: row["packets"] for row in counts if row["reason"].startswith("DROP_")}


def _grown(before: Mapping[str, int]) -> set[str]:
    return {name for name, number in _drops().items() if number > before[name]}
