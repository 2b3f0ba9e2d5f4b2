# SPDX-License-Identifier: Apache-2.0
"""The node's border: cleartext that must not leave (to_net) and must not come in (from_net)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    OUT,
    OVER4,
    OVER6,
    POD4,
    POD6,
    SELF4,
    SELF6,
    WORLD4,
    WORLD6,
    furnish,
    put_inbound,
)  # fmt: skip
from tests.bpf.node import OK, SEAL, SHOT, Node, addr, loaded_node
from tests.bpf.packets import ESP, ICMP, ICMPV6, UDP, frame, ip

LEAK, INTRUDER = "DROP_CLEAR_TO_CLUSTER", "DROP_CLEAR_FROM_CLUSTER"
PASSES = ""
"""And is neither counted nor reported: no business of this cluster."""
NODE_INSIDE = "10.244.250.1"
"""A node whose address lies in the cluster's CIDRs."""
GATEWAY = "10.244.1.1"
"""This node's own, too."""
LOST = "192.0.2.8"
"""A node's address that the ipcache has lost."""
NEW4, NEW6 = "192.0.2.200", "2001:db8:0:1::9"
"""Where nodes are, but of this one there is no record: it is just starting, or a router."""
OSPF, SSH = 89, 22
RULES = {(packets.TCP, SSH): 71, (OSPF, 0): 72}


def prepare(loaded: Node) -> None:
    loaded.put_peer(NODE_INSIDE, node=NODE_INSIDE, flags=2)
    loaded.put_peer(GATEWAY, node=SELF4, flags=3)
    loaded.put_cidr(f"{LOST}/32", flags=1)
    loaded.put_cidr("192.0.2.128/25", flags=1)
    loaded.put_cidr("2001:db8:0:1::/64", flags=1)
    for (protocol, port), rule in RULES.items():
        loaded.put_exempt(protocol, port, rule)
    put_inbound(loaded, OVER4)


def bordering(**words: int) -> Callable[[pytest.TempPathFactory], Iterator[Node]]:
    """A fixture: the node, with these words in its configuration."""

    @pytest.fixture(scope="module")
    def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
        with loaded_node(tmp_path_factory.mktemp("bpf"), **words) as loaded:
            furnish(loaded)
            prepare(loaded)
            yield loaded

    return made


node = bordering()
monitor = bordering(monitor=1)
"""What is dropped for being clear passes, and is reported."""
pods_only = bordering(nodes=0)
"""What nodes say to each other is not encrypted."""
node_in_the_clear = bordering(encrypt=0)


def tagged(packet: bytes, *tags: int) -> bytes:
    whole = frame(packet)
    return whole[:12] + b"".join(struct.pack(">HH", tag, 7) for tag in tags) + whole[12:]


def esp(source: str, destination: str) -> bytes:
    return frame(ip(source, destination, bytes(40), protocol=ESP))


def to_port(
    source: str, destination: str, port: int, own: int = 4000, *, protocol: int = packets.TCP,
    **fields: int,
) -> bytes:  # fmt: skip
    made = packets.tcp if protocol == packets.TCP else packets.udp
    body = made(own, port, bytes(24))
    return frame(ip(source, destination, body, protocol=protocol, **fields))


def solicit(source: str, destination: str, ttl: int = 255) -> bytes:
    body = packets.icmp(135, 0, bytes(4), bytes(16))
    return frame(ip(source, destination, body, protocol=ICMPV6, ttl=ttl))


def icmp_error(source: str, destination: str, kind: int = 3) -> bytes:
    """About a packet to the world."""
    version = 6 if ":" in source else 4
    quoted = ip(destination, WORLD6 if version == 6 else WORLD4, bytes(16))
    body = packets.icmp(kind, 0, bytes(4), quoted)
    return frame(ip(source, destination, body, protocol=ICMPV6 if version == 6 else ICMP))


