# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of states and policies: counts, additions, and what is none of ours."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from pellicle.wire import nlmsg, xfrm
from pellicle.wire.nlmsg import Malformed, Reply
from pellicle.wire.xfrm import Action, Policy, PolicyDirection, State, StateCounts
from tests.pure.xfrm_rows import ANY_4, INBOUND, LIMITED, OUTBOUND

U64 = struct.Struct("=Q").pack


def told(state: State, changes: dict[int, bytes], *more: bytes) -> Reply:
    """A state as the kernel says it: the fixed struct changed at some places, and attributes."""
    body = bytearray(xfrm.put_state(state).body)
    for at, payload in changes.items():
        body[at : at + len(payload)] = payload
    return Reply(xfrm.XFRM_MSG_NEWSA, 0, 1, bytes(body) + b"".join(more))


def test_a_state_has_counted() -> None:
    used = U64(84) + U64(2) + U64(1_700_000_000) + U64(1_700_000_009)
    errors = struct.pack("=III", 3, 4, 5)
    replay = nlmsg.attribute(23, struct.pack("=6I", 32, 0, 7, 0, 1, 1024) + bytes(128))
    read = xfrm.read_state(told(INBOUND, {160: used, 192: errors}, replay))
    assert read == (INBOUND, StateCounts(84, 2, 2**32 + 7, 3, 4, 5, 1_700_000_000))


@pytest.mark.parametrize(
    ("kind", "words", "sequence", "window"),
    [
        (23, (32, 9, 0, 0, 0, 1024), 9, 1024),  # has sent
        (23, (32, 9, 0, 2, 0, 1), 2**33 + 9, 1),
        (23, (32, 0, 7, 0, 2**32 - 1, 64), 2**64 - 2**32 + 7, 64),  # has received
        (10, (5, 0, 0), 5, 32),  # without ESN: struct xfrm_replay_state
        (10, (0, 6, 0xFF), 6, 32),
    ],
)
def test_the_sequence_number_is_that_of_the_direction(
    kind: int, words: tuple[int, ...], sequence: int, window: int
) -> None:
    state = INBOUND if kind == 23 else LIMITED
    replay = nlmsg.attribute(kind, struct.pack(f"={len(words)}I", *words))
    read = xfrm.read_state(told(state, {}, replay))
    assert read is not None
    assert (read[0].replay_window, read[1].sequence) == (window, sequence)


OTHER_STATES = {
    "AH": ({76: b"\x33"}, b""),
    "transport mode": ({214: b"\0"}, b""),
    "no IP": ({212: b"\x08"}, b""),
    "for one prefix": ({0: b"\x0a", 42: b"\x08"}, b""),
    "for one port": ({32: b"\0\x50\xff\xff"}, b""),
    "for one inner family": ({40: b"\x02"}, b""),
    "for a time": ({136: U64(3600)}, b""),
    "warns of its end": ({112: U64(9)}, b""),
    "ICV of 96 bits": ({}, nlmsg.attribute(18, bytes(64) + struct.pack("=II", 0, 96))),
    "UDP": ({}, nlmsg.attribute(4, bytes(24))),
    "care-of address": ({}, nlmsg.attribute(14, bytes(16))),
    "padding": ({}, nlmsg.u32(22, 64)),
    "extra flags": ({}, nlmsg.u32(24, 1)),
    "never matches": ({}, nlmsg.attribute(21, struct.pack("=II", 1, 0))),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_STATES)
def test_a_state_of_another_kind_is_none_of_ours(what: str) -> None:
    changes, more = OTHER_STATES[what]
    assert xfrm.read_state(told(INBOUND, changes, more)) is None


def test_a_state_without_aead_is_none_of_ours() -> None:
    body = xfrm.put_state(INBOUND).body[:224] + nlmsg.attribute(2, bytes(68))
    assert xfrm.read_state(Reply(xfrm.XFRM_MSG_NEWSA, 0, 1, body)) is None


@pytest.mark.parametrize(
    ("kind", "length"), [(10, 11), (18, 71), (21, 4), (23, 23), (28, 7), (31, 3)]
)
def test_a_state_with_a_short_attribute_is_malformed(kind: int, length: int) -> None:
    state = LIMITED if kind == 10 else INBOUND
    with pytest.raises(Malformed):
        xfrm.read_state(told(state, {}, nlmsg.attribute(kind, bytes(length))))


