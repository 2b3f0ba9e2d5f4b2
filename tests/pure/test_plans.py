# SPDX-License-Identifier: Apache-2.0
"""Planned part by part, a table is what a plan of everything would make of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pellicle import derived
from pellicle.datapath.ipcache import CidrRow
from pellicle.datapath.programs import DOOR_HOST, DOOR_XFRM
from pellicle.encryption.routes import ANY_LENGTH, RoutePlan
from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import (
    ALL_TRAFFIC,
    Attachment,
    Cipher,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Engine,
    Epoch,
    IdentityNumber,
    Link,
    Node,
    NodeName,
    PairId,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
    Spi,
)
from pellicle.keys.rows import Direction, Sa, SaKey, Send
from pellicle.plans import Derivation, Parted
from pellicle.table import Table
from pellicle.tables import Tables

ME = NodeName("n0")
NUMBERS = st.integers(0, 3)
SUBSETS = st.sets(NUMBERS)
CIDRS = (ip_network("10.244.0.0/16"), ip_network("10.244.2.0/24"))
"""One of them is a node's, too."""


def whole(derivation: Derivation[Any, Any]) -> Mapping[Any, Any]:
    return derivation.plan(*(table.rows for table in derivation.tables))


def node(number: int, first: str = "192.0.2") -> Node:
    outer = ip_address(f"{first}.{number + 1}"), ip_address(f"2001:db8::{number + 1}")
    return Node(NodeName(f"n{number}"), outer, (ip_network(f"10.244.{number}.0/24"),))


def pod(number: int, home: int) -> Endpoint:
    plug = Attachment("c", "eth0", f"pel0000000000{number}", "02:00:00:00:00:01")
    name = EndpointName("default", f"p{number}")
    address = ip_address(f"10.244.{home}.{number + 2}")
    return Endpoint(name, NodeName(f"n{home}"), (address,), IdentityNumber(300), attachment=plug)


def shared_sa(number: int, shared: int) -> Sa:
    """One that sends by a state that others have, too."""
    peer = node(number)
    return Sa(
        Direction.OUT, PairId(1000 + 10 * number + shared), 0, Spi(3), node(0).addresses[0],
        peer.addresses[0], peer.addresses[0], Epoch(1), Epoch(3), engine=Engine.XFRM,
        cipher=Cipher.AES_128_GCM, slot=100 + 10 * number + shared, shared=shared,
    )  # fmt: skip


def sas(number: int, engine: Engine) -> dict[SaKey, Sa]:
    here, there = node(0).addresses[0], node(number).addresses[0]
    rows = (
        Sa(
            Direction.OUT, PairId(10 * number + (engine is Engine.XFRM)), each, Spi(each + 256),
            here, there, there, Epoch(1), Epoch(1), engine=engine, cipher=Cipher.AES_128_GCM,
            slot=number + 1,
        )
        for each in range(2)
    )  # fmt: skip
    return {sa.at: sa for sa in rows}


def policy(number: int, variant: int) -> EncryptionPolicy:
    """One of each kind, and of each some variants."""
    someone = Selector(nodes=(NodeName(f"n{variant}"),), cidrs=CIDRS[variant % 2 :])
    between = ((), (someone,), (someone, Selector(namespaces=("default",))), (someone, someone))
    ports = (Ports(6, 80, 80 + variant),) if variant else ()
    action = list(PolicyAction)[(number + variant) % 3]
    return EncryptionPolicy(PolicyName(f"p{number}"), action, between[number], ports)