LEAVING = {
    "a pod's packet for a pod elsewhere": (frame(ip(POD4, OVER4.pod4)), LEAK),
    "the same, IPv6": (frame(ip(POD6, OVER4.pod6)), LEAK),
    "the node's own for a pod elsewhere": (frame(ip(SELF4, OVER4.pod4)), LEAK),
    "for a pod of a node without keys": (frame(ip(SELF4, KEYLESS.pod4)), LEAK),
    "for a cluster address nobody has": (frame(ip(SELF4, "10.244.77.7")), LEAK),
    "for an IPv6 one": (frame(ip(SELF6, "fd00:244:77::7")), LEAK),
    "for a pod here": (frame(ip(WORLD4, POD4)), LEAK),
    "for the first and last of a CIDR": (frame(ip(WORLD4, "10.244.255.255")), LEAK),
    "just outside of it": (frame(ip(WORLD4, "10.245.0.0")), PASSES),
    "just outside of it, IPv6": (frame(ip(WORLD6, "fd00:245::")), PASSES),
    "a fragment": (frame(ip(POD4, OVER4.pod4, bytes(16), fragment=9)), LEAK),
    "on a VLAN": (tagged(ip(POD4, OVER4.pod4), 0x8100), LEAK),
    "on a VLAN in a VLAN": (tagged(ip(POD6, OVER4.pod6), 0x88A8, 0x8100), LEAK),
    "the world's on a VLAN": (tagged(ip(POD4, WORLD4), 0x8100), PASSES),
    "our ESP": (esp(SELF4, OVER4.address), PASSES),
    "our ESP, IPv6": (esp(SELF6, OVER6.address), PASSES),
    "our ESP for a node that is not known, in a CIDR": (esp(SELF4, "10.244.77.7"), PASSES),
    "our ESP for a node in a CIDR": (esp(SELF4, NODE_INSIDE), PASSES),
    "ESP of another in a CIDR": (esp(WORLD4, "10.244.77.7"), LEAK),
    "ESP for a pod": (esp(SELF4, OVER4.pod4), LEAK),
    "a pod's ESP for a pod": (esp(POD4, OVER4.pod4), LEAK),
    "for a node": (frame(ip(SELF4, OVER4.address)), LEAK),
    "for a node, IPv6": (frame(ip(SELF6, OVER6.address)), LEAK),
    "the gateway's for a node": (frame(ip(GATEWAY, OVER4.address)), LEAK),
    "for a node that the ipcache has lost": (frame(ip(SELF4, LOST)), LEAK),
    "a pod's for it": (frame(ip(POD4, LOST)), LEAK),
    "for it, exempt": (to_port(SELF4, LOST, 22), "CLEAR_EXEMPT"),
    "the world's for it": (frame(ip(WORLD4, LOST)), PASSES),
    "for a node without a record": (frame(ip(SELF4, NEW4)), LEAK),
    "for it, IPv6": (frame(ip(SELF6, NEW6)), LEAK),
    "a pod's for it, IPv6": (frame(ip(POD6, NEW6)), LEAK),
    "for it, exempt, IPv6": (to_port(SELF6, NEW6, 22), "CLEAR_EXEMPT"),
    "our ESP for it": (esp(SELF4, NEW4), PASSES),
    "it is asked for": (solicit(SELF6, NEW6), PASSES),
    "our word on its packet": (icmp_error(SELF4, NEW4), LEAK),
    "the broadcast of its network": (frame(ip(SELF4, "192.0.2.255")), LEAK),
    "the world's for it, IPv6": (frame(ip(WORLD6, NEW6)), PASSES),
    "for a node, exempt": (to_port(SELF4, OVER4.address, 22), "CLEAR_EXEMPT"),
    "the answer": (to_port(SELF4, OVER4.address, 4000, 22), "CLEAR_EXEMPT"),
    "for a node, exempt, IPv6": (to_port(SELF6, OVER6.address, 22), "CLEAR_EXEMPT"),
    "that port by another protocol": (
        to_port(SELF4, OVER4.address, 22, protocol=packets.UDP),
        LEAK,
    ),
    "a fragment with that port": (to_port(SELF4, OVER4.address, 22, fragment=0x2000), LEAK),
    "a protocol that is exempt": (
        frame(ip(SELF4, OVER4.address, bytes(20), protocol=OSPF)),
        "CLEAR_EXEMPT",
    ),
    "a pod's to that port of a node": (to_port(POD4, OVER4.address, 22), LEAK),
    "for that port of a pod": (to_port(SELF4, OVER4.pod4, 22), LEAK),
    "a neighbour is asked for": (solicit(SELF6, OVER6.address), PASSES),
    "from beyond the link": (solicit(SELF6, OVER6.address, ttl=254), LEAK),
    "a pod's packet for a node": (frame(ip(POD4, OVER4.address)), LEAK),
    "a pod's packet for a node, IPv6": (frame(ip(POD6, OVER6.address)), LEAK),
    "a pod's packet for a node in a CIDR": (frame(ip(POD4, NODE_INSIDE)), LEAK),
    "a pod's fragment for a node": (frame(ip(POD4, OVER4.address, bytes(16), fragment=9)), LEAK),
    "for a node in a CIDR": (frame(ip(SELF4, NODE_INSIDE)), LEAK),
    "for the world": (frame(ip(POD4, WORLD4)), PASSES),
    "for the world, IPv6": (frame(ip(POD6, WORLD6)), PASSES),
    "multicast": (frame(ip(SELF6, "ff02::16")), PASSES),
    "ARP": (packets.ethernet(packets.ETH_ARP, bytes(28)), PASSES),
    "LLDP": (packets.ethernet(0x88CC, bytes(40)), PASSES),
    "longer than it is": (frame(ip(SELF4, WORLD4, bytes(9))[:-1]), "DROP_MALFORMED"),
    "a mapped address": (frame(ip(SELF6, f"::ffff:{OVER4.pod4}")), "DROP_MALFORMED"),
}

