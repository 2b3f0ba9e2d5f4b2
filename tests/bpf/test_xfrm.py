# SPDX-License-Identifier: Apache-2.0
"""ESP of the kernel's IPsec at the uplink: marked to be opened on the way in,
its outer header finished on the way out, and otherwise left alone.

What the kernel does in between needs a kernel with ESP: tests/vm.
"""

from __future__ import annotations

import random
import struct

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    NODE,
    OUT,
    OVER4,
    OVER6,
    PEERS,
    PLACEHOLDERS,
    POD4,
    POD6,
    SAS,
    SELF4,
    SELF6,
    SHARED,
    WORLD4,
    Peer,
    pod,
    put_inbound,
)  # fmt: skip
from tests.bpf.node import OK, REDIRECT, SHOT, XFRM, Node
from tests.bpf.packets import DONT_FRAGMENT, ESP, MORE_FRAGMENTS, frame
from tests.bpf.tunnel import assert_delivered, datagram, outers, sealed

TAGS = {"untagged": b"", "on a VLAN": b"\x81\0\0\5"}
tagged = pytest.mark.parametrize("tag", TAGS.values(), ids=TAGS)


@pytest.fixture
def node(loaded: Node) -> Node:
    """With SAs of the kernel's from each peer."""
    loaded.clear("sa_in", "sharers", "flows")
    for peer in PEERS.values():
        put_inbound(loaded, peer, engine=XFRM)
    loaded.forget()
    return loaded


def esp(keys_spi: int) -> bytes:
    """That no key of the datapath's opens."""
    return struct.pack(">II", keys_spi, 1) + random.Random(keys_spi).randbytes(80)


def coming(peer: Peer, number: int = 0, body: bytes = b"", **fields: int) -> bytes:
    """A frame from the wire for an SA of the kernel's."""
    whole = body or esp(peer.keys_in(number).spi)
    return frame(packets.ip(peer.address, peer.own, whole, **{"protocol": ESP, **fields}))


def assert_passes(node: Node, program: str, whole: bytes, *, before: int, after: int) -> None:
    """As it was, but for its mark, and without a trace."""
    rows = node.rows("sa_in")
    seen = node.run(program, whole, mark=before)
    assert (seen.action, seen.reasons, seen.frame) == (OK, (), whole)
    assert seen.mark == after
    assert node.rows("flows") == []
    assert node.seen_events() == []
    assert node.rows("sa_in") == rows, "the kernel counts by itself"


# --- coming in -----------------------------------------------------------------------------------


