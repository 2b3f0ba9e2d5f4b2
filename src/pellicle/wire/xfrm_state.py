# SPDX-License-Identifier: Apache-2.0
"""ESP states of tunnel mode with an AEAD: rows to requests, dumps back to rows.

struct xfrm_usersa_info   224 bytes, then attributes
    selector: 56 bytes, destination: 16 bytes, SPI: 32, protocol: 8, hole: 24,
    source: 16 bytes, limits: 64 bytes, used: 32 bytes,
    errors: outside the window: 32, replayed: 32, not authentic: 32,
    sequence of the request: 32, reqid: 32,
    family: 16, mode: 8, replay window: 8, flags: 8, hole: 56
struct xfrm_usersa_id      24 bytes, then attributes
    destination: 16 bytes, SPI: 32, family: 16, protocol: 8, hole: 8
struct xfrm_algo_aead      72 bytes, then the key and the salt
    name: 64 bytes, bits of key and salt: 32, bits of ICV: 32
struct xfrm_replay_state_esn 24 bytes, then the bitmap
    words of bitmap: 32, last sent: 32, highest received: 32,
    the same two, upper halves: 32 each, replay window: 32
struct xfrm_replay_state   last sent: 32, highest received: 32, bitmap: 32
struct xfrm_user_offload   device: 32, flags: 8, hole: 24
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntFlag
from typing import NamedTuple

from pellicle.wire import xfrm_frame as frame
from pellicle.wire.netlink import Address
from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    Malformed,
    Reply,
    Request,
    attribute,
    attributes,
    read_u32,
    u8,
    u32,
)
from pellicle.wire.xfrm_frame import AF_INET, AF_INET6, FAMILY, IPPROTO_ESP, Mark

XFRM_MSG_NEWSA, XFRM_MSG_DELSA, XFRM_MSG_GETSA = 0x10, 0x11, 0x12

_INFO = struct.Struct("=56s16s4sB3x16s64sQQQ8xIII4xIHBBB7x")
_ID = struct.Struct("=16s4sHBx")
_AEAD = struct.Struct("=64sII")
_REPLAY_ESN = struct.Struct("=6I")
_REPLAY = struct.Struct("=3I")
_OFFLOAD = struct.Struct("=iB3x")
_ANY_SELECTOR = {family: struct.pack("=40xH14x", family) for family in (0, AF_INET, AF_INET6)}
_ICV_BITS = 128
_LEGACY_WINDOW = 32

_XFRMA_REPLAY_VAL, _XFRMA_ALG_AEAD, _XFRMA_REPLAY_ESN_VAL = 10, 18, 23
_XFRMA_PROTO, _XFRMA_OFFLOAD_DEV = 25, 28
_XFRMA_SET_MARK, _XFRMA_SET_MARK_MASK = 29, 30
_BEYOND = frozenset({4, 14, 22, 24})
"""Encapsulation in UDP, care-of address, padding against traffic analysis, extra flags: what a
State cannot say, and the kernel tells only when somebody asked for it."""


class StateFlags(IntFlag):
    """enum of XFRM_STATE_*."""

    NOECN = 1
    """ECN stays as it is in the inner header when a packet is opened."""
    DECAP_DSCP = 2
    NOPMTUDISC = 4
    WILDRECV = 8
    ICMP = 16
    AF_UNSPEC = 32
    """For inner packets of both families."""
    ALIGN4 = 64
    ESN = 128
    """Sequence numbers of 64 bits, RFC 4303 §2.2.1."""


class Place(NamedTuple):
    """By what a receiver finds an SA (RFC 4301 §4.1)."""

    destination: Address
    spi: int


class OffloadFlags(IntFlag):
    """enum of XFRM_OFFLOAD_*. The kernel keeps IPV6 to itself: it does not read back."""

    IPV6 = 1
    INBOUND = 2
    PACKET = 4
    """All of ESP in the device, not the cipher only."""


@dataclass(frozen=True, slots=True)
class Offload:
    """Who does the work. A device that cannot, unless asked for PACKET, is left out silently."""

    device: int
    """The ifindex."""
    flags: OffloadFlags


@dataclass(frozen=True, slots=True)
class StateKey:
    """What the kernel allows only once is destination, SPI and mark; the source goes with it."""

    source: Address
    destination: Address
    spi: int
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class State:
    """One ESP state. What is read back has no secret, and equals what was put."""

    key: StateKey
    reqid: int
    if_id: int
    algorithm: str
    """In the kernel's words: rfc4106(gcm(aes)), rfc7539esp(chacha20,poly1305)."""
    key_bits: int
    """Of key and salt together: 160, 288."""
    flags: StateFlags
    replay_window: int
    """In packets; with ESN at least 1, also for a state that only sends."""
    packet_limit: int = 0
    """The kernel removes the state after so many packets; 0: never."""
    offload: Offload | None = None
    sets_mark: Mark | None = None
    """What it makes of a packet's mark, under the mask, before the outer route is looked up."""
    secret: bytes = field(default=b"", repr=False, compare=False)
    """Key, then salt."""


