# SPDX-License-Identifier: Apache-2.0
"""Subnets known beforehand: what the kernel gets for all peers in them, and what each still has.

file, records, subnets ─▶ ManualKeys ─▶ SAs ─▶ states, policies       both are counted here
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest

from pellicle.encryption import policies
from pellicle.encryption.remains import Remains
from pellicle.encryption.states import (
    IN_MASK,
    NOBODY,
    OUT_MASK,
    PLACEHOLDERS,
    mark_of,
    peer_of,
    receives,
    shared_of,
    state_of,
)
from pellicle.facts import Cipher, Engine, Network, Node, NodeName
from pellicle.keys.manual import LAST_SEQUENCE, ManualKeys, read_line
from pellicle.keys.rows import Direction, KeyPlan, LocalNode, PeerState, Sa, SaKey
from pellicle.keys.secret import parse_all
from pellicle.keys.subnets import MOST_SHARED, Numbers, are_around, is_within
from pellicle.wire.xfrm import Action, Mark, Policy, PolicyDirection, PolicyKey, State

KEYS = {n: bytes(range(n, n + 20)).hex() for n in range(3, 9)}
PODS = (ip_network("10.0.0.0/8"), ip_network("fd00:244::/32"))
NODES = (ip_network("192.168.0.0/16"), ip_network("2001:db8::/32"))
USED = {Engine.XFRM: True}
DRAIN = 10.0


def node(number: int, *cidrs: str, first: str = "192.168.0.0") -> Node:
    addresses = (ip_address(first) + number, ip_address("2001:db8::") + number)
    high, low = divmod(number, 256)
    found = cidrs or (f"10.{high}.{low}.0/24", f"fd00:244:{number:x}::/64")
    return Node(NodeName(f"n{number}"), addresses, tuple(map(ip_network, found)))


ME = node(1)


def cluster(*nodes: Node) -> dict[NodeName, Node]:
    return {each.name: each for each in (ME, *nodes)}


def lines(*ids: int) -> str:
    return "\n".join(f"{each} rfc4106(gcm(aes)) {KEYS[each]} 128" for each in ids)


@dataclass
class Kernel:
    """A node that does what it is told, at once."""

    nodes: Mapping[NodeName, Node]
    subnets: Sequence[Network] = PODS
    family: str = "auto"
    standing: dict[SaKey, Sa] = field(default_factory=dict)
    now: float = 0.0
    plan: KeyPlan = field(init=False)

    def __post_init__(self) -> None:
        local = LocalNode(ME.name, ME.addresses)
        self.ring = ManualKeys(
            local, parse_all(lines(3), read_line)[0], ciphers=tuple(Cipher),
            drain_seconds=DRAIN, outer_family=self.family, subnets=self.subnets,
        )  # fmt: skip
        self.ring.start((), self.standing)
        self.ring.peers(self.nodes)
        self.obey()

    def obey(self) -> None:
        while True:
            self.plan = self.ring.plan(self.now)
            if self.plan.sas.keys() == self.standing.keys():
                return
            self.standing = dict(self.plan.sas)
            self.ring.standing(self.standing)

    def know(self, *ids: int) -> None:
        self.ring.know(parse_all(lines(*ids), read_line)[0])
        self.obey()

    def sas(self, direction: Direction) -> list[Sa]:
        return [sa for sa in self.standing.values() if sa.direction is direction]

    def states(self) -> dict[object, State]:
        return {(state := state_of(sa)).key: state for sa in self.standing.values()}

    def policies(self) -> dict[PolicyKey, Policy]:
        shared = policies.plan_shared(self.standing)
        return policies.plan(USED, self.standing, self.nodes, shared, subnets=self.subnets)

    def leading(self) -> list[Policy]:
        return [policy for policy in self.policies().values() if policy.template is not None
                and policy.template.spi]  # fmt: skip

    def passable(self, standing: Mapping[PolicyKey, Policy] | None = None) -> Collection[int]:
        wanted = self.policies()
        stand = wanted if standing is None else standing
        shared = policies.plan_shared_passable(wanted, stand)
        return policies.plan_passable(
            self.standing, wanted, stand, shared, subnets=self.subnets
        ).keys()


# --- how much there is ---------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [3, 500])
def test_the_kernel_gets_as_much_for_500_peers_as_for_3(peers: int) -> None:
    nodes = cluster(*(node(number) for number in range(2, peers + 2)))
    kernel = Kernel(nodes, (*PODS, *NODES))
    assert len(kernel.leading()) == 4, "one for each subnet"
    states = kernel.states()
    assert sorted(receives(key) for key in states) == [False, True]  # type: ignore[arg-type]
    assert len(kernel.policies()) == 4 + 4, "the blocks and what comes in, too"
    assert len(kernel.plan.sends) == peers
    assert len(kernel.passable()) == peers


def test_without_subnets_it_grows_with_the_peers() -> None:
    nodes = cluster(*(node(number) for number in range(2, 52)))
    kernel = Kernel(nodes, ())
    assert len(kernel.leading()) == 4 * 50
    assert len(kernel.states()) == 2 * 50


def test_nodes_own_addresses_that_lie_in_no_subnet_have_policies_each() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    prefixes = sorted(str(policy.destination) for policy in kernel.leading())
    assert prefixes == [
        "10.0.0.0/8", "192.168.0.2/32", "192.168.0.3/32", "2001:db8::2/128", "2001:db8::3/128",
        "fd00:244::/32",
    ]  # fmt: skip
    assert len({policy.template for policy in kernel.leading()}) == 1, "and one state"
    assert len(kernel.states()) == 2


# --- what it looks like --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_shared(version: int) -> None:
    kernel = Kernel(cluster(node(2), node(3)), family=str(version))
    own = ME.addresses[version == 6]
    out, into = sorted(kernel.states().values(), key=lambda state: receives(state.key))
    assert (out.key.source, out.key.destination) == (own, PLACEHOLDERS[version])
    assert (into.key.source, into.key.destination) == (NOBODY[version], own)
    assert out.key.mark == Mark(0xE80, 0x3F80)
    assert into.key.mark == Mark(0xD80, 0x0F80)
    assert (out.sets_mark, into.sets_mark) == (Mark(0xC00, 0xF00), None)
    assert (peer_of(out.key), peer_of(into.key)) == (None, None)
    assert out.packet_limit == LAST_SEQUENCE
    for policy in kernel.leading():
        template = policy.template
        assert template
        assert policy.mark
        assert (template.source, template.destination) == (own, PLACEHOLDERS[version])
        assert (template.spi, template.reqid) == (out.key.spi, out.reqid)
        # What net/xfrm/xfrm_state.c asks of policy and state.
        assert policy.mark.value & 0x3F80 == out.key.mark.value  # type: ignore[union-attr]


def test_a_placeholder_is_nobodys_address() -> None:
    assert all(address.is_multicast for address in PLACEHOLDERS.values())


def test_marks_of_what_is_shared_are_never_others() -> None:
    kernel = Kernel(cluster(node(2), node(3, "172.16.3.0/24")))
    own, shared = (
        [sa for sa in kernel.sas(Direction.OUT) if bool(sa.shared) is is_shared]
        for is_shared in (False, True)
    )
    assert len(own) == len(shared) == 1
    for sa in shared:
        assert mark_of(sa) & OUT_MASK | 0x80 == mark_of(sa) == sa.slot << 16 | 0xE80
        assert shared_of(mark_of(sa)) == sa.shared
    for sa in own:
        assert mark_of(sa) & 0x3F80 != 0xE80, "no policy to a subnet fits"
        assert mark_of(sa) & OUT_MASK != mark_of(shared[0]) & OUT_MASK
    slots = [sa.slot for sa in kernel.standing.values()]
    assert len(slots) == len(set(slots)), "a slot names one pair"
    marks_in = [mark_of(sa) for sa in kernel.sas(Direction.IN)]
    assert {mark & 0x0F80 for mark in marks_in} == {0xD80}
    assert all(mark & IN_MASK != mark for mark in marks_in)


def test_each_peers_sas_say_whose_a_packet_is() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    for direction in Direction:
        sas = kernel.sas(direction)
        assert {str(sa.node) for sa in sas} == {"192.168.0.2", "192.168.0.3"}
        outer = {str(sa.destination if direction == "out" else sa.source) for sa in sas}
        assert outer == {"192.168.0.2", "192.168.0.3"}
    said = kernel.plan.peers[NodeName("n2")]
    assert (said.state, "in subnets" in said.why) == (PeerState.READY, True)


# --- who is in them ------------------------------------------------------------------------------

SUBNETS = (*PODS, *NODES)
AROUND = {
    "all of it": (node(2), SUBNETS, True),
    "its pods, not itself": (node(2), PODS, True),
    "one CIDR of two": (node(2, "10.0.2.0/24", "172.16.0.0/24"), PODS, False),
    "a CIDR larger than the subnet": (node(2, "10.0.0.0/7"), PODS, False),
    "the other family only": (node(2, "10.0.2.0/24"), PODS[1:], False),
    "in the more special one of two": (node(2), (ip_network("10.0.2.0/23"), *PODS), True),
    "its first address only": (node(2), (*PODS, NODES[0]), False),
    "its second address only": (node(2), (*PODS, NODES[1]), False),
    "no pods at all": (replace(node(2), pod_cidrs=()), SUBNETS, False),
    "no subnets": (node(2), (), False),
}


@pytest.mark.parametrize("says", AROUND)
def test_who_lies_in_subnets(says: str) -> None:
    peer, subnets, is_around = AROUND[says]
    assert are_around(subnets, peer) is is_around
    kernel = Kernel(cluster(peer), subnets)
    (out,) = kernel.sas(Direction.OUT)
    assert bool(out.shared) is is_around
    reached = [policy.destination for policy in kernel.leading()]
    for prefix in (*peer.pod_cidrs, *map(ip_network, peer.addresses)):
        assert is_within(prefix, reached), "whoever it is, all of it is reached"
    assert out.pair in kernel.passable()


def test_of_subnets_in_each_other_the_state_is_the_same() -> None:
    kernel = Kernel(cluster(node(2)), (ip_network("10.0.0.0/16"), *SUBNETS))
    assert len({policy.template for policy in kernel.leading()}) == 1


def test_peers_beside_the_subnets_have_rows_of_their_own_at_the_same_time() -> None:
    kernel = Kernel(cluster(node(2), node(3, "172.16.3.0/24")))
    assert len(kernel.passable()) == 2
    own = [policy for policy in kernel.leading() if policy.mark and policy.mark.mask == OUT_MASK]
    assert sorted(str(policy.destination) for policy in own) == [
        "172.16.3.0/24", "192.168.0.3/32", "2001:db8::3/128",
    ]  # fmt: skip
    assert {str(policy.template.destination) for policy in own if policy.template} == {
        "192.168.0.3"
    }


def test_of_both_families_outside_each_has_a_state() -> None:
    """A mark's number says which."""
    only_six = replace(node(3), addresses=node(3).addresses[1:])
    kernel = Kernel(cluster(node(2), only_six))
    assert {sa.shared for sa in kernel.sas(Direction.OUT)} == {1, 2}
    assert len(kernel.passable()) == 2
    templates = {policy.mark: policy.template for policy in kernel.leading()
                 if policy.destination in PODS}  # fmt: skip
    assert {template.destination for template in templates.values() if template} == set(
        PLACEHOLDERS.values()
    )


