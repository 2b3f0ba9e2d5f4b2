# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet that a pod sends: a table of packets and verdicts, in both families."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    OVER4,
    OVER6,
    PEERS,
    POD4,
    POD6,
    SELF4,
    SELF6,
    WORLD4,
    WORLD6,
    Peer,
    furnish,
    put_outbound,
)  # fmt: skip
from tests.bpf.node import OK, SHOT, Node, loaded_node
from tests.bpf.packets import ESP, ICMPV6, PROBE, TCP, UDP, ip

MARK_ENCRYPT, MARK_MASK = 0xE00, 0xF00
MARKED = ""
"""Neither counted nor reported here: the door does that."""
UNKNOWN4, UNKNOWN6 = "10.244.200.1", "fd00:244:99::1"
OTHER4, OTHER6 = "10.244.1.77", "fd00:244:1::77"
NEW_NODE = "192.0.2.200"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf")) as loaded:
        furnish(loaded)
        loaded.put_cidr("192.0.2.128/25", flags=1)
        loaded.put_exempt(TCP, 2379, 71)
        for address in (OTHER4, OTHER6):
            loaded.put_endpoint(address, ifindex=999)
        for peer in PEERS.values():
            put_outbound(loaded, peer)
        yield loaded


@pytest.fixture(scope="module")
def node_in_the_clear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf"), encrypt=0) as loaded:
        furnish(loaded)
        yield loaded


@dataclass(frozen=True)
class Case:
    says: str
    packet: bytes
    reason: str


def neighbour(kind: int, source: str, destination: str, ttl: int = 255) -> bytes:
    return ip(source, destination, packets.icmp(kind, 0, bytes(20)), protocol=ICMPV6, ttl=ttl)


