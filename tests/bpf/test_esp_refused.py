# SPDX-License-Identifier: Apache-2.0
"""ESP that from_net must refuse: tampered, cut, ill-formed, expired, unknown, or mere noise.

Each refusal has its own name, and leaves the SA as it was but for its count of failures.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.bpf import esp, packets
from tests.bpf.cluster import (
    NODE,
    OVER4,
    OVER6,
    PEERS,
    POD4,
    SELF4,
    SELF6,
    put_inbound,
    put_outbound,
    sa_in,
)  # fmt: skip
from tests.bpf.node import OK, SHOT, Node, can_run
from tests.bpf.tunnel import (
    HEAD,
    NEXT,
    assert_delivered,
    datagram,
    families,
    outers,
    outside,
    sealed,
    state,
)


@pytest.fixture
def node(loaded: Node) -> Node:
    loaded.clear("sa_in", "sa_out", "flows")
    for peer in PEERS.values():
        put_inbound(loaded, peer)
        put_outbound(loaded, peer)
    loaded.forget()
    return loaded


def tampered(frame: bytes, bit: int) -> bytes:
    changed = bytearray(frame)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def assert_refused_unharmed(node: Node, frame: bytes, reason: str) -> None:
    before = {peer: state(node, peer) for peer in PEERS.values()}
    seen = node.run("from_net", frame)
    assert (seen.action, seen.reason, seen.frame) == (SHOT, reason, frame)
    assert {peer: state(node, peer) for peer in PEERS.values()} == before


@families
def test_any_bit_changed_is_noticed(node: Node, inner: int, outer: int) -> None:
    peer, packet = PEERS[outer], datagram(inner, PEERS[outer], HEAD[inner] + 9)
    frame = sealed(peer, 5, packet)
    start = 14 + HEAD[outer]
    for bit in range(start * 8, len(frame) * 8):
        reason = "DROP_UNKNOWN_SPI" if bit < (start + 4) * 8 else "DROP_AUTH_FAILED"
        assert_refused_unharmed(node, tampered(frame, bit), reason)
    row = sa_in(node, peer)
    assert (row["auth_failed"], row["replayed"]) == ((len(frame) - start - 4) * 8, 0)
    assert_delivered(node.run("from_net", frame), packet)


@families
def test_bits_changed_in_large_packets_are_noticed(node: Node, inner: int, outer: int) -> None:
    peer = PEERS[outer]
    for size in (700, 1426):
        frame = sealed(peer, 5, datagram(inner, peer, size))
        start = (14 + HEAD[outer] + 4) * 8
        for bit in random.Random(size).sample(range(start, len(frame) * 8), 500):
            assert_refused_unharmed(node, tampered(frame, bit), "DROP_AUTH_FAILED")


@families
def test_cut_anywhere_by_its_own_account(node: Node, inner: int, outer: int) -> None:
    """Headers say the length that is left: whole words but too few fail to authenticate."""
    peer = PEERS[outer]
    body = esp.seal(peer.keys_in(0), 5, datagram(inner, peer, 90), NEXT[inner])
    for size in range(len(body)):
        is_possible = size % 4 == 0 and size >= 36
        reason = "DROP_AUTH_FAILED" if is_possible else "DROP_ESP_MALFORMED"
        assert_refused_unharmed(node, outside(peer, body[:size]), reason)


@families
def test_cut_anywhere_on_the_way(node: Node, inner: int, outer: int) -> None:
    peer = PEERS[outer]
    frame = sealed(peer, 5, datagram(inner, peer, 90))
    tagged = frame[:12] + b"\x81\0\0\1" + frame[12:]
    for size in range(14 + HEAD[outer], len(frame)):
        assert_refused_unharmed(node, frame[:size], "DROP_MALFORMED")
    for size in range(15, len(tagged)):
        assert_refused_unharmed(node, tagged[:size], "DROP_MALFORMED")


@outers
def test_bytes_behind_the_packet_are_no_part_of_it(node: Node, outer: int) -> None:
    packet = datagram(4, PEERS[outer], 21)
    assert_delivered(node.run("from_net", sealed(PEERS[outer], 5, packet) + bytes(40)), packet)


@outers
def test_longer_than_the_engine_carries(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    longest = datagram(4, peer, 2046)
    assert_delivered(node.run("from_net", sealed(peer, 5, longest)), longest)
    assert_refused_unharmed(node, sealed(peer, 6, datagram(4, peer, 2050)), "DROP_TOO_BIG")


@outers
def test_each_key_opens_its_own_sa_only(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    zero, one = peer.keys_in(0), peer.keys_in(1)
    mixed = esp.Keys(zero.spi, one.key, zero.salt), esp.Keys(zero.spi, zero.key, one.salt)
    for keys in mixed:
        body = esp.seal(keys, 5, datagram(4, peer, 50), esp.IPV4)
        assert_refused_unharmed(node, outside(peer, body), "DROP_AUTH_FAILED")


@outers
def test_an_spi_counts_only_between_its_two_addresses(node: Node, outer: int) -> None:
    peer = PEERS[outer]
    body = esp.seal(peer.keys_in(0), 5, datagram(4, peer, 50), esp.IPV4)
    other = "2001:db8::66" if outer == 6 else "192.0.2.66"
    node.put_peer(other, node=other, flags=NODE)
    packet = packets.ip(other, peer.own, body, protocol=packets.ESP)
    assert_refused_unharmed(node, packets.frame(packet), "DROP_UNKNOWN_SPI")
    over_the_other = PEERS[4 if outer == 6 else 6]
    assert_refused_unharmed(node, outside(over_the_other, body), "DROP_UNKNOWN_SPI")


@outers
def test_esp_of_somebody_who_is_no_node_is_left_to_the_stack(node: Node, outer: int) -> None:
    """It may be a tunnel of somebody else's that has chosen the SPI of one of ours."""
    peer = PEERS[outer]
    body = esp.seal(peer.keys_in(0), 5, datagram(4, peer, 50), esp.IPV4)
    stranger = "2001:db8::77" if outer == 6 else "192.0.2.77"
    frame = packets.frame(packets.ip(stranger, peer.own, body, protocol=packets.ESP))
    before = state(node, peer)
    seen = node.run("from_net", frame, mark=0x55)
    assert (seen.action, seen.reasons, seen.frame, seen.mark) == (OK, (), frame, 0x55)
    assert state(node, peer) == before


