# SPDX-License-Identifier: Apache-2.0
"""The overlay's packets at every hook: judged, sealed and named by what a pod says in them.

    from_pod, to_overlay ─▶ door ─▶ to_net ─▶ … ─▶ from_net ─▶ from_overlay

What the kernel's device does between them is in tests/net/test_overlay.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    HOST_MAC,
    KEYLESS,
    OUT,
    OVER4,
    OVER6,
    PEERS,
    POD4,
    POD6,
    POD_IDENTITY,
    POD_MAC,
    SAS,
    SELF4,
    SELF6,
    WORLD4,
    furnish,
    pod,
    put_inbound,
    put_outbound,
    sa_out,
)  # fmt: skip
from tests.bpf.node import OK, REDIRECT, SHOT, Node, Seen, addr, loaded_node, text_of
from tests.bpf.packets import frame, ip, udp
from tests.bpf.tunnel import FAMILIES, delivered, outers, sealed, take_apart

VXLAN, GENEVE = (4789, 0x08), (6081, 0x00)
MARKED, JUDGED = 0xE00, 4
REMOTE_NODE = 6
NOBODY4 = "10.244.77.7"
FORGED = "DROP_FORGED_OVERLAY"

families = pytest.mark.parametrize(("inner", "outer"), FAMILIES, ids=lambda v: f"IPv{v}")


@pytest.fixture(scope="module", params=[VXLAN, GENEVE], ids=["vxlan", "geneve"])
def kind(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param  # type: ignore[no-any-return]


def made(scratch: object, kind: tuple[int, int], **config: int) -> Iterator[Node]:
    port, first = kind
    with loaded_node(scratch, overlay_port=port, overlay_first=first, **config) as node:  # type: ignore[arg-type]
        furnish(node)
        for peer in (OVER4, OVER6, KEYLESS):
            node.put("remotes", {"bytes": addr(peer.address)}, {"outer": addr(peer.address)})
        for peer in PEERS.values():
            put_outbound(node, peer)
            put_inbound(node, peer)
        node.put_exempt(packets.UDP, port, 1)
        node.put_exempt(packets.TCP, 22, 2)
        node.forget()
        yield node


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, kind: tuple[int, int]) -> Iterator[Node]:
    yield from made(tmp_path_factory.mktemp("bpf"), kind)


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory, kind: tuple[int, int]) -> Iterator[Node]:
    yield from made(tmp_path_factory.mktemp("bpf"), kind, monitor=1)


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory, kind: tuple[int, int]) -> Iterator[Node]:
    yield from made(tmp_path_factory.mktemp("bpf"), kind, encrypt=0)


@pytest.fixture
def node(loaded: Node) -> Node:
    loaded.clear("flows", "sa_in")
    for peer in PEERS.values():
        put_inbound(loaded, peer)
    loaded.forget()
    return loaded


def wrapped(
    kind: tuple[int, int], source: str, destination: str, inner: bytes, vni: int, **fields: int
) -> bytes:
    """An overlay packet between two addresses."""
    port, first = kind
    head = struct.pack(">B3xI", first, vni << 8)
    return ip(source, destination, udp(40000, port, head + frame(inner)), protocol=packets.UDP,
              **fields)  # fmt: skip


def named(node: Node) -> list[tuple[str, str]]:
    """Who spoke to whom in the flows that were reported."""
    return [(text_of(k["source"]["bytes"]), text_of(k["destination"]["bytes"]))
            for k, _ in node.rows("flows")]  # fmt: skip


# --- out ---------------------------------------------------------------------------------------


@families
def test_the_device_is_told_where_and_the_packet_is_marked_for_the_door(
    node: Node, inner: int, outer: int
) -> None:
    packet = frame(ip(pod(inner), PEERS[outer].pod(inner)), source=b"\2" * 6)
    seen = node.run("to_overlay", packet)
    assert (seen.action, seen.mark, seen.reasons) == (OK, MARKED, ()), "the door reports it"
    assert seen.frame == packet[:6] + bytes(6) + packet[12:]


OUTWARD = {
    "to a cluster address nobody has": (frame(ip(POD4, NOBODY4)), "DROP_UNKNOWN_PEER"),
    "to a pod of this node": (frame(ip(SELF4, POD4)), "DROP_UNKNOWN_PEER"),
    "to the world": (frame(ip(POD4, WORLD4)), "DROP_UNKNOWN_PEER"),
    "what never leaves a link": (frame(ip(SELF6, "fe80::7")), "CLEAR_LINK"),
    "ARP": (packets.ethernet(packets.ETH_ARP, bytes(28)), "CLEAR_LINK"),
    "what is no IP": (packets.ethernet(0x88CC, bytes(40)), "DROP_NOT_IP"),
    "cut short": (frame(ip(POD4, OVER4.pod4, bytes(9))[:-1]), "DROP_MALFORMED"),
}


@pytest.mark.parametrize("says", OUTWARD)
def test_what_no_node_can_be_found_for_ends_at_the_device(node: Node, says: str) -> None:
    packet, reason = OUTWARD[says]
    seen = node.run("to_overlay", packet)
    assert (seen.action, seen.reason) == (SHOT, reason)


def test_without_encryption_the_overlay_packet_has_no_mark(off: Node) -> None:
    seen = off.run("to_overlay", frame(ip(POD4, KEYLESS.pod4)))
    assert (seen.action, seen.mark, seen.reasons) == (OK, 0, ())


@pytest.mark.parametrize("to", ["192.0.2.2", "192.0.2.4", SELF4])
@pytest.mark.parametrize("state", ["loaded", "monitor", "off"])
def test_no_pod_speaks_to_the_overlay_of_a_node(
    kind: tuple[int, int], to: str, state: str, request: pytest.FixtureRequest
) -> None:
    seen = request.getfixturevalue(state).run("from_pod", frame(wrapped(kind, POD4, to, b"", 7)))
    assert (seen.action, seen.reason) == (SHOT, FORGED)


def test_pods_may_use_the_port_among_themselves(kind: tuple[int, int], node: Node) -> None:
    packet = wrapped(kind, POD4, OVER4.pod4, ip("1.2.3.4", "5.6.7.8"), 7)
    seen = node.run("from_pod", frame(packet))
    assert (seen.action, seen.mark, seen.reasons) == (OK, MARKED, ())
    assert node.run("to_overlay", seen.frame).mark == MARKED


# --- the door ------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("size", [0, 1, 2, 3, 700, 1332])
def test_the_door_seals_all_of_it_and_reports_the_pods_packet(
    kind: tuple[int, int], node: Node, inner: int, outer: int, size: int
) -> None:
    peer = PEERS[outer]
    before = sum(sa_out(node, peer, number)["bytes"] for number in range(SAS))
    said = ip(pod(inner), peer.pod(inner), bytes(size), tos=0xB8)
    packet = wrapped(kind, peer.own, peer.address, said, POD_IDENTITY, tos=0xB8)
    seen = node.run("door", frame(packet), mark=MARKED)
    assert (seen.action, seen.mark, seen.reason) == (REDIRECT, OUT, "SEALED")
    assert seen.size == len(said)
    assert named(node) == [(pod(inner), peer.pod(inner))]
    found = take_apart(seen.frame, peer)
    assert (found.opened.payload, found.tos) == (packet, 0xB8)
    after = sum(sa_out(node, peer, number)["bytes"] for number in range(SAS))
    assert after - before == len(packet)


def test_pods_flows_spread_over_the_sas_and_each_keeps_to_one(
    kind: tuple[int, int], node: Node
) -> None:
    def number(port: int) -> int:
        said = ip(POD4, OVER4.pod4, udp(port, 53), protocol=packets.UDP)
        packet = wrapped(kind, SELF4, OVER4.address, said, POD_IDENTITY)
        return take_apart(node.run("door", frame(packet), mark=MARKED).frame, OVER4).number

    assert {number(port) for port in range(1000, 1064)} == set(range(SAS))
    assert len({number(1000) for _ in range(8)}) == 1


@dataclass(frozen=True)
class AtDoor:
    says: str
    source: str
    destination: str
    inner: bytes
    mark: int
    reason: str


SAID = ip(POD4, OVER4.pod4)
AT_DOOR = (
    AtDoor("a process of the node", SELF4, OVER4.address, SAID, 0, FORGED),
    AtDoor("with another mark", SELF4, OVER4.address, SAID, 0xE01, FORGED),
    AtDoor("a pod", POD4, OVER4.address, SAID, MARKED, FORGED),
    AtDoor("the world", WORLD4, OVER4.address, SAID, MARKED, FORGED),
    AtDoor("no key", SELF4, KEYLESS.address, ip(POD4, KEYLESS.pod4), MARKED, "DROP_NO_KEY"),
    AtDoor("nobody", SELF4, OVER4.address, ip(POD4, NOBODY4), MARKED, "DROP_UNKNOWN_PEER"),
    AtDoor("exempt inside", SELF4, OVER4.address,
           ip(SELF4, OVER4.address, packets.tcp(9, 22), protocol=packets.TCP), MARKED, "SEALED"),
    AtDoor("like a probe", SELF4, OVER4.address,
           ip(SELF4, OVER4.pod4, bytes(16), protocol=packets.PROBE), MARKED, "SEALED"),
    AtDoor("cut short inside", SELF4, OVER4.address, SAID[:12], MARKED, "DROP_MALFORMED"),
    AtDoor("too long", SELF4, OVER4.address, ip(POD4, OVER4.pod4, bytes(2000)), MARKED,
           "DROP_TOO_BIG"),
)  # fmt: skip


@pytest.mark.parametrize("case", AT_DOOR, ids=lambda case: case.says)
def test_the_door_takes_the_overlays_packets_from_its_device_only(
    kind: tuple[int, int], node: Node, case: AtDoor
) -> None:
    packet = wrapped(kind, case.source, case.destination, case.inner, POD_IDENTITY)
    seen = node.run("door", frame(packet), mark=case.mark)
    assert seen.reason == case.reason
    assert seen.action == (REDIRECT if case.reason == "SEALED" else SHOT)


def test_in_monitor_mode_what_has_no_key_leaves_as_the_overlay_packet_it_is(
    kind: tuple[int, int], monitor: Node
) -> None:
    said = ip(POD4, KEYLESS.pod4)
    sent = monitor.run("from_pod", frame(said))
    assert (sent.action, sent.mark, sent.reasons) == (OK, MARKED, ()), "as if there were a key"
    packet = frame(wrapped(kind, SELF4, KEYLESS.address, said, POD_IDENTITY))
    seen = monitor.run("door", packet, mark=MARKED)
    assert (seen.action, seen.reason) == (REDIRECT, "AUDITED_DROP_NO_KEY")
    assert (seen.mark, seen.frame, seen.size) == (OUT, packet, len(said))
    last = monitor.run("to_net", packet, mark=OUT)
    assert (last.action, last.reasons) == (OK, ()), "reported already"


def test_in_monitor_mode_what_no_node_is_known_for_goes_as_it_is(monitor: Node) -> None:
    seen = monitor.run("to_overlay", frame(ip(SELF4, NOBODY4)))
    assert (seen.action, seen.reason) == (REDIRECT, "AUDITED_DROP_UNKNOWN_PEER")
    assert seen.mark == OUT


@pytest.mark.parametrize("nodes", [0, 1])
def test_the_last_door_lets_no_overlay_packet_out_and_names_the_pods(
    kind: tuple[int, int], tmp_path: object, nodes: int
) -> None:
    """Neither where it is exempt, nor where nodes may speak in the clear."""
    for node in made(tmp_path, kind, nodes=nodes):
        packet = wrapped(kind, SELF4, OVER4.address, SAID, POD_IDENTITY)
        for mark in (0, MARKED, OUT):
            seen = node.run("to_net", frame(packet), mark=mark)
            assert (seen.action, seen.reason) == (SHOT, "DROP_CLEAR_TO_CLUSTER")
            assert seen.size == len(SAID)
        assert named(node) == [(POD4, OVER4.pod4)]


# --- in ----------------------------------------------------------------------------------------


@families
def test_what_is_opened_is_judged_inside_and_handed_to_the_device(
    kind: tuple[int, int], node: Node, inner: int, outer: int
) -> None:
    peer = PEERS[outer]
    said = ip(peer.pod(inner), pod(inner), bytes(100))
    packet = wrapped(kind, peer.address, peer.own, said, peer.identity)
    seen = node.run("from_net", sealed(peer, 1, packet))
    assert (seen.action, seen.reason, seen.size) == (OK, "OPENED", len(said))
    assert (seen.mark, seen.frame[14:]) == (JUDGED, packet)
    assert named(node) == [(peer.pod(inner), pod(inner))]


@outers
def test_what_a_node_says_bears_the_identity_of_nodes(
    kind: tuple[int, int], node: Node, outer: int
) -> None:
    peer = PEERS[outer]
    said = ip(peer.address, POD6 if outer == 6 else POD4)
    for sequence, (vni, reason) in enumerate(
        ((REMOTE_NODE, "OPENED"), (1, "DROP_WRONG_IDENTITY"), (0, "DROP_WRONG_IDENTITY")), 1
    ):
        packet = wrapped(kind, peer.address, peer.own, said, vni)
        assert node.run("from_net", sealed(peer, sequence, packet)).reason == reason


@dataclass(frozen=True)
class Inward:
    says: str
    packet: tuple[str, str, bytes, int]
    """Outer source and destination, what is inside, VNI."""
    reason: str


GOOD = ip(OVER4.pod4, POD4)
INWARD = (
    Inward("another identity", (OVER4.address, SELF4, GOOD, OVER4.identity + 1),
           "DROP_WRONG_IDENTITY"),
    Inward("a third node's pod", (OVER4.address, SELF4, ip(OVER6.pod4, POD4), OVER6.identity),
           "DROP_SPOOFED_SOURCE"),
    Inward("this node's pod", (OVER4.address, SELF4, ip("10.244.1.9", POD4), POD_IDENTITY),
           "DROP_SPOOFED_SOURCE"),
    Inward("the world's", (OVER4.address, SELF4, ip(WORLD4, POD4), 2), "DROP_SPOOFED_SOURCE"),
    Inward("a pod there instead of the node", (OVER4.pod4, SELF4, GOOD, OVER4.identity), FORGED),
    Inward("nobody here", (OVER4.address, SELF4, ip(OVER4.pod4, "10.244.1.77"), OVER4.identity),
           "DROP_NO_ENDPOINT"),
    Inward("a third node's pod as the sink",
           (OVER4.address, SELF4, ip(OVER4.pod4, OVER6.pod4), OVER4.identity), "DROP_NO_ENDPOINT"),
    Inward("at its end", (OVER4.address, SELF4, ip(OVER4.pod4, POD4, ttl=1), OVER4.identity),
           "DROP_TTL_EXCEEDED"),
    Inward("cut short inside", (OVER4.address, SELF4, GOOD[:12], OVER4.identity),
           "DROP_MALFORMED"),
)  # fmt: skip


@pytest.mark.parametrize("case", INWARD, ids=lambda case: case.says)
def test_what_is_wrong_inside_is_refused_by_name(
    kind: tuple[int, int], node: Node, monitor: Node, case: Inward
) -> None:
    packet = sealed(OVER4, 1, wrapped(kind, *case.packet))
    for each in (node, monitor):
        each.clear("sa_in")
        put_inbound(each, OVER4)
        seen = each.run("from_net", packet)
        assert (seen.action, seen.reason) == (SHOT, case.reason)


@pytest.mark.parametrize("case", INWARD, ids=lambda case: case.says)
def test_it_is_refused_in_the_clear_too_where_there_is_no_encryption(
    kind: tuple[int, int], off: Node, case: Inward
) -> None:
    seen = off.run("from_net", frame(wrapped(kind, *case.packet)))
    assert (seen.action, seen.reason) == (SHOT, case.reason)


def test_a_header_of_another_kind_is_refused(kind: tuple[int, int], node: Node) -> None:
    for odd in (0x0C, 0x01, 0x41):
        packet = wrapped((kind[0], odd), OVER4.address, SELF4, GOOD, OVER4.identity)
        put_inbound(node, OVER4)
        assert node.run("from_net", sealed(OVER4, 1, packet)).reason == "DROP_MALFORMED"


def test_a_pods_packet_past_the_overlay_is_refused(node: Node) -> None:
    assert node.run("from_net", sealed(OVER4, 1, GOOD)).reason == "DROP_WRONG_ROUTING"


@pytest.mark.parametrize("source", [OVER4.address, KEYLESS.address])
def test_in_the_clear_it_is_refused_or_in_monitor_mode_let_in(
    kind: tuple[int, int], node: Node, monitor: Node, off: Node, source: str
) -> None:
    peer = next(each for each in (OVER4, KEYLESS) if each.address == source)
    packet = frame(wrapped(kind, source, SELF4, ip(peer.pod4, POD4), peer.identity))
    seen = node.run("from_net", packet)
    assert (seen.action, seen.reason) == (SHOT, "DROP_CLEAR_FROM_CLUSTER")
    assert named(node) == [(peer.pod4, POD4)]
    seen = monitor.run("from_net", packet)
    assert (seen.action, seen.reason) == (OK, "AUDITED_DROP_CLEAR_FROM_CLUSTER")
    assert (seen.mark, seen.frame) == (JUDGED, packet)
    seen = off.run("from_net", packet)
    assert (seen.action, seen.reasons, seen.mark) == (OK, (), JUDGED)


@pytest.mark.parametrize("source", [WORLD4, NOBODY4, OVER4.pod4, SELF4, POD4])
@pytest.mark.parametrize("state", ["loaded", "monitor", "off"])
def test_nobody_but_nodes_sends_overlay_packets(
    kind: tuple[int, int], source: str, state: str, request: pytest.FixtureRequest
) -> None:
    node: Node = request.getfixturevalue(state)
    seen = node.run("from_net", frame(wrapped(kind, source, SELF4, GOOD, OVER4.identity)))
    assert (seen.action, seen.reason) == (SHOT, FORGED)


# --- out of the device ---------------------------------------------------------------------------


def came(node: Node, packet: bytes, mark: int = JUDGED) -> Seen:
    return node.run("from_overlay", packet, mark=mark)


@families
def test_what_was_judged_goes_to_its_pod(node: Node, inner: int, outer: int) -> None:
    said = ip(PEERS[outer].pod(inner), pod(inner), bytes(60), tos=0xB9)
    seen = came(node, frame(said))
    assert (seen.action, seen.mark, seen.reasons) == (REDIRECT, 0, ()), "from_net has reported it"
    assert seen.frame == delivered(said)
    assert (seen.frame[:6], seen.frame[6:12]) == (POD_MAC, HOST_MAC)


def test_what_is_for_the_node_goes_to_its_stack_unchanged(node: Node) -> None:
    packet = frame(ip(OVER4.pod4, SELF4))
    seen = came(node, packet)
    assert (seen.action, seen.mark, seen.frame, seen.reasons) == (OK, 0, packet, ())


@pytest.mark.parametrize("mark", [0, MARKED, OUT, 5, 0xD00])
def test_nothing_else_comes_out_whatever_is_in_it(node: Node, off: Node, mark: int) -> None:
    for each in (node, off):
        each.clear("flows")
        seen = came(each, frame(GOOD), mark)
        assert (seen.action, seen.reason) == (SHOT, FORGED)
        assert (OVER4.pod4, POD4) not in named(each), "the names inside are anybody's invention"


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (frame(ip(OVER4.pod4, "10.244.1.77")), "DROP_NO_ENDPOINT"),
        (packets.ethernet(0x8100, b"\0\1\x08\0" + GOOD), "DROP_NOT_IP"),
        (packets.ethernet(0x88CC, bytes(40)), "DROP_NOT_IP"),
    ],
    ids=["nobody", "on a VLAN", "what is no IP"],
)
def test_what_the_pods_rows_do_not_know_any_more_ends_here(
    node: Node, packet: bytes, reason: str
) -> None:
    seen = came(node, packet)
    assert (seen.action, seen.reason) == (SHOT, reason)
