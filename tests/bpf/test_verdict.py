# SPDX-License-Identifier: Apache-2.0
"""The one exit: counts by reason, a row for each flow, and events that never outrun the reader."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    OVER4,
    OVER6,
    PEERS,
    POD4,
    POD6,
    POD_IDENTITY,
    SELF4,
    WORLD4,
    WORLD6,
    furnish,
    put_inbound,
    put_outbound,
)  # fmt: skip
from tests.bpf.node import BPF, Node, addr, loaded_node, text_of
from tests.bpf.packets import ESP, ICMP, ICMPV6, TCP, UDP, frame, ip
from tests.bpf.race import run_at_once
from tests.bpf.tunnel import probe, sealed, take_apart

HOOKS = {"from_pod": 1, "door": 2, "to_net": 3, "from_net": 4}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """With an interval that no test outlasts, on however slow a machine."""
    with loaded_node(tmp_path, flow_interval_ms=3_600_000) as loaded:
        furnish(loaded)
        for peer in PEERS.values():
            put_outbound(loaded, peer)
            put_inbound(loaded, peer)
        yield loaded


def flows(node: Node) -> list[dict[str, Any]]:
    """The flow events waiting: key and row in one."""
    seen = [each for each in node.seen_events() if each["kind"] == "EVENT_FLOW"]
    return [
        {**each["row"], **each["key"], "reason": node.reason_names[each["key"]["reason"]],
         "source": text_of(each["key"]["source"]["bytes"]),
         "destination": text_of(each["key"]["destination"]["bytes"])}
        for each in seen
    ]  # fmt: skip


def datagram(source: str, destination: str, port: int = 4000, size: int = 0) -> bytes:
    return ip(source, destination, packets.udp(port, 53, bytes(size)), protocol=UDP)


def test_a_dropped_flow_is_told_with_all_that_is_known(node: Node) -> None:
    node.clear("encrypt")
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    packet = datagram(POD4, OVER4.pod4)
    node.run("from_pod", frame(packet))
    (flow,) = flows(node)
    assert (flow["source"], flow["source_port"]) == (POD4, 4000)
    assert (flow["destination"], flow["destination_port"]) == (OVER4.pod4, 53)
    assert (flow["protocol"], flow["hook"]) == (UDP, HOOKS["from_pod"])
    assert flow["reason"] == "DROP_NO_KEY"
    assert (flow["packets"], flow["bytes"]) == (1, len(packet))
    assert flow["source_identity"] == POD_IDENTITY
    assert flow["destination_identity"] == OVER4.identity
    assert before <= flow["first"] == flow["last"] == flow["reported"]
    assert flow["last"] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert (flow["pair"], flow["spi"], flow["epoch"], flow["engine"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("peer", [OVER4, OVER6], ids=["over IPv4", "over IPv6"])
def test_sealed_and_opened_flows_tell_their_keys(node: Node, peer: Any) -> None:
    seen = node.run("door", frame(datagram(POD4, peer.pod4)))
    spi = take_apart(seen.frame, peer).opened.spi
    node.run("from_net", sealed(peer, 1, datagram(peer.pod6, POD6)))
    out, back = flows(node)
    assert (out["reason"], out["hook"], out["source"]) == ("SEALED", HOOKS["door"], POD4)
    assert (out["pair"], out["spi"], out["epoch"]) == (peer.pair, spi, 5), "our own epoch"
    assert (out["engine"], back["engine"]) == (BPF, BPF)
    assert (back["reason"], back["hook"], back["source"]) == (
        "OPENED",
        HOOKS["from_net"],
        peer.pod6,
    )
    assert (back["pair"], back["spi"]) == (peer.pair, peer.keys_in(0).spi)
    assert back["epoch"] == 6, "the peer's epoch"
    assert (back["source_identity"], back["destination_identity"]) == (peer.identity, POD_IDENTITY)


def test_what_one_packet_left_does_not_show_in_the_next(node: Node) -> None:
    node.run("door", frame(datagram(POD4, OVER4.pod4)))
    node.run("from_pod", frame(ip(POD6, WORLD6, bytes(30))))
    node.run("from_pod", packets.ethernet(0x88CC, bytes(40)))
    _, world, not_ip = flows(node)
    assert (world["pair"], world["spi"], world["epoch"], world["engine"]) == (0, 0, 0, 0)
    assert (world["source_port"], world["destination_port"]) == (0, 0)
    assert (not_ip["source"], not_ip["destination"], not_ip["protocol"]) == ("::", "::", 0)
    assert not_ip["bytes"] == 54


@pytest.mark.parametrize(
    ("kind", "identifier", "ports"),
    [(8, 77, (0x0800, 77)), (0, 77, (0x0000, 77)), (3, 77, (0x0301, 0)), (13, 77, (0x0D01, 0))],
    ids=["echo", "its reply", "unreachable", "timestamp"],
)
def test_icmp_has_type_and_code_for_ports(
    node: Node, kind: int, identifier: int, ports: tuple[int, int]
) -> None:
    rest, code = struct.pack(">HH", identifier, 1), 0 if kind in (0, 8) else 1
    body = packets.icmp(kind, code, rest)
    node.run("from_pod", frame(ip(POD4, WORLD4, body, protocol=ICMP)))
    (flow,) = flows(node)
    assert (flow["source_port"], flow["destination_port"]) == ports


def test_icmpv6_has_them_too(node: Node) -> None:
    for kind, expected in ((128, 9), (129, 9), (1, 0), (8, 0)):
        body = packets.icmp(kind, 0, struct.pack(">HH", 9, 1))
        node.run("from_pod", frame(ip(POD6, WORLD6, body, protocol=ICMPV6)))
        (flow,) = flows(node)
        assert (flow["source_port"], flow["destination_port"]) == (kind << 8, expected)


def test_each_hook_and_reason_has_a_row_of_its_own(node: Node) -> None:
    packet = frame(datagram(SELF4, OVER4.pod4))
    for program in ("from_pod", "door", "to_net"):
        node.run(program, packet)
    seen = {(flow["hook"], flow["reason"]) for flow in flows(node)}
    assert seen == {(1, "DROP_SPOOFED_POD"), (2, "SEALED"), (3, "DROP_CLEAR_TO_CLUSTER")}
    assert len(node.rows("flows")) == 3


def test_a_flow_is_told_at_once_and_then_in_intervals(tmp_path: Path) -> None:
    interval_ms = 30
    with loaded_node(tmp_path, flow_interval_ms=interval_ms) as node:
        furnish(node)
        sent, told, end = 0, [], time.monotonic() + 20
        while len(told) < 4:
            assert time.monotonic() < end, "no fourth report"
            node.run("from_pod", frame(datagram(POD4, WORLD4, size=sent % 7)))
            sent += 1
            told += flows(node)
        assert told[0]["packets"] == 1
        assert told[-1]["packets"] == sent, "counted from the first on"
        for earlier, later in itertools.pairwise(told):
            assert later["reported"] - earlier["reported"] >= interval_ms * 1_000_000
            assert later["packets"] > earlier["packets"]
            assert later["first"] == told[0]["first"]
        ((_, row),) = node.rows("flows")
        assert (row["packets"], row["bytes"]) == (sent, told[-1]["bytes"])


def test_packets_between_reports_are_told_by_the_row(node: Node) -> None:
    sizes = [28 + size for size in range(50)]
    for size in sizes:
        node.run("from_pod", frame(datagram(POD4, WORLD4, size=size - 28)))
    assert len(flows(node)) == 1
    ((_, row),) = node.rows("flows")
    assert (row["packets"], row["bytes"]) == (len(sizes), sum(sizes))


def test_a_report_tells_the_identity_of_now(tmp_path: Path) -> None:
    with loaded_node(tmp_path, flow_interval_ms=0) as node:
        furnish(node)
        packet = frame(datagram(POD4, OVER4.pod4))
        node.run("from_pod", packet)
        node.put_peer(POD4, node=SELF4, flags=1, identity=99)
        node.run("from_pod", packet)
        first, second = flows(node)
        assert (first["source_identity"], second["source_identity"]) == (POD_IDENTITY, 99)
        assert (first["packets"], second["packets"]) == (1, 2)


def test_events_without_room_are_counted_and_lose_no_count(node: Node) -> None:
    program, flood = node.object.program("from_pod"), 12_000
    for number in range(flood):
        program.test_run(frame(datagram(POD4, WORLD4, port=number % 60_000)))
    (lost,) = next(iter(node.object.map("lost_events").values_summed().values()))
    told = flows(node)
    assert 0 < lost == flood - len(told)
    assert len(told) > 5_000
    assert sum(row["packets"] for _, row in node.rows("flows")) == flood
    node.run("from_pod", frame(datagram(POD4, "198.51.100.99")))
    assert [flow["destination"] for flow in flows(node)] == ["198.51.100.99"]


def test_no_flood_takes_the_room_of_what_keys_depend_on(node: Node) -> None:
    """Flows of nobody, and routers' words about our ESP: anybody on the wire can send these."""
    from_net = node.object.program("from_net")
    quoted = ip(SELF4, OVER4.address, bytes(8), protocol=ESP)
    body = packets.icmp(3, 4, struct.pack(">HH", 0, 1300), quoted)
    word = frame(ip(WORLD4, SELF4, body, protocol=ICMP))
    for number in range(7_000):
        from_net.test_run(frame(datagram("10.244.99.9", POD4, port=number)))
        from_net.test_run(word)
    (lost,) = next(iter(node.object.map("lost_events").values_summed().values()))
    assert lost > 5_000, "it was a flood"
    ask = probe(OVER4.address, SELF4, OVER4.pair, 0)
    for number in range(100):
        node.run("from_net", sealed(OVER4, 1 + number, ask))
    kinds = [each["kind"] for each in node.seen_events()]
    assert kinds[-100:] == ["EVENT_PROBE"] * 100
    assert kinds.count("EVENT_SA_CONFIRMED") == 1