COMING = {
    "a pod elsewhere": (frame(ip(OVER4.pod4, POD4)), INTRUDER),
    "a pod elsewhere, IPv6": (frame(ip(OVER4.pod6, POD6)), INTRUDER),
    "a pod elsewhere, for the node": (frame(ip(OVER4.pod4, SELF4)), INTRUDER),
    "a pod of a node without keys": (frame(ip(KEYLESS.pod4, POD4)), INTRUDER),
    "a cluster address nobody has": (frame(ip("10.244.77.7", POD4)), INTRUDER),
    "a cluster address nobody has, IPv6": (frame(ip("fd00:244:77::7", POD6)), INTRUDER),
    "a pod here": (frame(ip(POD4, POD4)), INTRUDER),
    "a fragment of a pod's": (frame(ip(OVER4.pod4, POD4, bytes(16), fragment=9)), INTRUDER),
    "a pod on a VLAN": (tagged(ip(OVER4.pod4, POD4), 0x8100), INTRUDER),
    "a pod's ESP": (esp(OVER4.pod4, POD4), INTRUDER),
    "a pod's ESP, passing": (esp(OVER4.pod4, "10.1.1.1"), INTRUDER),
    "ESP for us with no SA": (esp(OVER6.address, SELF6), "DROP_UNKNOWN_SPI"),
    "ESP for us from a node in a CIDR": (esp(NODE_INSIDE, SELF4), "DROP_UNKNOWN_SPI"),
    "ESP for us as from us": (esp(SELF4, SELF4), "DROP_UNKNOWN_SPI"),
    "a fragment of such": (
        frame(ip(OVER4.address, SELF4, bytes(40), protocol=ESP, fragment=9)), "DROP_ESP_FRAGMENT"),
    "somebody else's ESP for us from the world": (esp(WORLD4, SELF4), PASSES),
    "the same, IPv6": (esp(WORLD6, SELF6), PASSES),
    "a fragment of it": (
        frame(ip(WORLD4, SELF4, bytes(40), protocol=ESP, fragment=9)), PASSES),
    "ESP for us, too short for an SPI, from the world": (
        frame(ip(WORLD4, SELF4, bytes(3), protocol=ESP)), PASSES),
    "ESP for us from a pod": (esp(OVER4.pod4, SELF4), INTRUDER),
    "ESP for us from a cluster address nobody has": (esp("10.244.77.7", SELF4), INTRUDER),
    "ESP, passing": (esp(OVER4.address, "192.0.2.99"), PASSES),
    "a node": (frame(ip(OVER4.address, SELF4)), INTRUDER),
    "a node that the ipcache has lost": (frame(ip(LOST, SELF4)), INTRUDER),
    "it, for a pod": (frame(ip(LOST, POD4)), INTRUDER),
    "its ESP for us": (esp(LOST, SELF4), "DROP_UNKNOWN_SPI"),
    "a node without a record": (frame(ip(NEW4, SELF4)), INTRUDER),
    "a node without a record, IPv6": (frame(ip(NEW6, SELF6)), INTRUDER),
    "a node without a record, for a pod": (frame(ip(NEW4, POD4)), INTRUDER),
    "a node without a record, exempt": (to_port(NEW4, SELF4, 22), "CLEAR_EXEMPT"),
    "ESP for us from a node without a record": (esp(NEW4, SELF4), "DROP_UNKNOWN_SPI"),
    "such a neighbour asks": (solicit(NEW6, SELF6), PASSES),
    "a router among the nodes, of our packet": (icmp_error(NEW4, SELF4), PASSES),
    "that its time is over": (icmp_error(NEW4, SELF4, 11), PASSES),
    "that it was too big, IPv6": (icmp_error(NEW6, SELF6, 2), PASSES),
    "of a pod's packet": (icmp_error(NEW4, POD4), PASSES),
    "of a pod's packet, IPv6": (icmp_error(NEW6, POD6, 1), PASSES),
    "that there is a better way": (icmp_error(NEW4, SELF4, 5), INTRUDER),
    "an echo request from there": (icmp_error(NEW4, SELF4, 8), INTRUDER),
    "an echo request from there, IPv6": (icmp_error(NEW6, SELF6, 128), INTRUDER),
    "a node that is known, of our packet": (icmp_error(OVER4.address, SELF4), INTRUDER),
    "a pod, of our packet": (icmp_error(OVER4.pod4, SELF4), INTRUDER),
    "a node, exempt": (to_port(OVER4.address, SELF4, 22), "CLEAR_EXEMPT"),
    "a node's answer, exempt": (to_port(OVER6.address, SELF6, 4000, 22), "CLEAR_EXEMPT"),
    "a node, for that port of a pod": (to_port(OVER4.address, POD4, 22), INTRUDER),
    "a neighbour asks": (solicit(OVER6.address, SELF6), PASSES),
    "a node passing through": (frame(ip(OVER4.address, WORLD4)), PASSES),
    "a node, for a pod": (frame(ip(OVER4.address, POD4)), INTRUDER),
    "a node, for a pod, IPv6": (frame(ip(OVER6.address, POD6)), INTRUDER),
    "a node in a CIDR, for a pod": (frame(ip(NODE_INSIDE, POD4)), INTRUDER),
    "a node, for a pod that nobody knows": (frame(ip(OVER4.address, "10.244.1.77")), INTRUDER),
    "a node, IPv6": (frame(ip(OVER6.address, SELF6)), INTRUDER),
    "a node in a CIDR": (frame(ip(NODE_INSIDE, SELF4)), INTRUDER),
    "the world": (frame(ip(WORLD4, SELF4)), PASSES),
    "the world, for a pod": (frame(ip(WORLD4, POD4)), PASSES),
    "the world, for a pod, IPv6": (frame(ip(WORLD6, POD6)), PASSES),
    "multicast": (frame(ip("fe80::9", "ff02::1")), PASSES),
    "ARP": (packets.ethernet(packets.ETH_ARP, bytes(28)), PASSES),
    "LLDP": (packets.ethernet(0x88CC, bytes(40)), PASSES),
    "longer than it is": (frame(ip(WORLD4, SELF4, bytes(9))[:-1]), "DROP_MALFORMED"),
    "a mapped address": (frame(ip(f"::ffff:{OVER4.pod4}", POD6)), "DROP_MALFORMED"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "says"),
    [*product(("to_net", "backstop"), LEAVING), *(("from_net", says) for says in COMING)],
)
def test_borders(node: Node, program: str, says: str) -> None:
    packet, reason = (COMING if program == "from_net" else LEAVING)[says]
    rows = len(node.rows("flows"))
    seen = node.run(program, packet)
    assert (seen.reason, seen.frame) == (reason, packet)
    assert seen.action == (SHOT if reason.startswith("DROP_") else OK)
    assert reason or len(node.rows("flows")) == rows, "passing costs no row"


