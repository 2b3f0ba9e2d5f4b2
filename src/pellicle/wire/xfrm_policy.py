# SPDX-License-Identifier: Apache-2.0
"""Policies with at most one ESP tunnel: rows to requests, dumps back to rows.

    struct xfrm_userpolicy_info 168 bytes, then attributes
        selector: 56 bytes, limits: 64 bytes, used: 32 bytes,
        priority: 32, index: 32, direction: 8, action: 8, flags: 8, share: 8, hole: 32
    struct xfrm_userpolicy_id    64 bytes, then attributes
        selector: 56 bytes, index: 32, direction: 8, hole: 24
    struct xfrm_user_tmpl        64 bytes, one or more in the attribute
        destination: 16 bytes, SPI: 32, protocol: 8, hole: 24, family: 16, hole: 16,
        source: 16 bytes, reqid: 32, mode: 8, share: 8, is optional: 8, hole: 8,
        authentication algorithms: 32, encryption: 32, compression: 32 (all ones: any)

Tens of thousands of them are put, read and compared at a time. So what many policies have in
common, all that follows the fixed struct, is packed and read once; a policy that says what it
said at the last dump is not read again; and rows are told apart by bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from pellicle.wire import xfrm_frame as frame
from pellicle.wire.netlink import Address, Network
from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    REPLACE,
    Malformed,
    Reply,
    Request,
    attribute,
    attributes,
    read_u32,
)
from pellicle.wire.xfrm_frame import ANY, FAMILY, IPPROTO_ESP, Mark

XFRM_MSG_NEWPOLICY, XFRM_MSG_DELPOLICY, XFRM_MSG_GETPOLICY = 0x13, 0x14, 0x15
XFRM_MSG_UPDPOLICY = 0x19

_INFO = struct.Struct(f"={frame.SELECTOR}64s32xI4xBBBB4x")
_SAID = struct.Struct(f"={frame.SELECTOR}64sIBBBB4x")
"""The same without what the kernel alone knows: how much it was used, and its index."""
_ID = struct.Struct(f"={frame.SELECTOR}4xB3x")
_KEY = struct.Struct(f"={frame.SELECTOR}BIII")
_TEMPLATE = struct.Struct("=16s4sB3xH2x16sIBBBxIII")
_ALL = 0xFFFFFFFF
_XFRMA_TMPL, _XFRMA_POLICY_TYPE, _XFRMA_OFFLOAD_DEV = 5, 16, 28
_XFRM_SHARE_ANY = 0
_CACHED, _CACHED_ROWS = 1 << 15, 1 << 17


class PolicyDirection(IntEnum):
    """Which packets it is for."""

    IN = 0
    OUT = 1
    FWD = 2


class Action(IntEnum):
    """What becomes of a packet, once it has taken the template's tunnel, if there is one."""

    ALLOW = 0
    BLOCK = 1


@dataclass(frozen=True, slots=True)
class Template:
    """An ESP tunnel, named as its state is; what is 0, or the address any, matches all."""

    source: Address
    destination: Address
    spi: int
    reqid: int
    is_optional: bool = False


