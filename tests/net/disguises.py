# SPDX-License-Identifier: Apache-2.0
"""Disguises: who says what in whose name to whom, and what each is refused for.

A case wears one of the functions of here: (IP header, ESP that was caught) → the packet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scapy.all import (
    ESP,
    GRE,
    UDP,
    VXLAN,
    Dot1Q,
    Ether,
    IPOption_LSRR,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    Packet,
    Raw,
)

from pellicle.lab.topology import UPLINK, LabNode
from tests.net.loaded import address_of

N1, N2, N3 = NODES = tuple(map(LabNode, (1, 2, 3)))
PORT, IKE_NAT, VXLAN_PORT = 4303, 4500, 4789
ANY_MAC = "02:00:00:00:00:77"
OTHERS = {
    # by family; what no pod and no node is called
    "nobody": {4: "10.244.2.250", 6: "fd00:244:2::fafa"},
    "world": {4: "198.51.100.7", 6: "2001:db8:ffff::7"},
    "link": {4: "169.254.9.9", 6: "fe80::99"},
    "all": {4: "224.0.0.1", 6: "ff02::1"},
    "none": {4: "0.0.0.0", 6: "::"},
}

FORGED = "DROP_FORGED_OVERLAY"
SPOOFED_POD, SPOOFED_SOURCE = "DROP_SPOOFED_POD", "DROP_SPOOFED_SOURCE"
INTRUDER, LEAK = "DROP_CLEAR_FROM_CLUSTER", "DROP_CLEAR_TO_CLUSTER"
UNKNOWN_SPI, UNKNOWN, POD_ESP = "DROP_UNKNOWN_SPI", "DROP_UNKNOWN_PEER", "DROP_POD_ESP"
STACK = ""
"""The kernel has no use for it, and may have a name of its own for that."""

Wear = Callable[[Packet, Packet], Packet]
"""(IP header, ESP that was caught on its way from n2 to n1) → the packet, without what it says."""


def udp(header: Packet, _: Packet, port: int = PORT) -> Packet:
    return header / UDP(sport=port, dport=port)


def esp(header: Packet, _: Packet) -> Packet:
    return header / ESP(spi=0xBAD0BAD, seq=1) / Raw(bytes(40))


def in_pieces(header: Packet, caught: Packet, wear: Wear = udp) -> Packet:
    """The first of several."""
    inside = wear(header.copy(), caught).payload
    if isinstance(header, IPv6):
        return header / IPv6ExtHdrFragment(id=9, m=1) / inside
    header.flags = "MF"
    return header / inside


def behind_options(header: Packet, caught: Packet, wear: Wear = esp) -> Packet:
    return header / IPv6ExtHdrDestOpt() / wear(header.copy(), caught).payload


def the_same(_: Packet, caught: Packet) -> Packet:
    return caught.copy()


def its_esp(header: Packet, caught: Packet) -> Packet:
    """In another name."""
    return header / caught.payload.copy()


def as_a_later_one(_: Packet, caught: Packet) -> Packet:
    """With another sequence number."""
    again = caught.copy()
    again[ESP].seq += 100
    return again


def its_piece(_: Packet, caught: Packet) -> Packet:
    return in_pieces(type(caught)(src=caught.src, dst=caught.dst), caught, its_esp)


REPEATED = (the_same, its_esp, as_a_later_one, its_piece)
"""These have no room for words of their own."""


def inside(header: Packet, _: Packet, tunnel: Packet | None = None) -> Packet:
    """Another packet in it: of a pod of n3, to a pod of n2."""
    family = 6 if isinstance(header, IPv6) else 4
    inner = type(header)(src=address_of("n3/p1", family), dst=address_of("n2/p1", family))
    return (header / tunnel if tunnel else header) / inner / UDP(sport=PORT, dport=PORT)


def esp_in_udp(header: Packet, caught: Packet) -> Packet:
    return header / UDP(sport=IKE_NAT, dport=IKE_NAT) / Raw(bytes(caught.payload))


def by_way_of(header: Packet, caught: Packet, to: str = "n2/p1") -> Packet:
    """To the destination first, and on from there: RFC 791 §3.1, RFC 8754 §2."""
    if isinstance(header, IPv6):
        ways = [address_of(to, 6), header.dst]  # the last one first
        route = IPv6ExtHdrSegmentRouting(addresses=ways, segleft=1, lastentry=1)
        return header / route / udp(header.copy(), caught).payload
    header.options = [IPOption_LSRR(routers=[address_of(to, 4)], pointer=4)]
    return udp(header, caught)


def by_way_of_old(header: Packet, caught: Packet) -> Packet:
    """As it was until RFC 5095."""
    route = IPv6ExtHdrRouting(segleft=1, addresses=[address_of("n2/p1", 6)])
    return header / route / udp(header.copy(), caught).payload


def in_overlay(header: Packet, _: Packet, inner: str = "n3/p1") -> Packet:
    """A pod's packet, of nobody's identity."""
    family = 6 if isinstance(header, IPv6) else 4
    pods = type(header)(src=address_of(inner, family), dst=address_of("n1/p1", family))
    tunnel = header / UDP(sport=9, dport=VXLAN_PORT) / VXLAN(vni=0, flags=8)
    return tunnel / Ether(dst=ANY_MAC, src=ANY_MAC) / pods / UDP(sport=PORT, dport=PORT)


def with_little_time(header: Packet, caught: Packet) -> Packet:
    header.setfieldval("hlim" if isinstance(header, IPv6) else "ttl", 2)
    return udp(header, caught)


def tagged(header: Packet, caught: Packet) -> Packet:
    return Dot1Q(vlan=7) / udp(header, caught)


@dataclass(frozen=True)
class Case:
    says: str
    sender: str
    """The wire, a pod, or root on a node."""
    source: str
    destination: str
    refused: str | Mapping[str, str]
    """Under which name; by engine, where it is the kernel's to refuse."""
    wear: Wear = udp
    at: LabNode | Mapping[str, LabNode] = N1
    whose: LabNode = N1
    """Engine, where that makes a difference."""
    mark: int = 0
    device: str = ""
    """That the socket is bound to."""
    families: tuple[int, ...] = (4, 6)
    named: str = ""
    """In whose name it is reported; the source's."""
    heard: str = ""
    """Where; nowhere."""


