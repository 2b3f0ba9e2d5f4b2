# SPDX-License-Identifier: Apache-2.0
"""Encryption policies on whole nodes: a file in the directory, packets on the wire, a listener."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_network
from itertools import count
from types import MappingProxyType
from typing import Any

import pytest

from pellicle import lab
from pellicle.facts import (
    EncryptionPolicy,
    Network,
    NodeName,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
)
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, LabNode
from pellicle.sources.manifest import write
from pellicle.sources.resources import place
from tests import pace
from tests.net.loaded import address_of, assert_private, both_ways, stop, until
from tests.net.parcels import SECRET, content, is_echoed, open_in

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
BOTH = (N1, N2)
EXEMPT, ENCRYPT, OWN = PolicyAction.EXEMPT, PolicyAction.ENCRYPT, PolicyAction.OWN_KEYS
WEB, DB = 8080, 5432
FRESH_PORTS = count(8100)
families = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


def app(name: str) -> Selector:
    return Selector(namespaces=("default",), labels=MappingProxyType({"app": name}))


def on(number: int) -> Selector:
    return Selector(nodes=(NodeName(f"n{number}"),))


def inside(*cidrs: Network) -> Selector:
    return Selector(cidrs=cidrs)


def policy(
    name: str, action: PolicyAction, *between: Selector, tcp: Collection[int] = ()
) -> EncryptionPolicy:
    ports = tuple(Ports(6, port, port) for port in tcp)
    return EncryptionPolicy(PolicyName(name), action, between, ports)


@pytest.fixture
def cluster(make_lab: MakeLab) -> Iterator[None]:
    """Two nodes of two pods, and no policy before or after."""
    make_lab(2, 2)
    apply()
    yield
    apply()


def apply(*policies: EncryptionPolicy) -> None:
    """These are the cluster's policies from now on, and every node has them in its datapath."""
    wanted = {place(each): write(each) for each in policies}
    for path in (CLUSTER / "policies").glob("*.yaml"):
        if f"policies/{path.name}" not in wanted:
            path.unlink()
    for where, text in wanted.items():
        path = CLUSTER / where
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    names = {each.name for each in policies}
    until(lambda: all(in_force(node) == names for node in BOTH), "policies are in force")


def in_force(node: LabNode) -> set[str] | None:
    """None: not everything stands yet that they come to. Each is to decide something."""
    tables = {row["name"]: row for row in agents.status(node)["tables"]}
    rows = agents.ask(node, "policies")
    stands = all(row["desired"] == row["applied"] for row in tables.values())
    if not stands or not all(row["decides"] for row in rows):
        return None
    if not rows and tables["policy rows"]["applied"]:
        return None
    return {row["name"] for row in rows}


def talk(source: str, sink: str, family: int, port: int) -> bool:
    """TCP both ways on that port; whether all arrived."""
    said = content(20_000)
    with (
        open_in(sink, family, socket.SOCK_STREAM) as server,
        open_in(source, family, socket.SOCK_STREAM) as here,
    ):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen(1)
        here.connect((address_of(sink, family), port))
        there, _ = server.accept()
        with there:
            there.settimeout(pace.patient(5))
            heard = [bytearray(), bytearray()]

            def drain(number: int, end: socket.socket) -> None:
                while piece := end.recv(65536):
                    heard[number] += piece

            threads = [threading.Thread(target=drain, args=row) for row in enumerate((here, there))]
            for each in threads:
                each.start()
            for end in (here, there):
                end.sendall(said)
                end.shutdown(socket.SHUT_WR)
            for each in threads:
                each.join()
    return heard == [said, said]


def is_readable(source: str, sink: str, family: int, port: int) -> bool:
    """Whether a listener on the wire can read what they say; all of it arrives in either case."""
    with Sniffer(markers=[SECRET]) as wire:
        assert talk(source, sink, family, port)
        wire.settle()
        assert wire.lost() == 0
        return bool(wire.marks())