# --- what must stand first -----------------------------------------------------------------------


@pytest.mark.parametrize("subnets", [PODS, SUBNETS], ids=["pods", "pods and nodes"])
def test_nobody_is_sent_to_before_the_policies_stand(subnets: Sequence[Network]) -> None:
    kernel = Kernel(cluster(node(2), node(3)), subnets)
    wanted = kernel.policies()
    for key, policy in wanted.items():
        passable = kernel.passable({each: row for each, row in wanted.items() if each != key})
        if policy.direction is PolicyDirection.IN or policy.action is Action.BLOCK:
            assert len(passable) == 2
        elif policy.destination in subnets:
            assert not passable, "it is for all"
        else:
            assert len(passable) == 1, "it is a node's own address"


def test_a_peer_is_not_sent_to_before_its_own_policies_are_even_planned() -> None:
    kernel = Kernel(cluster(node(2)))
    wanted = {key: policy for key, policy in kernel.policies().items()
              if policy.destination in PODS}  # fmt: skip
    shared = policies.plan_shared_passable(wanted, wanted)
    assert shared
    assert not policies.plan_passable(kernel.standing, wanted, wanted, shared, subnets=PODS)


@pytest.mark.parametrize(("before", "after"), [(PODS, ()), ((), PODS), (SUBNETS, PODS)])
def test_until_the_new_stands_the_old_is_sent_by(
    before: Sequence[Network], after: Sequence[Network]
) -> None:
    nodes = cluster(node(2), node(3))
    old = Kernel(nodes, before)
    sent = {send.pair for send in old.plan.sends.values()}
    kernel = Kernel(nodes, after, standing=dict(old.standing))
    assert sent <= kernel.passable()  # type: ignore[operator]
    assert {send.pair for send in kernel.plan.sends.values()} <= kernel.passable()  # type: ignore[operator]


