# SPDX-License-Identifier: Apache-2.0
"""What the door makes of a packet, byte by byte: ESP that other implementations open.

The judges are Python's `cryptography` (tests/bpf/esp.py), for every size in both families inside
and outside, and Scapy's ESP for a sample.
"""

from __future__ import annotations

import random
import struct

import pytest
from scapy.layers import ipsec
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    OUT,
    OVER4,
    PEERS,
    POD4,
    POD6,
    SAS,
    SELF4,
    WORLD4,
    Peer,
    pod,
    put_outbound,
    sa_out,
)  # fmt: skip
from tests.bpf.node import REDIRECT, SHOT, Node
from tests.bpf.race import run_at_once
from tests.bpf.tunnel import (
    ANSWER,
    ASK,
    NEXT,
    assert_sealed,
    families,
    outers,
    probe,
    take_apart,
)  # fmt: skip

LONGEST = 2046
"""What the engine can carry: 2048 with the two bytes of the trailer."""


@pytest.fixture
def node(loaded: Node) -> Node:
    """With fresh SAs: every sequence starts at zero."""
    loaded.clear("encrypt", "sa_out", "flows")
    for peer in PEERS.values():
        put_outbound(loaded, peer)
    loaded.forget()
    return loaded


def datagram(version: int, peer: Peer, size: int, *, seed: int = 0, **fields: int) -> bytes:
    """An inner packet of exactly `size` bytes."""
    payload = random.Random(size + seed).randbytes(size - (40 if version == 6 else 20))
    return packets.ip(pod(version), peer.pod(version), payload, **fields)


@families
def test_every_size_is_sealed_as_the_rfcs_say(node: Node, inner: int, outer: int) -> None:
    peer, largest = PEERS[outer], 1446 if outer == 4 else 1426
    for count, size in enumerate(range(40 if inner == 6 else 20, largest + 1), 1):
        packet = datagram(inner, peer, size)
        seen = node.run("door", packets.frame(packet), mark=0xE00)
        sealed = assert_sealed(seen, packet, peer)
        assert sealed.opened.sequence == count, "one flow, one SA, no number twice or left out"
        assert len(seen.frame) - 14 <= 1500
    row = sa_out(node, peer, sealed.number)
    assert row["packets"] == row["sequence"] == count
    assert row["bytes"] == sum(range(40 if inner == 6 else 20, largest + 1))


@families
@pytest.mark.parametrize("high", [0, 1, 0xFFFF], ids=lambda high: f"high half {high:#x}")
def test_scapy_opens_what_the_door_sealed(node: Node, inner: int, outer: int, high: int) -> None:
    peer = PEERS[outer]
    put_outbound(node, peer, sequence=high << 32, sequence_limit=1 << 60)
    for size in range(48, 1427, 53):
        packet = datagram(inner, peer, size, protocol=packets.TEST)
        seen = node.run("door", packets.frame(packet))
        keys = peer.keys_out(take_apart(seen.frame, peer, high).number)
        judge = ipsec.SecurityAssociation(
            ipsec.ESP, keys.spi, crypt_algo="CHACHA20-POLY1305", crypt_key=keys.key + keys.salt,
            esn_en=True, tunnel_header=(IPv6 if outer == 6 else IP)(),
        )  # fmt: skip
        sent = (IPv6 if outer == 6 else IP)(seen.frame[14:])
        assert bytes(judge.decrypt(sent, esn_en=True, esn=high)) == packet


def test_the_longest_that_the_engine_carries_and_one_more(node: Node) -> None:
    fits, too_big = (datagram(4, OVER4, size) for size in (LONGEST, LONGEST + 1))
    assert_sealed(node.run("door", packets.frame(fits)), fits, OVER4)
    before = node.rows("sa_out")
    seen = node.run("door", packets.frame(too_big))
    assert (seen.action, seen.reason) == (SHOT, "DROP_TOO_BIG")
    assert node.rows("sa_out") == before


