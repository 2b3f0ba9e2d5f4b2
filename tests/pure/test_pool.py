# SPDX-License-Identifier: Apache-2.0
"""The address pool: never an address twice, never one that is not a pod's, none lost."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pellicle.facts import Address, Network, gateway
from pellicle.sources.pool import Exhausted, Pool, Pools

SMALL = (
    ip_network("10.244.1.0/30"),
    ip_network("10.244.1.0/29"),
    ip_network("10.244.1.128/28"),
    ip_network("fd00:244:0:1::/126"),
    ip_network("fd00:244:0:1::10/124"),
)


def usable(cidr: Network) -> set[Address]:
    """The slow way to say it: all but network (or anycast), gateway and broadcast."""
    kept = {cidr[0], cidr[1]} | ({cidr[-1]} if cidr.version == 4 else set())
    return set(cidr) - kept


@pytest.mark.parametrize("cidr", SMALL, ids=str)
def test_all_addresses_that_a_pod_can_have_are_given_and_no_others(cidr: Network) -> None:
    pool = Pool(cidr)
    given_out = [pool.take() for _ in range(pool.size)]
    assert set(given_out) == usable(cidr)
    assert len(given_out) == len(usable(cidr))
    with pytest.raises(Exhausted):
        pool.take()


def test_an_exhausted_pool_says_which_one_how_many_and_what_to_do() -> None:
    pool = Pool(ip_network("10.244.1.0/24"))
    for _ in range(253):
        pool.take()
    with pytest.raises(Exhausted) as caught:
        pool.take()
    assert str(caught.value) == (
        "address pool 10.244.1.0/24 is exhausted: 253 in use;"
        " give the node a larger pod CIDR, or run fewer pods on it"
    )


def test_a_freed_address_waits_until_all_others_had_their_turn() -> None:
    pool = Pool(ip_network("10.244.1.0/29"))  # .2 to .6
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    pool.give_back(second)
    later = [pool.take() for _ in range(5)]
    assert later == [ip_address(f"10.244.1.{n}") for n in (4, 5, 6, 2, 3)]


def test_after_a_restart_the_next_address_comes_after_the_highest_in_use() -> None:
    pool = Pool(ip_network("10.244.1.0/29"), [ip_address("10.244.1.4")])
    assert [str(pool.take()) for _ in range(4)] == [f"10.244.1.{n}" for n in (5, 6, 2, 3)]
    with pytest.raises(Exhausted):
        pool.take()


@pytest.mark.parametrize("cidr", ["10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128"])
def test_a_cidr_without_room_is_refused(cidr: str) -> None:
    with pytest.raises(ValueError, match="has no room for pods"):
        Pool(ip_network(cidr))


def test_the_gateway_is_the_first_address_and_never_a_pods() -> None:
    for cidr in SMALL:
        assert gateway(cidr) == cidr[1]
        assert not Pool(cidr).reserve(cidr[1])


@pytest.mark.parametrize("cidr", ["10.244.0.0/16", "fd00:244::/64"])
def test_a_call_takes_no_longer_in_a_large_pool_that_is_nearly_full(cidr: str) -> None:
    pool = Pool(ip_network(cidr))
    count = 65_000
    taken = [pool.take() for _ in range(count)]
    started = time.perf_counter()
    for address in taken[:5000]:
        pool.give_back(address)
        pool.take()
    each = (time.perf_counter() - started) / 5000
    print(f"{cidr}: {each * 1e6:.1f} µs to give one back and take one, {count} in use")
    assert each < 0.001


class PoolLife(RuleBasedStateMachine):
    """Any order of calls, against a set that says what is in use."""

    @initialize(cidr=st.sampled_from(SMALL), data=st.data())
    def start(self, cidr: Network, data: st.DataObject) -> None:
        in_use = data.draw(st.sets(st.sampled_from(sorted(usable(cidr)))))
        self.pool, self.cidr, self.used = Pool(cidr, in_use), cidr, set(in_use)
        self.seen = set(in_use)
        self.taken: set[Address] = set()

    @rule()
    def take(self) -> None:
        if self.used == usable(self.cidr):
            with pytest.raises(Exhausted):
                self.pool.take()
            return
        address = self.pool.take()
        assert address in usable(self.cidr)
        assert address not in self.used
        if address in self.taken:
            assert not usable(self.cidr) - self.used - self.seen, "one was never used"
        self.taken.add(address)
        self.seen.add(address)
        self.used.add(address)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.used)))
        self.pool.give_back(address)
        self.used.remove(address)

    @rule(data=st.data())
    def give_back_what_is_free_or_foreign(self, data: st.DataObject) -> None:
        everything = set(self.cidr) | {ip_address("192.0.2.1"), ip_address("2001:db8::1")}
        self.pool.give_back(data.draw(st.sampled_from(sorted(everything - self.used, key=str))))

    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        everything = sorted({*self.cidr, ip_address("192.0.2.1")}, key=str)
        address = data.draw(st.sampled_from(everything))
        is_new = address in usable(self.cidr) - self.used
        assert self.pool.reserve(address) == is_new
        if is_new:
            self.seen.add(address)
            self.used.add(address)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.pool) == len(self.used)
        assert self.pool.is_full == (self.used == usable(self.cidr))
        assert all(address in self.pool for address in self.used)


PoolLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolLife = PoolLife.TestCase


def test_a_pod_gets_one_address_of_each_family() -> None:
    pools = Pools([ip_network("fd00::/64"), ip_network("10.1.0.0/24")])
    assert [str(a) for a in pools.take()] == ["10.1.0.2", "fd00::2"]
    assert len(pools) == 2


def test_when_one_family_has_none_left_none_of_the_other_is_lost() -> None:
    pools = Pools([ip_network("10.1.0.0/29"), ip_network("fd00::/126")])
    pools.take()
    pools.take()
    for _ in range(10):
        with pytest.raises(Exhausted, match="fd00::/126 is exhausted: 2 in use"):
            pools.take()
    assert len(pools) == 4
    assert "fd00::/126" in pools.shortage()


def test_a_second_cidr_of_a_family_is_used_when_the_first_is_full() -> None:
    pools = Pools([ip_network("10.1.0.0/30"), ip_network("10.2.0.0/30")])
    assert [str(pools.take()[0]) for _ in range(2)] == ["10.1.0.2", "10.2.0.2"]
    with pytest.raises(Exhausted, match=r"10.1.0.0/30 and 10.2.0.0/30 is exhausted: 2 in use"):
        pools.take()
    pools.give_back([ip_address("10.1.0.2")])
    assert not pools.shortage()
    assert str(pools.take()[0]) == "10.1.0.2"
    assert str(pools.gateway(ip_address("10.2.0.2"))) == "10.2.0.1"


@given(st.sets(st.integers(0, 255)), st.integers(0, 300))
def test_what_was_in_use_before_is_never_given_again(before: set[int], more: int) -> None:
    cidr = ip_network("10.1.0.0/24")
    in_use = [cidr[n] for n in before]
    pools = Pools([cidr], in_use)
    taken = []
    for _ in range(more):
        try:
            taken += pools.take()
        except Exhausted:
            assert {*taken, *in_use} >= usable(cidr)
            break
    assert len(set(taken)) == len(taken)
    assert not {*taken} & {*in_use}