@dataclass(frozen=True, slots=True)
class StateCounts:
    """What a state has done."""

    octets: int
    packets: int
    sequence: int
    """The last one sent, or the highest one received; 64 bits with ESN."""
    replay_window_errors: int
    """Packets older than the replay window."""
    replayed: int
    integrity_failed: int
    added_at: int
    """Seconds since the epoch."""


def put_state(state: State) -> Request:
    """Adds the state; EEXIST when its key is taken, for a state must never start over."""
    if len(state.secret) * 8 != state.key_bits:
        raise ValueError(f"{state.key_bits} bits of key and salt are wanted to put a state")
    key, flags = state.key, state.flags
    family = FAMILY[key.destination.version]
    has_long_window = bool(flags & StateFlags.ESN) or state.replay_window > _LEGACY_WINDOW
    info = _INFO.pack(
        _ANY_SELECTOR[0 if flags & StateFlags.AF_UNSPEC else family],
        key.destination.packed, key.spi.to_bytes(4), IPPROTO_ESP, key.source.packed,
        _limits(state.packet_limit), 0, 0, 0, 0, 0, 0, state.reqid, family, frame.MODE_TUNNEL,
        0 if has_long_window else state.replay_window, flags,
    )  # fmt: skip
    aead = _AEAD.pack(state.algorithm.encode(), state.key_bits, _ICV_BITS)
    parts = [info, attribute(_XFRMA_ALG_AEAD, aead + state.secret)]
    if has_long_window:
        words = (state.replay_window + 31) // 32
        replay = _REPLAY_ESN.pack(words, 0, 0, 0, 0, state.replay_window)
        parts.append(attribute(_XFRMA_REPLAY_ESN_VAL, replay))
    if state.offload is not None:
        offload = _OFFLOAD.pack(state.offload.device, state.offload.flags)
        parts.append(attribute(_XFRMA_OFFLOAD_DEV, offload))
    parts.append(frame.mark_and_if_id(key.mark, state.if_id))
    if state.sets_mark is not None:
        parts.append(u32(_XFRMA_SET_MARK, state.sets_mark.value))
        parts.append(u32(_XFRMA_SET_MARK_MASK, state.sets_mark.mask))
    return Request(XFRM_MSG_NEWSA, CREATE | EXCLUSIVE, b"".join(parts))


def find_state(key: StateKey) -> Request:
    """Asks for the state that `remove_state` would remove."""
    return Request(XFRM_MSG_GETSA, 0, _identity(key))


def remove_state(key: StateKey) -> Request:
    """Removes the state that the kernel finds by destination, SPI and mark.

    A state without a mark is found by any mark: look with `find_state` whose it is.
    """
    return Request(XFRM_MSG_DELSA, 0, _identity(key))


def dump_states() -> Request:
    """Lists the states of ESP."""
    return Request(XFRM_MSG_GETSA, DUMP, u8(_XFRMA_PROTO, IPPROTO_ESP))


def read_place(reply: Reply) -> tuple[Place, int] | None:
    """Where a state of ESP is found, and its if_id, whatever else it is; None for other states."""
    if len(reply.body) < _INFO.size:
        raise Malformed(f"a state of {len(reply.body)} bytes")
    _, destination, spi, protocol, *_, family, _, _, _ = _INFO.unpack_from(reply.body)
    if protocol != IPPROTO_ESP or family not in FAMILY.values():
        return None
    found = attributes(reply.body, _INFO.size)
    place = Place(frame.read_address(family, destination), int.from_bytes(spi))
    return place, read_u32(found, frame.XFRMA_IF_ID)