# --- other keys, other states --------------------------------------------------------------------


def test_a_roll_out_line_by_line_leaves_no_moment_without() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    before = {name: send.pair for name, send in kernel.plan.sends.items()}
    kernel.know(3, 4)
    assert {sa.spi for sa in kernel.sas(Direction.IN)} == {3, 4}
    assert {name: send.pair for name, send in kernel.plan.sends.items()} == before
    kernel.know(4, 3)
    assert {(sa.spi, sa.shared) for sa in kernel.sas(Direction.OUT)} == {(3, 1), (4, 2)}
    assert len(kernel.leading()) == 2 * 2 + 2 * 4, "each state has its policies"
    assert len(kernel.passable()) == 4
    sent = {send.pair for send in kernel.plan.sends.values()}
    assert {sa.spi for sa in kernel.sas(Direction.OUT) if sa.pair in sent} == {4}
    kernel.now = DRAIN
    kernel.obey()
    assert {(sa.spi, sa.shared) for sa in kernel.sas(Direction.OUT)} == {(4, 2)}


def test_a_key_of_an_earlier_life_that_comes_back_has_another_name() -> None:
    old = Kernel(cluster(node(2)))
    old.know(3, 4)
    kernel = Kernel(cluster(node(2)), standing=dict(old.standing))
    assert {sa.spi for sa in kernel.sas(Direction.IN)} == {3}
    kernel.know(3, 4)
    (back,) = [sa for sa in kernel.sas(Direction.IN) if sa.spi == 4]
    assert back.at not in old.standing, "it would not be put again"


