# SPDX-License-Identifier: Apache-2.0
"""States and policies: the bytes are those of iproute2, and what is read back is what was put."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.wire import nlmsg, xfrm
from pellicle.wire.nlmsg import Malformed, Reply, Request
from pellicle.wire.xfrm import (
    Mark,
    Offload,
    OffloadFlags,
    Policy,
    PolicyDirection,
    State,
    StateCounts,
)
from tests.pure.xfrm_rows import (
    AES,
    ANY_4,
    CHACHA,
    DROP,
    INBOUND,
    LIMITED,
    OUTBOUND,
    POLICIES,
    STATES,
    WANTED,
)


def echoed(request: Request) -> Reply:
    """The request as if the kernel had said it."""
    (reply,) = nlmsg.replies(request.pack(7))
    return reply


@given(STATES)
def test_a_state_survives_without_its_key(state: State) -> None:
    read = xfrm.read_state(echoed(xfrm.put_state(state)))
    assert read is not None
    assert read == (state, StateCounts(0, 0, 0, 0, 0, 0, 0))
    assert read[0].secret == b""


@given(POLICIES)
def test_a_policy_survives(policy: Policy) -> None:
    assert xfrm.read_policy(echoed(xfrm.put_policy(policy))) == policy


def test_a_key_is_in_no_picture_of_its_state() -> None:
    state = replace(INBOUND, secret=b"\xa5" * 36)
    assert "a5" not in repr(state)
    assert state == INBOUND


def test_a_state_that_was_read_cannot_be_put() -> None:
    with pytest.raises(ValueError, match="288 bits"):
        xfrm.put_state(replace(INBOUND, secret=b""))


def test_a_mark_needs_its_mask() -> None:
    with pytest.raises(ValueError, match="mask"):
        Mark(0xE00, 0)


def test_a_policy_is_of_one_family() -> None:
    with pytest.raises(ValueError, match="one family"):
        Policy(PolicyDirection.OUT, ANY_4, ip_network("fd00::/8"), None, 0, 0)


# What iproute2 6.1 sends for the same thing, recorded with strace: the fixed struct in words of
# the kernel's structs, then the attributes.

FOREVER = "ff" * 32 + "00" * 32

GOLDEN = {
    "state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x12345678 reqid 0x70650007 mode tunnel "
    "replay-window 1024 flag esn af-unspec noecn if_id 0x70656c6c mark 0x70d00 mask 0xffff0f00 "
    "aead rfc7539esp(chacha20,poly1305) 0x0001…23 128": (
        xfrm.put_state(INBOUND),
        "00" * 56
        + "c0000202 00000000 00000000 00000000 12345678 32000000"
        + "c0000201 00000000 00000000 00000000"
        + FOREVER
        + "00" * 32
        + "00000000 00000000 00000000 00000000 07006570 02000100 a1000000 00000000",
        {
            18: CHACHA.encode().ljust(64, b"\0").hex()
            + "20010000 80000000"
            + bytes(range(36)).hex(),
            23: "20000000 00000000 00000000 00000000 00000000 00040000",
            21: "000d0700 000fffff",
            31: "6c6c6570",
        },
    ),
    "state add src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x100 reqid 1 mode tunnel "
    "replay-window 32 aead rfc4106(gcm(aes)) 0x0001…13 128 limit packet-hard 4294967296": (
        xfrm.put_state(LIMITED),
        # iproute2 leaves the selector's family to the kernel, which makes it 0a
        "00" * 40
        + "0a00" + "00" * 14
        + "20010db8 00000000 00000000 00000002 00000100 32000000"
        + "20010db8 00000000 00000000 00000001"
        + "ff" * 24 + "00000000 01000000" + "00" * 32
        + "00" * 32
        + "00000000 00000000 00000000 00000000 01000000 0a000120 00000000 00000000",
        {
            18: AES.encode().ljust(64, b"\0").hex() + "a0000000 80000000" + bytes(range(20)).hex(),
        },
    ),
    "policy update dir out src 0.0.0.0/0 dst 10.244.2.0/24 mark 0x70e00 mask 0xffff3f00 "
    "if_id 0x70656c6c priority 100 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x12345678 "
    "reqid 0x70650007 mode tunnel": (
        xfrm.put_policy(OUTBOUND),
        "0af40200" + "00" * 36 + "02001800" + "00" * 12
        + FOREVER
        + "00" * 32
        + "64000000 00000000 01000000 00000000",
        {
            5: "c0000202 00000000 00000000 00000000 12345678 32000000 02000000"
            "c0000201 00000000 00000000 00000000 07006570 01000000 ffffffffffffffffffffffff",
            21: "000e0700 003fffff",
            31: "6c6c6570",
        },
    ),
    "policy update dir in src ::/0 dst ::/0 if_id 0x70656c6c priority 7 tmpl src 0.0.0.0 "
    "dst 0.0.0.0 proto esp reqid 0 mode tunnel level use": (
        xfrm.put_policy(WANTED),
        "00" * 40 + "0a000000" + "00" * 12
        + FOREVER
        + "00" * 32
        + "07000000 00000000 00000000 00000000",
        {
            5: "00" * 20 + "32000000 02000000" + "00" * 20 + "01000100" + "ff" * 12,
            31: "6c6c6570",
        },
    ),
    "policy update dir out src 0.0.0.0/0 dst 0.0.0.0/0 mark 0xe00 mask 0xf00 if_id 0x70656c6c "
    "priority 4294967295 action block": (
        xfrm.put_policy(DROP),
        "00" * 40 + "02000000" + "00" * 12
        + FOREVER
        + "00" * 32
        + "ffffffff 00000000 01010000 00000000",
        {21: "000e0000 000f0000", 31: "6c6c6570"},
    ),
    "policy delete dir out src 0.0.0.0/0 dst 0.0.0.0/0 mark 0xe00 mask 0xf00 if_id 0x70656c6c": (
        xfrm.remove_policy(DROP),
        "00" * 40 + "02000000" + "00" * 12 + "00000000 01000000",
        {21: "000e0000 000f0000", 31: "6c6c6570"},
    ),
    # iproute2 adds the source, which the kernel looks at only when there is no SPI
    "state delete src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x12345678 mark 0x70d00 "
    "mask 0xffff0f00": (
        xfrm.remove_state(INBOUND.key),
        "c0000202 00000000 00000000 00000000 12345678 02003200",
        {21: "000d0700 000fffff"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", GOLDEN)
def test_the_bytes_are_those_of_iproute2(command: str) -> None:
    request, head, more = GOLDEN[command]
    fixed = bytes.fromhex(head)
    assert request.body[: len(fixed)] == fixed
    found = nlmsg.attributes(request.body, len(fixed))
    assert {kind: payload.hex() for kind, payload in found.items()} == {
        kind: bytes.fromhex(payload).hex() for kind, payload in more.items()
    }


def test_a_state_for_a_card_names_it_and_the_way() -> None:
    """struct xfrm_user_offload (linux/xfrm.h) in XFRMA_OFFLOAD_DEV, 28; the rest is as without."""
    flags = OffloadFlags.INBOUND | OffloadFlags.IPV6
    whole = xfrm.put_state(replace(INBOUND, offload=Offload(0x01020304, flags))).body
    bare = xfrm.put_state(INBOUND).body
    attribute = bytes.fromhex("0c00 1c00 04030201 03 000000")
    at = whole.index(attribute)
    assert whole[:at] + whole[at + len(attribute) :] == bare


def test_states_are_added_and_never_replaced() -> None:
    request = xfrm.put_state(INBOUND)
    assert request.kind == xfrm.XFRM_MSG_NEWSA == 0x10
    assert request.flags & nlmsg.EXCLUSIVE
    assert xfrm.put_policy(OUTBOUND).kind == xfrm.XFRM_MSG_UPDPOLICY == 0x19
    assert xfrm.find_state(INBOUND.key).body == xfrm.remove_state(INBOUND.key).body


def test_dumps_ask_for_esp_and_for_all_policies() -> None:
    assert xfrm.dump_states().body == bytes.fromhex("05001900 32000000")
    for dump in (xfrm.dump_states(), xfrm.dump_policies()):
        assert dump.flags & nlmsg.DUMP == nlmsg.DUMP


READERS: list[Callable[[Reply], object]] = [xfrm.read_state, xfrm.read_policy]


@given(st.sampled_from(READERS), st.binary(max_size=80), st.data())
def test_noise_is_malformed_and_nothing_worse(
    read: Callable[[Reply], object], noise: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.sampled_from([0, 168, 224]))
    with contextlib.suppress(Malformed):
        read(Reply(16, 0, 1, bytes(start) + noise))


@given(STATES | POLICIES, st.data())
def test_a_damaged_row_is_malformed_and_nothing_worse(
    row: State | Policy, data: st.DataObject
) -> None:
    is_state = isinstance(row, State)
    body = bytearray((xfrm.put_state(row) if isinstance(row, State) else xfrm.put_policy(row)).body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(body), data.draw(st.integers(0, len(body)))]))
    with contextlib.suppress(Malformed):
        read = (xfrm.read_state if is_state else xfrm.read_policy)(
            Reply(16, 0, 1, bytes(body[:cut]))
        )
        assert read is None or isinstance(read, tuple if is_state else Policy)