class PolicyKey(bytes):
    """What the kernel allows only once: direction, selector, mark and if_id, as `_KEY` has them."""

    __slots__ = ()

    def __str__(self) -> str:
        to, source, _, family, to_bits, source_bits, *_, direction, value, mask, if_id = (
            _KEY.unpack(self)
        )
        ends = (
            frame.read_network(family, source, source_bits),
            frame.read_network(family, to, to_bits),
        )
        mark = f" mark {value:#x}/{mask:#x}" if mask else ""
        return f"{_DIRECTIONS[direction].name.lower()} {ends[0]} → {ends[1]}{mark} if_id {if_id:#x}"


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy."""

    direction: PolicyDirection = field(compare=False)
    source: Network = field(compare=False)
    destination: Network = field(compare=False)
    mark: Mark | None = field(compare=False)
    if_id: int = field(compare=False)
    priority: int
    """The smallest one wins."""
    action: Action = Action.ALLOW
    template: Template | None = None
    key: PolicyKey = field(init=False, repr=False)
    """Of all that comes before the priority."""

    def __post_init__(self) -> None:
        to, source = self.destination, self.source
        if source.version != to.version:
            raise ValueError(f"{source} and {to} are not of one family")
        mark = self.mark
        packed = _KEY.pack(
            to.network_address.packed, source.network_address.packed, ANY, FAMILY[to.version],
            to.prefixlen, source.prefixlen, 0, ANY, self.direction,
            mark.value if mark else 0, mark.mask if mark else 0, self.if_id,
        )  # fmt: skip
        object.__setattr__(self, "key", PolicyKey(packed))


def put_policy(policy: Policy) -> Request:
    """Adds the policy, or replaces the one with its key: at every moment one of them stands."""
    to, source = policy.destination, policy.source
    info = _INFO.pack(
        to.network_address.packed, source.network_address.packed, ANY, FAMILY[to.version],
        to.prefixlen, source.prefixlen, 0, ANY, frame.NO_LIMITS,
        policy.priority, policy.direction, policy.action, 0, _XFRM_SHARE_ANY,
    )  # fmt: skip
    body = info + _tail(policy.template, policy.mark, policy.if_id)
    return Request(XFRM_MSG_UPDPOLICY, CREATE | REPLACE, body)


def remove_policy(policy: Policy) -> Request:
    """Removes the policy with this key, whatever else it says."""
    to, source = policy.destination, policy.source
    head = _ID.pack(
        to.network_address.packed, source.network_address.packed, ANY, FAMILY[to.version],
        to.prefixlen, source.prefixlen, 0, ANY, policy.direction,
    )  # fmt: skip
    return Request(XFRM_MSG_DELPOLICY, 0, head + frame.mark_and_if_id(policy.mark, policy.if_id))


def dump_policies() -> Request:
    """Lists all policies, those of sockets too."""
    return Request(XFRM_MSG_GETPOLICY, DUMP, b"")


def read_policy(reply: Reply) -> Policy | None:
    """A policy; None for what a Policy cannot say, which is none of ours."""
    body = reply.body
    if len(body) < _INFO.size:
        raise Malformed(f"a policy of {len(body)} bytes")
    return _read(body[:120] + body[152:156] + body[160:])


@lru_cache(_CACHED_ROWS)
def _read(said: bytes) -> Policy | None:
    (
        to, source, ports, family, to_bits, source_bits, protocol, device_and_user, limits,
        priority, direction, action, flags, _share,
    ) = _SAID.unpack_from(said)  # fmt: skip
    tail = _read_tail(said[_SAID.size :])
    destination = frame.read_network(family, to, to_bits)
    origin = frame.read_network(family, source, source_bits)
    is_plain = limits == frame.NO_LIMITS and ports == device_and_user == ANY
    is_plain = is_plain and not protocol and not flags and action <= 1 and direction <= 2
    if tail is None or destination is None or origin is None or not is_plain:
        return None
    template, mark, if_id = tail
    return Policy(
        _DIRECTIONS[direction], origin, destination, mark, if_id, priority, _ACTIONS[action],
        template,
    )  # fmt: skip


_DIRECTIONS, _ACTIONS = tuple(PolicyDirection), tuple(Action)


@lru_cache(_CACHED)
def _tail(template: Template | None, mark: Mark | None, if_id: int) -> bytes:
    """The attributes."""
    if template is None:
        return frame.mark_and_if_id(mark, if_id)
    packed = _TEMPLATE.pack(
        template.destination.packed, template.spi.to_bytes(4), IPPROTO_ESP,
        FAMILY[template.destination.version], template.source.packed, template.reqid,
        frame.MODE_TUNNEL, _XFRM_SHARE_ANY, template.is_optional, _ALL, _ALL, _ALL,
    )  # fmt: skip
    return attribute(_XFRMA_TMPL, packed) + frame.mark_and_if_id(mark, if_id)


@lru_cache(_CACHED)
def _read_tail(attributes_: bytes) -> tuple[Template | None, Mark | None, int] | None:
    """What the attributes say; None when that is more than a Policy can."""
    found = attributes(attributes_)
    packed = found.get(_XFRMA_TMPL)
    template = None if packed is None else _read_template(packed)
    is_main = not any(found.get(_XFRMA_POLICY_TYPE, b"")[:1])
    if packed is not None and template is None:
        return None
    if not is_main or _XFRMA_OFFLOAD_DEV in found or not frame.has_readable_mark(found):
        return None
    return template, frame.read_mark(found), read_u32(found, frame.XFRMA_IF_ID)


def _read_template(packed: bytes) -> Template | None:
    """None when there are several, or another thing than an ESP tunnel."""
    if len(packed) % _TEMPLATE.size:
        raise Malformed(f"templates of {len(packed)} bytes")
    if len(packed) != _TEMPLATE.size:
        return None
    to, spi, protocol, family, source, reqid, mode, _, optional, *_ = _TEMPLATE.unpack(packed)
    if protocol != IPPROTO_ESP or mode != frame.MODE_TUNNEL or family not in FAMILY.values():
        return None
    return Template(
        frame.read_address(family, source),
        frame.read_address(family, to),
        int.from_bytes(spi),
        reqid,
        bool(optional),
    )