def named(policy: Policy, changes: dict[int, bytes], *more: bytes) -> Reply:
    """A policy as the kernel says it: with an index, used before, and changed at some places."""
    body = bytearray(xfrm.put_policy(policy).body)
    changes = {136: U64(1_700_000_000) * 2, 156: b"\x49\x01\0\0"} | changes
    for at, payload in changes.items():
        body[at : at + len(payload)] = payload
    return Reply(xfrm.XFRM_MSG_NEWPOLICY, 0, 1, bytes(body) + b"".join(more))


def test_a_policy_is_the_same_whatever_the_kernel_adds_to_it() -> None:
    kind_main = nlmsg.attribute(16, bytes(4))
    assert xfrm.read_policy(named(OUTBOUND, {}, kind_main)) == OUTBOUND


def test_a_policy_is_known_by_what_it_is_for() -> None:
    assert OUTBOUND.key == replace(OUTBOUND, priority=7, template=None, action=Action.BLOCK).key
    others = [
        replace(OUTBOUND, direction=PolicyDirection.FWD), replace(OUTBOUND, mark=None),
        replace(OUTBOUND, if_id=1), replace(OUTBOUND, destination=ANY_4),
        replace(OUTBOUND, source=IPv4Network("10.0.0.0/8")),
    ]  # fmt: skip
    assert len({each.key for each in (OUTBOUND, *others)}) == 1 + len(others)


def test_a_key_tells_people_what_it_is_for() -> None:
    marked = "out 0.0.0.0/0 → 10.244.2.0/24 mark 0x70e00/0xffff3f00 if_id 0x70656c6c"
    assert str(OUTBOUND.key) == marked
    plain = "out 0.0.0.0/0 → 10.244.2.0/24 if_id 0x1"
    assert str(replace(OUTBOUND, mark=None, if_id=1).key) == plain


def test_a_policy_that_was_used_meanwhile_is_not_read_again() -> None:
    index, octets = 156, 120
    used = [named(OUTBOUND, {octets: U64(n), index: bytes([n, 1, 0, 0])}) for n in (1, 2)]
    assert xfrm.read_policy(used[0]) is xfrm.read_policy(used[1])


def template(changes: dict[int, bytes]) -> bytes:
    body = bytearray(nlmsg.attributes(xfrm.put_policy(OUTBOUND).body, 168)[5])
    for at, payload in changes.items():
        body[at : at + len(payload)] = payload
    return bytes(body)


OTHER_POLICIES = {
    "one port": ({32: b"\0\x50\xff\xff"}, b""),
    "one protocol": ({44: b"\x06"}, b""),
    "one device": ({48: b"\x02"}, b""),
    "one user": ({52: b"\x02"}, b""),
    "any family": ({40: b"\0"}, b""),
    "host bits": ({3: b"\x01"}, b""),
    "too long for its family": ({42: b"\x21"}, b""),
    "rest of another family's address": ({15: b"\x01"}, b""),
    "for a time": ({96: U64(3600)}, b""),
    "a socket's": ({160: b"\x04"}, b""),
    "unheard-of action": ({161: b"\x02"}, b""),
    "flags": ({162: b"\x01"}, b""),
    "a sub policy": ({}, nlmsg.attribute(16, b"\x01\0\0\0")),
    "a device's": ({}, nlmsg.attribute(28, bytes(8))),
    "never matches": ({}, nlmsg.attribute(21, struct.pack("=II", 1, 0))),
    "two templates": ({}, nlmsg.attribute(5, template({}) * 2)),
    "no template in the attribute": ({}, nlmsg.attribute(5, b"")),
    "AH": ({}, nlmsg.attribute(5, template({20: b"\x33"}))),
    "transport mode": ({}, nlmsg.attribute(5, template({48: b"\0"}))),
    "a tunnel of no IP": ({}, nlmsg.attribute(5, template({24: b"\0"}))),
}


@pytest.mark.parametrize("what", OTHER_POLICIES)
def test_a_policy_of_another_kind_is_none_of_ours(what: str) -> None:
    changes, more = OTHER_POLICIES[what]
    assert xfrm.read_policy(named(OUTBOUND, changes, more)) is None


@pytest.mark.parametrize(("kind", "length"), [(5, 63), (5, 65), (21, 4), (31, 3)])
def test_a_policy_with_a_short_attribute_is_malformed(kind: int, length: int) -> None:
    with pytest.raises(Malformed):
        xfrm.read_policy(named(OUTBOUND, {}, nlmsg.attribute(kind, bytes(length))))
