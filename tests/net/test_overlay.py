# SPDX-License-Identifier: Apache-2.0
"""The routing overlay on whole nodes: every path, every size, and everybody who would get into it.

    n1/p1 ─▶ pellicle_tunnel ─▶ door ══ ESP (UDP (VXLAN (a packet))) ══▶ pellicle_tunnel ─▶ n2/p1

n3 is there to be lied about. Geneve, which not every kernel has, is in tests/vm.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.all import IP, UDP, VXLAN, Ether, IPv6, Packet, Raw

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents, check
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import WIRE, LabNode
from tests import pace
from tests.net.loaded import address_of, until
from tests.net.parcels import (
    INNER,
    IP_UDP,
    MAY_FRAGMENT,
    MUST_NOT_FRAGMENT,
    SECRET,
    content,
    is_echoed,
    open_in,
    parcels,
    raw_link,
    refusal,
)

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
OVERLAY = {"routing": "overlay", "refresh_seconds": 5}
TUNNEL_BYTES = {4: 50, 6: 70}
PORT, ECHO_PORT = 4789, 7007
FORGED = "DROP_FORGED_OVERLAY"
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
outers = pytest.mark.parametrize("outer", [6, 4], ids=["over IPv6", "over IPv4"])


@outers
@pytest.mark.parametrize("nodes", [True, False], ids=["", "nodes in the clear"])
def test_every_path_is_answered_and_no_pod_is_heard(
    make_lab: MakeLab, outer: int, nodes: bool
) -> None:
    lab.down()  # pods keep the MTU that they were plugged in with
    settings = {**OVERLAY, "outer_family": str(outer), "encrypt_nodes": nodes}
    make_lab(2, 1, settings=settings)
    found = check.check()
    assert all(cell.is_well for cell in found.cells)
    assert found.encrypted > 0
    if nodes:
        assert (found.problems, found.clear) == ((), 0)
    for source, to in (("n1/p1", "n2/p1"), ("n1", "n2/p1"), ("n1/p1", "n2")):
        for family in (4, 6):
            with Sniffer(markers=[SECRET]) as wire:
                assert is_echoed(source, family, address_of(to, family))
                wire.settle()
                assert (wire.lost(), wire.marks(), wire.leaks()) == (0, {}, ())
    assert not any(dropped(node, FORGED) for node in (N1, N2))


def test_the_listener_reads_all_of_it_while_encryption_is_off(make_lab: MakeLab) -> None:
    make_lab(2, 1, encrypt=False, settings=OVERLAY)
    found = check.check()
    assert (found.problems, found.encrypted) == ((), 0)
    for family in (4, 6):
        with Sniffer(markers=[SECRET]) as wire:
            assert is_echoed("n1/p1", family, address_of("n2/p1", family))
            wire.settle()
            assert sum(wire.marks().values()) >= 2
            assert not any(flow.kind is Kind.ESP for flow in wire.counts())


@both
@outers
@pytest.mark.parametrize("is_on", [True, False], ids=["encrypted", "clear"])
def test_the_mtu_is_exact_to_the_byte(
    make_lab: MakeLab, family: int, outer: int, is_on: bool
) -> None:
    lab.down()
    make_lab(2, 1, encrypt=is_on, settings={**OVERLAY, "outer_family": str(outer)})
    mtu = (INNER[outer] if is_on else 1500) - TUNNEL_BYTES[outer]
    longest = mtu - IP_UDP[family]
    with Sniffer(markers=[SECRET]) as wire:
        for source, sink in (("n1/p1", "n2/p1"), ("n1", "n2/p1")):
            with parcels(source, sink, family) as post:
                post.discover(MUST_NOT_FRAGMENT)
                for size in (*range(1, 5), *range(longest - 8, longest + 1)):
                    assert post.carries(size), size
                assert refusal(lambda p=post: p.send(content(longest + 1))) == errno.EMSGSIZE  # type: ignore[misc]
                assert post.mtu == mtu
                post.discover(MAY_FRAGMENT)
                for size in (longest + 1, 2 * longest, 5000, 60000):
                    assert post.carries(size), size
        wire.settle()
        assert wire.lost() == 0
        assert bool(wire.marks()) == (not is_on)


# --- reports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(make_lab: MakeLab) -> lab.LabState:
    return make_lab(3, 1, settings=OVERLAY)


@both
def test_flows_are_the_pods_own_and_nobody_sees_the_tunnel(
    three: lab.LabState, family: int
) -> None:
    with parcels("n1/p1", "n2/p1", family) as post:
        for _ in range(5):
            assert post.carries(500)
        port = post.sender.getsockname()[1]
    pods = [address_of(where, family) for where in ("n1/p1", "n2/p1")]
    for node, verdict in ((N1, "SEALED"), (N2, "OPENED")):
        rows = until_some(lambda n=node: flows(n, *pods, port), "the flow is reported")
        assert {row["reason"] for row in rows} == {verdict}
        for row in rows:
            assert row["bytes"] == row["packets"] * (500 + IP_UDP[family])
            assert row["spi"] != 0
            assert row["pair"] != "0" * 16
        assert not [each for each in all_flows(node) if each["destination"]["port"] == PORT]


def test_all_sas_of_the_pair_carry_pods_packets(three: lab.LabState) -> None:
    before = sent(N1)
    for port in range(64):
        with open_in("n1/p1", 4, socket.SOCK_DGRAM) as here:
            here.sendto(b"x" * 100, (address_of("n2/p1", 4), 9000 + port))
    after = sent(N1)
    grown = {number for number, packets in after.items() if packets > before.get(number, 0)}
    assert len(grown) == 4


# --- who would get in ----------------------------------------------------------------------------


def wrapped(inner: Packet, vni: int) -> Packet:
    return VXLAN(flags=0x08, vni=vni) / Ether(src="02:00:00:00:00:07", dst=OVERLAY_MAC) / inner


OVERLAY_MAC = "02:70:65:6c:00:02"
HELLO = Raw(SECRET)


def lie(source: str = "n2/p1", to: str = "n1/p1") -> Packet:
    """What a forger would have a pod of n1 hear."""
    return IP(src=address_of(source, 4), dst=address_of(to, 4)) / UDP(sport=9, dport=9999) / HELLO


@contextmanager
def unheard(pod: str = "n1/p1") -> Iterator[None]:
    """Nothing of what is sent meanwhile arrives in a pod."""
    with open_in(pod, 4, socket.SOCK_DGRAM) as ear:
        ear.bind(("", 9999))
        yield
        ear.settimeout(pace.patient(0.5))
        with pytest.raises(TimeoutError):
            ear.recv(2048)


@both
@pytest.mark.parametrize("target", ["n2", "n1's gateway"])
def test_a_pod_cannot_speak_to_the_overlay_of_any_node(
    three: lab.LabState, family: int, target: str
) -> None:
    gateway = "10.244.1.1" if family == 4 else "fd00:244:1::1"
    to = address_of("n2", family) if target == "n2" else gateway
    header = (IP if family == 4 else IPv6)(src=address_of("n1/p1", family), dst=to)
    with unheard(), unheard("n2/p1"), counted(N1, FORGED), raw_link("n1/p1") as send:
        for source, sink in (("n2/p1", "n1/p1"), ("n1/p1", "n2/p1"), ("n3/p1", "n2/p1")):
            inner = wrapped(lie(source, sink), identity("n2/p1"))
            send(bytes(header / UDP(sport=40000, dport=PORT) / inner))


@both
def test_no_process_of_a_node_speaks_as_its_overlay(three: lab.LabState, family: int) -> None:
    """Not to another node, and not to its own by loopback: that takes a mark."""
    said = bytes(wrapped(lie("n1/p1", "n2/p1"), identity("n1/p1")))
    with unheard("n2/p1"), counted(N1, FORGED), open_in("n1", family, socket.SOCK_DGRAM) as here:
        here.sendto(said, (address_of("n2", family), PORT))
    said = bytes(wrapped(lie(), identity("n2/p1")))
    for to in (address_of("n1", family), "127.0.0.1" if family == 4 else "::1"):
        with unheard(), counted(N1, FORGED), open_in("n1", family, socket.SOCK_DGRAM) as here:
            here.sendto(said, (to, PORT))


@both
@pytest.mark.parametrize("source", ["n2", "the world"])
def test_cleartext_from_the_wire_does_not_get_into_the_overlay(
    three: lab.LabState, family: int, source: str
) -> None:
    world = "198.51.100.7" if family == 4 else "2001:db8::7"
    header = (IP if family == 4 else IPv6)(
        src=address_of("n2", family) if source == "n2" else world, dst=address_of("n1", family)
    )
    reason = "DROP_CLEAR_FROM_CLUSTER" if source == "n2" else FORGED
    packet = header / UDP(sport=40000, dport=PORT) / wrapped(lie(), identity("n2/p1"))
    with unheard(), counted(N1, reason):
        from_wire(N1, packet)


# --- what it takes -------------------------------------------------------------------------------


def identity(pod: str) -> int:
    rows = agents.ask(N1, "map", name="ipcache")
    (found,) = [row for row in rows if row["key"] == address_of(pod, 4)]
    return int(found["value"]["identity"])


def dropped(node: LabNode, reason: str) -> int:
    counts = agents.status(node)["counts"]
    return sum(row["packets"] for row in counts if row["reason"] == reason)


@contextmanager
def counted(node: LabNode, reason: str) -> Iterator[None]:
    """What happens meanwhile is dropped there, under this name."""
    before = dropped(node, reason)
    yield
    until(lambda: dropped(node, reason) > before, f"{reason} at {node.name}")


def all_flows(node: LabNode) -> list[dict[str, Any]]:
    return list(agents.ask(node, "flows"))


def flows(node: LabNode, source: str, to: str, port: int) -> list[dict[str, Any]]:
    return [
        row
        for row in agents.ask(node, "flows", to=to)
        if row["source"]["address"] == source and row["source"]["port"] == port
    ]


def until_some(look: Callable[[], list[Any]], what: str) -> list[Any]:
    until(lambda: bool(look()), what)
    return look()


def sent(node: LabNode) -> dict[int, int]:
    """Packets by the number of the SA, to all peers."""
    rows = [row for row in agents.ask(node, "encrypt")[0]["sas"] if row["direction"] == "out"]
    return {row["spi"]: row["packets"] for row in rows}


def from_wire(node: LabNode, packet: Packet) -> None:
    """As a stranger's frame would come to the node."""
    with Netlink(WIRE) as wire, Netlink(node.namespace) as inside:
        here, there = wire.link(node.wire_device), inside.link("eth0")
    frame = Ether(src=here.mac, dst=there.mac) / packet
    with netns.socket_in(WIRE, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((node.wire_device, 0))
        link.send(bytes(frame))
