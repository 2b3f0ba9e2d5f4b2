# SPDX-License-Identifier: Apache-2.0
"""What happens to a packet's header on its way through the tunnel: ECN, DSCP, TTL.

n1/p1 ─▶ n1 ═══ a bump that marks the outer header ═══ n2 ─▶ n2/p1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pellicle import lab
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests.net.bump import bump, get_tos, is_esp, set_tos
from tests.net.loaded import address_of, assert_private, until
from tests.net.parcels import SECRET, Post, content, is_echoed, parcels

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
N1, N2 = LabNode(1), LabNode(2)
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])

NOT_ECT, ECT1, ECT0, CE = range(4)
"""RFC 3168 §5."""
DROP = None
DECAPSULATED = {
    # inner, outer as it arrives → what the pod gets: RFC 6040 §4.2, figure 4
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: DROP},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}
DSCPS = (0, 10, 46, 63)
"""Best effort, AF11, EF, and all bits set."""
TIME_EXCEEDED = {4: (11, 0), 6: (3, 0)}


@dataclass(slots=True)
class Marking:
    """Gives ESP another ECN field, and notes what it had."""

    ecn: int | None = None
    seen: list[int] = field(default_factory=list)

    def __call__(self, packet: bytes) -> Iterator[bytes]:
        if not is_esp(packet):
            yield packet
            return
        tos = get_tos(packet)
        self.seen.append(tos)
        yield packet if self.ecn is None else set_tos(packet, tos & ~3 | self.ecn)


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4-outside", "IPv6-outside"])
def outer(make_lab: MakeLab, request: pytest.FixtureRequest) -> int:
    lab.down()  # a pod keeps the MTU that it was made with
    make_lab(2, 1, settings={"outer_family": str(request.param)})
    return int(request.param)


@both
def test_congestion_marked_outside_is_seen_inside(outer: int, family: int) -> None:
    """All sixteen combinations, marked by hand between the nodes."""
    marking = Marking()
    with Sniffer(markers=[SECRET]) as wire, bump(N1, N2, marking), parcels(A, B, family) as post:
        for inner, arrivals in DECAPSULATED.items():
            for outside, expected in arrivals.items():
                marking.ecn = outside
                marking.seen.clear()
                assert _travel(post, inner) == expected, f"inner {inner}, outer {outside}"
                assert inner in marking.seen, "what left had the sender's marks outside (§4.1)"
        assert_private(wire)
    assert _drops(N2)["DROP_CONGESTED_ECN"] > 0


@both
def test_the_class_of_service_is_copied_and_kept(outer: int, family: int) -> None:
    marking = Marking()
    with bump(N1, N2, marking), parcels(A, B, family) as post:
        for dscp in DSCPS:
            marking.seen.clear()
            post.send(content(100), tos=dscp << 2 | ECT0)
            assert post.receive().tos == dscp << 2 | ECT0
            assert dscp << 2 | ECT0 in marking.seen


@both
def test_both_nodes_count_as_routers(outer: int, family: int) -> None:
    with parcels(A, B, family) as post:
        for ttl in (3, 64, 255):
            post.send(content(100), ttl=ttl)
            assert post.receive().ttl == ttl - 2
        before = _drops(N2)
        post.send(content(100), ttl=1)
        error = post.error()
        assert error is not None
        assert (error.type, error.code) == TIME_EXCEEDED[family]
        assert _is_of(N1, error.offender), f"{error.offender} says so"
        assert _drops(N2) == before
        post.send(content(100), ttl=2)
        until(
            lambda: _grown(before) == {"DROP_TTL_EXCEEDED": 1},
            "the second node drops it by name",
        )
        assert post.is_silent


@both
def test_packets_overtaking_each_other_all_arrive(outer: int, family: int) -> None:
    """The wire hands them on backwards, sixty at a time: far less than the replay window."""
    waiting: list[bytes] = []

    def backwards(packet: bytes) -> list[bytes]:
        if not is_esp(packet) or len(packet) < 500:
            return [packet]
        waiting.append(packet)
        if len(waiting) < 60:
            return []
        ready = waiting[::-1]
        waiting.clear()
        return ready

    with bump(N1, N2, backwards), parcels(A, B, family) as post:
        for number in range(600):
            post.send(content(600 + number % 8) + number.to_bytes(4))
        got = [int.from_bytes(post.receive().content[-4:]) for _ in range(600)]
        assert sorted(got) == list(range(600))
        assert got != sorted(got)
    assert is_echoed(A, family, address_of(B, family)), "the wire is itself again"


def _travel(post: Post, ecn: int) -> int | None:
    """The ECN field with which a packet arrives; None when it was dropped for it."""
    before = _drops(N2)
    post.send(content(200), tos=ecn)
    until(lambda: not post.is_silent or _drops(N2) != before, "it arrives or is dropped")
    if post.is_silent:
        assert _grown(before) == {"DROP_CONGESTED_ECN": 1}
        return DROP
    parcel = post.receive()
    assert parcel.content == content(200)
    return parcel.tos


def _is_of(node: LabNode, address: str) -> bool:
    """Its uplink's, or a gateway's of its pods."""
    return address in [*map(str, node.addresses), *(str(cidr[1]) for cidr in node.pod_cidrs)]


def _drops(node: LabNode) -> dict[str, int]:
    return {
        row["reason"]: int(row["packets"])
        for row in agents.status(node)["counts"]
        if row["reason"].startswith("DROP_")
    }


def _grown(before: dict[str, int]) -> dict[str, int]:
    """What n2 has dropped since."""
    now = _drops(N2)
    return {name: now[name] - before[name] for name in now if now[name] != before[name]}
