# SPDX-License-Identifier: Apache-2.0
"""The four programs on real devices, with no agent: what test runs cannot show.

Redirects really deliver, the kernel's own idea of a packet's family follows, checksums of the
inner packets are the pods' own business, and on the wire there is nothing but ESP.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from build_bpf import ROOT, compile_bpf
from pellicle.kernel import netns
from pellicle.kernel.bpf import Object, attach_tc, detach_tc, ensure_bpffs
from tests.bpf import packets
from tests.bpf.tunnel import ANSWER, ASK
from tests.bpf.wire import (
    MTU,
    PAIR,
    PINS,
    SECONDS,
    Side,
    Wire,
    connect,
    counted,
    mac,
    stream,
    versions,
    wait_for,
)  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[(4, "tcx"), (6, "tcx"), (4, "clsact")],
    ids=["over IPv4, tcx", "over IPv6, tcx", "over IPv4, clsact"],
)
def wire(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wire]:
    outer, mode = request.param
    ensure_bpffs(PINS)
    with ExitStack() as stack:
        stack.callback(PINS.rmdir)
        yield connect(stack, outer, mode, tmp_path_factory.mktemp("bpf"))


@versions
def test_datagrams_of_every_kind_of_size_arrive(wire: Wire, version: int) -> None:
    largest = MTU[wire.outer] - (48 if version == 6 else 28)
    sizes = [*range(1, 70), *range(largest - 40, largest + 1)]
    with wire.one.socket(version, socket.SOCK_DGRAM) as sender, wire.two.socket(
        version, socket.SOCK_DGRAM
    ) as receiver:  # fmt: skip
        for size in sizes:
            payload = os.urandom(size)
            sender.sendto(payload, receiver.getsockname())
            got, source = receiver.recvfrom(2000)
            assert got == payload
            receiver.sendto(got, source)
            assert sender.recv(2000) == payload


@versions
def test_datagrams_larger_than_the_mtu_travel_in_fragments(wire: Wire, version: int) -> None:
    payload = os.urandom(4000)
    with wire.one.socket(version, socket.SOCK_DGRAM) as sender, wire.two.socket(
        version, socket.SOCK_DGRAM
    ) as receiver:  # fmt: skip
        counted(wire.one.node)
        sender.sendto(payload, receiver.getsockname())
        assert receiver.recv(5000) == payload
        assert counted(wire.one.node)["SEALED"] == 3


@versions
def test_a_stream_arrives_whole_and_the_wire_bears_only_esp(wire: Wire, version: int) -> None:
    payload = os.urandom(4_000_000)
    seen: set[tuple[int, int]] = set()
    is_over = threading.Event()
    with wire.one.on("up0") as sniffer:
        watch = threading.Thread(target=_watch, args=(sniffer, is_over, seen))
        watch.start()
        arrived = stream(wire.one, wire.two, version, payload)
        is_over.set()
        watch.join(SECONDS)
    assert arrived == hashlib.sha256(payload).digest()
    esp = {(packets.ETH_IPV4, packets.ESP), (packets.ETH_IPV6, packets.ESP)}
    assert seen & esp
    assert seen <= esp | {(packets.ETH_ARP, 0), (packets.ETH_IPV6, packets.ICMPV6)}


def _watch(sniffer: socket.socket, is_over: threading.Event, seen: set[tuple[int, int]]) -> None:
    sniffer.settimeout(0.2)
    while not is_over.is_set():
        try:
            frame = sniffer.recv(100)
        except TimeoutError:
            continue
        if frame[:3] == b"\x33\x33\0":
            continue  # link-local multicast: neighbours and MLD
        (ethertype,) = struct.unpack_from(">H", frame, 12)
        protocol = {packets.ETH_IPV4: frame[23], packets.ETH_IPV6: frame[20]}.get(ethertype, 0)
        seen.add((ethertype, protocol))


@versions
@pytest.mark.parametrize("kind", [ASK, ANSWER], ids=["ask", "answer"])
def test_probes_of_the_agent_cross_the_wire(wire: Wire, version: int, kind: int) -> None:
    own, there = wire.one.own(version), wire.two.own(version)
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with netns.socket_in(wire.one.namespace, family, socket.SOCK_RAW, packets.PROBE) as agent:
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0xE00)
        agent.bind((own, 0))
        for number in range(4):
            wire.two.node.seen_events()
            counted(wire.one.node)
            agent.sendto(struct.pack(">QII", PAIR, number, kind), (there, 0))
            told: list[tuple[int, int, int]] = []

            def arrived(told: list[tuple[int, int, int]] = told) -> bool:
                events = wire.two.node.seen_events()
                told += [
                    (e["pair"], e["number"], e["probe"])
                    for e in events
                    if e["kind"] == "EVENT_PROBE"
                ]
                return bool(told)

            wait_for("probe", arrived)
            assert told == [(PAIR, number, kind)]
            assert counted(wire.one.node)["PROBE_SENT"] == 1


@versions
def test_a_pod_reaches_the_other_node_itself(wire: Wire, version: int) -> None:
    """Opened, then up the node's own stack; its answer has no way in the clear."""
    target = wire.two.own(version)
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with netns.socket_in(wire.two.namespace, family, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(SECONDS)
        receiver.bind((target, 0))
        with wire.one.socket(version, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"to the node", receiver.getsockname())
            got, source = receiver.recvfrom(100)
            assert (got, source[0]) == (b"to the node", wire.one.address(version))
            counted(wire.two.node)
            receiver.sendto(b"in the clear", source)
            wait_for("leak caught", lambda: counted(wire.two.node) == {"DROP_CLEAR_TO_CLUSTER": 1})


@pytest.fixture
def vouching_card(wire: Wire, tmp_path: Path) -> Iterator[None]:
    """Hardware on the way vouches for the sums of what it saw."""
    path = compile_bpf(ROOT / "tests" / "bpf" / "nic.bpf.c", tmp_path / "nic.bpf.o")
    pin = PINS / "card"
    with Object.load(path) as loaded, netns.inside(wire.one.namespace):
        device = socket.if_nametoindex("pellicle_host")
        attach_tc(device, loaded.program("vouch"), "egress", pin=pin)
        try:
            yield
        finally:
            detach_tc(device, "egress", pin=pin)


@versions
@pytest.mark.usefixtures("vouching_card")
def test_wrong_checksums_inside_are_noticed_by_the_pod(wire: Wire, version: int) -> None:
    """Whoever vouched for the outer packet's sum said nothing about the inner one's."""
    with wire.two.socket(version, socket.SOCK_DGRAM) as receiver:
        port = receiver.getsockname()[1]
        wrong = struct.pack(">HHHH", 999, port, 8 + 5, 0x1111) + b"wrong"
        right = struct.pack(">HHHH", 999, port, 8 + 5, 0) + b"right"
        source, there = wire.one.address(version), wire.two.address(version)
        with netns.socket_in(wire.one.pod, socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.bind(("eth0", 3))
            gateway = mac(wire.one.namespace, "pod0")
            for body in (wrong, _checksummed(right, source, there)):
                packet = packets.ip(source, there, body, protocol=packets.UDP)
                raw.send(packets.frame(packet, destination=gateway))
        assert receiver.recv(100) == b"right"


def _checksummed(datagram: bytes, source: str, destination: str) -> bytes:
    packed = [socket.inet_pton(socket.AF_INET6 if ":" in a else socket.AF_INET, a)
              for a in (source, destination)]  # fmt: skip
    pseudo = b"".join(packed) + struct.pack(">II", len(datagram), packets.UDP)
    return datagram[:6] + struct.pack(">H", packets.checksum(pseudo + datagram)) + datagram[8:]


@versions
def test_headers_cut_short_are_refused_on_the_wire(wire: Wire, version: int) -> None:
    whole = packets.frame(packets.ip(wire.one.address(version), wire.two.address(version)))
    frame = mac(wire.two.namespace, "up0") + whole[6:]
    with wire.one.on("up0") as raw:
        for size in range(15, 14 + (40 if version == 6 else 20), 3):
            counted(wire.two.node)
            # the last door of the sender would stop it: leave by the device's other side
            raw.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
            raw.send(frame[:size])
            wait_for("refusal", lambda: counted(wire.two.node).get("DROP_MALFORMED", 0) == 1)


@versions
def test_the_uplinks_mtu_is_the_limit_and_named(wire: Wire, version: int) -> None:
    size = 1300 - (48 if version == 6 else 28)
    with wire.one.socket(version, socket.SOCK_DGRAM) as sender, wire.two.socket(
        version, socket.SOCK_DGRAM
    ) as receiver:  # fmt: skip
        try:
            uplink_mtu(wire.one, 1500 - (MTU[wire.outer] - 1300) // 4 * 4)
            sender.sendto(bytes(size), receiver.getsockname())
            assert len(receiver.recv(2000)) == size
            uplink_mtu(wire.one, 1300)
            counted(wire.one.node)
            sender.sendto(bytes(size), receiver.getsockname())
            wait_for("refusal", lambda: counted(wire.one.node).get("DROP_TOO_BIG", 0) == 1)
        finally:
            uplink_mtu(wire.one, 1500)


def uplink_mtu(side: Side, mtu: int) -> None:
    netns.run_in(side.namespace, f"ip link set up0 mtu {mtu}".split(), check=True)