@pytest.mark.parametrize(
    ("program", "says"),
    [*product(("to_net", "backstop"), LEAVING), *(("from_net", says) for says in COMING)],
)
def test_without_encryption_everything_passes(
    node_in_the_clear: Node, program: str, says: str
) -> None:
    packet, _ = (COMING if program == "from_net" else LEAVING)[says]
    seen = node_in_the_clear.run(program, packet)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), packet)
    assert node_in_the_clear.rows("flows") == []


CLOSED = {LEAK, INTRUDER}


@pytest.mark.parametrize(
    ("program", "says"),
    [*product(("to_net", "backstop"), LEAVING), *(("from_net", says) for says in COMING)],
)
def test_monitor_reports_and_lets_pass_exactly_what_enforce_drops(
    monitor: Node, program: str, says: str
) -> None:
    """For being clear: what is forged or malformed is dropped in both modes."""
    packet, reason = (COMING if program == "from_net" else LEAVING)[says]
    seen = monitor.run(program, packet)
    if reason in CLOSED:
        assert (seen.action, seen.reason, seen.frame) == (OK, f"AUDITED_{reason}", packet)
    else:
        assert (seen.action, seen.reason) == (SHOT if "DROP_" in reason else OK, reason)


def test_monitor_does_not_report_at_the_last_door_what_was_reported_before(monitor: Node) -> None:
    for says in ("for a node", "a pod's packet for a node", "for a node, exempt"):
        for program in ("to_net", "backstop"):
            seen = monitor.run(program, LEAVING[says][0], mark=OUT)
            assert (seen.action, seen.reasons, seen.mark) == (OK, (), 0)