def clear_flows(node: LabNode, to: str, family: int) -> list[Any]:
    return agents.ask(node, "flows", verdict="clear", to=address_of(to, family))


@families
def test_what_is_exempt_goes_in_the_clear_and_nothing_else_does(cluster: None, family: int) -> None:
    assert not is_readable("n1/p1", "n2/p2", family, WEB), "no policy yet"
    apply(policy("web-to-db", EXEMPT, app("p1"), app("p2"), tcp=[WEB]))
    assert is_readable("n1/p1", "n2/p2", family, WEB)
    assert is_readable("n2/p2", "n1/p1", family, WEB), "whoever begins"
    assert not is_readable("n1/p1", "n2/p2", family, WEB + 1)
    assert not is_readable("n1/p1", "n2/p1", family, WEB)
    assert not is_readable("n1/p2", "n2/p2", family, WEB)
    assert not is_readable("n1", "n2/p2", family, WEB)
    assert not is_readable("n1", "n2", family, WEB)
    flows = [row for row in clear_flows(N1, "n2/p2", family) if row["protocol"].lower() == "tcp"]
    assert {(row["reason"], row["rule"]) for row in flows} == {("CLEAR_EXEMPT", "policy web-to-db")}
    apply()
    assert not is_readable("n1/p1", "n2/p2", family, WEB), "no policy any more"


@families
def test_encryption_restricted_to_a_port_and_to_a_node(cluster: None, family: int) -> None:
    apply(policy("rest", EXEMPT), policy("db", ENCRYPT, tcp=[DB]))
    assert is_readable("n1/p1", "n2/p1", family, WEB)
    assert is_readable("n1", "n2/p1", family, WEB)
    assert is_readable("n1/p1", "n2", family, WEB)
    assert is_readable("n1", "n2", family, WEB)
    assert not is_readable("n1/p1", "n2/p1", family, DB)
    assert not is_readable("n1", "n2", family, DB)
    with Sniffer(markers=[SECRET]) as wire:
        assert is_echoed("n1/p1", family, address_of("n2/p1", family))
        wire.settle()
        assert not any("ESP" in str(flow) for flow in wire.counts()), "a ping has no port"
    apply(policy("rest", EXEMPT), policy("n2", ENCRYPT, on(2)))
    assert not is_readable("n1/p1", "n2/p1", family, WEB)
    assert not is_readable("n1", "n2", family, WEB)


@families
def test_a_cidr_and_the_stricter_of_two(cluster: None, family: int) -> None:
    pod = ip_network(address_of("n2/p1", family))
    apply(policy("one-pod", EXEMPT, inside(pod)))
    assert is_readable("n1/p1", "n2/p1", family, WEB)
    assert not is_readable("n1/p1", "n2/p2", family, WEB)
    apply(policy("one-pod", EXEMPT, inside(pod)), policy("p1", ENCRYPT, app("p1")))
    assert not is_readable("n1/p1", "n2/p1", family, WEB)


def test_own_keys_come_and_go_without_a_loss(cluster: None) -> None:
    """Own keys and the nodes' by turns, under load all the while."""
    with both_ways(pps=500) as runs:
        for action in (OWN, ENCRYPT, OWN):
            apply(policy("mine", action, app("p1"), app("p1")))
            if action is OWN:
                until(lambda: all(map(has_own_keys, BOTH)), "own keys are in use")
        apply()
        outcomes = stop(runs)
    assert [outcome.lost for outcome in outcomes] == [0, 0]
    assert all(outcome.is_intact for outcome in outcomes)


def has_own_keys(node: LabNode) -> bool:
    (row,) = agents.ask(node, "policies")
    return [each["encrypts"] for each in row["own_keys"]] == ["own"]


def test_own_keys_encrypt_that_traffic_and_nothing_else(cluster: None) -> None:
    assert_own_keys_for_p1()


