# SPDX-License-Identifier: Apache-2.0
"""XFRM states and policies, planned from SAs and nodes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pellicle.datapath import xfrm_device
from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption import policies
from pellicle.encryption import table as encryption_table
from pellicle.encryption.states import IN_MASK, OUT_MASK, REPLAY_WINDOW, REQIDS, state_of
from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import ALL_TRAFFIC, Engine, PairId, Spi
from pellicle.keys.rows import Direction, Send
from pellicle.wire.xfrm import Action, Mark, PolicyDirection, StateFlags

from .sas_made import N2, PAIR, PEER, rows, sa

PREFIXES = {"10.244.2.0/24", "fd00:244:2::/64"}
ADDRESSES = {"192.0.2.2/32", "2001:db8::2/128"}
OUTBOUND = rows(*(sa(number) for number in range(4)))
NODES = {N2: PEER}
THERE = PEER.addresses[0]
USED = {Engine.XFRM: True}


def test_each_sa_reaches_the_pods_and_the_first_one_the_node_too() -> None:
    found: dict[int, set[str]] = {}
    for policy in policies.plan(USED, OUTBOUND, NODES).values():
        if policy.template and policy.direction is PolicyDirection.OUT:
            assert policy.mark
            number = policy.template.spi - 0x1000
            assert policy.mark == Mark(7 << 16 | number << 12 | 0xE00, 0xFFFF3F00)
            assert policy.template.reqid == REQIDS | 7
            assert not policy.source.prefixlen
            found.setdefault(number, set()).add(str(policy.destination))
    assert found == {0: PREFIXES | ADDRESSES, **dict.fromkeys((1, 2, 3), PREFIXES)}


def test_in_the_overlay_each_sa_reaches_the_node_and_nothing_goes_past_it() -> None:
    planned = policies.plan(USED, OUTBOUND, NODES, is_overlay=True).values()
    of_pair = [p for p in planned if p.template and p.direction is PolicyDirection.OUT]
    assert {(p.template.spi - 0x1000, str(p.destination)) for p in of_pair if p.template} == {
        (number, address) for number in range(4) for address in ADDRESSES
    }


def test_what_nothing_fits_is_blocked_last_of_all() -> None:
    planned = list(policies.plan(USED, OUTBOUND, NODES).values())
    blocks = [policy for policy in planned if policy.action is Action.BLOCK]
    assert {(p.direction, p.mark, p.destination.version, p.destination.prefixlen)
            for p in blocks} == {
        (PolicyDirection.OUT, Mark(0xE00, 0xF00), version, 0) for version in (4, 6)
    }  # fmt: skip
    assert planned[:2] == blocks, "and put before anything else"
    assert min(p.priority for p in blocks) > max(
        p.priority for p in planned if p.action is Action.ALLOW
    )


def test_only_what_from_xfrm_has_judged_comes_in() -> None:
    planned = policies.plan(USED, {}, {}).values()
    inbound = [policy for policy in planned if policy.direction is PolicyDirection.IN]
    assert {(p.mark, p.source.version) for p in inbound} == {
        (Mark(0, 0xF00), 4),
        (Mark(0, 0xF00), 6),
    }
    assert all(p.template and p.template.spi == 0 for p in inbound)


def test_everything_carries_our_number() -> None:
    planned = policies.plan(USED, OUTBOUND, NODES)
    assert {policy.if_id for policy in planned.values()} == {IF_ID}


def test_with_the_bpf_engine_there_are_policies_only_while_old_sas_are() -> None:
    assert xfrm_device.plan_used(Engine.BPF, {}) == {}
    assert policies.plan({}, {}, NODES) == {}
    assert xfrm_device.plan_used(Engine.BPF, OUTBOUND) == USED
    assert xfrm_device.plan_used(Engine.XFRM, {}) == USED


def test_a_pair_is_passable_when_all_its_policies_stand() -> None:
    wanted = policies.plan(USED, OUTBOUND, NODES)
    assert policies.plan_passable(OUTBOUND, wanted, wanted) == {PAIR: THERE}
    for key, policy in wanted.items():
        standing = {each: row for each, row in wanted.items() if each != key}
        is_others = policy.mark is None or not policy.mark.value >> 16
        assert policies.plan_passable(OUTBOUND, wanted, standing) == (
            {PAIR: THERE} if is_others else {}
        )
    assert policies.plan_passable({}, wanted, wanted) == {}


@pytest.mark.parametrize(("engine", "is_sent"), [(Engine.BPF, True), (Engine.XFRM, False)])
def test_a_pair_of_the_kernels_is_sent_on_only_when_it_is_passable(
    engine: Engine, is_sent: bool
) -> None:
    sends, row = {N2: Send(PAIR, engine, THERE)}, EncryptRow(PAIR, engine)
    key = EncryptKey(ALL_TRAFFIC, THERE)
    assert encryption_table.plan(sends, {}, (), {}) == ({key: row} if is_sent else {})
    assert encryption_table.plan(sends, {}, {PAIR: THERE}, {}) == {key: row}


@pytest.mark.parametrize("engine", Engine)
def test_until_a_new_pair_is_passable_the_one_before_is_sent_on(engine: Engine) -> None:
    sends = {N2: Send(PAIR, Engine.XFRM, THERE, sas=1)}
    key = EncryptKey(ALL_TRAFFIC, THERE)
    before, row = EncryptRow(PairId(PAIR + 1), engine, 1), EncryptRow(PAIR, Engine.XFRM, 1)
    others = {before.pair: THERE} if engine is Engine.XFRM else {}
    assert encryption_table.plan(sends, {}, others, {key: before}) == {key: before}
    assert encryption_table.plan(sends, {}, others | {PAIR: THERE}, {key: before}) == {key: row}
    assert encryption_table.plan({}, {}, others, {key: before}) == {}, "nobody to send to"


def test_a_pair_of_the_kernels_that_is_no_longer_passable_is_not_sent_on() -> None:
    sends = {N2: Send(PAIR, Engine.XFRM, THERE)}
    key = EncryptKey(ALL_TRAFFIC, THERE)
    for pair in (PAIR, PairId(PAIR + 1)):
        assert encryption_table.plan(sends, {}, (), {key: EncryptRow(pair, Engine.XFRM)}) == {}


def test_states_of_keys_made_by_hand_are_what_ip_xfrm_makes() -> None:
    """And of two with one SPI, the packet's mark chooses."""
    made = (replace(sa(0, each), spi=Spi(3)) for each in (Direction.OUT, Direction.IN))
    out, into = (state_of(each) for each in made)
    assert out.key.mark == Mark(7 << 16 | 0xE00, OUT_MASK)
    assert into.key.mark == Mark(7 << 16 | 0xD00, IN_MASK)
    assert (out.flags, into.flags) == (
        StateFlags.AF_UNSPEC,
        StateFlags.AF_UNSPEC | StateFlags.NOECN,
    )
    assert (out.replay_window, into.replay_window) == (0, 0)


def test_states_are_what_the_peer_expects() -> None:
    out, into = state_of(sa(3)), state_of(sa(3, Direction.IN))
    assert (out.key.mark, into.key.mark) == (None, Mark(7 << 16 | 0xD00, IN_MASK))
    assert out.flags == StateFlags.ESN | StateFlags.AF_UNSPEC
    assert into.flags == out.flags | StateFlags.NOECN
    assert (into.replay_window, out.packet_limit) == (REPLAY_WINDOW, 1 << 40)
    assert (out.algorithm, out.key_bits, out.secret) == (
        "rfc4106(gcm(aes))",
        160,
        b"k" * 16 + b"salt",
    )
    assert "kkk" not in repr(out)