CASES = (
    Case("a pod of another node", ip(POD4, OVER4.pod4), MARKED),
    Case("a pod of another node, IPv6", ip(POD6, OVER4.pod6), MARKED),
    Case("a pod of a node beyond IPv6", ip(POD4, OVER6.pod4), MARKED),
    Case("both IPv6", ip(POD6, OVER6.pod6), MARKED),
    Case("another node", ip(POD4, OVER4.address), MARKED),
    Case("TCP", ip(POD4, OVER4.pod4, packets.tcp(1, 2), protocol=TCP), MARKED),
    Case("ESP from pod to pod", ip(POD4, OVER4.pod4, bytes(40), protocol=ESP), MARKED),
    Case("a first fragment", ip(POD4, OVER4.pod4, bytes(8), fragment=0x2000), MARKED),
    Case("a pod of a node without keys", ip(POD4, KEYLESS.pod4), "DROP_NO_KEY"),
    Case("the same, IPv6", ip(POD6, KEYLESS.pod6), "DROP_NO_KEY"),
    Case("a node without keys", ip(POD4, KEYLESS.address), "DROP_NO_KEY"),
    Case("a cluster address nobody has", ip(POD4, UNKNOWN4), "DROP_UNKNOWN_PEER"),
    Case("the same, IPv6", ip(POD6, UNKNOWN6), "DROP_UNKNOWN_PEER"),
    Case("a node without a record", ip(POD4, NEW_NODE), "DROP_UNKNOWN_PEER"),
    Case("its exempt port", ip(POD4, NEW_NODE, packets.tcp(9, 2379), protocol=TCP),
         "DROP_UNKNOWN_PEER"),
    Case("ESP to it", ip(POD4, NEW_NODE, bytes(40), protocol=ESP), "DROP_UNKNOWN_PEER"),
    Case("itself", ip(POD4, POD4), "CLEAR_LOCAL"),
    Case("its node", ip(POD4, SELF4), "CLEAR_LOCAL"),
    Case("its node, IPv6", ip(POD6, SELF6), "CLEAR_LOCAL"),
    Case("the world", ip(POD4, WORLD4), "CLEAR_WORLD"),
    Case("the world, IPv6", ip(POD6, WORLD6), "CLEAR_WORLD"),
    Case("multicast beyond the link", ip(POD4, "239.1.2.3"), "CLEAR_WORLD"),
    Case("multicast beyond the link, IPv6", ip(POD6, "ff05::2"), "CLEAR_WORLD"),
    Case("as another pod", ip(OTHER4, OVER4.pod4), "DROP_SPOOFED_POD"),
    Case("as another pod, IPv6", ip(OTHER6, OVER4.pod6), "DROP_SPOOFED_POD"),
    Case("as a pod elsewhere", ip(OVER4.pod4, POD4), "DROP_SPOOFED_POD"),
    Case("as its node", ip(SELF4, OVER4.pod4), "DROP_SPOOFED_POD"),
    Case("as its node's agent", ip(SELF4, OVER4.address, bytes(16), protocol=PROBE),
         "DROP_SPOOFED_POD"),
    Case("as the world", ip(WORLD4, OVER4.pod4), "DROP_SPOOFED_POD"),
    Case("as nobody", ip("0.0.0.0", OVER4.pod4), "DROP_SPOOFED_POD"),
    Case("as nobody, IPv6", ip("::", OVER4.pod6), "DROP_SPOOFED_POD"),
    Case("link-local beyond the link", ip("fe80::2", WORLD6), "DROP_SPOOFED_POD"),
    Case("as another pod on the link", ip(OTHER6, "fe80::1"), "DROP_SPOOFED_POD"),
    Case("as another pod to a group", ip(OTHER4, "224.0.0.251"), "DROP_SPOOFED_POD"),
    Case("ESP to a node", ip(POD4, OVER4.address, bytes(40), protocol=ESP), "DROP_POD_ESP"),
    Case("ESP to a node, IPv6", ip(POD6, OVER6.address, bytes(40), protocol=ESP), "DROP_POD_ESP"),
    Case("ESP to its node", ip(POD4, SELF4, bytes(40), protocol=ESP), "DROP_POD_ESP"),
    Case("a fragment of ESP to a node",
         ip(POD4, OVER4.address, bytes(40), protocol=ESP, fragment=9), "DROP_POD_ESP"),
    Case("ESP behind an option to a node",
         ip(POD6, OVER6.address, struct.pack(">BB6x", ESP, 0) + bytes(40), protocol=60),
         "DROP_POD_ESP"),
    Case("a piece that may be ESP to a node",
         ip(POD6, OVER6.address, struct.pack(">BBHI", 60, 0, 1, 9) + bytes(40), protocol=44),
         "DROP_POD_ESP"),
    Case("the same to a pod",
         ip(POD6, OVER6.pod6, struct.pack(">BBHI", 60, 0, 1, 9) + bytes(40), protocol=44), MARKED),
    Case("a piece of something else to a node",
         ip(POD6, OVER6.address, struct.pack(">BBHI", UDP, 0, 1, 9) + bytes(40), protocol=44),
         MARKED),
    Case("DHCP", ip("0.0.0.0", "255.255.255.255", packets.udp(68, 67), protocol=UDP), "CLEAR_LINK"),
    Case("IGMP", ip(POD4, "224.0.0.22", bytes(8), protocol=2), "CLEAR_LINK"),
    Case("link-local IPv4", ip(POD4, "169.254.1.1"), "CLEAR_LINK"),
    Case("DAD", neighbour(135, "::", "ff02::1:ff00:2"), "CLEAR_LINK"),
    Case("who has the gateway", neighbour(135, POD6, "ff02::1:ff00:1"), "CLEAR_LINK"),
    Case("is the gateway there", neighbour(135, POD6, "fe80::1"), "CLEAR_LINK"),
    Case("router solicitation", neighbour(133, "fe80::2", "ff02::2"), "CLEAR_LINK"),
    Case("MLD", ip("fe80::2", "ff02::16", struct.pack(">BB6s", ICMPV6, 0, b"\5\2\0\0\1\0")
                   + packets.icmp(143, 0), protocol=0), "CLEAR_LINK"),
    Case("I am here, to an address of the gateway", neighbour(136, POD6, UNKNOWN6), "CLEAR_LINK"),
    Case("the same from beyond", neighbour(136, POD6, UNKNOWN6, ttl=254), "DROP_UNKNOWN_PEER"),
    Case("the same to the world", neighbour(136, POD6, WORLD6), "CLEAR_WORLD"),
    Case("I am here, to a pod elsewhere", neighbour(136, POD6, OVER4.pod6), MARKED),
    Case("an echo, ttl 255", neighbour(128, POD6, UNKNOWN6), "DROP_UNKNOWN_PEER"),
    Case("half a TCP header", ip(POD4, OVER4.pod4, bytes(7), protocol=TCP), "DROP_MALFORMED"),
    Case("IPv4 of 16 bytes", b"\x44" + ip(POD4, OVER4.pod4)[1:], "DROP_MALFORMED"),
    Case("longer than it is", ip(POD4, OVER4.pod4, bytes(9))[:-1], "DROP_MALFORMED"),
    Case("shorter than its header", b"E\0\0\x13" + ip(POD4, OVER4.pod4)[4:], "DROP_MALFORMED"),
    Case("a mapped address", ip(POD6, f"::ffff:{OVER4.pod4}"), "DROP_MALFORMED"),
    Case("from a mapped address", ip(f"::ffff:{POD4}", OVER4.pod6), "DROP_MALFORMED"),
    Case("an IPv6 header too long", ip(POD6, OVER4.pod6, bytes(9))[:-1], "DROP_MALFORMED"),
    Case("an extension too long", ip(POD6, OVER4.pod6, b"\x11\2" + bytes(20), protocol=60),
         "DROP_MALFORMED"),
    Case("nine extensions",
         ip(POD6, OVER4.pod6, (b"\x3c\0" + bytes(6)) * 8 + b"\xfd\0" + bytes(6), protocol=60),
         "DROP_MALFORMED"),
    Case("eight extensions",
         ip(POD6, OVER4.pod6, (b"\x3c\0" + bytes(6)) * 7 + b"\xfd\0" + bytes(6), protocol=60),
         MARKED),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_verdicts(node: Node, case: Case) -> None:
    frame = packets.frame(case.packet)
    seen = node.run("from_pod", frame)
    assert (seen.reason, seen.frame) == (case.reason, frame)
    assert seen.action == (SHOT if case.reason.startswith("DROP_") else OK)
    assert bool(seen.mark & MARK_MASK == MARK_ENCRYPT) == (case.reason == MARKED)


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: f"node {peer.number}")
def test_the_mark_has_no_bit_that_others_read(node: Node, peer: Peer) -> None:
    """kube-proxy masquerades what bears 0x4000, and drops what bears 0x8000."""
    node.put_encrypt(peer.address, 0x1111_2222_3333_444F)
    seen = node.run("from_pod", packets.frame(ip(POD4, peer.pod4)))
    assert seen.mark == MARK_ENCRYPT


