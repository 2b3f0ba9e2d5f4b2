# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom, by which way, and whether the books say so.

       ┌── pod, gateway, node: this side ──┐   CLEAR_LOCAL: no wire
n1/p1 ─┼── pod, gateway, node: that side ──┼─▶ SEALED, OPENED
       └── the router: not of the cluster ─┘   CLEAR_WORLD: in the clear, and reported
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import UPLINK, LabNode
from tests import pace
from tests.net.engines import of
from tests.net.loaded import address_of, until
from tests.net.parcels import INNER, IP_UDP, PROBE_PATH, SECRET, content, is_echoed, parcels
from tests.net.streams import connected, exchange

MakeLab = Callable[..., lab.LabState]
A, B, BESIDE = "n1/p1", "n2/p1", "n1/p2"
N1, N2 = LabNode(1), LabNode(2)
PACKETS = [f"{node} {book} packets" for node in ("n1", "n2") for book in ("counter", "peer", "SA")]
BYTES = [f"{node} {book} bytes" for node in ("n1", "n2") for book in ("counter", "peer", "SA")]
NOISE = {"CLEAR_LINK", "PROBE_SENT", "PROBE_RECEIVED"}
"""What nodes and pods do by themselves."""
UNREACHABLE = {4: (3, 3), 6: (1, 4)}
"""ICMP type and code of a port without a listener: RFC 792, RFC 4443 §3.1."""
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


def of_node(node: LabNode, family: int) -> str:
    return str(next(each for each in node.addresses if each.version == family))


def of_gateway(node: LabNode, family: int) -> str:
    return str(next(cidr[1] for cidr in node.pod_cidrs if cidr.version == family))


def of_router(family: int) -> str:
    return str(next(each.ip for each in N1.gateways if each.version == family))


@dataclass(frozen=True)
class Case:
    """One echo request and its reply."""

    says: str
    source: str
    to: Callable[[int], str]
    here: Mapping[str, int]
    """What n1 counts."""
    there: Mapping[str, int]
    """What n2 counts."""
    seen: frozenset[Kind]
    """On the wire."""


SEALED = {"SEALED": 1, "OPENED": 1}
LOCAL = {"CLEAR_LOCAL": 1}
NOTHING: frozenset[Kind] = frozenset()
ESP, CLEAR = frozenset({Kind.ESP}), frozenset({Kind.CLEAR})
CASES = (
    Case("to a pod there", A, lambda f: address_of(B, f), SEALED, SEALED, ESP),
    Case("to the gateway there", A, lambda f: of_gateway(N2, f), SEALED, SEALED, ESP),
    Case("to the node there", A, lambda f: of_node(N2, f), SEALED, SEALED, ESP),
    Case("from the node to a pod there", "n1", lambda f: address_of(B, f), SEALED, SEALED, ESP),
    Case("from the node to the gateway there", "n1", lambda f: of_gateway(N2, f),
         SEALED, SEALED, ESP),
    Case("from the node to the node there", "n1", lambda f: of_node(N2, f), SEALED, SEALED, ESP),
    Case("from the node there to the node", "n2", lambda f: of_node(N1, f), SEALED, SEALED, ESP),
    Case("to the pod beside", A, lambda f: address_of(BESIDE, f), {"CLEAR_LOCAL": 2}, {}, NOTHING),
    Case("to its own gateway", A, lambda f: of_gateway(N1, f), LOCAL, {}, NOTHING),
    Case("to its own node", A, lambda f: of_node(N1, f), LOCAL, {}, NOTHING),
    Case("from the node to its pod", "n1", lambda f: address_of(A, f), LOCAL, {}, NOTHING),
    Case("to the world", A, of_router, {"CLEAR_WORLD": 1}, {}, CLEAR),
)  # fmt: skip


@pytest.fixture(scope="module")
def two(make_lab: MakeLab) -> None:
    make_lab(2, 2)


@both
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_everybody_is_reached_and_counted(two: None, case: Case, family: int) -> None:
    before = _counts(N1), _counts(N2)
    with Sniffer(markers=[SECRET]) as wire:
        assert is_echoed(case.source, family, case.to(family))
        wire.settle()
        kinds = {flow.kind for flow in wire.counts()} - {Kind.LINK}
        assert kinds == case.seen
        assert bool(wire.marks()) == (case.seen == CLEAR)
        assert wire.lost() == 0
    until(lambda: _grown(N1, before[0]) == case.here, f"n1 counts {case.here}", 5)
    assert _grown(N2, before[1]) == case.there


@both
def test_errors_come_back_through_the_tunnel(two: None, family: int) -> None:
    """A port that nobody listens on: the remote pod's ICMP is traffic like any other."""
    with Sniffer(markers=[SECRET]) as wire, parcels(A, B, family) as post:
        post.receiver.close()
        post.send(content(500))
        error = post.error()
        assert error is not None
        assert (error.type, error.code, error.offender) == (
            *UNREACHABLE[family],
            address_of(B, family),
        )
        wire.settle()
        assert wire.marks() == {}
        assert wire.leaks() == ()


@both
def test_the_world_is_reported_by_name(two: None, family: int) -> None:
    is_echoed(A, family, of_router(family))
    flows = agents.ask(N1, "flows", verdict="clear", to=of_router(family))
    assert {(row["source"]["pod"], row["reason"]) for row in flows} == {
        ("default/n1-p1", "CLEAR_WORLD")
    }