def test_what_is_still_sent_by_does_not_drain() -> None:
    """Its successor's policies may take their time."""
    kernel = Kernel(cluster(node(2), node(3)))
    before = {send.pair for send in kernel.plan.sends.values()}
    kernel.ring.sending(before)
    for ids in ((3, 4), (4, 3), (4,)):
        kernel.know(*ids)
    kernel.now = 3 * DRAIN
    kernel.obey()
    assert before <= {sa.pair for sa in kernel.sas(Direction.OUT)}
    kernel.ring.sending(send.pair for send in kernel.plan.sends.values())
    kernel.now += DRAIN - 1
    kernel.obey()
    assert before <= {sa.pair for sa in kernel.sas(Direction.OUT)}, "some are under way"
    kernel.now += 1
    kernel.obey()
    assert not before & {sa.pair for sa in kernel.sas(Direction.OUT)}


def test_a_state_that_is_spent_is_replaced_for_all_at_once() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    for send in kernel.plan.sends.values():
        kernel.ring.spent(send.pair)
    kernel.obey()
    assert {sa.shared for sa in kernel.sas(Direction.OUT)} == {1, 2}
    sent = {send.pair for send in kernel.plan.sends.values()}
    assert {sa.shared for sa in kernel.sas(Direction.OUT) if sa.pair in sent} == {2}
    for sa in kernel.sas(Direction.OUT):
        if sa.shared == 1:
            kernel.ring.spent(sa.pair)
    kernel.obey()
    assert {sa.shared for sa in kernel.sas(Direction.OUT)} == {1, 2}, "what drains may be spent"
    kernel.now = DRAIN
    kernel.obey()
    assert {sa.shared for sa in kernel.sas(Direction.OUT)} == {2}


