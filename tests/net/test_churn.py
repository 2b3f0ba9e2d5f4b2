# SPDX-License-Identifier: Apache-2.0
"""Pods and nodes come and go under load: nothing leaks, neither packets nor what they leave.

What a place holds is compared before and after: devices, addresses, routes, rules, neighbours,
map rows, files, the kernel's own IPsec.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

from pellicle import lab
from pellicle.facts import Epoch, Node, NodeName
from pellicle.kernel import netns
from pellicle.kernel.bpf import Map
from pellicle.kernel.netlink import Netlink
from pellicle.keys import secret as secrets
from pellicle.keys.offers import OwnOffer
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, PSK, LabNode
from pellicle.sources.directory import remove_node, write_node
from tests import pace
from tests.net.loaded import MARKER, address_of, assert_private, load, until

MakeLab = Callable[..., lab.LabState]
CHURN = pace.amount(200, 6)
CROWD = pace.amount(100, 10)
SETTINGS = {"drain_seconds": "2s"}
MAPS = ("ipcache", "cluster_cidrs", "endpoints", "encrypt", "sa_in", "sa_out")
SAY = "import socket,sys; s=socket.socket(socket.AF_INET%s,socket.SOCK_DGRAM); s.sendto(%r,(%r,9))"


def test_pods_come_and_go(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    _turn("n1")  # what is made once and kept, such as the identity of these labels, is made now
    _turn("n2")
    nodes = (LabNode(1), LabNode(2))
    before = [_settled(node) for node in nodes]
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", 6, pps=500) as run,
        ThreadPoolExecutor() as both,
    ):
        list(both.map(_churn, ("n1", "n2"), ("n2/p1", "n1/p1")))
        outcome = run.stop()
        assert_private(wire)
        assert wire.reuses() == ()
    assert outcome.is_intact
    assert outcome.lost == 0
    for node, was in zip(nodes, before, strict=True):
        _until_equal(lambda node=node: _holdings(node), was)


def test_nodes_join_and_leave(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    n1 = LabNode(1)
    before = _settled(n1)
    secret = secrets.parse(PSK.read_bytes())
    crowd = [stranger(secret, number) for number in range(CROWD)]
    with Sniffer(markers=[MARKER]) as wire, load("n1/p1", "n2/p1", 4) as run:
        for node in crowd:
            write_node(CLUSTER, node)
        until(lambda: len(agents.status(n1)["peers"]) == CROWD + 1, "all are peers")
        until(lambda: _sas(n1, "sa_in") >= 4 * (CROWD + 1), "keys for all of them stand")
        assert {peer["node"]: peer["state"] for peer in agents.status(n1)["peers"]}["n2"] == "ready"
        for node in crowd:
            remove_node(CLUSTER, node.name)
        _until_equal(lambda: _holdings(n1), before)
        outcome = run.stop()
        assert_private(wire)
    assert outcome.is_intact
    assert outcome.lost == 0


def _churn(node: str, peer: str) -> None:
    """One pod after the other, some of which speak."""
    for number in range(CHURN // 2):
        with _turn_of(node) as pod:
            if number % pace.amount(5, 2) == 0:
                _speak_at_once(pod, peer)


def _turn(node: str) -> None:
    with _turn_of(node):
        pass


@contextmanager
def _turn_of(node: str) -> Iterator[str]:
    """A pod's whole life."""
    pod = lab.add_pod(node)
    try:
        yield pod.name
    finally:
        lab.delete_pod(pod.name)


def _speak_at_once(pod: str, peer: str) -> None:
    """A new pod's very first packets, in both families."""
    for family, digit in ((4, ""), (6, "6")):
        program = SAY % (digit, MARKER, address_of(peer, family))
        assert lab.exec_(pod, ["python3", "-c", program]) == 0


def stranger(secret: secrets.Secret, number: int) -> Node:
    """A node that is known and trusted, and never answers."""
    name = NodeName(f"stranger-{number}")
    own = OwnOffer.make(name, Epoch(1), os.urandom(16), os.urandom, secret)
    return Node(
        name,
        (ip_address(f"192.168.200.{number + 1}"),),
        (ip_network(f"10.244.{number + 100}.0/24"), ip_network(f"fd00:244:{number + 256:x}::/64")),
        (own.offer,),
    )


def _holdings(node: LabNode) -> dict[str, object]:
    """All that pods and peers can leave on a node."""
    with Netlink(node.namespace) as netlink:
        return {
            "devices": sorted(netlink.links()),
            "addresses": sorted(str(each.interface) for each in netlink.addresses()),
            "routes": sorted(
                f"{route.destination} table {route.table}"
                for table in (200, 254)
                for route in netlink.routes(table, 0)
            ),
            "rules": len(netlink.rules(0)),
            "rows": {name: _sas(node, name) for name in MAPS},
            "files": sorted(str(path.relative_to(CLUSTER)) for path in _files(CLUSTER)),
            "ipsec": [_shown(node, "state"), _shown(node, "policy")],
            "pins": sorted(path.name for path in (node.bpffs / "links").iterdir()),
        }


def _shown(node: LabNode, what: str) -> str:
    """How many of them the kernel has; none where another engine is at work."""
    argv = ["ip", "xfrm", what, "count"]
    done = netns.run_in(node.namespace, argv, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def _settled(node: LabNode) -> dict[str, object]:
    """What it holds once nothing of the past is on its way any more."""
    last: dict[str, object] = {}
    while (now := _holdings(node)) != last:
        last = now
        time.sleep(max(2, pace.patient(0.5)))
    return now


def _files(directory: Path) -> Iterator[Path]:
    yield from (path for path in directory.rglob("*") if path.is_file())


def _sas(node: LabNode, name: str) -> int:
    with Map.open_pinned(node.bpffs / "maps" / name) as found:
        return len(found.items())


def _until_equal(look: Callable[[], object], wanted: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + pace.patient(seconds)
    while (found := look()) != wanted and time.monotonic() < end:
        time.sleep(0.2)
    assert found == wanted
