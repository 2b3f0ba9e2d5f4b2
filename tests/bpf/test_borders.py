# SPDX-License-Identifier: Apache-2.0
"""The node's border: cleartext that must not leave (to_net) and must not come in (from_net)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
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
from tests.bpf.node import OK, SHOT, Node, addr, loaded_node
from tests.bpf.packets import ESP, ICMP, ICMPV6, UDP, frame, ip

LEAK, INTRUDER = "DROP_CLEAR_TO_CLUSTER", "DROP_CLEAR_FROM_CLUSTER"
PASSES = ""
"""And is neither counted nor reported: no business of this cluster."""
NODE_INSIDE = "10.244.250.1"
"""A node whose address lies in the cluster's CIDRs."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf")) as loaded:
        furnish(loaded)
        loaded.put_peer(NODE_INSIDE, node=NODE_INSIDE, flags=2)
        put_inbound(loaded, OVER4)
        yield loaded


@pytest.fixture(scope="module")
def node_in_the_clear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf"), encrypt=0) as loaded:
        furnish(loaded)
        yield loaded


def tagged(packet: bytes, *tags: int) -> bytes:
    whole = frame(packet)
    return whole[:12] + b"".join(struct.pack(">HH", tag, 7) for tag in tags) + whole[12:]


def esp(source: str, destination: str) -> bytes:
    return frame(ip(source, destination, bytes(40), protocol=ESP))


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
    "for a node": (frame(ip(SELF4, OVER4.address)), PASSES),
    "a pod's packet for a node": (frame(ip(POD4, OVER4.address)), LEAK),
    "a pod's packet for a node, IPv6": (frame(ip(POD6, OVER6.address)), LEAK),
    "a pod's packet for a node in a CIDR": (frame(ip(POD4, NODE_INSIDE)), LEAK),
    "a pod's fragment for a node": (frame(ip(POD4, OVER4.address, bytes(16), fragment=9)), LEAK),
    "for a node in a CIDR": (frame(ip(SELF4, NODE_INSIDE)), PASSES),
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
    "a node": (frame(ip(OVER4.address, SELF4)), PASSES),
    "a node, for a pod": (frame(ip(OVER4.address, POD4)), INTRUDER),
    "a node, for a pod, IPv6": (frame(ip(OVER6.address, POD6)), INTRUDER),
    "a node in a CIDR, for a pod": (frame(ip(NODE_INSIDE, POD4)), INTRUDER),
    "a node, for a pod that nobody knows": (frame(ip(OVER4.address, "10.244.1.77")), INTRUDER),
    "a node, IPv6": (frame(ip(OVER6.address, SELF6)), PASSES),
    "a node in a CIDR": (frame(ip(NODE_INSIDE, SELF4)), PASSES),
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
    [("to_net", says) for says in LEAVING] + [("from_net", says) for says in COMING],
)
def test_borders(node: Node, program: str, says: str) -> None:
    packet, reason = (LEAVING if program == "to_net" else COMING)[says]
    rows = len(node.rows("flows"))
    seen = node.run(program, packet)
    assert (seen.reason, seen.frame) == (reason, packet)
    assert seen.action == (SHOT if reason else OK)
    assert reason or len(node.rows("flows")) == rows, "passing costs no row"


@pytest.mark.parametrize(
    ("program", "says"),
    [("to_net", says) for says in LEAVING] + [("from_net", says) for says in COMING],
)
def test_without_encryption_everything_passes(
    node_in_the_clear: Node, program: str, says: str
) -> None:
    packet, _ = (LEAVING if program == "to_net" else COMING)[says]
    seen = node_in_the_clear.run(program, packet)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), packet)
    assert node_in_the_clear.rows("flows") == []


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
def test_a_router_that_cannot_carry_our_esp_is_reported(node: Node, version: int, mtu: int) -> None:
    node.forget()
    seen = node.run("from_net", too_big(version, mtu, OURS[version]))
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