def test_the_last_door_s_seal_is_its_own(node: Node) -> None:
    """What to_net let pass is not judged a second time; without exactly its seal, everything is."""
    leak, _ = LEAVING["for a node"]
    sealed = (SEAL & 0xFFFFFFFF, SEAL >> 32, 0, 0, 0)
    assert node.run("backstop", leak, cb=sealed).reason == PASSES
    for bit in range(64):
        forged = SEAL ^ 1 << bit
        halves = (forged & 0xFFFFFFFF, forged >> 32, 0, 0, 0)
        assert node.run("backstop", leak, cb=halves).reason == LEAK
        assert node.run("to_net", leak, cb=halves).reason == LEAK
    assert node.run("to_net", leak, cb=sealed).reason == LEAK, "to_net asks for none"
    exempt = LEAVING["for a node, exempt"][0]
    assert node.run("to_net", exempt).reasons == ("CLEAR_EXEMPT",), "reported once"


def test_an_exempt_flow_names_its_rule(node: Node) -> None:
    node.clear("flows")
    node.run("to_net", to_port(SELF4, OVER4.address, SSH))
    node.run("from_net", frame(ip(OVER4.address, SELF4, bytes(20), protocol=OSPF)))
    rules = {key["protocol"]: row["rule"] for key, row in node.rows("flows")}
    assert rules == {packets.TCP: 71, OSPF: 72}


