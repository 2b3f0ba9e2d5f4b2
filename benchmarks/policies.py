# SPDX-License-Identifier: Apache-2.0
"""What thousands of peers cost in XFRM policies: planning them, putting them, keeping them.

    .venv/bin/python -m benchmarks.policies [PEERS]      root; a namespace of its own; seconds

Each peer has two pod CIDRs and an address in either family, and four SAs to spread flows over;
so it has ten policies. Nothing stands in these namespaces but that: a policy needs no state.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Self, TypeVar

from benchmarks import ip_xfrm
from pellicle import lab
from pellicle.encryption import policies
from pellicle.encryption.policies import PolicyTarget
from pellicle.facts import Cipher, Engine, Epoch, Node, NodeName, PairId, Spi
from pellicle.kernel import netns
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction, Sa, SaKey
from pellicle.lab.errors import LabError
from pellicle.lab.topology import LabNode
from pellicle.table import Reconciler, Table
from pellicle.wire.xfrm import Policy, PolicyKey

PEERS: Final = 5000
SAS: Final = 4
OWN: Final = IPv4Address("192.0.2.1")
USED: Final = {Engine.XFRM: True}

T = TypeVar("T")


def node_of(peer: int) -> Node:
    """One that knows both families."""
    pods = IPv4Network((0x0A000000 + (peer << 8), 24)), IPv6Network((0xFD << 120 | peer << 64, 64))
    outer = IPv4Address(0xC0A80000 + peer), IPv6Address(0xFC << 120 | peer)
    return Node(NodeName(f"n{peer}"), outer, pods)


def sas_of(peer: int) -> dict[SaKey, Sa]:
    """The outbound ones of the pair."""
    (there, _), rows = node_of(peer).addresses, {}
    for number in range(SAS):
        sa = Sa(
            Direction.OUT, PairId(peer), number, Spi(0x1000 + peer * SAS + number), OWN, there,
            there, Epoch(1), Epoch(1), engine=Engine.XFRM, cipher=Cipher.AES_128_GCM, slot=peer,
        )  # fmt: skip
        rows[sa.at] = sa
    return rows


class Crowd:
    """From `with` on, nodes of a lab have the policies of so many peers more, and no agents.

    An agent would take away what it has not planned.
    """

    def __init__(self, *nodes: LabNode) -> None:
        self._nodes = nodes

    def __enter__(self) -> Self:
        peers = range(1, PEERS + 1)
        nodes = {node.name: node for node in map(node_of, peers)}
        sas = {key: sa for peer in peers for key, sa in sas_of(peer).items()}
        rows = policies.plan(USED, sas, nodes)
        for node in self._nodes:
            lab.kill_agent(node.name)
            with Xfrm(node.namespace) as xfrm:
                there = {policy.key for policy in xfrm.policies()}
                errors = xfrm.put_policies(row for key, row in rows.items() if key not in there)
            if errors or len(there) < SAS:
                raise LabError(f"policies in {node.name}: {len(there)} of its own, {errors}")
        return self

    def __exit__(self, *_: object) -> None:
        """They go when an agent starts there."""

    def sent_bytes(self) -> int:
        """What the first node has encrypted since it stands."""
        return ip_xfrm.encrypted_bytes(self._nodes[0])


def timed(act: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    answer = act()
    return answer, time.perf_counter() - start


def run(peers: int, xfrm: Xfrm) -> dict[str, float]:
    """Seconds of each step.

    plan, put: all is new; restart: another agent finds all of it there, reads and compares;
    refresh, compare: what an agent does again and again; remove: all of it.
    """
    nodes = {node.name: node for node in map(node_of, range(1, peers + 1))}
    sas = {key: sa for peer in range(1, peers + 1) for key, sa in sas_of(peer).items()}
    desired: Table[PolicyKey, Policy] = Table("policies")
    took: dict[str, float] = {}
    rows, took["plan"] = timed(lambda: policies.plan(USED, sas, nodes))
    desired.replace(rows)

    def reconciler() -> Reconciler[PolicyKey, Policy]:
        return Reconciler(desired, PolicyTarget(xfrm), Table("policies up"))

    first, again = reconciler(), reconciler()
    _, took["put"] = timed(lambda: first.run(0))
    assert not first.failures
    # Planned once more, as after a change elsewhere: equal rows, other objects.
    desired.replace(policies.plan(USED, sas, nodes))
    _, took["restart"] = timed(lambda: again.run(0))
    first.refresh()
    _, took["refresh"] = timed(first.refresh)
    _, took["compare"] = timed(lambda: first.run(0))
    assert first.applied.rows == again.applied.rows == rows
    assert not first.healed
    desired.replace({})
    _, took["remove"] = timed(lambda: first.run(0))
    assert not xfrm.policies()
    return took


def main() -> None:
    peers = int(sys.argv[1]) if len(sys.argv) > 1 else PEERS
    name = f"pellicle-bench-{os.getpid()}"
    netns.create(name)
    try:
        with Xfrm(name) as xfrm:
            took = run(peers, xfrm)
    finally:
        netns.delete(name)
    print(f"kernel {os.uname().release}, {os.cpu_count()} CPUs, {peers} peers; seconds")
    for step, seconds in took.items():
        print(f"  {step:18} {seconds:8.3f}")


if __name__ == "__main__":
    main()