def test_a_state_that_vanished_comes_again_under_other_names() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    before = {sa.pair for sa in kernel.sas(Direction.OUT)}
    kernel.standing = {sa.at: sa for sa in kernel.sas(Direction.IN)}
    kernel.ring.standing(kernel.standing)
    kernel.obey()
    after = kernel.sas(Direction.OUT)
    assert len(after) == 2
    assert not before & {sa.pair for sa in after}


def test_while_all_numbers_are_taken_each_peer_has_a_state_of_its_own() -> None:
    """Four keys within one drain interval: nothing waits."""
    kernel = Kernel(cluster(node(2)))
    for key in range(4, 4 + MOST_SHARED):
        kernel.know(key, 3)
    used = {send.pair for send in kernel.plan.sends.values()}
    (sent,) = (sa for sa in kernel.sas(Direction.OUT) if sa.pair in used)
    assert (sent.spi, sent.shared) == (3 + MOST_SHARED, 0)
    assert sent.pair in kernel.passable()
    kernel.now = DRAIN
    kernel.obey()
    used = {send.pair for send in kernel.plan.sends.values()}
    assert [sa.shared > 0 for sa in kernel.sas(Direction.OUT) if sa.pair in used] == [True]


def test_the_next_life_takes_over_what_stands() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    kernel.ring.spent(next(iter(kernel.plan.sends.values())).pair)
    kernel.obey()
    kernel.now = DRAIN
    kernel.obey()
    stood = dict(kernel.standing)
    assert {sa.shared for sa in kernel.sas(Direction.OUT)} == {2}
    read = {at: replace(sa, key=b"", salt=b"") for at, sa in stood.items()}
    again = Kernel(kernel.nodes, standing=read)
    assert again.standing == stood


def test_a_peer_that_leaves_the_subnets_gets_sas_of_its_own() -> None:
    kernel = Kernel(cluster(node(2), node(3)))
    kernel.ring.peers(cluster(node(2), node(3, "172.16.3.0/24")))
    kernel.obey()
    shared = {str(sa.node): sa.shared for sa in kernel.sas(Direction.OUT)
              if sa.pair in {send.pair for send in kernel.plan.sends.values()}}  # fmt: skip
    assert shared == {"192.168.0.2": 1, "192.168.0.3": 0}


def test_numbers_rest_while_their_state_stands() -> None:
    numbers = Numbers()
    numbers.settle(["a"], ())
    assert (numbers.get("a"), numbers.get("b")) == (1, 0)
    numbers.settle(["b"], {1})
    assert (numbers.get("a"), numbers.get("b")) == (0, 2)
    numbers.settle(["c"], {1, 2, 3, 4})
    assert numbers.get("c") == 0
    numbers.settle(["c"], {2, 3, 4})
    assert numbers.get("c") == 1
    numbers.wear("c")
    numbers.settle(["c"], {1, 2, 3, 4})
    assert numbers.get("c") == 1, "until there is another"
    numbers.settle(["c"], {1, 2, 4})
    assert numbers.get("c") == 3
    numbers.settle(["c"], {3})
    assert numbers.get("c") == 3


# --- how it goes ---------------------------------------------------------------------------------


def test_a_flush_counts_what_is_shared_with_what_is_for_all() -> None:
    kernel = Kernel(cluster(node(2), node(3, "172.16.3.0/24")))
    found = Remains.among(kernel.states().values(), kernel.policies().values())
    assert [(row.peer and str(row.peer), row.states_out, row.states_in, row.policies)
            for row in found.by_peer()] == [
        (None, 1, 1, 4 + 2 + 2), ("192.168.0.3", 1, 0, 3),
    ]  # fmt: skip
    assert [receives(key) for key in found.states] == [False, False, True]
    assert [policy.action is Action.BLOCK for policy in found.policies][-2:] == [True, True]