def test_bytes_behind_the_packet_stay_behind(node: Node) -> None:
    packet = datagram(4, OVER4, 20)
    padded = packets.frame(packet) + bytes(26)
    assert_sealed(node.run("door", padded), packet, OVER4)


@families
def test_dscp_and_ecn_are_copied(node: Node, inner: int, outer: int) -> None:
    for tos in range(256):
        packet = datagram(inner, PEERS[outer], 60, tos=tos)
        sealed = assert_sealed(node.run("door", packets.frame(packet)), packet, PEERS[outer])
        assert sealed.tos == tos


@families
def test_a_flow_keeps_its_sa_and_flows_use_all_of_them(node: Node, inner: int, outer: int) -> None:
    numbers, labels = [], set()
    for port in range(400):
        packet = packets.ip(
            pod(inner), PEERS[outer].pod(inner), packets.udp(1024 + port, 53), protocol=packets.UDP
        )
        pair = [
            assert_sealed(node.run("door", packets.frame(packet)), packet, PEERS[outer])
            for _ in range(2)
        ]
        assert pair[0].number == pair[1].number
        assert pair[0].label == pair[1].label
        numbers.append(pair[0].number)
        labels.add(pair[0].label)
    assert all(60 <= numbers.count(number) <= 140 for number in range(SAS)), "about equally"
    assert outer == 4 or len(labels) > 350


def test_fragments_of_a_datagram_take_one_sa(node: Node) -> None:
    numbers = set()
    for fragment in (packets.MORE_FRAGMENTS, packets.MORE_FRAGMENTS | 3, 6):
        packet = packets.ipv4(
            POD4, OVER4.pod4, packets.udp(fragment, 9, bytes(16)), protocol=packets.UDP,
            fragment=fragment,
        )  # fmt: skip
        numbers.add(assert_sealed(node.run("door", packets.frame(packet)), packet, OVER4).number)
    assert len(numbers) == 1


@families
def test_sequence_numbers_pass_2_to_the_32(node: Node, inner: int, outer: int) -> None:
    peer, start = PEERS[outer], (1 << 32) - 3
    put_outbound(node, peer, sequence=start)
    for sequence in range(start + 1, start + 8):
        packet = datagram(inner, peer, 100)
        seen = node.run("door", packets.frame(packet))
        sealed = assert_sealed(seen, packet, peer, high=sequence >> 32)
        assert sealed.opened.sequence == sequence


def test_a_spent_sa_seals_no_more_and_keeps_its_number(node: Node) -> None:
    put_outbound(node, OVER4, sequence_limit=5)
    frame = packets.frame(datagram(4, OVER4, 99))
    reasons = [node.run("door", frame).reason for _ in range(20)]
    assert reasons == ["SEALED"] * 5 + ["DROP_SA_EXPIRED"] * 15
    assert max(sa_out(node, OVER4, number)["sequence"] for number in range(SAS)) == 5


@pytest.mark.parametrize(("expires", "reason"), [(1, "DROP_SA_EXPIRED"), (1 << 62, "SEALED")])
def test_an_sa_ends_with_its_time(node: Node, expires: int, reason: str) -> None:
    put_outbound(node, OVER4, expires=expires)
    assert node.run("door", packets.frame(datagram(4, OVER4, 99))).reason == reason


def test_cores_at_once_take_each_number_once(node: Node) -> None:
    packet, tries = datagram(4, OVER4, 60), 8000
    results = run_at_once(node.object.program("door"), [packets.frame(packet)] * tries)
    low = [frame[38:42] for each in results for _, frame in each]
    assert {action for each in results for action, _ in each} == {REDIRECT}
    count = len(results) * tries
    assert sorted(low) == [struct.pack(">I", number) for number in range(1, count + 1)]
    number = take_apart(results[0][0][1], OVER4).number
    row = sa_out(node, OVER4, number)
    assert row["sequence"] == row["packets"] == count
    assert row["bytes"] == count * len(packet)


