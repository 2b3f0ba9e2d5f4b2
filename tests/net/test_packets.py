# SPDX-License-Identifier: Apache-2.0
"""Every size of packet, whole or in pieces, from pod to pod: all four ways of IPv4 and IPv6.

n1/p1 ──1 byte … MTU … 64 KB──▶ n2/p1       byte for byte, and nothing readable on the wire
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from pellicle import lab
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from tests.net.loaded import address_of, assert_private
from tests.net.parcels import (
    INNER,
    IP_UDP,
    MAY_FRAGMENT,
    MUST_NOT_FRAGMENT,
    PROBE_PATH,
    SECRET,
    Echo,
    content,
    parcels,
    refusal,
)
from tests.pace import amount, sizes

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
TOO_BIG = {4: (3, 4), 6: (2, 0)}
"""ICMP type and code: RFC 792 with RFC 1191, RFC 4443 §3.2."""


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4-outside", "IPv6-outside"])
def outer(make_lab: MakeLab, request: pytest.FixtureRequest) -> int:
    lab.down()  # a pod keeps the MTU that it was made with
    make_lab(2, 1, settings={"outer_family": str(request.param)})
    return int(request.param)


@pytest.fixture
def wire(outer: int) -> Iterator[Sniffer]:
    """Heard all of it, in ESP of the right family, and understood nothing."""
    with Sniffer(markers=[SECRET], nonces=True) as sniffer:
        yield sniffer
        assert_private(sniffer)
        assert sniffer.reuses() == ()
        assert {f.family for f in sniffer.counts() if f.kind is Kind.ESP} == {outer}


both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@both
def test_udp_of_every_size_arrives(outer: int, family: int, wire: Sniffer) -> None:
    longest = INNER[outer] - IP_UDP[family]
    with parcels(A, B, family) as post:
        post.discover(MUST_NOT_FRAGMENT)
        assert [size for size in sizes(longest) if not post.carries(size)] == []
    assert _sealed(wire) >= len(sizes(longest))


@both
def test_echoes_of_every_size_come_back(outer: int, family: int, wire: Sniffer) -> None:
    longest = INNER[outer] - IP_UDP[family]
    with Echo(A, family, address_of(B, family)) as echo:
        assert [size for size in sizes(longest) if not echo.answers(size)] == []


@both
def test_around_the_limit_each_byte_counts(outer: int, family: int, wire: Sniffer) -> None:
    longest = INNER[outer] - IP_UDP[family]
    with parcels(A, B, family) as post:
        post.discover(MUST_NOT_FRAGMENT)
        assert post.carries(longest - 1)
        assert post.carries(longest)
        assert refusal(lambda: post.carries(longest + 1)) == errno.EMSGSIZE
        assert post.mtu == INNER[outer]
        post.discover(MAY_FRAGMENT)
        before = _sealed(wire)
        assert post.carries(longest)
        assert _sealed(wire) - before == 1, "whole"
        for size in (longest + 1, longest + 2, longest + 9, 2 * longest):
            before = _sealed(wire)
            assert post.carries(size)
            assert _sealed(wire) - before >= 2, "in pieces"


@both
def test_a_pod_that_tries_more_is_told_the_mtu(outer: int, family: int, wire: Sniffer) -> None:
    """Its own route says the MTU; who disregards that hears it from the node."""
    longest = INNER[outer] - IP_UDP[family]
    with parcels(A, B, family) as post:
        post.discover(PROBE_PATH)
        assert post.carries(longest)
        for size in (longest + 1, longest + 4, 1500 - IP_UDP[family]):
            post.send(content(size))
            error = post.error()
            assert error is not None, "dropped without a word"
            assert (error.type, error.code, error.mtu) == (*TOO_BIG[family], INNER[outer])
        assert post.is_silent


@both
@pytest.mark.parametrize("size", [2000, 8192, 65507])
def test_large_udp_arrives_in_pieces(outer: int, family: int, size: int, wire: Sniffer) -> None:
    with parcels(A, B, family) as there, parcels(B, A, family) as back:
        for post in (there, back):
            post.discover(MAY_FRAGMENT)
            assert all(post.carries(size - less) for less in range(0, 9, amount(1, 4)))
    with Echo(A, family, address_of(B, family)) as echo:
        assert echo.answers(size)


def _sealed(wire: Sniffer) -> int:
    wire.settle()
    return sum(
        count.packets
        for flow, count in wire.counts().items()
        if flow.kind is Kind.ESP and flow.source == "n1"
    )
