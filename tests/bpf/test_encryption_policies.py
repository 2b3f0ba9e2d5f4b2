# SPDX-License-Identifier: Apache-2.0
"""Encryption policies in the datapath: what is exempt passes by name, at each hook; the rest does
not, and what has keys of its own uses no others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    LOCAL,
    NODE,
    OUT,
    OVER4,
    POD4,
    POD6,
    POD_IDENTITY,
    SELF4,
    WORLD4,
    furnish,
    put_outbound,
)
from tests.bpf.esp import Keys
from tests.bpf.node import BPF, OK, REDIRECT, SHOT, Node, addr, loaded_node
from tests.bpf.packets import ESP, ICMP, TCP, UDP, frame, ip

EXEMPT, ENCRYPT, OWN_KEYS = 1, 2, 3
PODS, PEERS, SELF, NODES, CIDR = 11, 12, 13, 14, 15
"""Groups."""
BY_GROUP, BY_PORTS, OWN, NODES_RULE, CIDR_RULE = 71, 72, 73, 74, 75
"""Policies."""
LIST = 99
"""Of ports."""
PLAIN, PGSQL, WEB, OTHER = 8080, 5432, 80, 40000
OWN_PAIR = 0x7777_0000_0000_0001
TO_LEAK, FROM_LEAK = "DROP_CLEAR_TO_CLUSTER", "DROP_CLEAR_FROM_CLUSTER"
UNKNOWN = "10.244.77.7"
"""In a CIDR that a policy names; nobody has it."""
UNNAMED = "10.244.78.7"


def put_policy(
    node: Node, groups: tuple[int, int], rest: tuple[int, int], *,
    fragments: tuple[int, int] | None = None, ports: int = 0,
) -> None:  # fmt: skip
    row = {
        "rest": {"rule": rest[0], "action": rest[1]},
        "fragments": dict(zip(("rule", "action"), fragments or rest, strict=True)),
        "ports": ports,
    }
    node.put("policies", {"groups": sorted(groups)}, row)


def put_port(node: Node, protocol: int, port: int, rule: int, action: int) -> None:
    key = {"ports": LIST, "protocol": protocol, "port": port}
    node.put("policy_ports", key, {"rule": rule, "action": action})


def name_group(node: Node, address: str, at: str, group: int, flags: int = 0) -> None:
    row = {"identity": POD_IDENTITY, "flags": flags, "node": addr(at), "group": group}
    node.put("ipcache", {"bytes": addr(address)}, row)


def prepare(node: Node) -> None:
    furnish(node)
    put_outbound(node, OVER4)
    for number in range(4):
        node.put_sa_out(
            Keys.made_of(900 + number), pair=OWN_PAIR, number=number,
            source=SELF4, destination=OVER4.address, node=OVER4.address,
        )  # fmt: skip
    for pod in (POD4, POD6):
        name_group(node, pod, SELF4, PODS, LOCAL)
    for peer in (OVER4.pod4, OVER4.pod6):
        name_group(node, peer, OVER4.address, PEERS)
    name_group(node, SELF4, SELF4, SELF, LOCAL | NODE)
    name_group(node, OVER4.address, OVER4.address, NODES, NODE)
    for text, group in (("10.244.77.0/24", CIDR), ("10.244.78.0/24", 0)):
        length = int(text.partition("/")[2]) + 96
        key = {"prefixlen": length, "addr": addr(text.partition("/")[0])}
        node.put("cluster_cidrs", key, {"group": group})
    own = {"pair": OWN_PAIR, "engine": BPF, "sa_mask": 3}
    node.put("encrypt", {"context": OWN, "node": addr(OVER4.address)}, own)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf")) as node:
        prepare(node)
        yield node


@pytest.fixture
def node(loaded: Node) -> Node:
    """Without a policy."""
    loaded.clear("policies", "policy_ports", "flows")
    loaded.forget()
    return loaded


def packet(
    source: str, destination: str, port: int = PLAIN, own: int = OTHER, protocol: int = TCP,
    fragment: int = 0,
) -> bytes:  # fmt: skip
    made = {TCP: packets.tcp, UDP: packets.udp}.get(protocol)
    body = made(own, port, bytes(24)) if made else packets.icmp(8, 0, bytes(4), bytes(24))
    if ":" not in source:
        return frame(ip(source, destination, body, protocol=protocol, fragment=fragment))
    if fragment:
        is_more, offset = bool(fragment & packets.MORE_FRAGMENTS), fragment & 0x1FFF
        body = struct.pack(">BBHI", protocol, 0, offset << 3 | is_more, 7) + body
    return frame(ip(source, destination, body, protocol=44 if fragment else protocol))


@dataclass(frozen=True)
class Way:
    """One hook, and a packet of a pod here with one of a peer's that it would not let pass."""

    program: str
    source: str
    destination: str
    drop: str
    """What becomes of it where nothing is exempt, if it is not encrypted."""


