# SPDX-License-Identifier: Apache-2.0
"""Permanent neighbours: what is sent is what is read back; anything else is not ours."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.wire.neighbour import (
    RTM_NEWNEIGH,
    Neighbour,
    dump_neighbours,
    put_neighbour,
    read_neighbour,
)
from pellicle.wire.nlmsg import DUMP, Malformed, Reply

MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
NEIGHBOURS = st.builds(Neighbour, st.integers(1, 2**31 - 1), st.ip_addresses(), MACS)
STALE, PERMANENT = 0x04, 0x80


@given(NEIGHBOURS)
def test_a_neighbour_is_read_as_it_was_put(row: Neighbour) -> None:
    sent = put_neighbour(row)
    assert sent.kind == RTM_NEWNEIGH
    assert read_neighbour(Reply(RTM_NEWNEIGH, 0, 1, sent.body)) == row


def test_the_bytes_are_those_of_the_kernel() -> None:
    row = Neighbour(7, ip_address("10.244.1.1"), "02:00:00:00:00:01")
    head = struct.pack("=BBHiHBB", 2, 0, 0, 7, PERMANENT, 0, 0)
    to = bytes.fromhex("0800 0100 0af40101")
    mac = bytes.fromhex("0a00 0200 020000000001 0000")
    assert put_neighbour(row).body == head + to + mac
    assert dump_neighbours().flags & DUMP


@given(NEIGHBOURS, st.sampled_from([0x01, 0x02, STALE, 0x20, 0x40]))
def test_what_the_kernel_learnt_is_not_ours(row: Neighbour, state: int) -> None:
    body = bytearray(put_neighbour(row).body)
    struct.pack_into("=H", body, 8, state)
    assert read_neighbour(Reply(RTM_NEWNEIGH, 0, 1, bytes(body))) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_a_neighbour_none_or_malformed(body: bytes) -> None:
    try:
        row = read_neighbour(Reply(RTM_NEWNEIGH, 0, 1, body))
    except Malformed:
        return
    assert row is None or isinstance(row, Neighbour)


def test_an_address_of_the_wrong_length_is_malformed() -> None:
    head = struct.pack("=BBHiHBB", 10, 0, 0, 7, PERMANENT, 0, 0)
    body = head + bytes.fromhex("0800 0100 0af40101 0a00 0200 020000000001 0000")
    with pytest.raises(Malformed):
        read_neighbour(Reply(RTM_NEWNEIGH, 0, 1, body))
