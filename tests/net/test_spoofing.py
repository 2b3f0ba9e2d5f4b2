# SPDX-License-Identifier: Apache-2.0
"""Whoever is not what he says: each of his packets is refused, by name, and nobody has heard it.

n1/p1 n1/p2            n2/p1                  n3/p1
    n1 ═══════ router ═══ n2 ════════════════════ n3
            ▲               ▲
       on the wire     root on n2           a pod: n1/p1, with all that root in a pod may do

A case says who sends what in whose name to whom, and what it is refused for. The ears are in all
pods, on all nodes and on the wire; after each packet an honest one takes the same way and is heard.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Self

import pytest
from scapy.all import (
    ESP,
    GRE,
    IP,
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

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents
from pellicle.lab.sniffer import Seen, Sniffer
from pellicle.lab.topology import UPLINK, WIRE, LabNode, namespace_of, node_named, pod_named
from tests.net.engines import of
from tests.net.loaded import address_of, dropped, until
from tests.net.parcels import is_echoed

MakeLab = Callable[..., lab.LabState]
NODES = tuple(map(LabNode, (1, 2, 3)))
N1, N2, N3 = NODES
EARS = ("n1/p1", "n1/p2", "n2/p1", "n3/p1", "n1", "n2", "n3")
PORT, IKE_NAT, VXLAN_PORT = 4303, 4500, 4789
ANY_MAC = "02:00:00:00:00:77"
MARKER = b"who-goes-there"
NUMBERS = count(1)
OTHERS = {
    # by family; what no pod and no node is called
    "nobody": {4: "10.244.2.250", 6: "fd00:244:2::fafa"},
    "world": {4: "198.51.100.7", 6: "2001:db8:ffff::7"},
    "link": {4: "169.254.9.9", 6: "fe80::99"},
    "all": {4: "224.0.0.1", 6: "ff02::1"},
    "none": {4: "0.0.0.0", 6: "::"},
}
SO_MARK, OUTGOING = 36, 4

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
    raw = bytes(caught.payload)[:64]
    if isinstance(caught, IPv6):
        header = IPv6(src=caught.src, dst=caught.dst)
        return header / IPv6ExtHdrFragment(id=9, m=1, nh=50) / Raw(raw)
    return IP(src=caught.src, dst=caught.dst, proto=50, flags="MF") / Raw(raw)


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


BOTH = (4, 6)


def on_stage(routing: str, families: Iterable[int] = BOTH) -> pytest.MarkDecorator:
    """Everything in one family, outside, too."""
    rows = [pytest.param((family, routing), id=f"IPv{family}") for family in families]
    return pytest.mark.parametrize("stage", rows, indirect=True)


def played(
    groups: Mapping[str, Iterable[Case]], families: tuple[int, ...] = BOTH
) -> pytest.MarkDecorator:
    """Those that are for these families."""
    rows = [
        pytest.param(case, id=f"{group}: {case.says}")
        for group, cases in groups.items()
        for case in cases
        if case.families == families
    ]
    return pytest.mark.parametrize("case", rows)


# --- the stage --------------------------------------------------------------------------------


class Stage:
    """The lab, with ears everywhere, and the last ESP that n2 said to n1."""

    def __init__(self, stack: ExitStack, family: int) -> None:
        self.family = family
        self.engines = {node: of(node).name for node in NODES}
        self._ears = {where: stack.enter_context(Ear(where)) for where in EARS}
        self._caught: list[bytes] = []
        self.sniffer = stack.enter_context(Sniffer(markers=[MARKER], watch=self._catch))
        assert is_echoed("n2/p1", family, address_of("n1/p1", family))
        self.sniffer.settle()

    def address(self, who: str) -> str:
        if who in OTHERS:
            return OTHERS[who][self.family]
        node, _, is_gateway = who.partition(".")
        if is_gateway:
            cidrs = node_named(node).pod_cidrs
            return next(str(cidr[1]) for cidr in cidrs if (cidr.version == 6) == (self.family == 6))
        return address_of(who, self.family)

    def send(self, case: Case) -> bytes:
        """What it says, which is like nothing that was said before."""
        words = MARKER + b"%06d" % next(NUMBERS)
        header = (IPv6 if self.family == 6 else IP)(
            src=self.address(case.source), dst=self.address(case.destination)
        )
        caught = type(header)(self._caught[-1])
        packet = case.wear(header, caught)
        if case.wear not in {the_same, its_esp, as_a_later_one, its_piece}:
            packet = packet / Raw(words)
        _send(case, packet)
        return words

    def heard(self, words: bytes) -> set[str]:
        """By whom, until now."""
        for ear in self._ears.values():
            ear.listen()
        return {where for where, ear in self._ears.items() if any(words in p for p in ear.heard)}

    def drops(self) -> dict[str, dict[str, int]]:
        return {node.name: dropped(node) for node in NODES}

    def _catch(self, seen: Seen) -> None:
        flow = seen.flow
        if (flow.source, flow.destination, flow.protocol) == ("n2", "n1", "ESP"):
            self._caught.append(seen.frame[14:])


class Ear:
    """All that comes in at a pod's device, or the datagrams that a node gets."""

    def __init__(self, where: str) -> None:
        place = namespace_of(where)
        self.heard: list[bytes] = []
        # A pod has one, too: it shall not complain to the world that nobody listens.
        self._datagrams = netns.socket_in(place, socket.AF_INET6, socket.SOCK_DGRAM)
        self._datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._datagrams.bind(("::", PORT))
        self._socket = self._datagrams
        if "/" in where:
            self._socket = netns.socket_in(place, socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind(("eth0", 3))  # ETH_P_ALL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._datagrams.close()

    def listen(self) -> None:
        while True:
            try:
                data, source = self._socket.recvfrom(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if self._socket.family != socket.AF_PACKET or source[2] != OUTGOING:
                self.heard.append(data)


@pytest.fixture(scope="module")
def stage(make_lab: MakeLab, request: pytest.FixtureRequest) -> Iterator[Stage]:
    family, routing = request.param
    make_lab(3, 2, settings={"outer_family": str(family), "routing": routing})
    with ExitStack() as stack:
        yield Stage(stack, family)


@on_stage("direct")
@played(GROUPS)
def test_who_is_not_what_he_says_is_refused_and_named(stage: Stage, case: Case) -> None:
    play(stage, case)


@on_stage("direct", (6,))
@played(GROUPS, (6,))
def test_so_is_who_uses_what_only_ipv6_has(stage: Stage, case: Case) -> None:
    play(stage, case)


@on_stage("direct")
@played({"obeyed": OBEYED})
def test_no_detour_leads_past_the_keys(stage: Stage, case: Case) -> None:
    with _source_routes():
        play(stage, case)


@on_stage("overlay")
@played({"overlay": OVERLAY})
def test_the_overlay_bears_no_disguise(stage: Stage, case: Case) -> None:
    play(stage, case)


def play(stage: Stage, case: Case) -> None:
    engine = stage.engines[case.whose]
    name = case.refused if isinstance(case.refused, str) else case.refused[engine]
    node = case.at if isinstance(case.at, LabNode) else case.at[engine]
    before = stage.drops()
    marks = Counter({flow: number for (flow, _), number in stage.sniffer.marks().items()})
    words = stage.send(case)
    if case.heard:
        until(lambda: case.heard in stage.heard(words), f"heard in {case.heard}", 10)
    honest = next(each for each in HONEST if each.sender == case.sender)
    after = stage.send(honest)
    until(lambda: stage.heard(after) == {honest.heard}, "an honest packet arrives", 10)
    wanted = {(node.name, name)} if name else set()
    with suppress(AssertionError):  # what was counted instead says more
        until(lambda: _grown(before, stage.drops()) >= wanted, "", 10)
    grown = _grown(before, stage.drops())
    if not name:
        grown = {row for row in grown if row[1].startswith("DROP_")}
    assert grown == wanted
    echo = {case.sender}  # the stack that had no use for it may say so, and quote it
    assert stage.heard(words) - echo == ({case.heard} - echo if case.heard else set())
    if name.startswith("DROP_"):
        flows = agents.ask(node, "flows", verdict="dropped")
        said = {(row["reason"], row["source"]["address"]) for row in flows}
        assert (name, stage.address(case.named or case.source)) in said
    stage.sniffer.settle()
    said_to = {
        flow.destination for (flow, _), n in stage.sniffer.marks().items() if n > marks[flow]
    }
    assert said_to <= ({"?"} if case.source == "world" else set()), "what it said, quoted to it"
    assert stage.sniffer.leaks() == ()


def _grown(
    before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]
) -> set[tuple[str, str]]:
    return {
        (node, name)
        for node, rows in now.items()
        for name, number in rows.items()
        if number > before[node].get(name, 0)
    }


@contextmanager
def _source_routes() -> Iterator[None]:
    """Every node follows them: IPv4's options, IPv6's segments."""
    with ExitStack() as undo:
        for node in NODES:
            with Netlink(node.namespace) as netlink:
                devices = {"all", *netlink.links()}
            names = {f"net/ipv6/conf/{device}/seg6_enabled" for device in devices}
            for name in {"net/ipv4/conf/all/accept_source_route", *names}:
                netns.write_sysctl(name, 1, node.namespace)
                undo.callback(netns.write_sysctl, name, 0, node.namespace)
        yield


# --- who sends --------------------------------------------------------------------------------


def _send(case: Case, packet: Packet) -> None:
    if case.sender == "wire":
        _on_link(WIRE, N1.wire_device, packet)
    elif "/" in case.sender:
        _on_link(pod_named(case.sender).namespace, "eth0", packet, case.mark)
    else:
        _as_root(case, packet)


def _on_link(namespace: str, device: str, packet: Packet, mark: int = 0) -> None:
    """As a packet socket puts it there, past every stack: to whoever is at the other end."""
    with Netlink(namespace) as netlink:
        own = netlink.link(device)
    frame = bytes(Ether(src=own.mac, dst=_mac_of(own.peer)) / packet)
    with netns.socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))
        link.bind((device, 0))
        link.send(frame)


def _mac_of(peer: int) -> str:
    """Of a device of n1's, by its index."""
    with Netlink(N1.namespace) as netlink:
        return next(link.mac for link in netlink.links().values() if link.index == peer)


def _as_root(case: Case, packet: Packet) -> None:
    family = socket.AF_INET6 if isinstance(packet, IPv6) else socket.AF_INET
    place = namespace_of(case.sender)
    with netns.socket_in(place, family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", case.mark))
        if case.device:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, case.device.encode())
        with suppress(OSError):  # ENOBUFS: a program on the way out has dropped it
            raw.sendto(bytes(packet), (packet.dst, 0))