@outers
def test_an_sa_ends_with_its_time(node: Node, outer: int) -> None:
    peer, packet = PEERS[outer], datagram(4, PEERS[outer], 50)
    put_inbound(node, peer, expires=1)
    assert_refused_unharmed(node, sealed(peer, 5, packet), "DROP_SA_EXPIRED")
    put_inbound(node, peer, expires=1 << 62)
    assert_delivered(node.run("from_net", sealed(peer, 5, packet)), packet)


def test_outer_fragments_are_not_put_together(node: Node) -> None:
    body = esp.seal(OVER4.keys_in(0), 5, datagram(4, OVER4, 50), esp.IPV4)
    for fragment in (packets.MORE_FRAGMENTS, 7, packets.MORE_FRAGMENTS | 7):
        frame = outside(OVER4, body, fragment=fragment)
        assert_refused_unharmed(node, frame, "DROP_ESP_FRAGMENT")
    for offset in (1, 8, 9):
        head = struct.pack(">BBHI", packets.ESP, 0, offset, 77)
        frame = outside(OVER6, head + body, protocol=44)
        assert_refused_unharmed(node, frame, "DROP_ESP_FRAGMENT")


def test_an_outer_header_damaged_on_the_way_is_refused(node: Node) -> None:
    frame = sealed(OVER4, 5, datagram(4, OVER4, 50))
    for bit in (*range(15 * 8, 16 * 8), *range(18 * 8, 20 * 8), *range(22 * 8, 23 * 8)):
        assert_refused_unharmed(node, tampered(frame, bit), "DROP_MALFORMED")


