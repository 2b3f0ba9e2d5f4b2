# SPDX-License-Identifier: Apache-2.0
"""What from_net makes of ESP: the inner packet for its pod, byte by byte, or a named refusal.

ESP is made by Python's `cryptography` (tests/bpf/esp.py), by Scapy, and by the door itself.
"""

from __future__ import annotations

import random
import struct

import pytest
from scapy.layers import ipsec
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import esp, packets
from tests.bpf.cluster import (
    KEYLESS,
    LOCAL,
    OVER4,
    OVER6,
    PEERS,
    POD4,
    SELF4,
    SELF6,
    WORLD4,
    WORLD6,
    Peer,
    pod,
    put_inbound,
    put_outbound,
    sa_in,
)  # fmt: skip
from tests.bpf.node import OK, SHOT, Node, loaded_node
from tests.bpf.tunnel import (
    ANSWER,
    ASK,
    HEAD,
    NEXT,
    assert_delivered,
    datagram,
    families,
    outers,
    outside,
    probe,
    sealed,
    state,
)


@pytest.fixture
def node(loaded: Node) -> Node:
    """With fresh SAs, on which nothing was received."""
    loaded.clear("sa_in", "flows")
    for peer in PEERS.values():
        put_inbound(loaded, peer)
    loaded.forget()
    return loaded


# --- opened --------------------------------------------------------------------------------------


@families
def test_every_size_is_opened(node: Node, inner: int, outer: int) -> None:
    peer, sizes = PEERS[outer], range(HEAD[inner], 1447 if outer == 4 else 1427)
    for sequence, size in enumerate(sizes, 1):
        packet = datagram(inner, peer, size)
        assert_delivered(node.run("from_net", sealed(peer, sequence, packet)), packet)
    row = sa_in(node, peer)
    assert (row["packets"], row["bytes"], row["top"]) == (len(sizes), sum(sizes), len(sizes))
    assert (row["auth_failed"], row["replayed"]) == (0, 0)


@families
@pytest.mark.parametrize("high", [0, 1, 0xFFFF], ids=lambda high: f"high half {high:#x}")
def test_what_scapy_sealed_is_opened(node: Node, inner: int, outer: int, high: int) -> None:
    peer, keys = PEERS[outer], PEERS[outer].keys_in(0)
    put_inbound(node, peer, top=high << 32)
    header = {"src": peer.address, "dst": peer.own}
    judge = ipsec.SecurityAssociation(
        ipsec.ESP, keys.spi, crypt_algo="CHACHA20-POLY1305", crypt_key=keys.key + keys.salt,
        esn_en=True, tunnel_header=(IPv6 if outer == 6 else IP)(**header),
    )  # fmt: skip
    for sequence, size in enumerate(range(HEAD[inner], 1427, 53), 1):
        packet = datagram(inner, peer, size)
        parsed = (IPv6 if inner == 6 else IP)(packet)
        out = judge.encrypt(parsed, seq_num=sequence, esn_en=True, esn=high)
        assert_delivered(node.run("from_net", packets.frame(bytes(out))), packet)


@families
def test_what_another_nodes_door_sealed_is_opened(
    node: Node, tmp_path: object, inner: int, outer: int
) -> None:
    peer, away = PEERS[outer], Peer(PEERS[outer].number, SELF6 if outer == 6 else SELF4,
                                    PEERS[outer].address, PEERS[outer].pair)  # fmt: skip
    with loaded_node(tmp_path, self4=OVER4.address, self6=OVER6.address) as other:  # type: ignore[arg-type]
        other.put_peer(pod(inner), node=away.address)
        put_outbound(other, away)
        for number in range(4):
            keys = away.keys_out(number)
            node.put_sa_in(keys, pair=peer.pair, number=number, source=peer.address,
                           destination=peer.own, node=peer.address)  # fmt: skip
        for size in range(HEAD[inner], 1427, 7):
            packet = datagram(inner, peer, size)
            frame = other.run("door", packets.frame(packet)).frame
            assert_delivered(node.run("from_net", frame), packet)


@families
def test_sequence_numbers_pass_2_to_the_32(node: Node, inner: int, outer: int) -> None:
    peer, start = PEERS[outer], (1 << 32) - 700
    put_inbound(node, peer, top=start)
    packet = datagram(inner, peer, 100)
    for sequence in (start + 1, start + 699, start + 700, start + 701, start + 5, start + 1400):
        assert_delivered(node.run("from_net", sealed(peer, sequence, packet)), packet)
    assert sa_in(node, peer)["top"] == start + 1400