class AnyCluster(RuleBasedStateMachine):
    """Nodes, pods, devices and SAs come, change and go; others' tables are the test's."""

    used = Engine.BPF

    def __init__(self) -> None:
        super().__init__()
        self.t = t = Tables()
        route = RoutePlan(ME, "eth0", 200, "auto", self.used, ANY_LENGTH, are_nodes_encrypted=True)
        self.derivations = [
            *derived.of_cluster(t, ME, "eth0", dict.fromkeys(CIDRS, CidrRow())),
            *derived.of_policies(t, ME),
            *derived.of_encryption(t, self.used, CIDRS),
            *derived.of_routes(t, route),
            *derived.of_kernel_ipsec(t, "eth0", CIDRS),
        ]
        for table in (t.nodes, t.endpoints, t.links, t.paths, t.sas_up, t.sends, t.encrypt_up):
            table.replace({})
        for up in (t.policies_up, t.policy_ports_up, t.policy_rows_up):
            up.replace({})
        t.encryption_policies.replace({})
        t.own_sends.replace({})

    @rule(numbers=SUBSETS, moved=SUBSETS)
    def know_nodes(self, numbers: set[int], moved: set[int]) -> None:
        nodes = [node(n, "198.51.100" if n in moved else "192.0.2") for n in sorted(numbers)]
        self.t.nodes.replace({each.name: each for each in nodes})

    @rule(homes=st.dictionaries(NUMBERS, NUMBERS))
    def know_pods(self, homes: dict[int, int]) -> None:
        pods = [pod(number, home) for number, home in homes.items()]
        self.t.endpoints.replace({each.name: each for each in pods})

    @rule(numbers=SUBSETS, variant=NUMBERS)
    def know_policies(self, numbers: set[int], variant: int) -> None:
        policies = [policy(number, variant) for number in numbers]
        self.t.encryption_policies.replace({each.name: each for each in policies})

    @rule()
    def put_ports(self) -> None:
        self.t.policy_ports_up.replace(self.t.policy_ports.rows)

    @rule()
    def put_policy_rows(self) -> None:
        self.t.policy_rows_up.replace(self.t.policy_rows.rows)

    @rule(number=NUMBERS)
    def lose_a_port(self, number: int) -> None:
        self.t.policy_ports_up.replace(dict(list(self.t.policy_ports_up.rows.items())[number:]))

    @rule(devices=SUBSETS, mtu=st.sampled_from([1400, 1500]), doors=st.booleans())
    def know_links(self, devices: set[int], mtu: int, doors: bool) -> None:
        names = [f"pel0000000000{number}" for number in devices]
        names += ["eth0", DOOR_HOST, DOOR_XFRM] if doors else []
        links = {
            name: Link(name, index, "", mtu, is_up=True) for index, name in enumerate(names, 1)
        }
        self.t.links.replace(links)

    @rule(mtus=st.dictionaries(NUMBERS, st.integers(1300, 1400)))
    def hear_of_paths(self, mtus: dict[int, int]) -> None:
        self.t.paths.replace({node(number).addresses[0]: mtu for number, mtu in mtus.items()})

    @rule(engines=st.dictionaries(NUMBERS, st.sampled_from(Engine)))
    def have_sas(self, engines: dict[int, Engine]) -> None:
        rows: dict[SaKey, Sa] = {}
        for number, engine in engines.items():
            rows |= sas(number, engine)
        self.t.sas_up.replace(rows)

    @rule(numbers=st.dictionaries(NUMBERS, st.integers(1, 4)))
    def have_shared_states(self, numbers: dict[int, int]) -> None:
        found = [shared_sa(number, shared) for number, shared in numbers.items()]
        self.t.sas_up.change({sa.at: sa for sa in found})
        rows = {NodeName(f"n{n}"): Send(sa.pair, Engine.XFRM, sa.node, sas=1)
                for n, sa in zip(numbers, found, strict=True)}  # fmt: skip
        self.t.sends.change(rows)

    @rule(engines=st.dictionaries(NUMBERS, st.sampled_from(Engine)), is_new=st.booleans())
    def send(self, engines: dict[int, Engine], is_new: bool) -> None:
        rows = {}
        for number, engine in engines.items():
            sa = next(iter(sas(number, engine).values()))
            pair = PairId(90 + number) if is_new else sa.pair
            rows[NodeName(f"n{number}")] = Send(pair, engine, sa.node)
        self.t.sends.replace(rows)

    @rule()
    def put_encrypt(self) -> None:
        self.t.encrypt_up.replace(self.t.encrypt.rows)

    @rule()
    def put_policies(self) -> None:
        self.t.policies_up.replace(self.t.policies.rows)

    @rule(number=NUMBERS)
    def lose_an_sa(self, number: int) -> None:
        rows = dict(list(self.t.sas_up.rows.items())[number:])
        self.t.sas_up.replace(rows)

    @rule(number=NUMBERS)
    def lose_a_policy(self, number: int) -> None:
        self.t.policies_up.replace(dict(list(self.t.policies_up.rows.items())[number:]))

    @rule(number=NUMBERS)
    def find_an_old_row(self, number: int) -> None:
        key = EncryptKey(ALL_TRAFFIC, node(number).addresses[0])
        self.t.encrypt_up.change({key: EncryptRow(PairId(99), Engine.XFRM)})

    @invariant()
    def every_table_is_what_a_plan_of_everything_makes(self) -> None:
        for _ in range(4):
            for each in self.derivations:
                each.run()
        for each in self.derivations:
            assert each.out.rows == whole(each), each.out


