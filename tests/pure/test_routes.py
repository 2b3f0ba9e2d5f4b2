# SPDX-License-Identifier: Apache-2.0
"""Routes to the door and their MTU, planned from facts alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pellicle.datapath.address import host_network
from pellicle.datapath.programs import DOOR_HOST, DOOR_OVERLAY, DOOR_XFRM
from pellicle.encryption.paths import HOLDS_SECONDS, PathMtus
from pellicle.encryption.routes import (
    ANY_LENGTH,
    DEFAULTS,
    ESP_BYTES,
    LAST_RESORT,
    OUTER_BYTES,
    RoutePlan,
    inner_mtu,
    overlay_mtu,
    path_mtu,
)
from pellicle.encryption.table import EncryptRow, key_for
from pellicle.facts import Address, Engine, Link, Node, NodeName, PairId
from pellicle.table import Table
from pellicle.wire.netlink import RouteKind, Rule

LONGEST = 2046
HERE = Node(
    NodeName("n1"),
    (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
    (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64")),
)
BOTH = Node(
    NodeName("n2"),
    (ip_address("192.0.2.2"), ip_address("2001:db8::2")),
    (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")),
)
SIX = Node(NodeName("n3"), (ip_address("2001:db8::3"),), (ip_network("10.244.3.0/24"),))
FOREIGN = Node(NodeName("n4"), (), (ip_network("10.244.4.0/24"),))
LINKS = {
    "eth0": Link("eth0", 2, "", 1500, is_up=True),
    DOOR_HOST: Link(DOOR_HOST, 5, "", 1500, is_up=True),
    DOOR_XFRM: Link(DOOR_XFRM, 6, "", 1500, is_up=True),
}
PLAN = RoutePlan(HERE.name, "eth0", 200, "auto", Engine.BPF, LONGEST, are_nodes_encrypted=True)
KERNELS = replace(PLAN, engine=Engine.XFRM, longest=ANY_LENGTH)


def nodes(*others: Node) -> dict[NodeName, Node]:
    return {node.name: node for node in (HERE, *others)}


@pytest.mark.parametrize(
    ("uplink", "version", "inner"),
    [(1500, 4, 1446), (1500, 6, 1426), (1400, 4, 1346), (9000, 4, LONGEST), (1280, 6, 1206)],
)
def test_the_mtu_is_exact(uplink: int, version: int, inner: int) -> None:
    assert inner_mtu(uplink, version, LONGEST) == inner


@given(st.integers(1280, 9000), st.sampled_from([4, 6]))
def test_the_longest_packet_fits_and_one_more_byte_does_not(uplink: int, version: int) -> None:
    def sealed(inner: int) -> int:
        return OUTER_BYTES[version] + ESP_BYTES + (inner + 2 + 3) // 4 * 4

    inner = inner_mtu(uplink, version, 1 << 20)
    assert sealed(inner) <= uplink < sealed(inner + 1)


def test_peers_are_reached_through_the_door_and_nothing_marked_goes_elsewhere() -> None:
    rows = PLAN.routes(nodes(BOTH), LINKS, {}, {})
    shown = {(str(r.destination), r.table, r.kind, r.device, r.mtu) for r in rows.values()}
    unicast = RouteKind.UNICAST
    assert shown == {
        *((str(default), 200, RouteKind.BLACKHOLE, None, None) for default in DEFAULTS),
        *((str(cidr), 200, RouteKind.THROW, None, None) for cidr in HERE.pod_cidrs),
        ("192.0.2.2/32", 200, unicast, 5, 1446),
        ("2001:db8::2/128", 200, unicast, 5, 1446),
        ("10.244.2.0/24", 200, unicast, 5, 1446),
        ("fd00:244:2::/64", 200, unicast, 5, 1446),
        ("192.0.2.2/32", 201, unicast, 5, 1446),
        ("2001:db8::2/128", 201, unicast, 5, 1446),
        ("10.244.2.0/24", 201, unicast, 5, 1446),
        ("fd00:244:2::/64", 201, unicast, 5, 1446),
    }
    sources = {(str(r.destination), str(r.source)) for r in rows.values() if r.table == 201}
    assert sources == {
        ("10.244.2.0/24", str(HERE.addresses[0])),
        ("fd00:244:2::/64", str(HERE.addresses[1])),
        ("192.0.2.2/32", str(HERE.addresses[0])),
        ("2001:db8::2/128", str(HERE.addresses[1])),
    }


def test_where_nodes_are_left_alone_only_pods_are_reached_through_the_door() -> None:
    rows = replace(PLAN, are_nodes_encrypted=False).routes(nodes(BOTH), LINKS, {}, {})
    unmarked = {str(r.destination) for r in rows.values() if r.table == 201}
    assert unmarked == {"10.244.2.0/24", "fd00:244:2::/64"}


OVERLAY = replace(PLAN, is_overlay=True)
WITH_OVERLAY = LINKS | {DOOR_OVERLAY: Link(DOOR_OVERLAY, 7, "", 1500, is_up=True)}


def test_in_the_overlay_pods_are_reached_through_its_device_and_nodes_through_the_door() -> None:
    rows = OVERLAY.routes(nodes(BOTH, SIX), WITH_OVERLAY, {}, {})
    shown = {(str(r.destination), r.table, r.device, r.mtu) for r in rows.values() if r.mtu}
    assert shown == {
        *(("10.244.2.0/24", table, 7, 1446 - 50) for table in (200, 201)),
        *(("fd00:244:2::/64", table, 7, 1446 - 50) for table in (200, 201)),
        *(("10.244.3.0/24", table, 7, 1426 - 70) for table in (200, 201)),
        *(("192.0.2.2/32", table, 5, 1446) for table in (200, 201)),
        *(("2001:db8::2/128", table, 5, 1446) for table in (200, 201)),
        *(("2001:db8::3/128", table, 5, 1426) for table in (200, 201)),
    }
    assert OVERLAY.rules() == PLAN.rules()


def test_without_the_overlays_device_no_route_to_pods_leads_anywhere() -> None:
    rows = OVERLAY.routes(nodes(BOTH), LINKS, {}, {})
    assert {r.destination for r in rows.values() if r.mtu} == {
        host_network(address) for address in BOTH.addresses
    }


def test_without_encryption_only_the_overlay_wants_routes() -> None:
    clear = replace(OVERLAY, is_encrypting=False)
    rows = clear.routes(nodes(BOTH, SIX), WITH_OVERLAY, {}, {})
    assert {
        (str(r.destination), r.table, r.device, r.mtu, str(r.source)) for r in rows.values()
    } == {
        ("10.244.2.0/24", 201, 7, 1450, "192.0.2.1"),
        ("fd00:244:2::/64", 201, 7, 1450, "2001:db8::1"),
        ("10.244.3.0/24", 201, 7, 1430, "192.0.2.1"),
    }
    assert {(rule.family, rule.table, rule.mark) for rule in clear.rules()} == {
        (4, 201, 0), (6, 201, 0),
    }  # fmt: skip
    assert replace(PLAN, is_encrypting=False).rules() == {}


def test_the_mtu_follows_the_family_outside_and_the_path() -> None:
    rows = PLAN.routes(nodes(BOTH, SIX), LINKS, {ip_address("192.0.2.2"): 1400}, {})
    mtus = {str(r.destination): r.mtu for r in rows.values() if r.table == 201}
    assert mtus["10.244.2.0/24"] == 1346
    assert mtus["10.244.3.0/24"] == 1426


@pytest.mark.parametrize("missing", ["eth0", DOOR_HOST, "record"])
def test_without_door_or_uplink_what_is_marked_goes_nowhere(missing: str) -> None:
    """Above all not on to the main table, which knows a way in the clear."""
    links = {name: link for name, link in LINKS.items() if name != missing}
    known = {BOTH.name: BOTH} if missing == "record" else nodes(BOTH)
    rows = PLAN.routes(known, links, {}, {})
    assert {(default, 200, LAST_RESORT) for default in DEFAULTS} <= rows.keys()
    assert {r.kind for r in rows.values()} <= {RouteKind.BLACKHOLE, RouteKind.THROW}


def test_each_engine_has_its_door() -> None:
    """And peers that are sent to on an old pair of the kernel's keep that door."""
    kernels = {key_for(BOTH): EncryptRow(PairId(7), Engine.XFRM)}
    for plan, encrypt, door in (
        (PLAN, {}, 5),
        (PLAN, kernels, 6),
        (KERNELS, {}, 6),
        (KERNELS, {key_for(BOTH): EncryptRow(PairId(7), Engine.BPF)}, 6),
    ):
        rows = plan.routes(nodes(BOTH), LINKS, {}, encrypt)
        assert {r.device for r in rows.values() if r.kind is RouteKind.UNICAST} == {door}


