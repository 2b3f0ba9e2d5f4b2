# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand malformed packets against a node: everything else goes on, each drop named.

Sent from the wire as an attacker would who hears everything: mutations of real ESP caught on the
wire, Scapy's fuzzed headers, and what hypothesis thinks of.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import count, islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.all import (
    ESP,
    ICMP,
    IP,
    TCP,
    UDP,
    Ether,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Packet,
    Raw,
    fuzz,
)

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents
from pellicle.lab.sniffer import Seen, Sniffer
from pellicle.lab.topology import WIRE, LabNode, is_cluster_address
from tests import pace
from tests.net.engines import kernel_drops, of
from tests.net.loaded import MARKER, assert_private, load, until

MakeLab = Callable[..., lab.LabState]
PACKETS, EXAMPLES = pace.amount((100_000, 400), (10_000, 40))
N1 = LabNode(1)
PEER4, SELF4, PEER6, SELF6 = "192.168.2.2", "192.168.1.2", "fd00:168:2::2", "fd00:168:1::2"
POD4, POD6 = "10.244.2.77", "fd00:244:2::77"
NAMED = {
    "bpf": {
        "DROP_UNKNOWN_SPI",
        "DROP_AUTH_FAILED",
        "DROP_REPLAYED",
        "DROP_ESP_MALFORMED",
        "DROP_ESP_FRAGMENT",
        "DROP_MALFORMED",
        "DROP_CLEAR_FROM_CLUSTER",
    },
    "xfrm": {
        "XfrmInNoStates",
        "XfrmInStateProtoError",
        "XfrmInStateSeqError",
        "DROP_MALFORMED",
        "DROP_CLEAR_FROM_CLUSTER",
    },
}
"""Each way to be refused has a name; where the kernel decrypts, the kernel's."""


@pytest.fixture(scope="module")
def attacked(make_lab: MakeLab) -> lab.LabState:
    return make_lab(2, 1, encrypt=True)


def test_legitimate_traffic_survives_bad_packets(
    attacked: lab.LabState,
) -> None:
    dice = random.Random(4303)
    pid = _pid()
    before = _refusals()
    with (
        Sniffer(markers=[MARKER], watch=(caught := _Caught())) as wire,
        load("n1/p1", "n2/p1", 4) as run,
        _attacker() as strike,
    ):
        caught.wait(200)
        seeds = [*caught.frames, *islice(_fuzzed(), 400)]
        for _ in range(PACKETS):
            strike(_mutated(dice, dice.choice(seeds)))
        outcome = run.stop()
        wire.settle()
        assert wire.marks() == {}
        # A pod may answer a stranger from the world in the clear, and only such a one.
        assert [leak for leak in wire.leaks() if _is_within_cluster(leak)] == []
    assert outcome.is_intact
    assert outcome.lost == 0
    assert outcome.duplicates == 0, "no replayed packet came through"
    after, named = _refusals(), NAMED[of(N1).name]
    grown = {name for name in after if after[name] > before.get(name, 0)}
    assert grown >= named, f"not named: {named - grown}"
    assert _pid() == pid, "the agent is the same one"
    assert _is_healthy()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.binary(min_size=14, max_size=1500), min_size=1, max_size=20), st.booleans())
def test_arbitrary_bytes_do_no_harm(
    attacked: lab.LabState, payloads: list[bytes], is_ipv6: bool
) -> None:
    """Whatever comes after a plausible first header."""
    header = IPv6(src=PEER6, dst=SELF6, nh=50) if is_ipv6 else IP(src=PEER4, dst=SELF4, proto=50)
    opened = _counts().get("OPENED", 0)
    with _attacker() as strike:
        for payload in payloads:
            strike(bytes(_ether() / header / Raw(payload)))
            strike(bytes(_ether()) + payload)
    assert _counts().get("OPENED", 0) == opened


def test_after_all_that_the_cluster_is_well(attacked: lab.LabState) -> None:
    assert _is_healthy()
    with Sniffer(markers=[MARKER]) as wire, load("n2/p1", "n1/p1", 6, 3) as run:
        assert run.outcome.lost == 0
        assert_private(wire)