WAYS = {
    "to_net": Way("to_net", POD4, OVER4.pod4, TO_LEAK),
    "to_net, IPv6": Way("to_net", POD6, OVER4.pod6, TO_LEAK),
    "from_net": Way("from_net", OVER4.pod4, POD4, FROM_LEAK),
    "from_net, IPv6": Way("from_net", OVER4.pod6, POD6, FROM_LEAK),
    "from_pod": Way("from_pod", POD4, OVER4.pod4, ""),
    "from_pod, IPv6": Way("from_pod", POD6, OVER4.pod6, ""),
    "door": Way("door", POD4, OVER4.pod4, "SEALED"),
    "door, IPv6": Way("door", POD6, OVER4.pod6, "SEALED"),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
def test_without_a_policy_all_is_as_ever(node: Node, way: Way) -> None:
    assert node.run(way.program, packet(way.source, way.destination)).reason == way.drop


@ways
def test_what_is_exempt_passes_and_is_reported_by_its_policy(node: Node, way: Way) -> None:
    put_policy(node, (PODS, PEERS), (BY_GROUP, EXEMPT))
    seen = node.run(way.program, packet(way.source, way.destination))
    assert seen.reason == "CLEAR_EXEMPT"
    assert seen.action in {OK, REDIRECT}
    (event,) = node.seen_events()
    assert event["row"]["rule"] == BY_GROUP
    if way.program in {"from_pod", "door"}:
        assert seen.mark == OUT, "it goes by ordinary routes"


@ways
def test_a_policy_of_other_groups_lets_nothing_pass(node: Node, way: Way) -> None:
    put_policy(node, (PODS, NODES), (BY_GROUP, EXEMPT))
    put_policy(node, (0, PEERS), (BY_GROUP, EXEMPT))
    put_policy(node, (0, 0), (BY_GROUP, EXEMPT))
    put_policy(node, (PEERS, PEERS), (BY_GROUP, EXEMPT))
    assert node.run(way.program, packet(way.source, way.destination)).reason == way.drop


PORTS = {
    "its port": ((WEB, OTHER, TCP), "CLEAR_EXEMPT"),
    "of an answer": ((OTHER, WEB, TCP), "CLEAR_EXEMPT"),
    "another port": ((PLAIN, OTHER, TCP), None),
    "another protocol": ((WEB, OTHER, UDP), None),
    "no port": ((0, 0, ICMP), None),
    "a stricter one at the other end": ((WEB, PGSQL, TCP), None),
    "the same, an answer": ((PGSQL, WEB, TCP), None),
}


@ways
@pytest.mark.parametrize(("ports", "expected"), PORTS.values(), ids=PORTS)
def test_ports(node: Node, way: Way, ports: tuple[int, int, int], expected: str | None) -> None:
    encrypted = (BY_GROUP, ENCRYPT)
    put_policy(node, (PODS, PEERS), encrypted, fragments=encrypted, ports=LIST)
    put_port(node, TCP, WEB, BY_PORTS, EXEMPT)
    put_port(node, TCP, PGSQL, BY_GROUP, ENCRYPT)
    port, own, protocol = ports
    if protocol == ICMP and way.source in {POD6, OVER4.pod6}:
        protocol = packets.ICMPV6
    seen = node.run(way.program, packet(way.source, way.destination, port, own, protocol))
    assert seen.reason == (way.drop if expected is None else expected)


@ways
def test_fragments_go_the_way_of_the_strictest_port(node: Node, way: Way) -> None:
    exempt, strict = (BY_GROUP, EXEMPT), (BY_PORTS, ENCRYPT)
    put_policy(node, (PODS, PEERS), exempt, fragments=strict, ports=LIST)
    put_port(node, TCP, PGSQL, *strict)
    for fragment in (0x2000, 9):
        made = packet(way.source, way.destination, WEB, fragment=fragment)
        assert node.run(way.program, made).reason == way.drop
    assert node.run(way.program, packet(way.source, way.destination, WEB)).reason == "CLEAR_EXEMPT"


@pytest.mark.parametrize("ip_version", [4, 6])
def test_what_has_keys_of_its_own_uses_no_others(node: Node, ip_version: int) -> None:
    source, destination = (POD4, OVER4.pod4) if ip_version == 4 else (POD6, OVER4.pod6)
    put_policy(node, (PODS, PEERS), (OWN, OWN_KEYS))
    seen = node.run("door", packet(source, destination))
    assert seen.reason == "SEALED"
    (event,) = node.seen_events()
    assert (event["row"]["pair"], event["row"]["rule"]) == (OWN_PAIR, OWN)
    assert node.run("from_pod", packet(source, destination)).reason == ""


def test_nor_the_nodes_own_while_they_are_missing(node: Node) -> None:
    put_policy(node, (PODS, PEERS), (BY_PORTS, OWN_KEYS))
    made = packet(POD4, OVER4.pod4)
    assert node.run("door", made).reason == "DROP_NO_KEY"
    seen = node.run("from_pod", made)
    assert (seen.action, seen.reason) == (SHOT, "DROP_NO_KEY")
    assert {event["row"]["rule"] for event in node.seen_events()} == {BY_PORTS}


def test_what_other_keys_are_for_is_encrypted_with_the_nodes(node: Node) -> None:
    put_policy(node, (PODS, PEERS), (BY_GROUP, ENCRYPT), ports=LIST)
    put_port(node, TCP, PGSQL, OWN, OWN_KEYS)
    node.run("door", packet(POD4, OVER4.pod4, PGSQL))
    node.run("door", packet(POD4, OVER4.pod4, PLAIN))
    assert [event["row"]["pair"] for event in node.seen_events()] == [OWN_PAIR, OVER4.pair]


def test_an_address_nobody_has_is_of_the_group_of_its_cidr(node: Node) -> None:
    put_policy(node, (PODS, CIDR), (CIDR_RULE, EXEMPT))
    for program in ("from_pod", "to_net"):
        assert node.run(program, packet(POD4, UNKNOWN)).reason == "CLEAR_EXEMPT"
    assert node.run("from_net", packet(UNKNOWN, POD4)).reason == "CLEAR_EXEMPT"
    assert node.run("from_pod", packet(POD4, UNNAMED)).reason == "DROP_UNKNOWN_PEER"
    assert node.run("to_net", packet(POD4, UNNAMED)).reason == TO_LEAK
    assert node.run("from_net", packet(UNNAMED, POD4)).reason == FROM_LEAK


def test_between_nodes_and_between_nodes_and_pods(node: Node) -> None:
    put_policy(node, (SELF, NODES), (NODES_RULE, EXEMPT))
    assert node.run("to_net", packet(SELF4, OVER4.address)).reason == "CLEAR_EXEMPT"
    assert node.run("door", packet(SELF4, OVER4.address)).reason == "CLEAR_EXEMPT"
    assert node.run("from_net", packet(OVER4.address, SELF4)).reason == "CLEAR_EXEMPT"
    assert node.run("to_net", packet(SELF4, OVER4.pod4)).reason == TO_LEAK
    assert node.run("from_net", packet(OVER4.address, POD4)).reason == FROM_LEAK


def test_an_exempt_pod_may_not_lie_about_who_it_is(node: Node) -> None:
    put_policy(node, (PODS, PEERS), (BY_GROUP, EXEMPT))
    put_policy(node, (PEERS, PEERS), (BY_GROUP, EXEMPT))
    assert node.run("from_pod", packet(OVER4.pod4, OVER4.pod4)).reason == "DROP_SPOOFED_POD"


def test_nor_speak_esp_to_a_node(node: Node) -> None:
    put_policy(node, (PODS, NODES), (BY_GROUP, EXEMPT))
    made = frame(ip(POD4, OVER4.address, bytes(40), protocol=ESP))
    assert node.run("from_pod", made).reason == "DROP_POD_ESP"


def test_the_last_door_does_not_report_what_another_has_let_out(node: Node) -> None:
    put_policy(node, (PODS, PEERS), (BY_GROUP, EXEMPT))
    seen = node.run("to_net", packet(POD4, OVER4.pod4), mark=OUT)
    assert (seen.action, seen.reason, seen.mark) == (OK, "", 0)
    put_policy(node, (PODS, PEERS), (BY_GROUP, ENCRYPT))
    seen = node.run("to_net", packet(POD4, OVER4.pod4), mark=OUT)
    assert (seen.action, seen.reason) == (SHOT, TO_LEAK), "its mark is no excuse"


def test_a_peer_without_keys_and_the_world(node: Node) -> None:
    put_policy(node, (PODS, 0), (BY_GROUP, EXEMPT))
    assert node.run("from_pod", packet(POD4, KEYLESS.pod4)).reason == "CLEAR_EXEMPT"
    assert node.run("from_pod", packet(POD4, WORLD4)).reason == "CLEAR_WORLD"