def read_state(reply: Reply) -> tuple[State, StateCounts] | None:
    """A state and its counts; None for what a State cannot say, which is none of ours."""
    if len(reply.body) < _INFO.size:
        raise Malformed(f"a state of {len(reply.body)} bytes")
    (
        selector, destination, spi, protocol, source, limits, octets, packets, added_at,
        outside, replayed, forged, reqid, family, mode, window, flags,
    ) = _INFO.unpack_from(reply.body)  # fmt: skip
    if protocol != IPPROTO_ESP or mode != frame.MODE_TUNNEL or family not in FAMILY.values():
        return None
    flags = StateFlags(flags)
    if selector != _ANY_SELECTOR[0 if flags & StateFlags.AF_UNSPEC else family]:
        return None
    found = attributes(reply.body, _INFO.size)
    cipher, packet_limit = _aead(found.get(_XFRMA_ALG_AEAD)), _packet_limit(limits)
    is_plain = _BEYOND.isdisjoint(found) and frame.has_readable_mark(found)
    if cipher is None or packet_limit is None or not is_plain:
        return None
    sequence, window = _replay(found, window)
    state = State(
        StateKey(
            frame.read_address(family, source),
            frame.read_address(family, destination),
            int.from_bytes(spi),
            frame.read_mark(found),
        ),
        reqid,
        read_u32(found, frame.XFRMA_IF_ID),
        *cipher,
        flags,
        window,
        packet_limit,
        _offload(found.get(_XFRMA_OFFLOAD_DEV)),
        _sets_mark(found),
    )
    return state, StateCounts(octets, packets, sequence, outside, replayed, forged, added_at)


def _identity(key: StateKey) -> bytes:
    to = key.destination
    head = _ID.pack(to.packed, key.spi.to_bytes(4), FAMILY[to.version], IPPROTO_ESP)
    return head + frame.mark_and_if_id(key.mark, 0)


def _limits(packets: int) -> bytes:
    if not packets:
        return frame.NO_LIMITS
    never = frame.NO_LIMIT
    return frame.LIMITS.pack(never, never, never, packets, 0, 0, 0, 0)


def _packet_limit(limits: bytes) -> int | None:
    """None when there are other limits than that one."""
    packets: int = frame.LIMITS.unpack(limits)[3]
    if packets == frame.NO_LIMIT:
        packets = 0
    return packets if limits == _limits(packets) else None


def _aead(packed: bytes | None) -> tuple[str, int] | None:
    """The algorithm and the bits of its key, which is not looked at."""
    if packed is None:
        return None
    if len(packed) < _AEAD.size:
        raise Malformed(f"an AEAD of {len(packed)} bytes")
    name, key_bits, icv_bits = _AEAD.unpack_from(packed)
    words = name.split(b"\0", 1)[0].decode("ascii", "replace")
    return (words, key_bits) if icv_bits == _ICV_BITS else None


def _replay(found: dict[int, bytes], legacy_window: int) -> tuple[int, int]:
    """The sequence number and the window; a state is used in one direction only."""
    packed = found.get(_XFRMA_REPLAY_ESN_VAL)
    if packed is not None:
        if len(packed) < _REPLAY_ESN.size:
            raise Malformed(f"a replay state of {len(packed)} bytes")
        _, sent, received, sent_upper, received_upper, window = _REPLAY_ESN.unpack_from(packed)
        return max(sent_upper << 32 | sent, received_upper << 32 | received), window
    packed = found.get(_XFRMA_REPLAY_VAL)
    if packed is None:
        return 0, legacy_window
    if len(packed) < _REPLAY.size:
        raise Malformed(f"a replay state of {len(packed)} bytes")
    sent, received, _ = _REPLAY.unpack_from(packed)
    return max(sent, received), legacy_window


def _sets_mark(found: dict[int, bytes]) -> Mark | None:
    mask = read_u32(found, _XFRMA_SET_MARK_MASK)
    return Mark(read_u32(found, _XFRMA_SET_MARK), mask) if mask else None


def _offload(packed: bytes | None) -> Offload | None:
    if packed is None:
        return None
    if len(packed) < _OFFLOAD.size:
        raise Malformed(f"an offload of {len(packed)} bytes")
    device, flags = _OFFLOAD.unpack_from(packed)
    return Offload(device, OffloadFlags(flags))
