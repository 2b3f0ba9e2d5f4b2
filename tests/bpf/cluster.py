# SPDX-License-Identifier: Apache-2.0
"""The cluster that the datapath's tests live in, as node 1 has it in its maps.

node 1  192.0.2.1, 2001:db8::1    pods 10.244.1.2, fd00:244:1::2     this one
node 2  192.0.2.2                 pods 10.244.2.2, fd00:244:2::2     ESP over IPv4
node 3  2001:db8::3               pods 10.244.3.2, fd00:244:3::2     ESP over IPv6
node 4  192.0.2.4                 pods 10.244.4.2, fd00:244:4::2     without keys
10.244.0.0/16, fd00:244::/32      the cluster's CIDRs
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bpf.esp import Keys
from tests.bpf.node import BPF, XFRM, Node

LOCAL, NODE = 1, 2  # enum peer_flags
SAS = 4
OUT = 0xC00
"""The mark of what leaves the door."""
SHARED = 0x80
"""In a mark: the kernel's state is shared, and the slot says whose packet it is."""
PLACEHOLDERS = {4: "224.0.0.254", 6: "ff02::114"}
"""Where shared states send to."""
SELF4, SELF6 = "192.0.2.1", "2001:db8::1"
POD4, POD6 = "10.244.1.2", "fd00:244:1::2"
POD_MAC, HOST_MAC = bytes.fromhex("0200000000a1"), bytes.fromhex("0200000000b1")
POD_IDENTITY = 4711
WORLD4, WORLD6 = "198.51.100.7", "2001:db8:ffff::7"


@dataclass(frozen=True)
class Peer:
    """Another node, and the keys that it and this one have agreed on."""

    number: int
    address: str
    """Of the node, between which and `own` ESP travels."""
    own: str
    pair: int

    @property
    def pod4(self) -> str:
        return f"10.244.{self.number}.2"

    @property
    def pod6(self) -> str:
        return f"fd00:244:{self.number}::2"

    def pod(self, version: int) -> str:
        return self.pod6 if version == 6 else self.pod4

    @property
    def identity(self) -> int:
        return 1000 + self.number

    @property
    def slot(self) -> int:
        """That names the pair in marks: one with all its bits in use, and the first."""
        return 0xFFFF if self.number == 2 else 1

    def mark_out(self, number: int) -> int:
        """Of packets that this SA of the kernel's encrypts."""
        return self.slot << 16 | number << 12 | 0xE00

    def mark_sealed(self, number: int) -> int:
        """Of ESP that this SA of the kernel's has encrypted."""
        return self.slot << 16 | number << 12 | OUT

    @property
    def mark_in(self) -> int:
        """Of ESP that an SA of the kernel's decrypts."""
        return self.slot << 16 | 0xD00

    def keys_out(self, number: int) -> Keys:
        return Keys.made_of(self.number * 100 + number)

    def keys_in(self, number: int) -> Keys:
        return Keys.made_of(self.number * 100 + 50 + number)


OVER4 = Peer(2, "192.0.2.2", SELF4, pair=0x1111_2222_3333_4442)
OVER6 = Peer(3, "2001:db8::3", SELF6, pair=0x1111_2222_3333_4463)
KEYLESS = Peer(4, "192.0.2.4", SELF4, pair=0)
PEERS = {4: OVER4, 6: OVER6}


def pod(version: int) -> str:
    """This node's pod."""
    return POD6 if version == 6 else POD4


def furnish(node: Node) -> None:
    """Everything but SAs."""
    for cidr in ("10.244.0.0/16", "fd00:244::/32"):
        node.put_cidr(cidr)
    for own in (f"{SELF4}/32", f"{SELF6}/128"):
        node.put_cidr(own, flags=1)
    for address in (POD4, POD6):
        node.put_endpoint(address, identity=POD_IDENTITY, pod_mac=POD_MAC, host_mac=HOST_MAC)
        node.put_peer(address, node=SELF4, flags=LOCAL, identity=POD_IDENTITY)
    for address in (SELF4, SELF6):
        node.put_peer(address, node=SELF4, flags=LOCAL | NODE, identity=1)
    for peer in (OVER4, OVER6, KEYLESS):
        node.put_peer(peer.address, node=peer.address, flags=NODE, identity=1)
        for address in (peer.pod4, peer.pod6):
            node.put_peer(address, node=peer.address, identity=peer.identity)


def put_outbound(node: Node, peer: Peer, *, engine: int = BPF, **facts: int) -> None:
    """Fresh SAs to a peer, and the row that says to use them."""
    node.put_encrypt(peer.address, peer.pair, engine)
    for number in range(SAS):
        if engine == XFRM:
            facts["mark"] = peer.mark_out(number)
        node.put_sa_out(
            peer.keys_out(number), pair=peer.pair, number=number,
            source=peer.own, destination=peer.address, node=peer.address, engine=engine, **facts,
        )  # fmt: skip


def put_inbound(
    node: Node, peer: Peer, *, engine: int = BPF, shared: bool = False, **facts: object
) -> None:
    """Fresh SAs from a peer."""
    if engine == XFRM:
        facts["mark"] = peer.mark_in | (SHARED if shared else 0)
    for number in range(SAS):
        node.put_sa_in(
            peer.keys_in(number), pair=peer.pair, number=number,
            source=peer.address, destination=peer.own, node=peer.address, engine=engine, **facts,
        )  # fmt: skip


def sa_out(node: Node, peer: Peer, number: int = 0) -> dict[str, int]:
    """The row of an outbound SA."""
    return node.row("sa_out", {"pair": peer.pair, "number": number})


def sa_in(node: Node, peer: Peer, number: int = 0) -> dict[str, int]:
    """The row of an inbound SA."""
    return node.row("sa_in", node.sa_in_key(peer.keys_in(number), peer.address, peer.own))