OTHER_FRAMES = {
    "ARP": (packets.ethernet(packets.ETH_ARP, bytes(28)), "CLEAR_LINK"),
    "LLDP": (packets.ethernet(0x88CC, bytes(40)), "DROP_NOT_IP"),
    "802.3": (packets.ethernet(40, bytes(40)), "DROP_NOT_IP"),
    "a VLAN": (packets.ethernet(0x8100, b"\0\1\x08\0" + ip(POD4, POD4)), "DROP_NOT_IP"),
    "ARP on a VLAN": (packets.ethernet(0x8100, b"\0\1\x08\6" + bytes(28)), "DROP_NOT_IP"),
}


@pytest.mark.parametrize("says", OTHER_FRAMES)
def test_frames_that_are_not_ip(node: Node, says: str) -> None:
    frame, reason = OTHER_FRAMES[says]
    seen = node.run("from_pod", frame)
    assert (seen.reason, seen.frame) == (reason, frame)
    assert seen.action == (SHOT if reason.startswith("DROP_") else OK)


def test_only_the_pods_own_device_may_bear_its_address(node: Node) -> None:
    node.put_endpoint("10.244.1.50", ifindex=998)
    frame = packets.frame(ip("10.244.1.50", WORLD4))
    assert node.run("from_pod", frame).reason == "DROP_SPOOFED_POD"
    node.put_endpoint("10.244.1.50")
    assert node.run("from_pod", frame).reason == "CLEAR_WORLD"