def root(says: str, source: str, destination: str = "n1/p1") -> Case:
    """On n2, to n1, in the keys that the two have."""
    return Case(says, "n2", source, destination, SPOOFED_SOURCE)


def wire(says: str, source: str, destination: str, refused: Any = INTRUDER, **more: Any) -> Case:
    return Case(says, "wire", source, destination, refused, **more)


def pod(says: str, source: str, destination: str, refused: Any = SPOOFED_POD, **more: Any) -> Case:
    return Case(says, "n1/p1", source, destination, refused, **more)


def kernels(name: str, ours: str = STACK) -> Mapping[str, str]:
    return {"bpf": ours, "xfrm": name}


TAKEN_OVER = (
    root("a pod of a third node", "n3/p1"),
    root("a pod of a third node, to the node", "n3/p1", "n1"),
    root("a third node", "n3"),
    root("a third node, to the node", "n3", "n1"),
    root("a third node's gateway", "n3.gateway"),
    root("nobody of the cluster", "nobody"),
    root("the world", "world"),
    root("the world, to the node", "world", "n1"),
    root("a pod next to the one it is for", "n1/p2"),
    root("the node that it is for", "n1", "n1"),
    root("nobody beyond the link", "link"),
)
IN_THE_CLEAR = (
    wire("a pod, to a pod", "n2/p1", "n1/p1"),
    wire("a pod, to the node", "n2/p1", "n1"),
    wire("a node, to a pod", "n2", "n1/p1"),
    wire("a node, to the node", "n2", "n1"),
    wire("a node's gateway", "n2.gateway", "n1"),
    wire("nobody of the cluster", "nobody", "n1/p1"),
    wire("the node itself", "n1", "n1"),
    wire("the node itself, to its pod", "n1", "n1/p1"),
    wire("the node's own gateway", "n1.gateway", "n1/p1"),
    wire("a pod of the node, to its neighbour", "n1/p2", "n1/p1"),
    wire("a pod, to everybody on the link", "n2/p1", "all"),
    wire("a pod, to the world", "n2/p1", "world"),
    wire("a pod, on a VLAN", "n2/p1", "n1/p1", wear=tagged),
    wire("a pod, from an exempt port", "n2/p1", "n1", wear=partial(udp, port=IKE_NAT)),
    wire("a node, to an exempt port of a pod", "n2", "n1/p1", wear=partial(udp, port=IKE_NAT)),
    wire("a piece of a pod's", "n2/p1", "n1/p1", wear=in_pieces),
    wire("a piece that has an exempt port", "n2", "n1",
         wear=partial(in_pieces, wear=partial(udp, port=IKE_NAT))),
    wire("a pod's packet in a node's", "n2", "n1", wear=inside),
    wire("a pod's packet in a node's GRE", "n2", "n1", wear=partial(inside, tunnel=GRE())),
    wire("a pod's packet in the world's", "world", "n1", STACK, wear=inside),
    wire("the world's, by way of this node to a pod", "world", "n1", STACK, wear=by_way_of),
    wire("a pod's, by way of this node", "n2/p1", "n1", wear=by_way_of),
    wire("the world's, with a routing header of type 0", "world", "n1", STACK, families=(6,),
         wear=by_way_of_old),
)  # fmt: skip
ENCRYPTED = (
    wire("by keys that nobody has", "n2", "n1", UNKNOWN_SPI, wear=esp),
    wire("n2's, in the name of n3", "n3", "n1", UNKNOWN_SPI, wear=its_esp),
    wire("n2's, in our own name", "n1", "n1", UNKNOWN_SPI, wear=its_esp),
    wire("n2's, in the name of its gateway", "n2.gateway", "n1", UNKNOWN_SPI, wear=its_esp),
    wire("n2's, in the name of its pod", "n2/p1", "n1", wear=its_esp),
    wire("n2's, in the name of nobody", "nobody", "n1", wear=its_esp),
    wire("n2's, in the name of a stranger", "world", "n1", kernels("XfrmInNoStates"),
         wear=its_esp),
    wire("a stranger's", "world", "n1", kernels("XfrmInNoStates"), wear=esp),
    wire("n2's to our pod", "n2", "n1/p1", wear=its_esp),
    wire("once more", "n2", "n1", kernels("XfrmInStateSeqError", "DROP_REPLAYED"), wear=the_same),
    wire("once more, as a later one", "n2", "n1",
         kernels("XfrmInStateProtoError", "DROP_AUTH_FAILED"), wear=as_a_later_one),
    wire("in pieces", "n2", "n1", "DROP_ESP_FRAGMENT", wear=its_piece),
    wire("in UDP", "n2", "n1", STACK, wear=esp_in_udp),
)  # fmt: skip
MARKS = (0xE00, 0xD00, 0xC00, 0x10E00, 0xFFFFFEFF, 0x10D00, 0x11C00, 0x4000, 0x8000)
FROM_A_POD = (
    pod("its neighbour", "n1/p2", "n2/p1"),
    pod("its neighbour, to the world", "n1/p2", "world"),
    pod("its neighbour, to its node", "n1/p2", "n1"),
    pod("a pod elsewhere", "n3/p1", "n2/p1"),
    pod("a pod elsewhere, to its neighbour", "n3/p1", "n1/p2"),
    pod("its node", "n1", "n2"),
    pod("its node, to a pod", "n1", "n2/p1"),
    pod("its gateway", "n1.gateway", "n2/p1"),
    pod("another node", "n2", "n1"),
    pod("nobody of the cluster", "nobody", "n2/p1"),
    pod("the world", "world", "n2/p1"),
    pod("nobody beyond the link", "link", "n2/p1"),
    pod("no address", "none", "n2/p1"),
    pod("in pieces", "n1/p2", "n2/p1", wear=in_pieces),
    pod("to an address that nobody has", "n1/p1", "nobody", UNKNOWN),
    pod("on a VLAN", "n1/p1", "n2/p1", "DROP_NOT_IP", wear=tagged),
    pod("ESP to a node", "n1/p1", "n2", POD_ESP, wear=esp),
    pod("ESP to its own node", "n1/p1", "n1", POD_ESP, wear=esp),
    pod("ESP to a node's gateway", "n1/p1", "n2.gateway", POD_ESP, wear=esp),
    pod("what n2 has said to its node", "n1/p1", "n1", POD_ESP, wear=its_esp),
    pod("the same in the name of n2", "n2", "n1", wear=its_esp),
    pod("ESP in pieces", "n1/p1", "n2", POD_ESP, wear=partial(in_pieces, wear=esp)),
    pod("ESP behind options", "n1/p1", "n2", POD_ESP, wear=behind_options, families=(6,)),
    pod("ESP behind options in pieces", "n1/p1", "n1", POD_ESP, families=(6,),
        wear=partial(in_pieces, wear=behind_options)),
    pod("ESP in UDP to a node", "n1/p1", "n2", STACK, wear=esp_in_udp),
    pod("a packet of n3's pod in one to n2", "n1/p1", "n2", STACK, wear=inside),
    pod("the same in GRE", "n1/p1", "n2", STACK, wear=partial(inside, tunnel=GRE())),
    pod("the same to its own node", "n1/p1", "n1", STACK, wear=inside),
    pod("by way of its node", "n1/p1", "n1", STACK, wear=by_way_of),
    pod("by way of another node", "n1/p1", "n2", STACK, wear=partial(by_way_of, to="n3/p1")),
    pod("with time for two hops", "n1/p1", "n2/p1", "DROP_TTL_EXCEEDED", at=N2,
        wear=with_little_time),
    *(pod(f"with mark {mark:#x}", "n1/p1", "nobody", UNKNOWN, mark=mark) for mark in MARKS),
    *(pod(f"its neighbour, with mark {mark:#x}", "n1/p2", "n2", mark=mark) for mark in MARKS),
)  # fmt: skip
ON_THE_NODE = (
    *(
        Case(f"with mark {mark:#x}, to {to}", "n1", "n1", to, LEAK, mark=mark)
        for to in ("n2", "n2/p1")
        for mark in (0xC00, 0xD00, 0x10C00)
    ),
    Case("bound to the uplink", "n1", "n1", "n2", LEAK, device=UPLINK),
    Case("bound to it, to a pod", "n1", "n1", "n2/p1", LEAK, device=UPLINK),
    Case("a pod's, past the door", "n1", "n1/p1", "n2/p1", LEAK, mark=0xC00),
)
OBEYED = (
    wire("the world's, by way of this node to a pod", "world", "n1", SPOOFED_SOURCE, at=N2,
         wear=by_way_of),
    pod("a pod's, by way of its node", "n1/p1", "n1", STACK, wear=by_way_of,
        heard="n2/p1"),
    pod("a pod's, by way of another node", "n1/p1", "n2", kernels("XfrmInNoPols", SPOOFED_SOURCE),
        at={"bpf": N3, "xfrm": N2}, whose=N2, wear=partial(by_way_of, to="n3/p1")),
)  # fmt: skip
"""Where nodes go the ways that packets ask for."""
OVERLAY = (
    wire("a pod of n3, in n2's overlay", "n2", "n1", SPOOFED_SOURCE, wear=in_overlay,
         named="n3/p1"),
    wire("a pod of n2, of no identity", "n2", "n1", "DROP_WRONG_IDENTITY", named="n2/p1",
         wear=partial(in_overlay, inner="n2/p1")),
    wire("in a pod's overlay", "n2/p1", "n1", FORGED, wear=in_overlay),
    wire("in nobody's overlay", "nobody", "n1", FORGED, wear=in_overlay),
    wire("in the world's overlay", "world", "n1", FORGED, wear=in_overlay),
    wire("in the node's own overlay", "n1", "n1", FORGED, wear=in_overlay),
    wire("a piece of n2's overlay", "n2", "n1", wear=partial(in_pieces, wear=in_overlay)),
    wire("a pod without any overlay", "n2/p1", "n1/p1"),
    pod("in an overlay of its own", "n1/p1", "n2", FORGED, wear=in_overlay),
    pod("the same to its own node", "n1/p1", "n1", FORGED, wear=in_overlay),
    pod("the same to a gateway", "n1/p1", "n2.gateway", FORGED, wear=in_overlay),
    pod("in its node's overlay", "n1", "n2", wear=in_overlay),
    pod("the same, with the overlay's mark", "n1/p1", "n2", FORGED, wear=in_overlay, mark=4),
    pod("its neighbour", "n1/p2", "n2/p1"),
    Case("a process on n2", "n2", "n2", "n1", FORGED, wear=in_overlay, at=N2),
    Case("the same, past the rules", "n2", "n2", "n1", LEAK, wear=in_overlay, at=N2, mark=0xC00,
         named="n3/p1"),
    Case("the same, by the door: a pod of n3", "n2", "n2", "n1", SPOOFED_SOURCE, wear=in_overlay,
         mark=0xE00, named="n3/p1"),
    Case("by the door, of no identity", "n2", "n2", "n1", "DROP_WRONG_IDENTITY", mark=0xE00,
         wear=partial(in_overlay, inner="n2/p1"), named="n2/p1"),
    Case("by the door, as n3's overlay", "n2", "n3", "n1", FORGED, wear=in_overlay, at=N2,
         mark=0xE00),
    *(replace(case, whose=N2) for case in TAKEN_OVER),
)  # fmt: skip
"""With the routing overlay."""
HONEST = (
    Case("root on n2", "n2", "n2", "n1/p1", STACK, heard="n1/p1"),
    Case("root on n2, to the node", "n2", "n2", "n1", STACK, heard="n1"),
    wire("the world, to a pod", "world", "n1/p1", STACK, heard="n1/p1"),
    wire("the world, to the node", "world", "n1", STACK, heard="n1"),
    pod("to a pod", "n1/p1", "n2/p1", STACK, heard="n2/p1"),
    pod("to its neighbour", "n1/p1", "n1/p2", STACK, heard="n1/p2"),
    pod("to a node", "n1/p1", "n2", STACK, heard="n2"),
    pod("ESP to a pod", "n1/p1", "n2/p1", STACK, wear=esp, heard="n2/p1"),
    *(pod(f"mark {m:#x}", "n1/p1", "n2/p1", STACK, mark=m, heard="n2/p1") for m in MARKS),
    Case("the node", "n1", "n1", "n2", STACK, heard="n2"),
    Case("the node, marked like a pod's", "n1", "n1", "n2", STACK, mark=0xE00, heard="n2"),
    Case("the same, with a slot", "n1", "n1", "n2", STACK, mark=0x10E00, heard="n2"),
)
GROUPS = {
    "a node taken over": TAKEN_OVER,
    "cleartext": IN_THE_CLEAR,
    "ESP": ENCRYPTED,
    "a pod": FROM_A_POD,
    "on the node": ON_THE_NODE,
    "honest": HONEST,
}