def test_cores_at_once_never_pass_the_limit(node: Node) -> None:
    """Thousands of SAs good for one packet each: whoever comes second gets nothing."""
    count, frames = 4000, []
    for pair in range(1, count + 1):
        there, name = f"10.244.{100 + pair // 250}.{1 + pair % 250}", f"2001:db8:{pair:x}::"
        node.put_peer(there, node=name)
        node.put_encrypt(name, pair)
        for number in range(SAS):
            node.put_sa_out(
                OVER4.keys_out(number), pair=pair, number=number, source=SELF4,
                destination=OVER4.address, node=name, sequence_limit=1,
            )  # fmt: skip
        frames.append(packets.frame(packets.ip(POD4, there)))
    results = run_at_once(node.object.program("door"), frames)
    for tries in zip(*results, strict=True):
        assert sorted(action for action, _ in tries) == [SHOT, REDIRECT]


ODD = {
    "another node's pod without keys": (
        "DROP_NO_KEY", packets.frame(packets.ip(POD4, KEYLESS.pod4))),
    "a cluster address nobody has": (
        "DROP_UNKNOWN_PEER", packets.frame(packets.ip(POD4, "10.244.9.9"))),
    "the world": ("DROP_UNKNOWN_PEER", packets.frame(packets.ip(POD4, WORLD4))),
    "this node's own pod": ("DROP_UNKNOWN_PEER", packets.frame(packets.ip(OVER4.pod4, POD4))),
    "this node itself": ("DROP_UNKNOWN_PEER", packets.frame(packets.ip(OVER4.pod4, SELF4))),
    "multicast on the link": ("CLEAR_LINK", packets.frame(packets.ip("fe80::1", "ff02::16"))),
    "ARP": ("CLEAR_LINK", packets.ethernet(packets.ETH_ARP, bytes(28))),
    "LLDP": ("DROP_NOT_IP", packets.ethernet(0x88CC, bytes(40))),
    "a VLAN tag": (
        "DROP_NOT_IP",
        packets.ethernet(0x8100, b"\0\1\x08\0" + packets.ip(POD4, OVER4.pod4))),
    "a longer length than there is": (
        "DROP_MALFORMED", packets.frame(packets.ip(POD4, OVER4.pod4, bytes(9))[:-1])),
    "an IPv4 header of 16 bytes": (
        "DROP_MALFORMED", packets.frame(b"\x44" + packets.ip(POD4, OVER4.pod4)[1:])),
    "a mapped address in IPv6": (
        "DROP_MALFORMED", packets.frame(packets.ipv6(POD6, f"::ffff:{OVER4.pod4}"))),
}  # fmt: skip


@pytest.mark.parametrize("says", ODD)
def test_what_cannot_be_sealed_goes_nowhere(node: Node, says: str) -> None:
    reason, frame = ODD[says]
    before = node.rows("sa_out")
    seen = node.run("door", frame)
    assert (seen.reason, seen.action, seen.frame) == (reason, SHOT, frame)
    assert node.rows("sa_out") == before, "no number was used"


@outers
def test_a_tunnel_of_others_between_nodes_leaves_as_it_is(node: Node, outer: int) -> None:
    """It is encrypted already; a pod's ESP, or a node's to a pod, is a packet like any other."""
    peer = PEERS[outer]
    esp = packets.ip(peer.own, peer.address, bytes(40), protocol=packets.ESP)
    before, frame = node.rows("sa_out"), packets.frame(esp)
    seen = node.run("door", frame, mark=0)
    assert (seen.action, seen.frame, seen.mark, seen.reasons) == (REDIRECT, frame, OUT, ())
    assert node.rows("sa_out") == before
    for source in (peer.own, pod(outer)):
        inside = packets.ip(source, peer.pod(outer), bytes(40), protocol=packets.ESP)
        assert_sealed(node.run("door", packets.frame(inside)), inside, peer)


