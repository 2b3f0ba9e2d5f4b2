# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a cluster, in whatever order: no key twice, no loss, and it heals.

See cluster.py for the model. Between any two events the promises are checked:
  - no SA's key is put a second time on a node, nor used for two outbound SAs anywhere;
  - nothing is sent that the receiver's kernel cannot open, unless that kernel lost its maps
    or its agent was told that the sender is gone.
At the end everything is delivered, every agent started, and all must agree again.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pellicle.facts import ALL_TRAFFIC, Cipher, Context
from pellicle.keys import pairing

from .cluster import KITS, XFRM, Cluster, Kit, Member, cluster_of


class Cut(Enum):
    """What does not get through."""

    RECORDS = auto()
    PACKETS = auto()
    BOTH = auto()


MEMBERS = st.integers(0, 2)
CONTEXTS = st.sampled_from([Context(7), Context(8)])
ACTS = st.none() | st.integers(0, 3)


class AnyLife(RuleBasedStateMachine):
    """Up to three nodes."""

    world: Cluster

    def member(self, number: int) -> Member:
        members = list(self.world.members.values())
        return members[number % len(members)]

    @initialize(
        count=st.integers(2, 3),
        seed=st.integers(0, 2**32),
        rounds=st.integers(0, 8),
        kits=st.lists(st.sampled_from(KITS), min_size=3, max_size=3),
    )
    def begin(self, count: int, seed: int, rounds: int, kits: list[Kit]) -> None:
        self.world = cluster_of(count, seed)
        for member, kit in zip(self.world.members.values(), kits, strict=False):
            member.kit = kit
            member.start(())
        for _ in range(rounds):
            self.world.deliver_records()
            self.world.act()

    # --- agents ---

    @rule(number=MEMBERS, dies_after=ACTS)
    def one_acts(self, number: int, dies_after: int | None) -> None:
        self.member(number).step(dies_after)

    @rule(rounds=st.integers(1, 6), seconds=st.sampled_from([0.02, 0.3]))
    def all_act(self, rounds: int, seconds: float) -> None:
        for _ in range(rounds):
            self.world.act()
            self.world.now += seconds

    @rule(rounds=st.integers(1, 6))
    def all_act_and_know(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.deliver_records()
            self.world.act()
            self.world.now += 0.05

    @rule(seconds=st.sampled_from([1.0, 11.0, 25.0, 70.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.world.go_on(seconds)

    @rule(number=MEMBERS)
    def kill(self, number: int) -> None:
        self.member(number).agent = None

    @rule(
        number=MEMBERS,
        age=st.sampled_from([0, 0, 0, 1, 2]),
        kit=st.none() | st.sampled_from(KITS),
    )
    def restart(self, number: int, age: int, kit: Kit | None) -> None:
        """`age`: how old the own record is that the agent finds; `kit`: another one."""
        member = self.member(number)
        member.kit = kit or member.kit
        versions = self.world.directory[member.name]
        member.start(versions[-1 - min(age, len(versions) - 1)].offers if versions else ())

    @rule(number=MEMBERS)
    def rotate(self, number: int) -> None:
        agent = self.member(number).agent
        if agent:
            agent.ring.rotate()

    @rule(number=MEMBERS, contexts=st.frozensets(CONTEXTS))
    def hear_of_policies(self, number: int, contexts: frozenset[Context]) -> None:
        """That ask for keys of their own, or do not any more."""
        self.member(number).need(contexts)

    @rule(number=MEMBERS)
    def roll(self, number: int) -> None:
        """A new secret reaches one node's file, at most one step ahead of all others'."""
        member = self.member(number)
        last = min(each.generation for each in self.world.members.values())
        member.roll(min(member.generation, last) + 1)

    @rule(number=MEMBERS, other=MEMBERS)
    def spend(self, number: int, other: int) -> None:
        member = self.member(number)
        send = member.kernel.encrypt.get((self.member(other).addresses[0], ALL_TRAFFIC))
        if member.agent and send is not None:
            member.agent.ring.spent(send.pair)

    @rule()
    def refresh(self) -> None:
        self.world.refresh()

    # --- kernels ---

    @rule(number=MEMBERS, has_disk=st.booleans())
    def reboot(self, number: int, has_disk: bool) -> None:
        member = self.member(number)
        versions = self.world.directory[member.name]
        member.kernel.lose()
        member.start(versions[-1].offers if versions and has_disk else ())

    @rule(number=MEMBERS)
    def lose_maps(self, number: int) -> None:
        member = self.member(number)
        member.kernel.lose()
        if member.agent:
            member.agent.sas.refresh()
            member.agent.encrypt.refresh()

    @rule(number=MEMBERS)
    def lose_events(self, number: int) -> None:
        self.member(number).kernel.events.clear()

    # --- packets ---

    @rule(twice=st.booleans())
    def deliver_packets(self, twice: bool) -> None:
        self.world.deliver_packets(twice=twice)

    @rule()
    def lose_packets(self) -> None:
        self.world.air.clear()

    @rule(number=MEMBERS, other=MEMBERS, context=st.just(ALL_TRAFFIC) | CONTEXTS)
    def send_data(self, number: int, other: int, context: Context) -> None:
        if self.member(number) is not self.member(other):
            self.member(number).send_data(self.member(other), context)

    # --- partitions ---

    @rule(number=MEMBERS, other=MEMBERS, cut=st.sampled_from(Cut), is_mutual=st.booleans())
    def cut_off(self, number: int, other: int, cut: Cut, is_mutual: bool) -> None:
        """One node hears no more records, no more packets, or neither, of another; or both so."""
        member, name = self.member(number).name, self.member(other).name
        ways = {(member, name), (name, member)} if is_mutual else {(member, name)}
        if cut is not Cut.PACKETS:
            self.world.untold |= ways
        if cut is not Cut.RECORDS:
            self.world.unheard |= ways

    @rule()
    def heal(self) -> None:
        self.world.heal()

    @precondition(lambda self: hasattr(self, "world") and (self.world.untold or self.world.unheard))
    @rule(hours=st.sampled_from([0.1, 1.1, 3.5]), step=st.sampled_from([17.0, 45.0]))
    def hours_go_by(self, hours: float, step: float) -> None:
        """Past stale, past the offer that no longer waits, past a secret's grace, key lifetimes."""
        self.world.live_on(hours * 3600, step)

    # --- records ---

    @rule(number=MEMBERS, other=MEMBERS, age=st.integers(0, 4))
    def deliver_record(self, number: int, other: int, age: int) -> None:
        """Late, twice, out of order, or replayed."""
        member, name = self.member(number), self.member(other).name
        versions = self.world.directory[name]
        if versions and (member.name, name) not in self.world.untold:
            member.view[name] = versions[max(0, len(versions) - 1 - age)]

    @rule()
    def deliver_records(self) -> None:
        self.world.deliver_records()

    @rule(number=MEMBERS, other=MEMBERS)
    def lose_record(self, number: int, other: int) -> None:
        self.member(number).view.pop(self.member(other).name, None)

    @rule(
        number=MEMBERS,
        other=MEMBERS,
        what=st.sampled_from(["proof", "epoch", "count", "none", *Cipher]),
    )
    def forge_record(self, number: int, other: int, what: str) -> None:
        member, name = self.member(number), self.member(other).name
        versions = self.world.directory[name]
        if not versions or not versions[-1].offers:
            return
        node, offer = versions[-1], versions[-1].offers[-1]
        forged = {
            "proof": (replace(offer, proof=bytes(32)),),
            "epoch": (offer, replace(offer, epoch=offer.epoch + 5)),
            "count": (offer,) * 3,
            "none": (),
        }
        member.view[name] = (
            replace(node, offers=forged[what])
            if what in forged
            else replace(node, ciphers=(Cipher(what),))
        )

    @rule(number=MEMBERS, other=MEMBERS, cipher=st.sampled_from(Cipher))
    def restart_beside_other_ciphers(self, number: int, other: int, cipher: Cipher) -> None:
        """Another node sees the new offer first in a record whose ciphers are not its own."""
        maker, member = self.member(number), self.member(other)
        self.restart(number, 0, None)
        for _ in range(4):
            maker.step()
        versions = self.world.directory[maker.name]
        if member is not maker and versions:
            member.view[maker.name] = replace(versions[-1], ciphers=(cipher,))
            member.step()
            member.view[maker.name] = versions[-1]

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 4.0, 11.0, 31.0, 70.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "world"):
            self.world.check_sends()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for member in self.world.members.values():
            if member.agent is None:
                versions = self.world.directory[member.name]
                member.start(versions[-1].offers if versions else ())
        self.world.heal()
        self.world.agree_on_a_secret()
        self.world.agree_on_policies()
        self.world.settle()
        self.world.check_settled()


class AnySlowLife(AnyLife):
    """The same when a plan is too short for more than one record, one peer and one derivation."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for budget in ("RECORDS_PER_PLAN", "PEERS_PER_PLAN", "DERIVATIONS_PER_PLAN"):
            self.patch.setattr(pairing, budget, 1)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self.patch.undo()


TestAnyLife = AnyLife.TestCase
TestAnySlowLife = AnySlowLife.TestCase
for case in (TestAnyLife, TestAnySlowLife):
    case.settings = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.mark.parametrize("cipher", [Cipher.AES_128_GCM, Cipher.CHACHA20_POLY1305])
def test_an_offer_that_is_first_seen_beside_other_ciphers(cipher: Cipher) -> None:
    """The pair that it makes with those stands in nobody's way once the record is right again."""
    world = cluster_of(2)
    member, maker = world.members.values()
    for each in (member, maker):
        each.kit = XFRM
        each.start(())
    world.settle()
    assert maker.agent
    maker.agent.ring.rotate()
    for _ in range(4):
        maker.step()
    said = world.directory[maker.name][-1]
    assert [offer.epoch for offer in said.offers] == [1, 2]
    member.view[maker.name] = replace(said, ciphers=(cipher,))
    member.step()
    world.settle()
    world.check_settled()