def test_without_the_kernels_door_nothing_takes_the_other() -> None:
    links = {name: link for name, link in LINKS.items() if name != DOOR_XFRM}
    rows = KERNELS.routes(nodes(BOTH), links, {}, {})
    assert RouteKind.UNICAST not in {r.kind for r in rows.values()}


@pytest.mark.parametrize(
    ("plan", "longest", "mtu"),
    [
        ("PLAN", None, LONGEST),
        ("KERNELS", None, 8946),
        ("KERNELS", LONGEST, LONGEST),
        ("KERNELS", 65535, 8946),
    ],
    ids=["our engine's limit", "none", "the peer's limit", "the uplink's"],
)
def test_no_packet_is_longer_than_both_ends_can_carry(
    plan: str, longest: int | None, mtu: int
) -> None:
    links = {**LINKS, "eth0": Link("eth0", 2, "", 9000, is_up=True)}
    peer = replace(BOTH, longest=longest)
    rows = globals()[plan].routes(nodes(peer), links, {}, {})
    assert {r.mtu for r in rows.values() if r.kind is RouteKind.UNICAST} == {mtu}


def test_nothing_is_routed_to_a_node_that_no_tunnel_can_reach() -> None:
    rows = PLAN.routes(nodes(FOREIGN), LINKS, {}, {})
    assert {r.kind for r in rows.values()} == {RouteKind.BLACKHOLE, RouteKind.THROW}


