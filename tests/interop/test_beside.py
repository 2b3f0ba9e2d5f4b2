# SPDX-License-Identifier: Apache-2.0
"""IPsec that others have made on the same nodes goes on beside Pellicle's, in either engine.

198.51.100.1 ── n1 ══╤══ ESP of theirs ══ the router ── 198.51.100.9
                     ╞══ ESP of theirs ══ n2 ────────── 198.51.100.2
n1/p1 ───────── n1 ══╧══ ESP of ours ════ n2 ────────── n2/p1
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import WIRE
from tests.interop.byhand import N1, N2
from tests.net.loaded import address_of, assert_private, until
from tests.net.parcels import SECRET, is_echoed

both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4 outside", "IPv6 outside"])
KEYS = (
    "reqid 99 mode tunnel flag af-unspec aead rfc4106(gcm(aes)) 0x"
    + bytes(range(20)).hex()
    + " 128"
)
THERE, BACK = 0x5150, 0x5151
"""Their SPIs."""
COUNT = 5
PATTERN = SECRET[:16]
"""What ping fills its packets with."""


@dataclass(frozen=True)
class End:
    """One of a tunnel: where, its outer addresses by family, and the address behind it."""

    place: str
    outer: Mapping[int, str]
    inner: str

    def ip(self, words: str) -> str:
        argv = ["ip", *words.split()]
        done = netns.run_in(self.place, argv, capture_output=True, text=True)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout


HERE = End(N1.namespace, {each.version: str(each) for each in N1.addresses}, "198.51.100.1")
NODE = End(N2.namespace, {each.version: str(each) for each in N2.addresses}, "198.51.100.2")
STRANGER = End(WIRE, {each.version: str(each.ip) for each in N1.gateways}, "198.51.100.9")


@pytest.fixture(scope="module", params=["bpf", "xfrm"])
def two(request: pytest.FixtureRequest, lab_place: None) -> Iterator[None]:
    lab.up(2, 1, engine=request.param)
    yield
    lab.down()


@both
@pytest.mark.parametrize("there", [NODE, STRANGER], ids=["to another node", "to a stranger"])
def test_a_tunnel_by_hand_goes_on(two: None, there: End, family: int) -> None:
    """Also after the agent has started anew, and after all of Pellicle's IPsec was taken away."""
    with tunnel(HERE, there, family):
        until(lambda: echoes(HERE, there), "the agent knows of it", 10)
        # The sniffer sits where the stranger does, and hears what that decrypts.
        marks = [PATTERN] if there is NODE else []
        with Sniffer(markers=marks, nonces=True) as wire:
            assert echoes(HERE, there)
            lab.restart_agent("n1")
            assert echoes(HERE, there)
            flush = [sys.executable, "-m", "pellicle", "encrypt", "flush", "--yes"]
            netns.run_in(N1.namespace, flush, check=True, capture_output=True)
            assert echoes(HERE, there)
            until(lambda: is_echoed("n1/p1", 4, address_of("n2/p1", 4)), "and ours", 30)
            assert_private(wire)
        assert carried(HERE, there, family) >= 4 * COUNT


@both
def test_what_leaves_their_tunnel_is_looked_at(two: None, family: int) -> None:
    """No pod's packet may come out of it: only our keys say who is one."""
    pod = address_of("n2/p1", 4)
    liar = End(N2.namespace, NODE.outer, pod)
    with tunnel(HERE, NODE, family):
        until(lambda: echoes(HERE, NODE), "the agent knows of it", 10)
        liar.ip(f"xfrm policy add src {pod} dst {HERE.inner} dir out {wanted(NODE, HERE, family)}")
        before = refused()
        send = "import socket; socket.socket(2, 2).sendto(b'x', ('{}', 9))"
        lab.exec_("n2/p1", [sys.executable, "-c", send.format(HERE.inner)])
        until(lambda: refused() > before, "refused by name", 10)
        liar.ip(f"xfrm policy delete src {pod} dst {HERE.inner} dir out")


@contextmanager
def tunnel(one: End, two: End, family: int) -> Iterator[None]:
    """States and policies at both ends, as ip-xfrm(8) makes them, between the addresses behind."""
    added: list[tuple[End, str]] = []

    def add(place: End, what: str, more: str = "") -> None:
        place.ip(f"{what.replace('!', 'add')} {more}")
        added.append((place, what.replace("!", "delete" if "xfrm" in what else "del")))

    try:
        for near, far, out, back in ((one, two, THERE, BACK), (two, one, BACK, THERE)):
            add(near, f"addr ! {near.inner}/32 dev lo")
            add(near, f"route ! {far.inner}/32 via {gateway(near, far)} src {near.inner}")
            for source, sink, spi in ((near, far, out), (far, near, back)):
                add(near, f"xfrm state ! {end(source, sink, family, spi)}", KEYS)
            for way, source, sink in (("out", near, far), ("in", far, near)):
                name = f"src {source.inner} dst {sink.inner} dir {way}"
                add(near, f"xfrm policy ! {name}", wanted(source, sink, family))
        yield
    finally:
        for place, words in reversed(added):
            place.ip(words)


def end(source: End, sink: End, family: int, spi: int) -> str:
    return f"src {source.outer[family]} dst {sink.outer[family]} proto esp spi {spi:#x}"


def wanted(source: End, sink: End, family: int) -> str:
    """A policy's template."""
    outer = f"src {source.outer[family]} dst {sink.outer[family]}"
    return f"tmpl {outer} proto esp reqid 99 mode tunnel"


def gateway(near: End, far: End) -> str:
    """Where an IPv4 packet would go if nothing encrypted it."""
    routers = {HERE.place: N1.gateways, NODE.place: N2.gateways}.get(near.place)
    return far.outer[4] if routers is None else str(routers[0].ip)


def echoes(one: End, two: End) -> bool:
    """Whether each request is answered."""
    words = ["ping", "-q", "-c", f"{COUNT}", "-i", "0.05", "-W", "2", "-p", PATTERN.hex()]
    argv = [*words, "-I", one.inner, two.inner]
    said = netns.run_in(one.place, argv, capture_output=True, text=True).stdout
    return f" {COUNT} received" in said


def carried(source: End, sink: End, family: int) -> int:
    """Packets that the sink's state has opened."""
    shown = sink.ip("-s xfrm state get " + end(source, sink, family, THERE))
    (packets,) = re.findall(r"lifetime current:\n\s*\d+\(bytes\), (\d+)\(packets\)", shown)
    return int(packets)


def refused() -> int:
    counts = {row["reason"]: int(row["packets"]) for row in agents.status(N1)["counts"]}
    return counts["DROP_CLEAR_FROM_CLUSTER"]