class _Caught:
    """The latest real ESP for n1, as the wire has it, addressed to n1's device."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=200)
        self._mac = bytes.fromhex(_mac().replace(":", ""))

    def __call__(self, seen: Seen) -> None:
        if seen.flow.destination == "n1" and seen.flow.protocol == "ESP":
            self.frames.append(self._mac + seen.frame[6:])

    def recent(self, dice: random.Random) -> bytes:
        return self.frames[dice.randrange(len(self.frames))]

    def wait(self, number: int) -> None:
        until(lambda: len(self.frames) >= number, "enough ESP was caught")


def _fuzzed() -> Iterator[bytes]:
    """Headers with random fields, alone and nested, addressed to the node or to its pods."""
    four = [IP(src=PEER4, dst=SELF4), IP(src=POD4, dst="10.244.1.2"), IP(src=POD4, dst=SELF4)]
    six = [IPv6(src=PEER6, dst=SELF6), IPv6(src=POD6, dst="fd00:244:1::2")]
    uppers: Sequence[Packet] = (TCP(), UDP(), ICMP(), ESP(data=os.urandom(64)), Raw(b"x" * 80))
    extensions: Sequence[Packet] = (
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(),
        IPv6ExtHdrFragment(offset=3, m=1),
        ICMPv6PacketTooBig(mtu=1),
    )
    quoted = IP(src=SELF4, dst=PEER4, proto=50) / Raw(os.urandom(16))
    for number in count():
        upper = uppers[number % len(uppers)]
        yield bytes(_ether() / four[number % 3] / fuzz(upper.copy()))
        yield bytes(_ether() / six[number % 2] / extensions[number % 5] / fuzz(upper.copy()))
        yield bytes(_ether() / IP(src=PEER4, dst=SELF4, flags="MF", frag=number % 9, proto=50))
        # Whole packets, but too short for any ESP: of random cuts few are.
        yield bytes(_ether() / IP(src=PEER4, dst=SELF4, proto=50) / Raw(os.urandom(number % 40)))
        yield bytes(_ether() / four[0] / ICMP(type=3, code=4, nexthopmtu=number % 99) / quoted)


def _mutated(dice: random.Random, seed: bytes) -> bytes:
    """One to four wounds: bits flipped, the end cut off, a piece doubled; the MACs stay."""
    frame = bytearray(seed)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(14, max(15, len(frame)))
        match dice.randrange(8):
            case 0:
                del frame[at:]
            case 1:
                frame[at:at] = frame[at : at + dice.randint(1, 40)]
            case 2:
                pass  # as it was heard: a replay
            case _:
                if at < len(frame):
                    frame[at] ^= 1 << dice.randrange(8)
    return bytes(frame[:1514]).ljust(14, b"\0")


def _ether() -> Ether:
    return Ether(src="02:00:00:00:00:99", dst=_mac())


_MAC: list[str] = []


def _mac() -> str:
    if not _MAC:
        with Netlink(N1.namespace) as netlink:
            _MAC.append(netlink.link("eth0").mac)
    return _MAC[0]


@contextmanager
def _attacker() -> Iterator[Callable[[bytes], None]]:
    """Puts frames on the wire's end of n1's cable."""
    with netns.socket_in(WIRE, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind((N1.wire_device, 0))

        def strike(frame: bytes) -> None:
            try:
                link.send(frame)
            except OSError as error:
                # A full queue is the kernel's business; a frame it will not take is none.
                if error.errno not in (errno.EINVAL, errno.EMSGSIZE, errno.ENOBUFS):
                    raise

        yield strike


def _is_within_cluster(leak: str) -> bool:
    """Of "n1: fd00:244:1::2 > 2001:db8::1 ICMPv6, 118 bytes"."""
    _, source, _, destination, *_ = leak.split()
    return all(is_cluster_address(ip_address(each)) for each in (source, destination))


def _counts() -> dict[str, int]:
    return {row["reason"]: int(row["packets"]) for row in agents.status(N1)["counts"]}


def _refusals() -> dict[str, int]:
    return {**_counts(), **kernel_drops(N1)}


def _pid() -> int | None:
    return next(node.pid for node in lab.status().nodes if node.name == "n1")


def _is_healthy() -> bool:
    return bool(agents.status(N1)["healthy"])
