# SPDX-License-Identifier: Apache-2.0
"""Judging: contradictions are settled by what is written, never by who read it first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import EncryptionPolicy, Identity, PolicyAction, PolicyName, Rejected
from pellicle.sources.resources import Document, Resource
from pellicle.sources.world import World, judge
from tests.pure.sources.facts_made import document, identity, n, node, pod

WEB = identity(app="web")
ALIKE = ("p52154", "p75311")
"""Names of policies of which the hashes begin alike; found by search."""


@dataclass(frozen=True)
class Case:
    says: str
    given: Sequence[Document[Resource]]
    nodes: str = ""
    endpoints: str = ""
    rejected: Sequence[tuple[str, str]] = ()
    """(the document's source, words of the reason)."""
    pending: Sequence[tuple[str, str]] = ()


def d(resource: Resource, source: str | None = None, position: int = 1) -> Document[Resource]:
    return document(resource, source, position)


P1 = pod("p1", "n1", "10.244.1.2", "fd00:244:1::2", app="web")
P2 = pod("p2", "n2", "10.244.2.2", app="web")

CASES = [
    Case("an empty directory", []),
    Case(
        "nothing contradicts anything",
        [d(n(1)), d(n(2)), d(WEB), d(P1), d(P2)],
        nodes="n1 n2",
        endpoints="default/p1 default/p2",
    ),
    Case(
        "a node twice: the file of its own stays, though another path comes first",
        [d(n(1)), d(node("n1", "192.0.2.9"), "all.yaml")],
        nodes="n1",
        rejected=[("all.yaml", "already defined in nodes/n1.yaml, which stays")],
    ),
    Case(
        "a node twice, neither in its own file: the first path stays",
        [d(n(1), "b.yaml"), d(node("n1", "192.0.2.9"), "a.yaml")],
        nodes="n1",
        rejected=[("b.yaml", "already defined in a.yaml")],
    ),
    Case(
        "a node twice in one file: the first stays",
        [d(n(1), "a.yaml", 2), d(n(1), "a.yaml", 1)],
        nodes="n1",
        rejected=[("a.yaml", "already defined in a.yaml")],
    ),
    Case(
        "two nodes with one address: the first name stays",
        [d(n(1)), d(node("n0", "192.0.2.1"))],
        nodes="n0",
        rejected=[("nodes/n1.yaml", "192.0.2.1 overlaps node n0 (192.0.2.1), which comes first")],
    ),
    Case(
        "a pod CIDR inside another node's",
        [d(n(1)), d(node("n2", "192.0.2.2", cidrs=("10.244.0.0/16",)))],
        nodes="n1",
        rejected=[("nodes/n2.yaml", "10.244.0.0/16 overlaps node n1 (10.244.1.0/24)")],
    ),
    Case(
        "a node's address in another node's pod CIDR would draw a pod's traffic to the node",
        [d(n(1)), d(node("n2", "10.244.1.7"))],
        nodes="n1",
        rejected=[("nodes/n2.yaml", "10.244.1.7 overlaps node n1 (10.244.1.0/24)")],
    ),
    Case(
        "what a rejected node claims is free for the next",
        [
            d(node("a", "192.0.2.1", cidrs=("10.1.0.0/24",))),
            d(node("b", "192.0.2.1", cidrs=("10.2.0.0/24",))),
            d(node("c", "192.0.2.3", cidrs=("10.2.0.0/24",))),
        ],
        nodes="a c",
        rejected=[("nodes/b.yaml", "192.0.2.1 overlaps node a")],
    ),
    Case(
        "CIDRs that touch do not overlap",
        [
            d(node("a", "192.0.2.1", cidrs=("10.1.0.0/25",))),
            d(node("b", "192.0.2.2", cidrs=("10.1.0.128/25",))),
        ],
        nodes="a b",
    ),
    Case(
        "an endpoint of an unknown node waits",
        [d(WEB), d(P1)],
        pending=[("endpoints/n1/default.p1.yaml", "node n1 is not known")],
    ),
    Case(
        "two endpoints of one name and file wait in the order of the file",
        [d(WEB), d(P1, "a.yaml", 2), d(replace(P1, addresses=P2.addresses), "a.yaml", 1)],
        pending=[("a.yaml", "node n1 is not known"), ("a.yaml", "node n1 is not known")],
    ),
    Case(
        "an endpoint of a rejected node waits too",
        [d(node("n0", "192.0.2.1")), d(n(1)), d(WEB), d(P1)],
        nodes="n0",
        rejected=[("nodes/n1.yaml", "192.0.2.1 overlaps")],
        pending=[("endpoints/n1/default.p1.yaml", "not known, or rejected")],
    ),
    Case(
        "an endpoint whose identity is not recorded waits",
        [d(n(1)), d(P1)],
        nodes="n1",
        pending=[("endpoints/n1/default.p1.yaml", f"identity {WEB.number} is not recorded")],
    ),
    Case(
        "an endpoint with other labels than its identity's record",
        [d(n(1)), d(Identity(WEB.number, {**WEB.labels, "app": "db"})), d(P1)],
        nodes="n1",
        rejected=[
            ("endpoints/n1/default.p1.yaml", f"has other labels in identities/{WEB.number}.yaml")
        ],
    ),
    Case(
        "an endpoint with the identity of another namespace",
        [d(n(1)), d(WEB), d(replace(P1, name=replace(P1.name, namespace="evil")))],
        nodes="n1",
        rejected=[("endpoints/n1/evil.p1.yaml", "they differ in io.pellicle/namespace=default")],
    ),
    Case(
        "an identity twice: the file of its own stays",
        [d(n(1)), d(WEB), d(P1), d(Identity(WEB.number, {"app": "x"}), "a.yaml")],
        nodes="n1",
        endpoints="default/p1",
        rejected=[("a.yaml", "already defined in identities/")],
    ),
    Case(
        "an endpoint outside its node's pod CIDRs",
        [d(n(1)), d(WEB), d(replace(P1, addresses=P2.addresses))],
        nodes="n1",
        rejected=[
            (
                "endpoints/n1/default.p1.yaml",
                "10.244.2.2 is outside the node's pod CIDRs (10.244.1.0/24, fd00:244:1::/64)",
            )
        ],
    ),
    Case(
        "an endpoint of a node without pod CIDRs",
        [d(node("n1", "192.0.2.1")), d(WEB), d(P1)],
        nodes="n1",
        rejected=[("endpoints/n1/default.p1.yaml", "outside the node's pod CIDRs (none)")],
    ),
    Case(
        "an endpoint with the address where the node answers its pods",
        [d(n(1)), d(WEB), d(pod("p", "n1", "10.244.1.1", app="web"))],
        nodes="n1",
        rejected=[("endpoints/n1/default.p.yaml", "10.244.1.1 is the node's own")],
    ),
    Case(
        "an endpoint in another node's directory",
        [d(n(1)), d(n(2)), d(WEB), d(P1, "endpoints/n2/default.p1.yaml")],
        nodes="n1 n2",
        rejected=[
            ("endpoints/n2/default.p1.yaml", "spec.node is n1, but the file lies in node n2")
        ],
    ),
    Case(
        "an endpoint in no node's directory is as good as any",
        [
            d(n(1)),
            d(WEB),
            d(P1, "pods.yaml"),
            d(pod("p", "n1", "10.244.1.3", app="web"), "endpoints/p.yaml"),
        ],
        nodes="n1",
        endpoints="default/p default/p1",
    ),
    Case(
        "two endpoints with one address: the first name stays",
        [d(n(1)), d(WEB), d(P1), d(pod("a", "n1", "10.244.1.3", "fd00:244:1::2", app="web"))],
        nodes="n1",
        endpoints="default/a",
        rejected=[("endpoints/n1/default.p1.yaml", "fd00:244:1::2 belongs to endpoint default/a")],
    ),
    Case(
        "a pod that two nodes have: the first path stays",
        [d(n(1)), d(n(2)), d(WEB), d(P1), d(pod("p1", "n2", "10.244.2.2", app="web"))],
        nodes="n1 n2",
        endpoints="default/p1",
        rejected=[
            ("endpoints/n2/default.p1.yaml", "already defined in endpoints/n1/default.p1.yaml")
        ],
    ),
    Case(
        "the pod of a node that left does not keep its name from the pod that replaced it",
        [d(n(2)), d(WEB), d(P1), d(pod("p1", "n2", "10.244.2.2", app="web"))],
        nodes="n2",
        endpoints="default/p1",
        pending=[("endpoints/n1/default.p1.yaml", "node n1 is not known")],
    ),
    Case(
        "a misplaced endpoint does not keep its name from a good one",
        [d(n(1)), d(n(2)), d(WEB), d(P1), d(P1, "endpoints/a/default.p1.yaml")],
        nodes="n1 n2",
        endpoints="default/p1",
        rejected=[("endpoints/a/default.p1.yaml", "in node a's directory")],
    ),
]


def names(rows: Sequence[object]) -> str:
    return " ".join(str(name) for name in rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_judgement(case: Case) -> None:
    world = judge(case.given)
    assert names(list(world.nodes)) == case.nodes
    assert names(list(world.endpoints)) == case.endpoints
    assert [row.source for row in world.rejected] == [source for source, _ in case.rejected]
    for row, (_, words) in zip(world.rejected, case.rejected, strict=True):
        assert words in row.why
    assert [row.source for row in world.pending] == [source for source, _ in case.pending]
    for waiting, (_, words) in zip(world.pending, case.pending, strict=True):
        assert words in waiting.why


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_judgement_does_not_depend_on_the_order(case: Case) -> None:
    for seed in range(10):
        shuffled = list(case.given)
        random.Random(seed).shuffle(shuffled)
        assert judge(shuffled) == judge(case.given)


def test_what_could_not_be_read_is_shown_too() -> None:
    unreadable = Rejected("x.yaml", "file", "empty")
    assert judge([d(n(1))], [unreadable]).rejected == (unreadable,)


def test_of_two_policies_with_one_number_the_first_name_stays() -> None:
    one, other = (EncryptionPolicy(PolicyName(name), PolicyAction.EXEMPT) for name in ALIKE)
    assert one.number == other.number
    world = judge([d(other), d(one)])
    assert list(world.policies.values()) == [one]
    assert "its number is that of" in world.rejected[0].why


# A small world in which nearly everything collides.
_numbers = st.integers(0, 3)
_nodes = st.builds(
    lambda name, address, cidr, length: node(
        f"n{name}", f"192.0.2.{address}", cidrs=(f"10.244.{cidr << (24 - length)}.0/{length}",)
    ),
    _numbers, _numbers.map(lambda i: i + 1), _numbers, st.sampled_from([22, 24]),
)  # fmt: skip
_endpoints = st.builds(
    lambda name, on, third, last, app: pod(f"p{name}", f"n{on}", f"10.244.{third}.{last}", app=app),
    _numbers, _numbers, _numbers, _numbers, st.sampled_from(["web", "db"]),
)  # fmt: skip
_identities = st.builds(
    lambda app, said: Identity(identity(app=app).number, identity(app=said).labels),
    st.sampled_from(["web", "db"]), st.sampled_from(["web", "db"]),
)  # fmt: skip
_policies = st.builds(
    lambda name, action: EncryptionPolicy(PolicyName(f"p{name}"), action),
    _numbers, st.sampled_from(PolicyAction),
)  # fmt: skip
_sources = st.sampled_from([None, "a.yaml", "nodes/n1.yaml", "endpoints/n1/x.yaml", "z.yml"])


@st.composite
def worlds(draw: st.DrawFn) -> list[Document[Resource]]:
    found = draw(st.lists(st.one_of(_nodes, _endpoints, _identities, _policies), max_size=12))
    return [d(resource, draw(_sources), position) for position, resource in enumerate(found)]


@given(worlds(), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_world(
    documents: list[Document[Resource]], chance: random.Random
) -> None:
    shuffled = list(documents)
    chance.shuffle(shuffled)
    assert judge(shuffled) == judge(documents)


@given(worlds())
def test_the_world_is_consistent_and_nothing_vanishes(documents: list[Document[Resource]]) -> None:
    world = judge(documents)
    claims = [claim for one in world.nodes.values() for claim in (*one.addresses, *one.pod_cidrs)]
    assert len(set(claims)) == len(claims)
    cidrs = [cidr for one in world.nodes.values() for cidr in one.pod_cidrs]
    assert not any(a.overlaps(b) for i, a in enumerate(cidrs) for b in cidrs[:i])
    for endpoint in world.endpoints.values():
        home = world.nodes[endpoint.node]
        assert all(any(a in cidr for cidr in home.pod_cidrs) for a in endpoint.addresses)
        assert world.identities[endpoint.identity].labels["app"] == endpoint.labels["app"]
    addresses = [a for one in world.endpoints.values() for a in one.addresses]
    assert len(set(addresses)) == len(addresses)
    assert _size(world) == len(documents)


def _size(world: World) -> int:
    return len(_rows(world)) + len(world.rejected) + len(world.pending)


@given(worlds())
def test_what_is_accepted_needs_nothing_that_was_not(documents: list[Document[Resource]]) -> None:
    """Judging the accepted alone accepts them all: a loser never decides anything."""
    world = judge(documents)
    accepted = [
        document for document in documents if any(document.resource is row for row in _rows(world))
    ]
    again = judge(accepted)
    assert (again.nodes, again.endpoints, again.identities, again.policies) == (
        world.nodes,
        world.endpoints,
        world.identities,
        world.policies,
    )
    assert again.rejected == ()


def _rows(world: World) -> list[Resource]:
    kinds = (world.nodes, world.endpoints, world.identities, world.policies)
    return [resource for kind in kinds for resource in kind.values()]  # type: ignore[attr-defined]
