# SPDX-License-Identifier: Apache-2.0
"""What a listener makes of a frame; the frames are built by Scapy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import (
    ARP,
    ESP,
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
    rdpcap,
)

from pellicle.lab.frames import Kind, describe, header_key, read_esp, read_header
from pellicle.lab.pcap import Pcap

# Given, or Scapy would ask the network for them.
LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
NODES = {"src": "192.168.1.2", "dst": "192.168.2.2"}
NODES6 = {"src": "fd00:168:1::2", "dst": "fd00:168:2::2"}
PODS = {"src": "10.244.1.2", "dst": "10.244.2.2"}
PODS6 = {"src": "fd00:244:1::2", "dst": "fd00:244:2::2"}
ESP_DATA = (77).to_bytes(8, "big") + b"c" * 32


@dataclass(frozen=True)
class Case:
    says: str
    packet: Ether
    kind: Kind
    family: int
    protocol: str
    to: str


CASES = (
    Case("ESP between nodes", IP(**NODES) / ESP(spi=9, data=ESP_DATA), Kind.ESP, 4, "ESP", "n2"),
    Case("ESP over IPv6", IPv6(**NODES6) / ESP(spi=9, data=ESP_DATA), Kind.ESP, 6, "ESP", "n2"),
    Case("after options", IP(**NODES, options=b"\x01" * 4) / ESP(), Kind.ESP, 4, "ESP", "n2"),
    Case("a pod's own ESP", IP(**PODS) / ESP(), Kind.CLEAR, 4, "ESP", "n2"),
    Case("a fragment of ESP", IP(**NODES, frag=1) / ESP(), Kind.CLEAR, 4, "ESP fragment", "n2"),
    Case("its first one", IP(**NODES, flags="MF") / ESP(), Kind.CLEAR, 4, "ESP fragment", "n2"),
    Case("TCP between pods", IP(**PODS) / TCP(), Kind.CLEAR, 4, "TCP", "n2"),
    Case("UDP between pods", IPv6(**PODS6) / UDP(), Kind.CLEAR, 6, "UDP", "n2"),
    Case("a fragment of UDP", IP(**PODS, frag=9) / UDP(), Kind.CLEAR, 4, "UDP fragment", "n2"),
    Case("to a node", IP(src="10.244.1.2", dst="192.168.2.2") / UDP(), Kind.CLEAR, 4, "UDP", "n2"),
    Case("pod to world", IP(src="10.244.1.2", dst="8.8.8.8") / UDP(), Kind.CLEAR, 4, "UDP", "?"),
    Case("node to node", IP(**NODES) / ICMP(), Kind.CLEAR, 4, "ICMP", "n2"),
    Case("node pings node", IPv6(**NODES6) / ICMPv6EchoRequest(), Kind.CLEAR, 6, "ICMPv6", "n2"),
    Case("ARP", ARP(pdst="192.168.1.1"), Kind.LINK, 4, "ARP", "?"),
    Case("a neighbour is asked for", IPv6(**NODES6) / ICMPv6ND_NS(), Kind.LINK, 6, "ICMPv6", "n2"),
    Case(
        "a listener reports",
        IPv6(src="fe80::1", dst="ff02::16")
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / ICMPv6MLReport2(),
        Kind.LINK, 6, "hop-by-hop", "?",
    ),
    Case(
        "a pod hides behind options",
        IPv6(**PODS6) / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / UDP(),
        Kind.CLEAR, 6, "hop-by-hop", "n2",
    ),
    Case("a VLAN", Dot1Q(vlan=5) / IP(**PODS), Kind.OTHER, 0, "ethertype 0x8100", "?"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_a_frame_is_what_a_stranger_would_take_it_for(case: Case) -> None:
    header = read_header(bytes(LINK / case.packet))
    assert (header.kind, header.family, header.protocol, header.to) == (
        case.kind,
        case.family,
        case.protocol,
        case.to,
    )


@given(
    st.sampled_from([bytes(LINK / case.packet) for case in CASES]),
    st.sampled_from([bytes(LINK / case.packet) for case in CASES]),
)
def test_equal_keys_mean_equal_headers(one: bytes, other: bytes) -> None:
    if header_key(one) == header_key(other):
        assert read_header(one) == read_header(other)


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00", b"\x86\xdd", b"\x08\x06"]))
def test_no_frame_breaks_the_listener(noise: bytes, ethertype: bytes) -> None:
    frame = noise[:12].ljust(12, b"\0") + ethertype + noise[12:]
    header = read_header(frame)
    header_key(frame)
    read_esp(frame, header.start)
    assert describe(frame, len(frame))


def test_the_clear_part_of_esp_is_read() -> None:
    for outer in (IP(**NODES), IPv6(**NODES6)):
        frame = bytes(LINK / outer / ESP(spi=0x1234, seq=77, data=ESP_DATA))
        esp = read_esp(frame, read_header(frame).start)
        assert esp is not None
        assert (esp.spi, esp.sequence, esp.iv) == (0x1234, 77, 77)


def test_a_line_says_who_to_whom_and_what() -> None:
    esp = bytes(LINK / IP(**NODES) / ESP(spi=0x1234, seq=77, data=ESP_DATA))
    assert describe(esp, 82) == "192.168.1.2 > 192.168.2.2 ESP spi 0x00001234 seq 77, 82 bytes"
    tcp = bytes(LINK / IPv6(**PODS6) / TCP(sport=1024, dport=80))
    assert describe(tcp, 74) == "fd00:244:1::2 > fd00:244:2::2 TCP 1024 > 80, 74 bytes"


@given(st.lists(st.tuples(st.integers(0, 2**32 * 10**9 - 1), st.binary(min_size=14, max_size=99))))
def test_a_capture_file_gives_back_every_frame_and_nanosecond(
    tmp_path_factory: pytest.TempPathFactory, packets: list[tuple[int, bytes]]
) -> None:
    path: Path = tmp_path_factory.mktemp("pcap") / "x.pcap"
    with Pcap(path) as pcap:
        pcap.write((at, len(frame) + 5, frame) for at, frame in packets)
    back = rdpcap(str(path))
    assert [bytes(packet) for packet in back] == [frame for _, frame in packets]
    assert [packet.wirelen for packet in back] == [len(frame) + 5 for _, frame in packets]
    assert [int(packet.time * 10**9) for packet in back] == [at for at, _ in packets]