LEAVING_NODES = ("for a node", "for a node, IPv6", "for a node in a CIDR", "for a node, exempt")
BETWEEN_NODES = {
    "to_net": LEAVING_NODES,
    "backstop": LEAVING_NODES,
    "from_net": ("a node", "a node, IPv6", "a node in a CIDR", "a node, exempt"),
}


@pytest.mark.parametrize("program", BETWEEN_NODES)
def test_nodes_may_be_left_alone(pods_only: Node, program: str) -> None:
    cases = COMING if program == "from_net" else LEAVING
    for says, (packet, reason) in cases.items():
        seen = pods_only.run(program, packet)
        if says in BETWEEN_NODES[program]:
            assert (seen.action, seen.reason) == (OK, PASSES), says
        elif reason in CLOSED and "pod" in says:
            assert (seen.action, seen.reason) == (SHOT, reason), says


# --- path MTU ------------------------------------------------------------------------------------

ROUTER4, ROUTER6 = "203.0.113.1", "2001:db8:aaaa::1"


def too_big(version: int, mtu: int, quoted: bytes, *, source: str = "", to: str = "") -> bytes:
    """A router's ICMP error about a packet."""
    if version == 6:
        body = packets.icmp(2, 0, struct.pack(">I", mtu), quoted)
        return frame(ip(source or ROUTER6, to or SELF6, body, protocol=ICMPV6))
    body = packets.icmp(3, 4, struct.pack(">HH", 0, mtu), quoted)
    return frame(ip(source or ROUTER4, to or SELF4, body, protocol=ICMP))


OURS = {
    4: ip(SELF4, OVER4.address, bytes(1400), protocol=ESP)[:28],
    6: ip(SELF6, OVER6.address, bytes(1400), protocol=ESP)[:200],
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [0, 68, 576, 1280, 1400, 65535])
@pytest.mark.parametrize("router", ["far away", "among the nodes"])
def test_a_router_that_cannot_carry_our_esp_is_reported(
    node: Node, version: int, mtu: int, router: str
) -> None:
    node.forget()
    source = "" if router == "far away" else NEW6 if version == 6 else NEW4
    seen = node.run("from_net", too_big(version, mtu, OURS[version], source=source))
    assert (seen.action, seen.reason) == (SHOT, "PATH_MTU_RECEIVED"), "the stack shall not know"
    (event,) = [each for each in node.seen_events() if each["kind"] != "EVENT_FLOW"]
    own, there = (SELF6, OVER6.address) if version == 6 else (SELF4, OVER4.address)
    assert (event["kind"], event["number"]) == ("EVENT_PMTU", mtu)
    assert event["key"]["source"] == {"bytes": addr(own)}
    assert event["key"]["destination"] == {"bytes": addr(there)}


NO_BUSINESS_OF_OURS = {
    "about another's ESP": too_big(4, 1400, ip(WORLD4, OVER4.address, bytes(8), protocol=ESP)),
    "about UDP": too_big(4, 1400, ip(SELF4, WORLD4, packets.udp(1, 2), protocol=UDP)),
    "for another": too_big(4, 1400, OURS[4], to="192.0.2.99"),
    "cut short": too_big(4, 1400, OURS[4][:19]),
    "IPv6 in ICMP": too_big(4, 1400, OURS[6]),
    "IPv4 in ICMPv6": too_big(6, 1400, OURS[4] + bytes(40)),
    "about another's ESP, IPv6": too_big(6, 1400, ip(WORLD6, OVER6.address, bytes(8), protocol=50)),
    "cut short, IPv6": too_big(6, 1400, OURS[6][:39]),
    "port unreachable": frame(ip(ROUTER4, SELF4, packets.icmp(3, 3, bytes(4), OURS[4]),
                                 protocol=ICMP)),
    "time exceeded": frame(ip(ROUTER6, SELF6, packets.icmp(3, 0, bytes(4), OURS[6]),
                              protocol=ICMPV6)),
    "a fragment": frame(ip(ROUTER4, SELF4, packets.icmp(3, 4, bytes(4), OURS[4]), protocol=ICMP,
                           fragment=0x2000)),
}  # fmt: skip