@both
@pytest.mark.parametrize("size", [1, 700, 1390])
def test_the_books_agree_with_what_was_sent(two: None, family: int, size: int) -> None:
    """SAs at both ends, the counters, the flow: each packet once, each byte once."""
    number = pace.amount(500, 50)
    length_all = number * (size + IP_UDP[family])
    before = _books()
    with Sniffer() as wire, parcels(A, B, family) as post:
        port = post.receiver.getsockname()[1]
        for _ in range(number):
            assert post.carries(size)
        wire.settle()
        on_wire = sum(c.packets for f, c in wire.counts().items() if f.kind is Kind.ESP)
    assert on_wire == number
    after = _books()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown == dict.fromkeys(PACKETS, number) | dict.fromkeys(BYTES, length_all)
    for node, reason in ((N1, "SEALED"), (N2, "OPENED")):
        (flow,) = [
            row
            for row in agents.ask(node, "flows", verdict="encrypted", to=address_of(B, family))
            if row["destination"]["port"] == port
        ]
        assert (flow["reason"], flow["packets"], flow["bytes"]) == (reason, number, length_all)
        assert (flow["source"]["pod"], flow["destination"]["pod"]) == (
            "default/n1-p1",
            "default/n2-p1",
        )
        assert flow["spi"] in {row["spi"] for row in agents.ask(node, "encrypt")[0]["sas"]}


def test_after_large_transfers_both_sides_say_the_same(two: None) -> None:
    for family in (4, 6):
        with connected(A, B, family) as (here, there):
            assert exchange(here, there, 2) == [True, True]
    until(lambda: _sent(N1) == _received(N2) and _sent(N2) == _received(N1), "the same", 5)
    assert _sent(N1)[1] > pace.amount(4 << 20, 1 << 19)
    for node in (N1, N2):
        (peer,) = _shown(node)["peers"]
        assert (peer["packets_out"], peer["bytes_out"]) == _sent(node), "as the command prints it"


@both
def test_what_was_dropped_is_in_no_book_of_the_sent(two: None, family: int) -> None:
    before = _books()
    with parcels(A, B, family, "10.244.2.250" if family == 4 else "fd00:244:2::fafa") as post:
        post.send(content(500))
        until(lambda: _counts(N1)["DROP_UNKNOWN_PEER"] > 0, "dropped")
        assert post.is_silent
    assert _books() == before


def test_a_strict_source_check_of_the_node_loses_nothing(two: None) -> None:
    """Some distributions begin with rp_filter=1; what is opened on the uplink came by the door.

    So does ESP, which would be answered through the door as well.
    """
    door = of(N2).door
    lab.kill_agent("n2")
    for name in ("all", UPLINK, door):
        netns.write_sysctl(f"net/ipv4/conf/{name}/rp_filter", 1, N2.namespace)
    assert is_echoed(A, 4, of_node(N2, 4), seconds=0.5) is False, "strict"
    lab.start_agent("n2")
    for to in (of_node(N2, 4), of_gateway(N2, 4), address_of(B, 4)):
        assert is_echoed(A, 4, to)


@both
def test_the_kernel_may_look_with_the_packets_mark(two: None, family: int) -> None:
    """Who runs a VPN of his own on a node sets src_valid_mark; others let ICMP carry the mark."""
    of_kernel = {
        "net/ipv4/conf/all/rp_filter": 2,
        "net/ipv4/conf/all/src_valid_mark": 1,
        "net/ipv4/fwmark_reflect": 1,
        "net/ipv6/fwmark_reflect": 1,
    }
    for name, value in of_kernel.items():
        netns.write_sysctl(name, value, N1.namespace)
    assert is_echoed(A, family, address_of(B, family))
    with parcels(A, B, family) as post:
        post.discover(PROBE_PATH)
        post.send(content(INNER[4] + 1 - IP_UDP[family]))
        error = post.error()
        assert error is not None, "no blackhole"
        assert error.mtu == INNER[4]


def _books() -> dict[str, int]:
    """Every count of the traffic from n1 to n2 that there is, probes left out."""
    rows: dict[str, int] = {}
    for node, reason, probe, way in (
        (N1, "SEALED", "PROBE_SENT", "out"),
        (N2, "OPENED", "PROBE_RECEIVED", "in"),
    ):
        status = agents.status(node)
        counts = {row["reason"]: row for row in status["counts"]}
        sas = [row for row in agents.ask(node, "encrypt")[0]["sas"] if row["direction"] == way]
        probes = counts[probe]["packets"]
        (peer,) = status["peers"]
        rows[f"{node.name} counter packets"] = counts[reason]["packets"]
        rows[f"{node.name} counter bytes"] = counts[reason]["bytes"]
        rows[f"{node.name} peer packets"] = peer[f"packets_{way}"] - probes
        rows[f"{node.name} peer bytes"] = peer[f"bytes_{way}"]
        rows[f"{node.name} SA packets"] = sum(row["packets"] for row in sas) - probes
        rows[f"{node.name} SA bytes"] = sum(row["bytes"] for row in sas)
    return rows


def _sent(node: LabNode) -> tuple[int, int]:
    (peer,) = agents.status(node)["peers"]
    return peer["packets_out"], peer["bytes_out"]


def _received(node: LabNode) -> tuple[int, int]:
    (peer,) = agents.status(node)["peers"]
    return peer["packets_in"], peer["bytes_in"]


def _counts(node: LabNode) -> dict[str, int]:
    return {row["reason"]: int(row["packets"]) for row in agents.status(node)["counts"]}


def _grown(node: LabNode, before: Mapping[str, int]) -> dict[str, int]:
    now = _counts(node)
    names = now.keys() - NOISE
    return {name: now[name] - before[name] for name in names if now[name] != before[name]}


def _shown(node: LabNode) -> Any:
    """What the command prints."""
    argv = [sys.executable, "-m", "pellicle", "status", "--node", node.name, "--json"]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
