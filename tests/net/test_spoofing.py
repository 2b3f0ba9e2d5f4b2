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
from itertools import count
from typing import Self

import pytest
from scapy.all import IP, Ether, IPv6, Packet, Raw

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents
from pellicle.lab.sniffer import Seen, Sniffer
from pellicle.lab.topology import WIRE, LabNode, namespace_of, node_named, pod_named
from tests.net.disguises import (
    GROUPS,
    HONEST,
    N1,
    NODES,
    OBEYED,
    OTHERS,
    OVERLAY,
    PORT,
    REPEATED,
    Case,
)
from tests.net.engines import of
from tests.net.loaded import address_of, dropped, until
from tests.net.parcels import is_echoed

MakeLab = Callable[..., lab.LabState]
EARS = ("n1/p1", "n1/p2", "n2/p1", "n3/p1", "n1", "n2", "n3")
MARKER = b"who-goes-there"
NUMBERS = count(1)
SO_MARK, OUTGOING = 36, 4
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
        if case.wear not in REPEATED:
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