@outers
def test_esp_of_the_kernels_is_marked_for_its_state(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    for number in range(SAS):
        for tos in (0, 1, 2, 3, 0xB8, 0xFD, 0xFE, 0xFF):
            mark = peer.mark_in | tos & 3
            assert_passes(
                node, "from_net", coming(peer, number, tos=tos), before=0xFFFF_FFFF, after=mark
            )


@outers
def test_too_short_for_esp_is_for_the_kernel_to_refuse(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    body = esp(peer.keys_in(0).spi)[:7]
    assert_passes(node, "from_net", coming(peer, body=body), before=0, after=peer.mark_in)


@outers
def test_fragments_are_refused(node: Node, outer: int) -> None:
    """They would be put together without the mark; our peers set DF."""
    peer, body = PEERS[outer], esp(PEERS[outer].keys_in(0).spi)
    if outer == 4:
        frames = [
            coming(peer, body=body, fragment=each)
            for each in (MORE_FRAGMENTS, 7, MORE_FRAGMENTS | 7)
        ]
    else:
        heads = [struct.pack(">BBHI", ESP, 0, offset, 77) for offset in (1, 8, 9)]
        frames = [coming(peer, body=head + body, protocol=44) for head in heads]
    for whole in frames:
        seen = node.run("from_net", whole)
        assert (seen.action, seen.reason, seen.mark) == (SHOT, "DROP_ESP_FRAGMENT", 0)


@outers
def test_an_spi_counts_only_between_its_two_addresses(node: Node, outer: int) -> None:
    peer, other = PEERS[outer], "2001:db8::66" if outer == 6 else "192.0.2.66"
    body = esp(peer.keys_in(0).spi)
    whole = frame(packets.ip(other, peer.own, body, protocol=ESP))
    assert_passes(node, "from_net", whole, before=0, after=0)
    node.put_peer(other, node=other, flags=NODE)
    seen = node.run("from_net", whole)
    assert (seen.action, seen.reason, seen.mark) == (SHOT, "DROP_UNKNOWN_SPI", 0)


@outers
def test_esp_for_others_gets_no_mark(node: Node, outer: int) -> None:
    peer, elsewhere = PEERS[outer], "2001:db8::99" if outer == 6 else "192.0.2.99"
    body, whole = esp(peer.keys_in(0).spi), coming(peer)
    others = {
        "routed through": frame(packets.ip(peer.address, elsewhere, body, protocol=ESP)),
        "another machine's": b"\2\0\0\0\0\x77" + whole[6:],
        "another device's": whole[:12] + TAGS["on a VLAN"] + whole[12:],
    }
    for each in others.values():
        assert_passes(node, "from_net", each, before=0, after=0)


def test_sas_of_both_engines_live_side_by_side(node: Node) -> None:
    """A pair of the one follows a pair of the other; SPIs say which is meant."""
    put_inbound(node, OVER4)
    packet = datagram(4, OVER4, 100)
    assert_delivered(node.run("from_net", sealed(OVER4, 1, packet)), packet)
    node.forget()
    node.clear("flows")
    assert_passes(node, "from_net", coming(OVER6), before=0, after=OVER6.mark_in)


@outers
def test_esp_for_a_shared_state_is_marked_with_who_sent_it(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    node.clear("sa_in")
    put_inbound(node, peer, engine=XFRM, shared=True)
    for tos in range(4):
        assert_passes(
            node, "from_net", coming(peer, tos=tos), before=0xFFFF_FFFF,
            after=peer.slot << 16 | 0xD00 | SHARED | tos,
        )  # fmt: skip


# --- opened by the kernel ------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [4, 6], ids=lambda v: f"IPv{v}")
def test_what_no_state_has_opened_is_nobodys(node: Node, inner: int) -> None:
    """Whatever comes by that device otherwise, with any mark: cleartext, from anybody."""
    for whole in (
        frame(datagram(inner, OVER4, 100)),
        frame(packets.ip(OVER4.pod(inner), pod(inner), bytes(9))[:-1]),
        packets.ethernet(0x88CC, bytes(40)),
        coming(OVER4),
    ):
        for mark in (0, OVER4.mark_in, 0xE00):
            seen = node.run("from_xfrm", whole, mark=mark)
            assert (seen.action, seen.reason, seen.frame) == (SHOT, "DROP_UNKNOWN_SPI", whole)
    assert "EVENT_SA_CONFIRMED" not in {each["kind"] for each in node.seen_events()}


# --- going out -----------------------------------------------------------------------------------


def going(peer: Peer, tag: bytes = b"", body: bytes = b"", **fields: int) -> bytes:
    """A frame for the wire around ESP that the kernel made."""
    whole = body or esp(peer.keys_out(0).spi)
    packet = frame(packets.ip(peer.own, peer.address, whole, **{"protocol": ESP, **fields}))
    return packet[:12] + tag + packet[12:]


def assert_finished(node: Node, whole: bytes, mark: int, finished: bytes) -> None:
    seen = node.run("to_net", whole, mark=mark)
    assert (seen.action, seen.reasons, seen.mark) == (OK, (), 0)
    assert seen.frame == finished


@tagged
@pytest.mark.parametrize("fragment", [0, DONT_FRAGMENT], ids=["may be cut", "DF"])
def test_ipv4_outside_gets_df_and_the_marks_ecn(node: Node, tag: bytes, fragment: int) -> None:
    """The header's sum stays right, and nothing else changes."""
    bits = random.Random(1)
    for tos in range(256):
        for ecn in range(4):
            facts = {"identifier": bits.randrange(1 << 16), "ttl": bits.randrange(1, 256)}
            whole = going(OVER4, tag, tos=tos, fragment=fragment, **facts)
            after = {"tos": tos & ~3 | ecn, "fragment": DONT_FRAGMENT}
            mark = OVER4.mark_sealed(bits.randrange(SAS)) | ecn
            assert_finished(node, whole, mark, going(OVER4, tag, **after, **facts))
    assert node.rows("flows") == []


def test_ipv4_options_outside_stay(node: Node) -> None:
    made = [
        packets.ipv4(SELF4, OVER4.address, esp(300), protocol=ESP, options=b"\1\1\1\0" * 9, **how)
        for how in ({"fragment": 0, "tos": 0xB9}, {"fragment": DONT_FRAGMENT, "tos": 0xBA})
    ]
    assert_finished(node, frame(made[0]), OVER4.mark_sealed(2) | 2, frame(made[1]))


@tagged
def test_ipv6_outside_gets_the_marks_ecn(node: Node, tag: bytes) -> None:
    for tos in range(256):
        for ecn in range(4):
            label = (0, 0xABCDE, 0xFFFFF)[tos % 3]
            whole = going(OVER6, tag, tos=tos, label=label)
            finished = going(OVER6, tag, tos=tos & ~3 | ecn, label=label)
            assert_finished(node, whole, OVER6.mark_sealed(3) | ecn, finished)


@outers
@tagged
def test_fragments_do_not_leave(node: Node, outer: int, tag: bytes) -> None:
    peer, body = PEERS[outer], esp(300)
    if outer == 4:
        frames = [going(peer, tag, body, fragment=each) for each in (MORE_FRAGMENTS, 7)]
    else:
        heads = [struct.pack(">BBHI", ESP, 0, offset, 77) for offset in (1, 8)]
        frames = [going(peer, tag, head + body, protocol=44) for head in heads]
    for whole in frames:
        seen = node.run("to_net", whole, mark=peer.mark_sealed(1) | 2)
        assert (seen.action, seen.reason, seen.frame) == (SHOT, "DROP_TOO_BIG", whole)


@outers
@tagged
def test_what_the_kernel_would_cut_while_it_encrypts_does_not_leave(
    node: Node, outer: int, tag: bytes
) -> None:
    """Its segments may share a nonce. The agent has that done before; nothing relies on it."""
    peer = PEERS[outer]
    whole = going(peer, tag, esp(peer.keys_out(0).spi) + bytes(2000))
    seen = node.run("to_net", whole, mark=peer.mark_sealed(1), gso_size=1000, gso_segs=2)
    assert (seen.action, seen.reasons) == (SHOT, ("DROP_SEAL_FAILED",) * 2)


@outers
@pytest.mark.parametrize("mark", [0, 0xD00, 0x100, 0xFFFF_F0FF, 0xE00, OUT], ids=hex)
def test_esp_with_another_mark_is_left_alone(node: Node, outer: int, mark: int) -> None:
    """The bpf engine's, whose header is finished; or somebody else's tunnel."""
    peer, after = PEERS[outer], 0 if mark == OUT else mark
    how = {"fragment": 0} if outer == 4 else {}
    for tos in range(4):
        assert_passes(node, "to_net", going(peer, tos=tos, **how), before=mark, after=after)
    if outer == 4:
        whole = going(peer, fragment=MORE_FRAGMENTS)
        assert_passes(node, "to_net", whole, before=mark, after=after)


# --- going out by a state that is shared ----------------------------------------------------------


def shared(peer: Peer, ecn: int = 0, number: int = 1) -> int:
    """The mark of ESP that a shared state has encrypted for this peer."""
    return peer.mark_sealed(number - 1) | SHARED | ecn


def to_placeholder(peer: Peer, outer: int, **fields: int) -> bytes:
    """As the kernel sends it: to many."""
    body = esp(3)
    whole = frame(packets.ip(peer.own, PLACEHOLDERS[outer], body, **{"protocol": ESP, **fields}))
    return (bytes.fromhex("01005e0000fe") if outer == 4 else bytes.fromhex("333300000114")) + whole[
        6:
    ]


def to_peer(peer: Peer, address: str = "", **fields: int) -> bytes:
    body = esp(3)
    whole = packets.ip(peer.own, address or peer.address, body, **{"protocol": ESP, **fields})
    return frame(whole)


@outers
def test_the_slot_says_to_whom_it_goes(node: Node, outer: int) -> None:
    """The header's sum stays right, and the rest is as for any other."""
    peer, bits = PEERS[outer], random.Random(outer)
    node.put_sharer(peer.slot, peer.address)
    for tos in range(256):
        for ecn in range(4):
            facts = {"ttl": bits.randrange(1, 256)}
            facts |= {"identifier": bits.randrange(1 << 16)} if outer == 4 else {}
            before = {"fragment": bits.choice([0, DONT_FRAGMENT])} if outer == 4 else {}
            whole = to_placeholder(peer, outer, tos=tos, **facts, **before)
            mark = shared(peer, ecn, bits.randrange(1, 5))
            seen = node.run("to_net", whole, mark=mark)
            assert (seen.action, seen.reasons, seen.mark) == (REDIRECT, (), OUT)
            assert seen.frame == to_peer(peer, tos=tos & ~3 | ecn, **facts)
            again = node.run("to_net", seen.frame, mark=seen.mark)
            assert (again.action, again.reasons, again.mark) == (OK, (), 0), "and leaves"
    assert node.rows("flows") == []


@outers
def test_many_peers_are_told_apart(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    base = "2001:db8::{:x}" if outer == 6 else "192.0.2.{}"
    for slot in (1, 2, 200, 0x7FFF, 0x8000, 0xFFFF):
        node.put_sharer(slot, base.format(slot % 251 + 2))
    for slot in (0xFFFF, 200, 1, 0x8000, 2, 0x7FFF):
        seen = node.run("to_net", to_placeholder(peer, outer), mark=slot << 16 | OUT | SHARED)
        assert seen.frame == to_peer(peer, base.format(slot % 251 + 2))


def test_ipv4_options_stay_where_they_are(node: Node) -> None:
    node.put_sharer(7, OVER4.address)
    made = [
        packets.ipv4(SELF4, to, esp(300), protocol=ESP, options=b"\1\1\1\0" * 9)
        for to in (PLACEHOLDERS[4], OVER4.address)
    ]
    seen = node.run("to_net", frame(made[0]), mark=7 << 16 | OUT | SHARED)
    assert (seen.action, seen.frame) == (REDIRECT, frame(made[1]))


BAD = {
    "nobody's": ("", {}, "DROP_UNKNOWN_SLOT"),
    "another family's": ("other", {}, "DROP_UNKNOWN_SLOT"),
    "to be cut": ("own", {"gso_size": 1000, "gso_segs": 2}, "DROP_SEAL_FAILED"),
}


@outers
@pytest.mark.parametrize("says", BAD)
def test_what_a_slot_does_not_lead_anywhere_does_not_leave(
    node: Node, outer: int, says: str
) -> None:
    holder, context, reason = BAD[says]
    peer = PEERS[outer]
    if holder:
        node.put_sharer(peer.slot, PEERS[outer if holder == "own" else 10 - outer].address)
    whole = to_placeholder(peer, outer)
    for tagged_ in (whole, whole[:12] + TAGS["on a VLAN"] + whole[12:])[: 1 if context else 2]:
        seen = node.run("to_net", tagged_, mark=shared(peer), **context)
        assert seen.action == SHOT
        assert set(seen.reasons) <= {reason, "DROP_MALFORMED"}
        assert seen.reasons


@outers
def test_a_fragment_is_not_readdressed(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    node.put_sharer(peer.slot, peer.address)
    if outer == 4:
        whole = to_placeholder(peer, outer, fragment=MORE_FRAGMENTS)
    else:
        head = struct.pack(">BBHI", ESP, 0, 1, 77)
        whole = frame(packets.ip(peer.own, PLACEHOLDERS[6], head + esp(3), protocol=44))
    seen = node.run("to_net", whole, mark=shared(peer))
    assert (seen.action, seen.reason) == (SHOT, "DROP_TOO_BIG")


LEAKS = {
    "a pod's packet": packets.ip(POD4, OVER4.pod4, bytes(40)),
    "a pod's packet, IPv6": packets.ip(POD6, OVER6.pod6, bytes(40)),
    "the node's for a pod": packets.ip(SELF6, OVER6.pod6, bytes(40)),
    "ESP for a pod": packets.ip(SELF4, OVER4.pod4, esp(300), protocol=ESP),
    "a pod's ESP for a pod": packets.ip(POD4, OVER4.pod4, esp(300), protocol=ESP),
}


@pytest.mark.parametrize("says", LEAKS)
def test_no_mark_lets_cleartext_out(node: Node, says: str) -> None:
    """Nor what only looks sealed."""
    node.put_sharer(OVER4.slot, OVER4.address)
    for mark in (OVER4.mark_sealed(0), OVER4.mark_out(0), shared(OVER4), 0xE00, OUT):
        seen = node.run("to_net", frame(LEAKS[says]), mark=mark)
        assert (seen.action, seen.reason) == (SHOT, "DROP_CLEAR_TO_CLUSTER")


def test_only_esp_is_finished(node: Node) -> None:
    """Cleartext for the world that bears a mark, for whatever reason, stays as it is."""
    for source in (SELF4, POD4):
        whole = frame(packets.ip(source, WORLD4, bytes(40), fragment=0, tos=3))
        assert_passes(node, "to_net", whole, before=0xE00, after=0xE00)
