# SPDX-License-Identifier: Apache-2.0
"""Subnets that are known beforehand: all peers in them are reached by what they share, any other by
SAs of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from ipaddress import ip_network

from pellicle.facts import Network, Node

MOST_SHARED = 4
"""So many states that send can marks tell apart: two bits of bpf/tables.h."""


class Numbers:
    """What the states are called that send and are shared. A packet's mark has the number, so it
    means one of them as long as that stands. A use: the key and the outer address of one.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, int] = {}
        self._worn: set[Hashable] = set()

    def keep(self, use: Hashable, number: int) -> None:
        """An earlier life had this one."""
        self._of[use] = number

    def wear(self, use: Hashable) -> None:
        """Its state nears the last sequence number: another one shall take its place."""
        self._worn.add(use)

    def settle(self, uses: Iterable[Hashable], standing: Collection[int]) -> None:
        """Give all `uses` one. Whoever gets none has to wait until something no longer stands."""
        taken = {*standing, *self._of.values()}
        fresh = {use: self._of.get(use) for use in uses}
        for use in [use for use, number in fresh.items() if number is None or use in self._worn]:
            free = [number for number in range(1, MOST_SHARED + 1) if number not in taken]
            if free:
                fresh[use] = free[0]
                taken.add(free[0])
                self._worn.discard(use)
        self._of = {use: number for use, number in fresh.items() if number is not None}

    def get(self, use: Hashable) -> int:
        """0: none."""
        return self._of.get(use, 0)


def is_within(cidr: Network, subnets: Collection[Network]) -> bool:
    """Whether all of it lies in one of them."""
    return any(
        cidr.version == subnet.version and cidr.subnet_of(subnet)  # type: ignore[arg-type]
        for subnet in subnets
    )


def are_around(subnets: Collection[Network], node: Node) -> bool:
    """Whether all of the node's pods live in them; and its own addresses all do, or none does."""
    addresses = {is_within(ip_network(address), subnets) for address in node.addresses}
    is_whole = all(is_within(cidr, subnets) for cidr in node.pod_cidrs)
    return bool(node.pod_cidrs) and is_whole and len(addresses) == 1