SEGMENTS = {
    "TCP": (ip(POD4, WORLD4, packets.tcp(1, 2, bytes(900)), protocol=TCP), 20 + 20),
    "TCP over IPv6": (ip(POD6, WORLD6, packets.tcp(1, 2, bytes(900)), protocol=TCP), 40 + 20),
    "TCP with options": (
        ip(POD4, WORLD4, packets.tcp(1, 2, bytes(912), words=8), protocol=TCP), 20 + 32),
    "TCP behind IPv4 options": (
        packets.ipv4(POD4, WORLD4, packets.tcp(1, 2, bytes(900)), protocol=TCP, options=bytes(8)),
        28 + 20),
    "UDP": (ip(POD4, WORLD4, packets.udp(1, 2, bytes(900)), protocol=UDP), 20 + 8),
    "UDP over IPv6": (ip(POD6, WORLD6, packets.udp(1, 2, bytes(900)), protocol=UDP), 40 + 8),
    "something else": (ip(POD4, WORLD4, b"\xff" * 900), 20),
}  # fmt: skip


@pytest.mark.parametrize("says", SEGMENTS)
def test_segments_are_counted_singly_each_with_its_headers(node: Node, says: str) -> None:
    packet, headers = SEGMENTS[says]
    seen = node.run("from_pod", packets.frame(packet), gso_size=300, gso_segs=3)
    assert (seen.reasons, seen.size) == (("CLEAR_WORLD",) * 3, len(packet) + 2 * headers)


def test_segments_of_what_is_not_ip_have_no_headers_that_are_known(node: Node) -> None:
    frame = packets.ethernet(0x88CC, b"\xff" * 900)
    seen = node.run("from_pod", frame, gso_size=300, gso_segs=3)
    assert (seen.reasons, seen.size) == (("DROP_NOT_IP",) * 3, len(frame))


def test_packets_beyond_64_kb_bear_no_length(node: Node) -> None:
    """BIG TCP: 0 in the length field is the packet's length only while it is still to be cut."""
    four = bytearray(ip(POD4, OVER4.pod4, packets.tcp(1, 2, bytes(900)), protocol=TCP))
    six = bytearray(ip(POD6, OVER4.pod6, packets.tcp(1, 2, bytes(900)), protocol=TCP))
    four[2:4] = six[4:6] = b"\0\0"
    for packet in (bytes(four), bytes(six)):
        frame = packets.frame(packet)
        assert node.run("from_pod", frame, gso_size=300, gso_segs=3).reasons == ()
        assert node.run("from_pod", frame).reason == "DROP_MALFORMED"


CLEAR_CASES = {
    "a pod elsewhere": (ip(POD4, OVER4.pod4), "CLEAR_DISABLED"),
    "a pod elsewhere, IPv6": (ip(POD6, OVER6.pod6), "CLEAR_DISABLED"),
    "a cluster address nobody has": (ip(POD4, UNKNOWN4), "CLEAR_DISABLED"),
    "a pod here": (ip(POD4, POD4), "CLEAR_DISABLED"),
    "the world": (ip(POD4, WORLD4), "CLEAR_DISABLED"),
    "ESP to a node": (ip(POD4, OVER4.address, bytes(40), protocol=ESP), "CLEAR_DISABLED"),
    "neighbour discovery": (neighbour(135, POD6, "ff02::1:ff00:1"), "CLEAR_LINK"),
    "as another pod": (ip(OTHER4, OVER4.pod4), "DROP_SPOOFED_POD"),
}


@pytest.mark.parametrize("says", CLEAR_CASES)
def test_without_encryption_everything_honest_passes(node_in_the_clear: Node, says: str) -> None:
    packet, reason = CLEAR_CASES[says]
    seen = node_in_the_clear.run("from_pod", packets.frame(packet))
    assert (seen.reason, seen.mark, seen.frame) == (reason, 0, packets.frame(packet))