@pytest.mark.parametrize("iv", [bytes(8), b"\xff" * 8, b"anything"])
def test_any_iv_of_the_senders_is_used_as_it_is(node: Node, iv: bytes) -> None:
    packet = datagram(4, OVER4, 100)
    assert_delivered(node.run("from_net", sealed(OVER4, 1, packet, iv=iv)), packet)


@families
def test_padding_may_be_longer_and_follow_padding_for_secrecy(
    node: Node, inner: int, outer: int
) -> None:
    peer, packet = PEERS[outer], datagram(inner, PEERS[outer], 61)
    for sequence, extra in enumerate((4, 8, 100, 252), 1):
        pad = bytes(range(1, (1 + extra) + 1))
        assert_delivered(node.run("from_net", sealed(peer, sequence, packet, pad=pad)), packet)
    for sequence, extra in enumerate((1, 2, 3, 4, 5, 64, 1000), 10):
        secret = packet + random.Random(extra).randbytes(extra)
        frame = outside(peer, esp.seal(peer.keys_in(0), sequence, secret, NEXT[inner]))
        assert_delivered(node.run("from_net", frame), packet)
    assert sa_in(node, peer)["bytes"] == 61 * 11


@outers
def test_inner_fragments_and_extensions_are_delivered(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    destination_options = struct.pack(">BB6s", packets.UDP, 0, b"\1\4\0\0\0\0")
    fragment = struct.pack(">BBHI", packets.UDP, 0, 1, 77)
    inners = [
        packets.ip(peer.pod4, POD4, bytes(24), fragment=packets.MORE_FRAGMENTS),
        packets.ip(peer.pod4, POD4, bytes(3), fragment=3),
        packets.ipv4(peer.pod4, POD4, bytes(9), options=b"\1\1\1\0"),
        packets.ipv6(peer.pod6, pod(6), destination_options + packets.udp(1, 2), protocol=60),
        packets.ipv6(peer.pod6, pod(6), fragment + bytes(16), protocol=44),
    ]
    for sequence, packet in enumerate(inners, 1):
        assert_delivered(node.run("from_net", sealed(peer, sequence, packet)), packet)


def test_outer_options_and_extensions_do_no_harm(node: Node) -> None:
    packet = datagram(4, OVER4, 50)
    body = esp.seal(OVER4.keys_in(0), 1, packet, esp.IPV4)
    for size in (4, 40):
        body = esp.seal(OVER4.keys_in(0), size, packet, esp.IPV4)
        outer = packets.ipv4(
            OVER4.address, OVER4.own, body, protocol=packets.ESP, options=b"\1" * size
        )
        assert_delivered(node.run("from_net", packets.frame(outer)), packet)
    body = struct.pack(">BB6s", packets.ESP, 0, b"\1\4\0\0\0\0")
    body += esp.seal(OVER6.keys_in(0), 1, packet6 := datagram(6, OVER6, 50), esp.IPV6)
    assert_delivered(node.run("from_net", outside(OVER6, body, protocol=60)), packet6)


# --- ECN and TTL ---------------------------------------------------------------------------------

NOT_ECT, ECT1, ECT0, CE = range(4)
RFC_6040_FIGURE_4 = {
    # inner:   outer Not-ECT, ECT(1),  ECT(0),  CE
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT1: (ECT1, ECT1, ECT1, CE),
    ECT0: (ECT0, ECT1, ECT0, CE),
    CE: (CE, CE, CE, CE),
}


@families
def test_ecn_is_taken_over_as_rfc_6040_says(node: Node, inner: int, outer: int) -> None:
    peer, sequence = PEERS[outer], 0
    for inside, row in RFC_6040_FIGURE_4.items():
        for outside_ecn, expected in enumerate(row):
            for dscp in (0, 0x2E << 2, 0x3F << 2):
                sequence += 1
                packet = datagram(inner, peer, 60, tos=dscp | inside)
                seen = node.run("from_net", sealed(peer, sequence, packet, tos=0x48 | outside_ecn))
                if expected is None:
                    assert (seen.action, seen.reason) == (SHOT, "DROP_CONGESTED_ECN")
                else:
                    assert_delivered(seen, packet, tos=dscp | expected)


@families
def test_the_ttl_sinks_by_one_and_ends_at_one(node: Node, inner: int, outer: int) -> None:
    peer = PEERS[outer]
    for ttl in range(256):
        packet = datagram(inner, peer, 60, ttl=ttl)
        seen = node.run("from_net", sealed(peer, ttl + 1, packet))
        if ttl <= 1:
            assert (seen.action, seen.reason) == (SHOT, "DROP_TTL_EXCEEDED")
        else:
            assert_delivered(seen, packet, ttl=ttl - 1)


def test_a_header_checksum_stays_right_whatever_it_was(node: Node) -> None:
    for identifier in range(0, 65536, 23):
        packet = datagram(4, OVER4, 28, identifier=identifier, tos=ECT0)
        seen = node.run("from_net", sealed(OVER4, identifier + 1, packet, tos=CE))
        assert_delivered(seen, packet, tos=CE)


# --- to whom -------------------------------------------------------------------------------------


@families
def test_a_packet_for_the_node_itself_goes_to_its_stack(node: Node, inner: int, outer: int) -> None:
    peer, wire = PEERS[outer], bytes.fromhex("02aabbccddee")
    own = SELF6 if inner == 6 else SELF4
    packet = packets.ip(peer.pod(inner), own, bytes(30), ttl=1, tos=ECT0)
    frame = sealed(peer, 1, packet, tos=CE)
    seen = node.run("from_net", frame[:6] + wire + frame[12:])
    marked = packets.ip(peer.pod(inner), own, bytes(30), ttl=1, tos=CE)
    assert (seen.action, seen.reason) == (OK, "OPENED")
    assert seen.frame == packets.frame(marked, source=wire)


STRANGERS = {
    "a pod that nobody knows": ("10.244.2.99", POD4, "DROP_SPOOFED_SOURCE"),
    "another node's pod": (KEYLESS.pod4, POD4, "DROP_SPOOFED_SOURCE"),
    "another node": (KEYLESS.address, POD4, "DROP_SPOOFED_SOURCE"),
    "the pod here": (POD4, POD4, "DROP_SPOOFED_SOURCE"),
    "this node": (SELF4, POD4, "DROP_SPOOFED_SOURCE"),
    "the world": (WORLD4, POD4, "DROP_SPOOFED_SOURCE"),
    "the world, over IPv6": (WORLD6, "fd00:244:1::2", "DROP_SPOOFED_SOURCE"),
    "a pod there, for a pod that is not here": (OVER4.pod4, "10.244.1.99", "DROP_NO_ENDPOINT"),
    "a pod there, for a pod that is gone": (OVER4.pod4, "10.244.1.98", "DROP_NO_ENDPOINT"),
    "a pod there, for a pod elsewhere": (OVER4.pod4, KEYLESS.pod4, "DROP_NO_ENDPOINT"),
    "a pod there, for another node": (OVER4.pod4, KEYLESS.address, "DROP_NO_ENDPOINT"),
    "a pod there, for the world": (OVER4.pod4, WORLD4, "DROP_NO_ENDPOINT"),
}


@pytest.mark.parametrize("says", STRANGERS)
def test_who_may_send_to_whom(node: Node, says: str) -> None:
    node.put_peer("10.244.1.98", node=SELF4, flags=LOCAL)
    source, destination, reason = STRANGERS[says]
    packet = packets.ip(source, destination, bytes(40))
    seen = node.run("from_net", sealed(OVER4, 1, packet))
    assert (seen.action, seen.reason) == (SHOT, reason)


def test_the_node_there_may_send_too(node: Node) -> None:
    packet = packets.ip(OVER4.address, POD4, bytes(40))
    assert_delivered(node.run("from_net", sealed(OVER4, 1, packet)), packet)


def test_frames_for_another_machine_are_left_alone(node: Node) -> None:
    frame = b"\2\0\0\0\0\x77" + sealed(OVER4, 1, datagram(4, OVER4, 60))[6:]
    before = state(node, OVER4)
    seen = node.run("from_net", frame)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), frame)
    assert state(node, OVER4) == before


