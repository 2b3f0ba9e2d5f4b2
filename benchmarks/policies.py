# SPDX-License-Identifier: Apache-2.0
"""What thousands of peers cost in XFRM policies: putting them, reading them, comparing.

    .venv/bin/python benchmarks/policies.py [PEERS]      root; a namespace of its own; seconds

Each peer has two pod CIDRs and an address in either family, and four SAs to spread flows over;
so it has ten policies, or one, as the table says. Nothing stands in these namespaces but that.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import TypeVar

from pellicle.kernel import netns
from pellicle.kernel.xfrm import Xfrm
from pellicle.wire.xfrm import Mark, Policy, PolicyDirection, Template

PEERS = 5000
IF_ID = 0x70656C6C
ANY = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
OWN = ip_address("192.0.2.1")

T = TypeVar("T")


def peer_policies(peer: int) -> list[Policy]:
    """Four SAs for either pod CIDR, and one for either address of the node."""
    pods = IPv4Network((0x0A000000 + (peer << 8), 24)), IPv6Network((0xFD << 120 | peer << 64, 64))
    outer = IPv4Address(0xC0A80000 + peer)
    node = IPv4Network(outer), IPv6Network((0xFC << 120 | peer, 128))
    rows = []
    for number in range(4):
        tunnel = Template(OWN, outer, 256 + peer * 4 + number, 0x70650000 | peer)
        mark = Mark(peer << 16 | number << 12 | 0xE00, 0xFFFF3F00)
        for to in (*pods, *node) if number == 0 else pods:
            every = ANY[to.version]
            row = Policy(PolicyDirection.OUT, every, to, mark, IF_ID, 100, template=tunnel)
            rows.append(row)
    return rows


def timed(act: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    answer = act()
    return answer, time.perf_counter() - start


def differing(wanted: dict[tuple[object, ...], Policy], found: list[Policy]) -> int:
    """As a reconciler does it: by key, then by content."""
    there: dict[tuple[object, ...], Policy] = {row.key: row for row in found}
    changed = sum(1 for key, row in wanted.items() if there.get(key) != row)
    return changed + sum(1 for key in there if key not in wanted)


def run(peers: int, each: int) -> str:
    """One line of the table."""
    rows = [row for peer in range(1, peers + 1) for row in peer_policies(peer)[:each]]
    wanted: dict[tuple[object, ...], Policy] = {row.key: row for row in rows}
    name = f"pellicle-bench-{os.getpid()}"
    netns.create(name)
    try:
        with Xfrm(name) as xfrm:
            errors, put = timed(lambda: xfrm.put_policies(rows))
            found, first = timed(xfrm.policies)
            found, again = timed(xfrm.policies)
            differences, diff = timed(lambda: differing(wanted, found))
            left, removed = timed(lambda: xfrm.remove_policies(rows))
    finally:
        netns.delete(name)
    assert not errors
    assert not left
    assert differences == 0
    times = " ".join(f"{seconds:9.3f}" for seconds in (put, first, again, diff, removed))
    return f"{peers:6} {each:8} {len(rows):9} {times}"


def main() -> None:
    peers = int(sys.argv[1]) if len(sys.argv) > 1 else PEERS
    print(f"seconds; kernel {os.uname().release}, {os.cpu_count()} CPUs")
    print(" peers    each  policies       put      read     again      diff    remove")
    for each in (1, 10):
        print(run(peers, each), flush=True)


if __name__ == "__main__":
    main()
