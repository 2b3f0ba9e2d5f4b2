# SPDX-License-Identifier: Apache-2.0
"""What encryption policies come to: by tables, and against a judge who reads them one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import (
    ALL_TRAFFIC,
    Context,
    EncryptionPolicy,
    Engine,
    NodeName,
    PairId,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
)
from tests.pure.policy.judges import (
    CLUSTER,
    ENCRYPT,
    EXEMPT,
    HERE,
    ICMP,
    N1,
    N2,
    N3,
    OWN,
    TCP,
    UDP,
    WHERE,
    Packet,
    Tabled,
    read_one_by_one,
)


@dataclass(frozen=True)
class Case:
    says: str
    policies: Sequence[EncryptionPolicy]
    expected: Mapping[tuple[str, str], PolicyAction]
    """By two of WHERE, one of them here, whatever the packet."""


def policy(
    name: str, action: PolicyAction, *between: Selector, ports: Sequence[Ports] = ()
) -> EncryptionPolicy:
    return EncryptionPolicy(PolicyName(name), action, between, tuple(ports))


def in_namespace(*names: str, **labels: str) -> Selector:
    return Selector(namespaces=names, labels=MappingProxyType(labels))


def labelled(**labels: str) -> Selector:
    return Selector(labels=MappingProxyType(labels))


def on(*nodes: NodeName) -> Selector:
    return Selector(nodes=nodes)


def inside(*cidrs: str) -> Selector:
    return Selector(cidrs=tuple(map(ip_network, cidrs)))


CASES = [
    Case("no policy", [], {(a, b): ENCRYPT for a in HERE for b in WHERE}),
    Case("all is exempt", [policy("p", EXEMPT)], {(a, b): EXEMPT for a in HERE for b in WHERE}),
    Case(
        "a namespace and anybody",
        [policy("p", EXEMPT, in_namespace("bank"))],
        {
            ("shop web on n1", "bank db on n2"): EXEMPT,
            ("n1", "bank db on n3"): EXEMPT,
            ("shop web on n1", "shop web on n2"): ENCRYPT,
            ("plain on n1", "nobody's"): ENCRYPT,
        },
    ),
    Case(
        "two sides: only between them",
        [policy("p", EXEMPT, labelled(app="web"), labelled(app="db", tier="data"))],
        {
            ("shop web on n1", "bank db on n2"): EXEMPT,
            ("shop web on n1", "bank db on n3"): ENCRYPT,
            ("plain on n1", "bank db on n2"): ENCRYPT,
            ("shop web on n1", "shop web on n2"): ENCRYPT,
        },
    ),
    Case(
        "only a namespace is encrypted, the rest is not",
        [policy("none", EXEMPT), policy("bank", ENCRYPT, in_namespace("bank"))],
        {
            ("shop web on n1", "bank db on n2"): ENCRYPT,
            ("shop web on n1", "shop web on n2"): EXEMPT,
            ("n1", "n2"): EXEMPT,
        },
    ),
    Case(
        "more sides before fewer, whatever is asked for",
        [
            policy("a", OWN, in_namespace("bank")),
            policy("b", EXEMPT, in_namespace("bank"), in_namespace("shop")),
        ],
        {
            ("shop web on n1", "bank db on n2"): EXEMPT,
            ("plain on n1", "bank db on n2"): OWN,
        },
    ),
    Case(
        "alike in that: the stricter one",
        [policy("a", EXEMPT, in_namespace("bank")), policy("b", ENCRYPT, labelled(app="web"))],
        {
            ("shop web on n1", "bank db on n2"): ENCRYPT,
            ("plain on n1", "bank db on n2"): EXEMPT,
        },
    ),
    Case(
        "a node: its pods, itself, its gateways",
        [policy("p", EXEMPT, on(N2))],
        {
            ("shop web on n1", "bank db on n2"): EXEMPT,
            ("n1", "n2"): EXEMPT,
            ("plain on n1", "n2's gateway"): EXEMPT,
            ("n1", "n3"): ENCRYPT,
        },
    ),
    Case(
        "a CIDR: whoever is in it, and whoever may come",
        [policy("p", EXEMPT, inside("10.244.3.128/25", "10.244.77.0/24", "198.51.100.0/24"))],
        {
            ("plain on n1", "bank db on n3"): EXEMPT,
            ("plain on n1", "bank db on n2"): ENCRYPT,
            ("plain on n1", "nobody's"): EXEMPT,
        },
    ),
    Case(
        "a CIDR and more: nobody's address is of no namespace",
        [policy("p", EXEMPT, Selector(namespaces=("bank",), cidrs=tuple(CLUSTER)))],
        {("plain on n1", "bank db on n3"): EXEMPT, ("plain on n1", "nobody's"): ENCRYPT},
    ),
    Case(
        "the same selector twice: among its own",
        [policy("p", OWN, in_namespace("shop"), in_namespace("shop"))],
        {
            ("shop web on n1", "shop web on n2"): OWN,
            ("plain on n1", "shop web on n2"): ENCRYPT,
            ("shop web on n1", "bank db on n2"): ENCRYPT,
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_what_policies_come_to(case: Case) -> None:
    tabled = Tabled(case.policies)
    for (one, other), expected in case.expected.items():
        for ends in ((one, other), (other, one)):
            packet = Packet(*(WHERE[end] for end in ends))
            assert tabled.judge(packet).action is expected, ends


PG = Ports(TCP, 5432, 5432)
WEB = Ports(TCP, 80, 81)


def on_port(port: int, own: int = 40000, protocol: int = TCP) -> tuple[int, int, int]:
    return protocol, own, port


def test_a_port_is_that_of_either_end_and_fragments_have_none() -> None:
    policies = [
        policy("pg", OWN, in_namespace("bank"), ports=[PG]),
        policy("web", EXEMPT, in_namespace("bank"), ports=[WEB]),
    ]
    tabled = Tabled(policies)
    here, there = WHERE["shop web on n1"], WHERE["bank db on n2"]

    def said(protocol: int, *ports: int, fragment: bool = False) -> set[PolicyAction]:
        packets = [
            Packet(here, there, protocol, (ports[0], ports[1]), fragment),
            Packet(there, here, protocol, (ports[1], ports[0]), fragment),
        ]
        return {tabled.judge(packet).action for packet in packets}

    assert said(TCP, 40000, 5432) == {OWN}
    assert said(TCP, 40000, 81) == {EXEMPT}
    assert said(TCP, 40000, 82) == said(UDP, 40000, 81) == said(ICMP, 0, 0) == {ENCRYPT}
    assert said(TCP, 81, 5432) == {OWN}, "the stricter one, in both directions"
    assert said(TCP, 40000, 81, fragment=True) == {OWN}, "it may be of any port"


def test_until_all_ports_of_a_list_stand_the_strictest_holds() -> None:
    tabled = Tabled([policy("p", EXEMPT), policy("pg", ENCRYPT, ports=[PG, WEB])])
    t = tabled.t
    (row,) = t.policy_rows.rows.values()
    assert (row.rest.action, row.fragments.action) == (EXEMPT, ENCRYPT)
    assert len(t.policy_ports.rows) == 3
    for lost in t.policy_ports.rows:
        t.policy_ports_up.replace({k: v for k, v in t.policy_ports.rows.items() if k != lost})
        tabled.plan()
        (row,) = t.policy_rows.rows.values()
        assert (row.rest.action, row.ports) == (ENCRYPT, 0)


def test_a_list_of_ports_stays_as_long_as_a_row_names_it() -> None:
    tabled = Tabled([policy("p", EXEMPT), policy("pg", ENCRYPT, ports=[PG])])
    t = tabled.t
    before = dict(t.policy_ports.rows)
    t.encryption_policies.replace({})
    tabled.plan()
    assert (t.policy_rows.rows, t.policy_ports.rows) == ({}, before)
    t.policy_rows_up.replace({})
    tabled.plan()
    assert t.policy_ports.rows == {}


def test_own_keys_are_needed_with_nodes_that_have_such_traffic_and_stay() -> None:
    tabled = Tabled([policy("p", OWN, in_namespace("shop"), in_namespace("bank"))])
    t = tabled.t
    assert {node for node, _ in t.contexts.rows} == {N2, N3}
    t.endpoints.replace({})
    tabled.plan()
    assert t.contexts.rows == {}
    assert {node for node, _ in t.kept_contexts.rows} == {N2, N3}, "pods come back"
    t.encryption_policies.replace({})
    tabled.plan()
    assert t.kept_contexts.rows == {}


def test_own_keys_are_asked_for_when_they_stand_everywhere_and_from_then_on() -> None:
    mine = policy("p", OWN, in_namespace("shop"), in_namespace("bank"))
    tabled = Tabled([], has_own_keys=True)
    t, context = tabled.t, Context(mine.number)
    row = EncryptRow(PairId(7), Engine.BPF)
    nodes = [ip_address(f"192.0.2.{number}") for number in (2, 3)]
    of_nodes = {EncryptKey(ALL_TRAFFIC, address): row for address in nodes}
    own = {EncryptKey(context, address): row for address in nodes}

    def asked(stands: Mapping[EncryptKey, EncryptRow]) -> set[PolicyAction]:
        t.encrypt_up.replace(stands)
        tabled.plan()
        assert {row.rest.policy for row in t.policy_rows.rows.values()} == {mine.number}
        return {row.rest.action for row in t.policy_rows.rows.values()}

    t.encrypt_up.replace(of_nodes)
    t.encryption_policies.replace({mine.name: mine})
    assert asked(of_nodes) == {ENCRYPT}, "with the nodes' keys"
    first = dict(list(own.items())[:1])
    assert asked({**of_nodes, **first}) == {ENCRYPT}
    assert asked({**of_nodes, **own}) == {OWN}
    assert asked(of_nodes) == {OWN}, "nothing else will do"


# --- against a judge who knows no groups ----------------------------------------------------------

_selectors = st.sampled_from(
    [
        in_namespace("bank"), in_namespace("shop", "bank"), labelled(app="web"),
        labelled(app="db", tier="data"), in_namespace("bank", app="db"), on(N1), on(N2, N3),
        inside("10.244.2.0/23"), inside("10.244.0.0/16"), inside("192.0.2.2/31"),
        Selector(nodes=(N2,), cidrs=(ip_network("10.244.2.2/31"),)),
        Selector(nodes=(N1, N2), namespaces=("shop",)),
    ]
)  # fmt: skip
_ports = st.sampled_from([PG, WEB, Ports(UDP, 80, 80), Ports(TCP, 81, 5432)])
_policies = st.lists(
    st.builds(
        EncryptionPolicy,
        st.integers(0, 5).map(lambda number: PolicyName(f"p{number}")),
        st.sampled_from(PolicyAction),
        st.lists(_selectors, max_size=2).map(tuple),
        st.lists(_ports, max_size=2).map(tuple),
    ),
    max_size=6,
    unique_by=lambda each: each.name,
)
_port_numbers = st.sampled_from([80, 81, 5432, 40000])
_packets = st.builds(
    lambda here, there, turned, *rest: Packet(
        WHERE[there if turned else here], WHERE[here if turned else there], *rest
    ),
    st.sampled_from(HERE),
    st.sampled_from(list(WHERE)),
    st.booleans(),
    st.sampled_from([TCP, UDP, ICMP]),
    st.tuples(_port_numbers, _port_numbers),
)


@given(_policies, st.lists(_packets, min_size=1, max_size=20))
@example([policy("p", EXEMPT, on(N2))], [Packet(WHERE["n1"], WHERE["n2's gateway"])])
def test_as_if_each_policy_were_read_for_each_packet(
    policies: list[EncryptionPolicy], packets: list[Packet]
) -> None:
    tabled = Tabled(policies)
    for packet in packets:
        assert tabled.judge(packet) == read_one_by_one(policies, packet)
        assert tabled.probes <= 3, "and the fourth is for the keys"