@outers
def test_esp_for_another_node_is_routed_through(node: Node, outer: int) -> None:
    elsewhere = "2001:db8::99" if outer == 6 else "192.0.2.99"
    body = esp.seal(PEERS[outer].keys_in(0), 1, datagram(4, OVER4, 60), esp.IPV4)
    packet = packets.ip(PEERS[outer].address, elsewhere, body, protocol=packets.ESP)
    seen = node.run("from_net", packets.frame(packet))
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), packets.frame(packet))


@outers
def test_esp_on_a_vlan_is_another_devices(node: Node, outer: int) -> None:
    frame = sealed(PEERS[outer], 1, datagram(4, PEERS[outer], 60))
    frame = frame[:12] + b"\x81\0\0\5" + frame[12:]
    seen = node.run("from_net", frame)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), frame)


# --- confirmation, dummies, probes ----------------------------------------------------------------


@outers
def test_the_first_authentic_packet_confirms_an_sa_once(node: Node, outer: int) -> None:
    peer, packet = PEERS[outer], datagram(4, PEERS[outer], 60)
    forged = bytearray(sealed(peer, 1, packet))
    forged[-1] ^= 1
    node.run("from_net", bytes(forged))
    assert sa_in(node, peer)["first_seen"] == 0
    for sequence in (1, 1, 2, 3):
        node.run("from_net", sealed(peer, sequence, packet))
    confirmed = [each for each in node.seen_events() if each["kind"] == "EVENT_SA_CONFIRMED"]
    assert [(each["pair"], each["number"]) for each in confirmed] == [(peer.pair, 0)]
    assert sa_in(node, peer)["first_seen"] > 0


