# SPDX-License-Identifier: Apache-2.0
"""Pellicle and a kernel that was told by hand understand each other's every packet.

n1/p1 ══ n1: agent, either engine ══ ESP over IPv4 or IPv6 ══ n2: ip xfrm state, policy ══ n2/p1
"""

from __future__ import annotations

import pytest

from tests import pace
from tests.interop.byhand import (
    BEYOND,
    CASES,
    LAST_LOW,
    N1,
    N2,
    Pair,
    anew,
    counts,
    ip,
    rows,
    set_sequences,
)
from tests.net.loaded import address_of
from tests.net.parcels import INNER, IP_UDP, parcels
from tests.net.streams import connected, exchange

pytestmark = pytest.mark.usefixtures("all_is_understood")
A, B = "n1/p1", "n2/p1"
inners = pytest.mark.parametrize("inner", [4, 6], ids=lambda version: f"IPv{version} inside")
ways = pytest.mark.parametrize(
    ("source", "sink"), [(A, B), (B, A)], ids=["to the kernel", "to Pellicle"]
)
BPF = [case for case in CASES if case.engine == "bpf"]
FLOWS = 64
"""Enough for each of four SAs to get one, but for one in 10^7 runs."""


@inners
@ways
def test_datagrams_of_all_sizes_arrive(pair: Pair, inner: int, source: str, sink: str) -> None:
    largest = INNER[pair.case.outer] - IP_UDP[inner]
    with parcels(source, sink, inner) as post:
        for size in pace.sizes(largest):
            assert post.carries(size), f"{size} bytes"


@inners
def test_streams_arrive_both_ways_at_once(pair: Pair, inner: int) -> None:
    with connected(A, B, inner) as (here, there):
        assert exchange(here, there) == [True, True]


@inners
def test_the_kernel_opens_every_sa_of_the_pair(pair: Pair, inner: int) -> None:
    before, address = counts(N2), address_of(B, inner)
    for _ in range(FLOWS):
        with parcels(A, B, inner, address) as post:
            assert post.carries(100)
    after = counts(N2)
    grown = [after[sa.spi] - before[sa.spi] for sa in pair.sent.values()]
    assert min(grown) > 0
    assert sum(grown) == FLOWS


@inners
def test_pellicle_follows_the_kernel_past_2_to_the_32(pair: Pair, inner: int) -> None:
    sa = pair.received[2 if inner == 6 else 1]
    with parcels(B, A, inner) as post:
        # A receiver infers the upper half from the lower one: no step may be too far.
        for oseq in (0x4000_0000, 0x8000_0000, 0xC000_0000, LAST_LOW - BEYOND):
            ip(N2, *anew(sa, oseq=oseq))
            assert post.carries(100)
        for size in range(100, 100 + 2 * BEYOND):
            assert post.carries(size)
    shown = ip(N2, f"xfrm state get src {sa.source} dst {sa.destination} proto esp spi {sa.spi:#x}")
    assert "oseq-hi 0x1" in shown


@pytest.mark.parametrize("pair", BPF, indirect=True, ids=str)
@inners
def test_the_kernel_follows_pellicle_past_2_to_the_32(pair: Pair, inner: int) -> None:
    """The counters of the kernel's own states are not ours to set: this is the bpf engine's."""
    for sa in pair.sent.values():
        ip(N2, *anew(sa, seq=LAST_LOW - 2 * BEYOND))
    set_sequences(N1, LAST_LOW - BEYOND)
    with parcels(A, B, inner) as post:
        for size in range(100, 100 + 2 * BEYOND):
            assert post.carries(size)
    assert max(row["sequence"] for row in rows(N1, "sa_out")) == LAST_LOW + BEYOND
    assert "seq-hi 0x1, seq 0x5," in ip(N2, "xfrm state")
