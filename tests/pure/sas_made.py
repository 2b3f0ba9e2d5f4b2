# SPDX-License-Identifier: Apache-2.0
"""SAs of the kernel's with one peer, 192.0.2.2, as the key ring plans them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from pellicle.facts import Cipher, Engine, Epoch, Node, NodeName, PairId, Spi
from pellicle.keys.rows import Direction, Sa, SaKey

N2 = NodeName("n2")
PEER = Node(
    N2,
    (ip_address("192.0.2.2"), ip_address("2001:db8::2")),
    (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")),
)
PAIR = PairId(0xABCD)


def sa(number: int, direction: Direction = Direction.OUT, slot: int = 7) -> Sa:
    here, there = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    source, destination = (here, there) if direction is Direction.OUT else (there, here)
    return Sa(
        direction, PAIR, number, Spi(0x1000 + number), source, destination, there, Epoch(1),
        Epoch(2), sequence_limit=1 << 40, engine=Engine.XFRM, cipher=Cipher.AES_128_GCM,
        slot=slot, key=b"k" * 16, salt=b"salt",
    )  # fmt: skip


def rows(*sas: Sa) -> dict[SaKey, Sa]:
    return {each.at: each for each in sas}