def told(node: Node) -> list[tuple[str, int, int, int]]:
    """What the agent hears of SAs."""
    return [
        (each["kind"], each["pair"], each["number"], each["probe"])
        for each in node.seen_events()
        if each["kind"] != "EVENT_FLOW"
    ]


@outers
@pytest.mark.parametrize("payload", [b"", b"\0\0\0\1", bytes(90)], ids=["empty", "four", "ninety"])
def test_a_dummy_says_nothing_but_that_its_keys_are_right(
    node: Node, outer: int, payload: bytes
) -> None:
    peer = PEERS[outer]
    body = esp.seal(peer.keys_in(3), 9, payload, esp.DUMMY)
    seen = node.run("from_net", outside(peer, body))
    assert (seen.action, seen.reason) == (SHOT, "ESP_DUMMY_RECEIVED")
    assert told(node) == [("EVENT_SA_CONFIRMED", peer.pair, 3, 0)]
    row = sa_in(node, peer, 3)
    assert (row["packets"], row["bytes"], row["top"]) == (1, 0, 9)
    assert node.run("from_net", outside(peer, body)).reason == "DROP_REPLAYED"


@outers
@pytest.mark.parametrize("kind", [ASK, ANSWER])
@pytest.mark.parametrize("extra", [0, 80], ids=["exact", "longer"])
def test_a_probe_is_told_and_ends_here(node: Node, outer: int, kind: int, extra: int) -> None:
    """Of which SA it speaks is said by the keys, not by itself."""
    peer = PEERS[outer]
    words = struct.pack(">QII", 99, 77, kind) + bytes(extra)
    packet = packets.ip(peer.address, peer.own, words, protocol=packets.PROBE)
    frame = outside(peer, esp.seal(peer.keys_in(3), 9, packet, NEXT[outer]))
    seen = node.run("from_net", frame)
    assert (seen.action, seen.reason, seen.size) == (SHOT, "PROBE_RECEIVED", len(packet))
    assert told(node) == [
        ("EVENT_SA_CONFIRMED", peer.pair, 3, 0), ("EVENT_PROBE", peer.pair, 3, kind),
    ]  # fmt: skip
    row = sa_in(node, peer, 3)
    assert (row["packets"], row["bytes"], row["top"]) == (1, len(packet), 9)
    assert node.run("from_net", frame).reason == "DROP_REPLAYED"
    assert told(node) == []


@outers
@pytest.mark.parametrize("size", [0, 15])
def test_a_probe_too_short_to_say_anything_is_malformed(node: Node, outer: int, size: int) -> None:
    peer = PEERS[outer]
    packet = packets.ip(peer.address, peer.own, bytes(size), protocol=packets.PROBE)
    seen = node.run("from_net", sealed(peer, 1, packet))
    assert (seen.action, seen.reason) == (SHOT, "DROP_MALFORMED")
    assert told(node) == [("EVENT_SA_CONFIRMED", peer.pair, 0, 0)]


NO_PROBES = {
    "a pod there": (OVER4.pod4, SELF4, "OPENED"),
    "another node": (KEYLESS.address, SELF4, "DROP_SPOOFED_SOURCE"),
    "this node": (SELF4, SELF4, "DROP_SPOOFED_SOURCE"),
    "nobody known": ("192.0.2.88", SELF4, "DROP_SPOOFED_SOURCE"),
    "the node there, to a pod": (OVER4.address, POD4, "OPENED"),
    "the node there, to another node": (OVER4.address, KEYLESS.address, "DROP_NO_ENDPOINT"),
}


def test_other_packets_from_node_to_node_are_no_probes(node: Node) -> None:
    words = struct.pack(">QII", OVER4.pair, 0, ASK)
    packet = packets.ip(OVER4.address, SELF4, words)
    assert node.run("from_net", sealed(OVER4, 1, packet)).reason == "OPENED"
    assert told(node) == [("EVENT_SA_CONFIRMED", OVER4.pair, 0, 0)]


@pytest.mark.parametrize("says", NO_PROBES)
def test_only_the_node_itself_probes_and_only_this_one(node: Node, says: str) -> None:
    source, destination, reason = NO_PROBES[says]
    packet = probe(source, destination, OVER4.pair, 0)
    assert node.run("from_net", sealed(OVER4, 1, packet)).reason == reason
    assert told(node) == [("EVENT_SA_CONFIRMED", OVER4.pair, 0, 0)]