def test_cores_at_once_count_every_packet_and_tell_one_flow(node: Node) -> None:
    packet, count = frame(datagram(POD4, WORLD4)), 8000
    node.forget()
    results = run_at_once(node.object.program("from_pod"), [packet] * count)
    count *= len(results)
    ((key, row),) = node.rows("flows")
    assert key["source"] == {"bytes": addr(POD4)}
    assert (row["packets"], row["bytes"]) == (count, count * 28)
    assert len(flows(node)) == 1
    assert node.run("from_pod", packet).reasons == ("CLEAR_WORLD",) * (count + 1)


def test_cores_at_once_tell_each_flow_once(node: Node) -> None:
    """Who comes second finds the row that the first has just made."""
    count = 3000
    results = run_at_once(
        node.object.program("from_pod"),
        [frame(datagram(POD4, WORLD4, port=1000 + number)) for number in range(count)],
    )
    rows = node.rows("flows")
    assert {row["packets"] for _, row in rows} == {len(results)}
    assert len(flows(node)) == len(rows) == count


def test_cores_at_once_keep_the_interval_between_them(tmp_path: Path) -> None:
    interval_ms, times = 1, 3_000_000
    with loaded_node(tmp_path, flow_interval_ms=interval_ms) as node:
        furnish(node)
        program, packet = node.object.program("from_pod"), frame(datagram(POD4, WORLD4))
        results = run_at_once(program, [packet], repeat=times)
        told = sorted(flow["reported"] for flow in flows(node))
        assert len(told) > 20
        gaps = [later - earlier for earlier, later in itertools.pairwise(told)]
        assert min(gaps) >= interval_ms * 1_000_000
        ((_, row),) = node.rows("flows")
        assert row["packets"] == len(results) * times


def test_tcp_ports_are_those_of_the_wire(node: Node) -> None:
    node.run("from_pod", frame(ip(POD6, WORLD6, packets.tcp(0x1234, 443), protocol=TCP)))
    (flow,) = flows(node)
    assert (flow["source_port"], flow["destination_port"]) == (0x1234, 443)