def test_packets_still_to_be_segmented_are_refused(node: Node) -> None:
    packet = packets.ip(POD4, OVER4.pod4, packets.tcp(1, 2, bytes(900)), protocol=packets.TCP)
    seen = node.run("door", packets.frame(packet), gso_size=300, gso_segs=3)
    assert (seen.reasons, seen.action) == (("DROP_SEAL_FAILED",) * 3, SHOT)
    assert all(sa_out(node, OVER4, number)["sequence"] == 0 for number in range(SAS))


def test_a_missing_sa_of_a_standing_pair_is_no_key(node: Node) -> None:
    node.clear("sa_out")
    assert node.run("door", packets.frame(datagram(4, OVER4, 99))).reason == "DROP_NO_KEY"


# --- probes --------------------------------------------------------------------------------------


def ask(peer: Peer, number: int = 0, kind: int = ASK, *, pair: int | None = None) -> bytes:
    """A probe to a peer."""
    return probe(peer.own, peer.address, peer.pair if pair is None else pair, number, kind)


@outers
@pytest.mark.parametrize("padding", [0, 30], ids=["bare", "padded"])
def test_a_probe_is_sealed_whole_on_the_sa_it_names(node: Node, outer: int, padding: int) -> None:
    """Whatever the encryption table says: it asks for keys that nothing else uses yet."""
    peer = PEERS[outer]
    node.clear("encrypt")
    for number in range(SAS):
        for kind in (ASK, ANSWER):
            packet = ask(peer, number, kind)
            seen = node.run("door", packets.frame(packet) + bytes(padding), mark=0xE00)
            assert (seen.action, seen.reason, seen.mark) == (REDIRECT, "PROBE_SENT", OUT)
            assert seen.size == len(packet)
            sealed = take_apart(seen.frame, peer)
            assert (sealed.number, sealed.opened.sequence) == (number, kind)
            assert sealed.opened.payload == packet
            assert sealed.opened.next_header == NEXT[outer]
        row = sa_out(node, peer, number)
        assert (row["packets"], row["bytes"], row["sequence"]) == (2, 2 * len(packet), 2)


NO_PROBES = {
    "unknown pair": (ask(OVER4, pair=99), "DROP_NO_KEY"),
    "unknown number": (ask(OVER4, SAS), "DROP_NO_KEY"),
    "cut short": (
        packets.ip(SELF4, OVER4.address, bytes(15), protocol=packets.PROBE), "DROP_MALFORMED"),
    "to nobody": (probe(SELF4, "192.0.2.77", OVER4.pair, 0), "DROP_UNKNOWN_PEER"),
    "to this node": (probe(SELF4, SELF4, OVER4.pair, 0), "DROP_UNKNOWN_PEER"),
}  # fmt: skip


@pytest.mark.parametrize("says", NO_PROBES)
def test_a_probe_that_names_no_sa_goes_nowhere(node: Node, says: str) -> None:
    packet, reason = NO_PROBES[says]
    seen = node.run("door", packets.frame(packet))
    assert (seen.action, seen.reason) == (SHOT, reason)


def test_a_probe_on_a_spent_sa_goes_nowhere(node: Node) -> None:
    put_outbound(node, OVER4, sequence=7, sequence_limit=7)
    assert node.run("door", packets.frame(ask(OVER4))).reason == "DROP_SA_EXPIRED"


def test_a_pod_cannot_choose_its_sa(node: Node) -> None:
    """Its packets of the probes' protocol are packets like any other."""
    numbers = set()
    for last in range(2, 60):
        source = f"10.244.1.{last}"
        for named in range(SAS):
            packet = probe(source, OVER4.pod4, OVER4.pair, named)
            sealed = assert_sealed(node.run("door", packets.frame(packet)), packet, OVER4)
            numbers.add((source, sealed.number))
    assert len(numbers) == 58, "one for each flow, whatever it names"