# --- authentic, but nonsense inside --------------------------------------------------------------


def nonsense() -> Iterator[tuple[str, bytes, dict[str, bytes | int]]]:
    """What it is, the payload, and how it is sealed."""
    four, six = datagram(4, OVER4, 61), datagram(6, OVER4, 81)
    yield "padding of zeros", four, {"pad": bytes(1)}
    yield "padding from zero", four, {"pad": bytes(range(5))}
    yield "one byte of padding wrong", four, {"pad": bytes((1, 2, 4, 4, 5))}
    yield "more padding than there is data", four, {"pad_length": 255}
    yield "padding longer by one than the data", four[:21], {"pad": b"\1", "pad_length": 23}
    yield "IPv6 said to be IPv4", six, {"next_header": esp.IPV4}
    yield "IPv4 said to be IPv6", four, {"next_header": esp.IPV6}
    for next_header in (0, 1, 6, 17, 47, 50, 58, 60, 255):
        yield f"next header {next_header}", four, {"next_header": next_header}
    yield "no packet", b"", {"next_header": esp.IPV4}
    yield "half an IPv4 header", four[:19], {}
    yield "half an IPv6 header", six[:39], {}
    yield "IPv4 longer than the payload", four[:60], {"pad": bytes((1, 2))}
    yield "IPv6 longer than the payload", six[:80], {"pad": bytes((1, 2))}
    yield "IPv4 shorter than its header", four[:2] + b"\0\x13" + four[4:], {}
    yield "IPv4 of length zero", four[:2] + b"\0\0" + four[4:], {}


@outers
@pytest.mark.parametrize(
    ("payload", "how"), [(p, h) for _, p, h in nonsense()], ids=[says for says, _, _ in nonsense()]
)
def test_nonsense_inside_is_refused(
    node: Node, outer: int, payload: bytes, how: dict[str, bytes | int]
) -> None:
    peer = PEERS[outer]
    seen = node.run("from_net", sealed(peer, 5, payload, **how))
    assert (seen.action, seen.reason) == (SHOT, "DROP_ESP_MALFORMED")
    row = sa_in(node, peer)
    assert (row["packets"], row["bytes"], row["top"]) == (1, 0, 5), "it was authentic all the same"


@outers
@pytest.mark.parametrize(
    "inner",
    [
        b"\x44" + packets.ip(OVER4.pod4, POD4, bytes(20))[1:],
        packets.ip(OVER4.pod4, POD4, bytes(7), protocol=packets.UDP),
        packets.ip(OVER4.pod6, "fd00:244:1::2", b"\0\xff" + bytes(6), protocol=60),
        packets.ip(f"::ffff:{OVER4.pod4}", "fd00:244:1::2", bytes(9)),
    ],
    ids=["a header of 16 bytes", "half a UDP header", "an endless option", "a mapped address"],
)
def test_an_inner_packet_that_does_not_parse_is_malformed(
    node: Node, outer: int, inner: bytes
) -> None:
    seen = node.run("from_net", sealed(PEERS[outer], 5, inner))
    assert (seen.action, seen.reason) == (SHOT, "DROP_MALFORMED")


# --- noise ---------------------------------------------------------------------------------------

MANY = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
addresses4 = st.sampled_from([SELF4, OVER4.address, POD4, OVER4.pod4]) | st.ip_addresses(v=4)
addresses6 = st.sampled_from([SELF6, OVER6.address, OVER6.pod6]) | st.ip_addresses(v=6)
protocols = st.sampled_from([0, 1, 4, 6, 17, 41, 43, 44, 50, 58, 59, 60, 135]) | st.integers(0, 255)