def test_in_an_overlay_own_keys_go_by_the_packet_inside_and_no_pod_is_exempt(
    make_lab: MakeLab,
) -> None:
    make_lab(2, 2, settings={"routing": "overlay"})
    apply()
    assert_own_keys_for_p1()
    apply(policy("all", EXEMPT))
    for family in (4, 6):
        assert not is_readable("n1/p1", "n2/p1", family, WEB)
        assert not is_readable("n1", "n2/p1", family, WEB)
        assert is_readable("n1", "n2", family, WEB)
    apply()


def assert_own_keys_for_p1() -> None:
    """Between the pods p1 there are keys that a policy asked for, and elsewhere there are not."""
    apply(policy("mine", OWN, app("p1"), app("p1")))
    until(lambda: all(map(has_own_keys, BOTH)), "own keys are in use")
    port = next(FRESH_PORTS)  # the datapath remembers flows longer than a test, and an agent, lasts
    own = pairs_of_own_keys()
    with Sniffer(markers=[SECRET]) as wire:
        for source, sink in (("n1/p1", "n2/p1"), ("n1/p1", "n2/p2"), ("n1", "n2/p1")):
            for family in (4, 6):
                assert talk(source, sink, family, port)
        assert_private(wire)
    own |= pairs_of_own_keys()  # agents that have just started may have newer ones by now
    used = pairs_used(port)
    ways = {("default/n1-p1", "default/n2-p1"), ("default/n2-p1", "default/n1-p1")}
    assert {ends for ends, pair in used if pair in own} == ways
    rest = {ends for ends, pair in used if pair not in own}
    assert rest, "the rest has the nodes'"
    assert not rest & ways


def pairs_used(port: int) -> list[tuple[tuple[str, str], str]]:
    """By TCP on that port: between whom, and which pair of offers."""
    return [
        ((row["source"]["pod"] or "node", row["destination"]["pod"] or "node"), row["pair"])
        for node in BOTH
        for row in agents.ask(node, "flows", verdict="encrypted")
        if row["protocol"].lower() == "tcp"
        and port in {row["source"]["port"], row["destination"]["port"]}
    ]


def test_own_keys_rotate_and_outlive_agents_without_a_loss(cluster: None) -> None:
    apply(policy("mine", OWN, app("p1"), app("p1")))
    until(lambda: all(map(has_own_keys, BOTH)), "own keys are in use")
    (before,) = {each["pair"] for each in agents.ask(N1, "policies")[0]["own_keys"]}
    with Sniffer(markers=[SECRET]) as wire:
        with both_ways(pps=500) as runs:
            lab.restart_agent("n1")
            until(lambda: has_own_keys(N1), "own keys are in use")
            for answer in agents.ask(N2, "rotate"):
                assert answer
            until(lambda: before not in pairs_of_own_keys(), "the old ones are gone")
            assert all(map(has_own_keys, BOTH))
            outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    assert [outcome.lost for outcome in outcomes] == [0, 0]


def pairs_of_own_keys() -> set[str]:
    return {each["pair"] for node in BOTH for each in agents.ask(node, "policies")[0]["own_keys"]}


def test_a_file_that_went_bad_keeps_what_it_said(cluster: None) -> None:
    good = policy("mine", EXEMPT, app("p1"), app("p1"))
    apply(good)
    path = CLUSTER / place(good)
    path.write_text(path.read_text().replace("exempt", "exmpt"))
    until(lambda: any("exmpt" in row["why"] for row in rejected(N1)), "it is rejected")
    (row,) = [row for row in rejected(N1) if "exmpt" in row["why"]]
    assert "did you mean exempt?" in row["why"]
    assert in_force(N1) == {"mine"}
    assert is_readable("n1/p1", "n2/p1", 4, WEB)


def rejected(node: LabNode) -> list[Any]:
    return list(agents.status(node)["rejected"])
