# SPDX-License-Identifier: Apache-2.0
"""Any protocol over IP, with options and extension headers: what a pod puts on its device comes
out of the other pod's device, the same but for its TTL.

Both ends are packet sockets; no stack of a pod has a say.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.all import (
    GRE,
    ICMP,
    IP,
    UDP,
    IPOption_Router_Alert,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    PadN,
    Raw,
)

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import pod_named
from tests import pace
from tests.net.loaded import address_of, assert_private
from tests.net.parcels import SECRET, raw_link

MakeLab = Callable[..., lab.LabState]
A, B = "n1/p1", "n2/p1"
EXTENSIONS = {0, 43, 44, 60, 135}
"""Followed by a header of their own, not by anything."""
SECONDS = 5.0
DATA = SECRET + bytes(range(100))
HOPS = 2
ETHERNET = 14


@pytest.fixture(scope="module")
def ends(make_lab: MakeLab) -> dict[int, tuple[str, str]]:
    make_lab(2, 1)
    return {family: (address_of(A, family), address_of(B, family)) for family in (4, 6)}


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
def test_every_protocol_number(ends: dict[int, tuple[str, str]], family: int) -> None:
    source, destination = ends[family]
    with Sniffer(markers=[SECRET]) as wire, _ear(B) as hear, raw_link(A) as send:
        for protocol in range(256):
            if family == 6 and protocol in EXTENSIONS:
                continue
            if family == 4:
                header = IP(src=source, dst=destination, proto=protocol, id=protocol + 1)
            else:
                header = IPv6(src=source, dst=destination, nh=protocol, fl=0xABCDE)
            packet = bytes(header / Raw(bytes([0, protocol]) + DATA))
            send(packet)
            assert hear(DATA) == _forwarded(packet), f"protocol {protocol}"
        assert_private(wire)


OPTIONS: dict[str, Packet] = {
    "UDP without checksum": IP() / UDP(chksum=0, dport=9),
    "UDP with a wrong checksum": IP() / UDP(chksum=0xBAD, dport=9),
    "router alert": IP(options=[IPOption_Router_Alert()]) / UDP(dport=9),
    "a full header of options": IP(options=[b"\x01" * 40]) / UDP(dport=9),
    "GRE with IPv4 in it": IP() / GRE() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(),
    "IP in IP": IP() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(),
    "an ICMP error": IP() / ICMP(type=3, code=1) / IP(src="10.0.0.1", dst="10.0.0.2"),
    "the evil bit (RFC 3514)": IP(flags="evil") / UDP(dport=9),
    "hop-by-hop": IPv6() / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / UDP(dport=9),
    "destination options": IPv6() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))])
    / UDP(dport=9),
    "a routing header": IPv6() / IPv6ExtHdrRouting(segleft=0) / UDP(dport=9),
    "an atomic fragment": IPv6() / IPv6ExtHdrFragment(id=7) / UDP(dport=9),
    "all of them": IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting()
    / IPv6ExtHdrFragment(id=8) / IPv6ExtHdrDestOpt() / UDP(dport=9),
    "IPv6 in IPv6": IPv6() / IPv6(src="fd00::1", dst="fd00::2") / UDP(),
    "IPv4 in IPv6": IPv6() / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(),
    "nothing at all (59)": IPv6(nh=59),
}  # fmt: skip


@pytest.mark.parametrize("says", OPTIONS)
def test_options_and_extensions(ends: dict[int, tuple[str, str]], says: str) -> None:
    packet = OPTIONS[says] / Raw(DATA)
    packet.src, packet.dst = ends[4 if isinstance(packet, IP) else 6]
    with Sniffer(markers=[SECRET]) as wire, _ear(B) as hear, raw_link(A) as send:
        send(bytes(packet))
        assert hear(DATA) == _forwarded(bytes(packet))
        assert_private(wire)


@pytest.mark.parametrize("trailer", [1, 46, 500])
def test_what_follows_the_packet_in_its_frame_is_left_behind(
    ends: dict[int, tuple[str, str]], trailer: int
) -> None:
    """Short frames are padded; the padding is no part of the packet."""
    for family, header in ((4, IP), (6, IPv6)):
        source, destination = ends[family]
        packet = bytes(header(src=source, dst=destination) / UDP(dport=9) / Raw(DATA))
        with _ear(B) as hear, raw_link(A) as send:
            send(packet + os.urandom(trailer))
            assert hear(DATA) == _forwarded(packet)


@contextmanager
def _ear(pod: str) -> Iterator[Callable[[bytes], bytes]]:
    """The next packet with these bytes in it that comes in by the pod's device."""
    place = pod_named(pod).namespace
    with netns.socket_in(place, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind(("eth0", 0x0003))  # ETH_P_ALL
        link.settimeout(pace.patient(SECONDS))

        def hear(mark: bytes) -> bytes:
            while True:
                frame, (_, _, kind, *_) = link.recvfrom(65536)
                if mark in frame and kind != socket.PACKET_OUTGOING:
                    return frame[ETHERNET:]

        yield hear


def _forwarded(packet: bytes) -> bytes:
    """As two routers hand it on: TTL and, in IPv4, its checksum are others."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - HOPS]) + packet[8:]
    after = IP(packet)
    length = after.ihl * 4
    header = IP(packet[:length])
    header.ttl -= HOPS
    del header.chksum
    return bytes(header)[:length] + packet[length:]