@st.composite
def noise(draw: st.DrawFn) -> bytes:
    """Frames from wholly random to nearly right."""
    body = draw(st.binary(max_size=300))
    if draw(st.booleans()):
        keys = draw(st.sampled_from([OVER4.keys_in(0), OVER6.keys_in(0)]))
        body = struct.pack(">II", keys.spi, draw(st.integers(0, 2**32 - 1))) + body
    match draw(st.integers(0, 3)):
        case 0:
            return draw(st.binary(min_size=15, max_size=300))
        case 1:
            ethertype = draw(st.sampled_from([0x0800, 0x86DD, 0x8847, 0x8100, 0x0806]))
            packet = body + b"\0"
            return packets.ethernet(ethertype, packet)
        case 2:
            packet = packets.ip(
                str(draw(addresses4)), str(draw(addresses4)), body, protocol=draw(protocols),
                fragment=draw(st.integers(0, 65535)), ttl=draw(st.integers(0, 255)),
            )  # fmt: skip
        case _:
            packet = packets.ip(
                str(draw(addresses6)), str(draw(addresses6)), body, protocol=draw(protocols),
                ttl=draw(st.integers(0, 255)),
            )  # fmt: skip
    tag = draw(st.sampled_from([b"", b"\x81\0\0\1", b"\x88\xa8\0\1\x81\0\0\2"]))
    frame = packets.frame(packet)
    return (frame[:12] + tag + frame[12:])[: draw(st.integers(15, 400))]


@given(frame=noise())
@MANY
def test_noise_never_opens(node: Node, frame: bytes) -> None:
    assume(can_run(frame))
    before = {peer: state(node, peer) for peer in PEERS.values()}
    seen = node.run("from_net", frame)
    assert seen.reason not in ("OPENED", "PROBE_RECEIVED", "ESP_DUMMY_RECEIVED")
    assert {peer: state(node, peer) for peer in PEERS.values()} == before


@given(frame=noise())
@example(frame=packets.frame(packets.ip(SELF4, SELF4, bytes(40), protocol=packets.ESP)))
@example(frame=packets.frame(packets.ip(SELF6, OVER6.address, bytes(40), protocol=packets.ESP)))
@MANY
def test_noise_leaves_the_door_only_as_esp(node: Node, frame: bytes) -> None:
    assume(can_run(frame))
    seen = node.run("door", frame)
    if seen.reason in ("SEALED", "PROBE_SENT"):
        assert seen.frame != frame
        assert seen.frame[23] == packets.ESP or seen.frame[20] == packets.ESP
    else:
        assert seen.frame == frame
        assert seen.action == SHOT or is_own_esp(frame), "another's tunnel goes on as it is"


def is_own_esp(frame: bytes) -> bool:
    """From this node, and so it says ESP. In IPv6 that may stand behind other headers."""
    if frame[12:14] == b"\x08\x00":
        return (frame[23], frame[26:30]) == (packets.ESP, ip_address(SELF4).packed)
    is_ours = frame[12:14] == b"\x86\xdd" and frame[22:38] == ip_address(SELF6).packed
    return is_ours and packets.ESP in frame[20:]


@pytest.mark.parametrize("program", ["from_pod", "to_net"])
@given(frame=noise())
@MANY
def test_noise_at_the_other_hooks_is_judged(node: Node, program: str, frame: bytes) -> None:
    assume(can_run(frame))
    seen = node.run(program, frame)
    assert seen.frame == frame
    assert seen.action == (SHOT if seen.reason.startswith("DROP_") else 0)


@families
def test_noise_that_is_authentic_never_breaks_out(node: Node, inner: int, outer: int) -> None:
    """A peer gone mad: authentic packets, random inside, about the right addresses."""
    peer, bits = PEERS[outer], random.Random(inner * 10 + outer)
    for sequence in range(1, 2000):
        packet = bytearray(datagram(inner, peer, HEAD[inner] + bits.randrange(60)))
        for _ in range(bits.randrange(4)):
            packet[bits.randrange(len(packet))] = bits.randrange(256)
        seen = node.run("from_net", sealed(peer, sequence, bytes(packet)))
        assert seen.reason == "OPENED" or seen.action == SHOT
        if seen.reason == "OPENED":
            size = int.from_bytes(packet[2:4]) if inner == 4 else 40 + int.from_bytes(packet[4:6])
            assert len(seen.frame) == 14 + size <= 14 + len(packet)