@pytest.mark.parametrize("says", NO_BUSINESS_OF_OURS)
def test_other_errors_pass_unreported(node: Node, says: str) -> None:
    node.forget()
    packet = NO_BUSINESS_OF_OURS[says]
    seen = node.run("from_net", packet)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), packet)
    assert node.seen_events() == []


@pytest.mark.parametrize("version", [4, 6])
def test_what_others_have_an_sa_for_is_left_to_them(node: Node, version: int) -> None:
    """Both ways: their ESP from a node passes, and so does a router's word on theirs to it."""
    own, there = (SELF6, OVER6.address) if version == 6 else (SELF4, OVER4.address)
    their, unknown = 0x77777777, 0x77777778
    for destination in (own, there):
        key = {"destination": {"bytes": addr(destination)}, "spi": their}
        node.put("others", key, {"flags": 0})
    node.forget()
    body = struct.pack(">II", their, 1) + bytes(40)
    packet = frame(ip(there, own, body, protocol=ESP))
    seen = node.run("from_net", packet)
    assert (seen.action, seen.reasons, seen.frame, seen.mark) == (OK, (), packet, 0)
    word = too_big(version, 1300, ip(own, there, body, protocol=ESP)[: 28 if version == 4 else 200])
    seen = node.run("from_net", word)
    assert (seen.action, seen.reasons) == (OK, ())
    assert node.seen_events() == []
    for spi, source, why in (
        (unknown, there, "DROP_UNKNOWN_SPI"),
        (their, OVER4.pod6 if version == 6 else OVER4.pod4, INTRUDER),
    ):
        body = struct.pack(">II", spi, 1) + bytes(40)
        seen = node.run("from_net", frame(ip(source, own, body, protocol=ESP)))
        assert (seen.action, seen.reason) == (SHOT, why)
    node.clear("others")


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_in_the_clear_cannot_shrink_our_mtu(node: Node, version: int) -> None:
    node.forget()
    source = OVER4.pod6 if version == 6 else OVER4.pod4
    seen = node.run("from_net", too_big(version, 600, OURS[version], source=source))
    assert (seen.action, seen.reason) == (SHOT, INTRUDER)
    assert [each["kind"] for each in node.seen_events()] == ["EVENT_FLOW"]


@pytest.fixture
def robbed(tmp_path: Path) -> Iterator[Node]:
    """A node of which somebody has taken away all rows that say who belongs to the cluster."""
    with loaded_node(tmp_path) as loaded:
        furnish(loaded)
        loaded.clear("ipcache", "cluster_cidrs")
        yield loaded


def test_who_knows_nobody_takes_nobody_for_a_stranger(robbed: Node) -> None:
    for here, there in ((SELF4, OVER4.address), (SELF6, OVER6.address), (SELF4, WORLD4)):
        seen = robbed.run("to_net", frame(ip(here, there)))
        assert (seen.action, seen.reason) == (SHOT, LEAK)
        seen = robbed.run("from_net", frame(ip(there, here)))
        assert (seen.action, seen.reason) == (SHOT, INTRUDER)
    for quiet in (solicit("fe80::1", "ff02::1:ff00:2"), frame(ip(SELF4, "224.0.0.18"))):
        assert robbed.run("to_net", quiet).reason == PASSES
    assert robbed.run("to_net", esp(SELF4, OVER4.address)).reason == PASSES
    robbed.put_cidr(f"{SELF4}/32", flags=1)
    assert robbed.run("to_net", frame(ip(SELF4, WORLD4))).reason == PASSES
