# SPDX-License-Identifier: Apache-2.0
"""A node's pod addresses: which are free, and which is next.

Addresses are handed out in order, and one that was given back waits until all the others
have had their turn: a peer that still remembers the pod that has gone does not talk to
the one that came. Every call takes the same time in a /16 and in an IPv6 /64, because
nothing is ever searched or listed.

    10.244.1.0 network   .1 gateway   .2 … .254 pods   .255 broadcast
    fd00::     anycast   ::1 kept     ::2 … pods       (no broadcast)
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from pellicle.facts import Address, Network, gateway

SMALLEST = {4: 30, 6: 126}
"""The longest prefix that leaves room for a pod."""
_FIRST_POD = 2


class Exhausted(Exception):  # noqa: N818  it says what the pools are
    """No address is left, and what can be done about it."""

    def __init__(self, pools: list[Pool]) -> None:
        names = " and ".join(str(pool.cidr) for pool in pools)
        super().__init__(
            f"address pool {names} is exhausted: {sum(map(len, pools))} in use;"
            " give the node a larger pod CIDR, or run fewer pods on it"
        )


class Pool:
    """The pod addresses of one CIDR."""

    def __init__(self, cidr: Network, in_use: Iterable[Address] = ()) -> None:
        """`in_use`: what pods here already have; the next address comes after the highest."""
        if cidr.prefixlen > SMALLEST[cidr.version]:
            raise ValueError(f"{cidr} has no room for pods: /{SMALLEST[cidr.version]} is the least")
        self.cidr = cidr
        has_broadcast = isinstance(cidr, IPv4Network)
        self._first = int(cidr.network_address) + _FIRST_POD
        self.size = cidr.num_addresses - _FIRST_POD - has_broadcast
        self._used = {int(address) for address in in_use if self._holds(address)}
        self._start = (max(self._used) - self._first + 1) if self._used else 0
        self._touched = 0
        """So many, counted from `_start`, were handed out or skipped at least once."""
        self._returned: dict[int, None] = {}
        """Touched and free again, oldest first."""

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, address: Address) -> bool:
        return self._holds(address) and int(address) in self._used

    @property
    def is_full(self) -> bool:
        return len(self) == self.size

    def take(self) -> Address:
        """The next free address, now in use; `Exhausted` when there is none."""
        while self._touched < self.size:
            number = self._first + (self._start + self._touched) % self.size
            self._touched += 1
            if number not in self._used:
                return self._use(number)
        if not self._returned:
            raise Exhausted([self])
        return self._use(next(iter(self._returned)))

    def reserve(self, address: Address) -> bool:
        """Mark `address` as in use; False when it was already, or is not one of this pool's."""
        if not self._holds(address) or int(address) in self._used:
            return False
        self._use(int(address))
        return True

    def give_back(self, address: Address) -> None:
        """`address` is free again; no harm if it was not in use."""
        number = int(address)
        if not self._holds(address) or number not in self._used:
            return
        self._used.remove(number)
        if (number - self._first - self._start) % self.size < self._touched:
            self._returned[number] = None

    def _use(self, number: int) -> Address:
        self._returned.pop(number, None)
        self._used.add(number)
        return self.cidr.network_address + (number - int(self.cidr.network_address))

    def _holds(self, address: Address) -> bool:
        return (
            address.version == self.cidr.version
            and self._first <= int(address) < self._first + self.size
        )


class Pools:
    """The pod addresses of a node: one for each pod in each family that the node has CIDRs of."""

    def __init__(self, cidrs: Iterable[Network], in_use: Iterable[Address] = ()) -> None:
        taken = tuple(in_use)
        self._families: dict[int, list[Pool]] = {}
        for cidr in cidrs:
            self._families.setdefault(cidr.version, []).append(Pool(cidr, taken))
        self._pools = [pool for pools in self._families.values() for pool in pools]

    def __len__(self) -> int:
        return sum(map(len, self._pools))

    def __contains__(self, address: Address) -> bool:
        return any(address in pool for pool in self._pools)

    def take(self) -> tuple[Address, ...]:
        """One address of each family, IPv4 first; all or none (`Exhausted`)."""
        taken: list[Address] = []
        try:
            taken.extend(_first_of(self._families[version]) for version in sorted(self._families))
        except Exhausted:
            self.give_back(taken)
            raise
        return tuple(taken)

    def reserve(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            any(pool.reserve(address) for pool in self._pools)

    def give_back(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            for pool in self._pools:
                pool.give_back(address)

    def gateway(self, address: Address) -> Address:
        """The gateway of the CIDR that `address` is in; KeyError when it is in none."""
        for pool in self._pools:
            if address in pool.cidr:
                return gateway(pool.cidr)
        raise KeyError(address)

    def covers(self, addresses: Iterable[Address]) -> bool:
        """Whether all of them lie in the CIDRs."""
        return all(any(address in pool.cidr for pool in self._pools) for address in addresses)

    def shortage(self) -> str:
        """Why `take` would fail, in words; empty when it would not."""
        for pools in self._families.values():
            if all(pool.is_full for pool in pools):
                return str(Exhausted(pools))
        return ""


def _first_of(pools: list[Pool]) -> Address:
    """From the first pool that has one."""
    for pool in pools:
        if not pool.is_full:
            return pool.take()
    raise Exhausted(pools)