def test_marked_packets_look_into_our_table_first() -> None:
    assert set(PLAN.rules()) == {
        rule
        for version in (4, 6)
        for rule in (
            Rule(version, 1, 200, mark=0xE00, mask=0xF00),
            Rule(version, 2, 201, mark=0, mask=0xF00),
        )
    }


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_routers_word_narrows_a_path_for_a_while() -> None:
    clock, table = _Clock(), Table[Address, int]("paths")
    paths = PathMtus(table, 1500, clock)
    peer = BOTH.addresses[0]
    paths.narrow(peer, 1400, [HERE, BOTH])
    assert dict(table.rows) == {peer: 1400}
    clock.now += HOLDS_SECONDS - 1
    paths.forget()
    assert dict(table.rows) == {peer: 1400}
    clock.now += 2
    paths.forget()
    assert dict(table.rows) == {}


def test_a_word_said_again_and_again_is_heard_once() -> None:
    """Or whoever forges ICMP fills the log, and a wider word undoes a true one."""
    clock, table = _Clock(), Table[Address, int]("paths")
    paths = PathMtus(table, 1500, clock)
    peer = BOTH.addresses[0]
    with capture_logs() as lines:
        for mtu in (1400, 1400, 1450, 1400):
            paths.narrow(peer, mtu, [HERE, BOTH])
        assert dict(table.rows) == {peer: 1400}
        paths.narrow(peer, 1380, [HERE, BOTH])
    assert dict(table.rows) == {peer: 1380}
    assert len(lines) == 2
    clock.now += HOLDS_SECONDS + 1
    paths.narrow(peer, 1450, [HERE, BOTH])
    assert dict(table.rows) == {peer: 1450}


@pytest.mark.parametrize(
    ("address", "mtu"),
    [("192.0.2.2", 1500), ("192.0.2.2", 9000), ("198.51.100.1", 1400)],
    ids=["no news", "more than there is", "of nobody we know"],
)
def test_a_word_that_says_nothing_is_not_believed(address: str, mtu: int) -> None:
    table = Table[Address, int]("paths")
    PathMtus(table, 1500, _Clock()).narrow(ip_address(address), mtu, [HERE, BOTH])
    assert dict(table.rows) == {}


@pytest.mark.parametrize("version", [4, 6])
def test_a_hostile_router_cannot_take_the_room_of_ipv6(version: int) -> None:
    assert inner_mtu(path_mtu(68, version), version, LONGEST) >= 1280
    carried = inner_mtu(path_mtu(68, version, is_overlay=True), version, LONGEST)
    assert overlay_mtu(carried, version) >= 1280