class AnyClusterOfKernels(AnyCluster):
    used = Engine.XFRM


TestAnyCluster = AnyCluster.TestCase
TestAnyClusterOfKernels = AnyClusterOfKernels.TestCase
for case in (TestAnyCluster, TestAnyClusterOfKernels):
    case.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_only_what_changed_is_planned_anew() -> None:
    looked: list[Hashable] = []

    def plan(rows: Mapping[str, int], _all: Mapping[str, int]) -> dict[str, int]:
        looked.extend(rows)
        return {key: 2 * row for key, row in rows.items()}

    rows: Table[str, int] = Table("rows")
    of_all: Table[str, int] = Table("of all")
    out: Table[str, int] = Table("out")
    it = Derivation(out, plan, [Parted(rows, lambda key, _: key), of_all])
    rows.replace({"a": 1, "b": 2, "c": 3})
    it.run()
    assert not out.listed, "half the world is no world"
    of_all.replace({})
    it.run()
    assert out.rows == {"a": 2, "b": 4, "c": 6}
    looked.clear()
    rows.replace({"a": 1, "b": 5})
    it.run()
    assert (out.rows, looked) == ({"a": 2, "b": 10}, ["b"])
    looked.clear()
    of_all.replace({"x": 1})
    it.run()
    assert looked == ["a", "b"]
    looked.clear()
    it.run()
    assert not looked


def test_a_key_may_go_from_one_part_to_another() -> None:
    rows: Table[str, tuple[str, str]] = Table("rows")
    out: Table[str, str] = Table("out")

    def plan(rows: Mapping[str, tuple[str, str]]) -> dict[str, str]:
        return {address: key for key, (_, address) in rows.items()}

    it = Derivation(out, plan, [Parted(rows, lambda _, row: row[0])])
    for row in (("n1", "x"), ("n2", "x"), ("n2", "y"), ("n1", "y")):
        rows.replace({"pod": row, "other": ("n3", "z")})
        it.run()
        assert out.rows == {row[1]: "pod", "z": "other"}
    rows.replace({"other": ("n3", "x"), "pod": ("n1", "z")})
    it.run()
    assert out.rows == {"x": "other", "z": "pod"}


def test_a_plan_waits_and_then_is_of_everything() -> None:
    """What a part made before nobody could do anything with it is not forgotten."""
    nodes: Table[str, int] = Table("nodes")
    links: Table[str, int] = Table("links")
    out: Table[str, int] = Table("out")

    def plan(nodes: Mapping[str, int], links: Mapping[str, int]) -> dict[str, int]:
        return {"always": 0, **{key: links["up"] for key in nodes if "up" in links}}

    it = Derivation(out, plan, [Parted(nodes, lambda key, _: key), links])
    nodes.replace({"n1": 1})
    links.replace({})
    it.run()
    assert out.rows == {"always": 0}
    links.replace({"up": 7})
    it.run()
    assert out.rows == {"always": 0, "n1": 7}
    nodes.replace({})
    it.run()
    assert out.rows == {"always": 0}


def test_rows_of_no_part_concern_nobody() -> None:
    pods: Table[str, int] = Table("pods")
    out: Table[str, int] = Table("out")
    it = Derivation(out, dict, [Parted(pods, lambda key, row: key if row else None)])
    pods.replace({"here": 1, "elsewhere": 0})
    it.run()
    assert out.rows == {"here": 1}
    pods.replace({"here": 0, "elsewhere": 2})
    it.run()
    assert out.rows == {"elsewhere": 2}


def test_sas_are_told_from_others_by_their_engine() -> None:
    t = Tables()
    planned = {each.out.name: each for each in derived.of_encryption(t, Engine.BPF)}
    mine, kernels = sas(1, Engine.BPF), sas(2, Engine.XFRM)
    t.sas_up.replace({**mine, **kernels})
    planned[t.kernel_sas.name].run()
    assert t.kernel_sas.rows == kernels
    t.sas_up.replace({key: replace(sa, engine=Engine.BPF) for key, sa in kernels.items()})
    planned[t.kernel_sas.name].run()
    planned[t.kernel_used.name].run()
    assert not t.kernel_sas.rows
    assert not t.kernel_used.rows
