# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses and tc filters: the bytes are those of rtnetlink, dumps are read as meant."""

from __future__ import annotations

import struct
from ipaddress import ip_interface
from typing import Any

import pytest

from pellicle.wire import link, nlmsg, tc
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.nlmsg import Malformed, Reply

UP, NOARP, LOWER_UP = 0x1, 0x80, 0x10000
UNKNOWN, DOWN, OPER_UP = 0, 2, 6


def head(index: int, flags: int = 0, mask: int = 0) -> bytes:
    """struct ifinfomsg"""
    return struct.pack("=BxHiII", 0, 0, index, flags, mask)


def test_a_veth_pair_is_told_with_its_peer_inside() -> None:
    near = VethEnd("a", mac="02:00:00:00:00:01", mtu=1500, index=9)
    request = link.add_veth(near, VethEnd("b", netns_fd=7, index=5))
    ends = "0600 0300 61000000  0a00 0100 020000000001 0000  0800 0400 dc050000"
    info = "3800 1280  0900 0100 7665746800 000000  2800 0280 2400 0180"
    peer = head(5) + bytes.fromhex("0600 0300 62000000  0800 1c00 07000000")
    assert request.body == head(9) + bytes.fromhex(ends + info) + peer
    assert request.flags & (nlmsg.CREATE | nlmsg.EXCLUSIVE) == nlmsg.CREATE | nlmsg.EXCLUSIVE


def test_an_xfrm_interface_is_told_and_read_with_what_is_below() -> None:
    request = link.add_xfrm("pellicle_xfrm", 0x70656C6C, 3)
    name = "1200 0300 70656c6c69636c655f7866726d00 0000"
    data = "1400 0280  0800 0100 03000000  0800 0200 6c6c6570"
    info = "2400 1280  0900 0100 7866726d00 000000" + data
    assert request.body == head(0) + bytes.fromhex(name + info)
    assert request.flags & nlmsg.EXCLUSIVE
    found = link.read_link(Reply(link.RTM_NEWLINK, 0, 1, request.body))
    assert (found.name, found.kind) == ("pellicle_xfrm", "xfrm")
    assert (found.if_id, found.link, found.peer) == (0x70656C6C, 3, 0)


@pytest.mark.parametrize("kind", ["vxlan", "geneve"])
def test_an_overlay_device_is_told_to_wait_for_each_packet_and_read_with_its_port(
    kind: str,
) -> None:
    request = link.add_overlay("t", kind, 4789)
    info = {
        "vxlan": "3400 1280  0a00 0100 76786c616e00 0000  2400 0280"
        "  0600 0f00 12b5 0000  0500 1900 01000000  0800 0100 00000000  0500 0700 00000000",
        "geneve": "2000 1280  0b00 0100 67656e65766500 00  1000 0280"
        "  0600 0500 12b5 0000  0400 0600",
    }[kind]
    assert request.body == head(0) + bytes.fromhex("0600 0300 74000000" + info)
    found = link.read_link(Reply(link.RTM_NEWLINK, 0, 1, request.body))
    assert (found.kind, found.overlay_port, found.if_id, found.link) == (kind, 4789, 0, 0)


def test_a_vxlan_device_with_peers_of_its_own_is_no_overlay_of_ours() -> None:
    told = link.add_overlay("t", "vxlan", 4789).body
    peers = told.replace(bytes.fromhex("0500190001"), bytes.fromhex("0500190000"))
    assert link.read_link(Reply(link.RTM_NEWLINK, 0, 1, peers)).overlay_port == 0


CHANGES = [
    ({"is_up": True}, head(4, UP, UP), ""),
    ({"is_up": False}, head(4, 0, UP), ""),
    ({"is_noarp": True}, head(4, NOARP, NOARP), ""),
    ({"is_up": True, "is_noarp": False}, head(4, UP, UP | NOARP), ""),
    ({"mtu": 1446}, head(4), "0800 0400 a6050000"),
    ({"mac": "02:00:00:00:00:01"}, head(4), "0a00 0100 020000000001 0000"),
    ({"name": "b"}, head(4), "0600 0300 62000000"),
    ({"alias": "n"}, head(4), "0600 1400 6e000000"),
    ({"netns_fd": 7}, head(4), "0800 1c00 07000000"),
    ({"has_link_local": False}, head(4), "1000 1a80 0c00 0a80 0500 0800 01000000"),
    ({"has_link_local": True}, head(4), "1000 1a80 0c00 0a80 0500 0800 00000000"),
]


@pytest.mark.parametrize(
    ("change", "start", "rest"), CHANGES, ids=[str(change) for change, _, _ in CHANGES]
)
def test_only_what_is_given_is_changed(change: dict[str, Any], start: bytes, rest: str) -> None:
    request = link.change_link(4, **change)
    assert (request.kind, request.body) == (link.RTM_NEWLINK, start + bytes.fromhex(rest))


def test_a_device_is_removed_by_its_index() -> None:
    request = link.remove_link(9)
    assert (request.kind, request.body) == (link.RTM_DELLINK, head(9))
    for dump in (link.dump_links(), link.dump_addresses()):
        assert dump.flags & nlmsg.DUMP == nlmsg.DUMP
        assert not any(dump.body)


def shown(flags: int, state: int, kind: str, *more: bytes) -> LinkInfo:
    """A device as a dump of the kernel shows it."""
    info = nlmsg.nested(18, nlmsg.text(1, kind)) if kind else b""
    parts = (nlmsg.text(3, "eth0"), nlmsg.u32(4, 1500), nlmsg.u8(16, state), info, *more)
    return link.read_link(Reply(link.RTM_NEWLINK, 0, 1, head(3, flags) + b"".join(parts)))


@pytest.mark.parametrize(
    ("flags", "state", "kind", "is_running"),
    [
        (UP | LOWER_UP, OPER_UP, "", True),
        (UP | LOWER_UP, UNKNOWN, "", True),  # loopback
        (UP | LOWER_UP, OPER_UP, "veth", True),
        (UP | LOWER_UP, UNKNOWN, "veth", False),  # on its way up: packets are dropped
        (UP, OPER_UP, "veth", False),
        (UP | LOWER_UP, DOWN, "", False),
        (0, UNKNOWN, "", False),
    ],
)
def test_running_is_more_than_up(flags: int, state: int, kind: str, is_running: bool) -> None:
    found = shown(flags, state, kind)
    assert (found.is_up, found.is_running) == (bool(flags & UP), is_running)


def test_only_a_veths_link_is_its_peer() -> None:
    beside = (nlmsg.u32(5, 12), nlmsg.u32(10, 2), nlmsg.text(20, "pod n1/p1"))
    veth = shown(UP, OPER_UP, "veth", *beside)
    assert (veth.kind, veth.peer, veth.master, veth.alias) == ("veth", 12, 2, "pod n1/p1")
    assert shown(UP, OPER_UP, "vlan", *beside).peer == 0


@pytest.mark.parametrize(
    ("address", "has_prefix_route", "scope", "flags"),
    [
        ("10.244.1.1/32", True, 0, 0x02),
        ("10.244.1.1/32", False, 0, 0x202),
        ("fd00::1/64", True, 0, 0x02),
        ("fe80::1/64", True, 253, 0x02),
    ],
)
def test_an_address_is_usable_at_once(
    address: str, has_prefix_route: bool, scope: int, flags: int
) -> None:
    row = LinkAddress(3, ip_interface(address))
    body = link.put_address(row, has_prefix_route=has_prefix_route).body
    version, bits = row.interface.version, row.interface.network.prefixlen
    start = struct.pack("=BBBBI", 2 if version == 4 else 10, bits, flags & 0xFF, scope, 3)
    assert body[:8] == start
    assert nlmsg.attributes(body, 8) == {
        1: row.interface.packed,
        2: row.interface.packed,
        8: struct.pack("=I", flags),
    }
    removed = link.remove_address(row)
    assert removed.kind == link.RTM_DELADDR
    assert removed.body == start[:2] + b"\0" + body[3:-8]


@pytest.mark.parametrize(
    ("family", "bits", "packed"), [(2, 32, bytes(16)), (10, 64, bytes(4)), (2, 33, bytes(4))]
)
def test_an_address_that_cannot_be_is_malformed(family: int, bits: int, packed: bytes) -> None:
    body = struct.pack("=BBBBI", family, bits, 0, 0, 3) + nlmsg.attribute(1, packed)
    with pytest.raises(Malformed):
        link.read_address(Reply(link.RTM_NEWADDR, 0, 1, body))


def test_an_address_of_another_protocol_is_none_of_ours() -> None:
    body = struct.pack("=BBBBI", 8, 8, 0, 0, 3) + nlmsg.attribute(1, bytes(2))
    assert link.read_address(Reply(link.RTM_NEWADDR, 0, 1, body)) is None


def place(index: int, handle: int, parent: int, info: int) -> bytes:
    """struct tcmsg"""
    return struct.pack("=BxxxiIII", 0, index, handle, parent, info)


INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
BPF = nlmsg.text(1, "bpf")


def test_clsact_and_its_filters_are_told_in_the_kernels_numbers() -> None:
    clsact = tc.add_clsact(3)
    assert clsact.body == place(3, 0xFFFF0000, 0xFFFFFFF1, 0) + nlmsg.text(1, "clsact")
    assert clsact.flags & nlmsg.EXCLUSIVE
    here = tc.Filter(3, "ingress", 2, 0x70)
    where = place(3, 0x70, INGRESS, 2 << 16 | 0x0300)  # ETH_P_ALL in network order
    assert tc.remove_filter(here).body == where + BPF
    put = tc.put_filter(here, 9, "from_ne")
    options = "2000 0280  0800 0600 09000000  0c00 0700 66726f6d5f6e6500  0800 0800 01000000"
    assert put.body == where + BPF + bytes.fromhex(options)
    assert tc.dump_filters(3, "egress").body == place(3, 0, EGRESS, 0)


@pytest.mark.parametrize(
    ("handle", "parent", "kind"),
    [
        (0x70, 0x00010000, "bpf"),  # a qdisc of somebody's
        (0x70, INGRESS, "flower"),
        (0, INGRESS, "bpf"),  # the head of a priority, which holds no program
    ],
)
def test_a_filter_that_is_no_program_of_clsact_is_none(handle: int, parent: int, kind: str) -> None:
    body = place(3, handle, parent, 0) + nlmsg.text(1, kind)
    assert tc.read_filter(Reply(tc.RTM_NEWTFILTER, 0, 1, body)) is None


def test_a_filter_of_a_dump_names_its_program() -> None:
    body = place(3, 0x70, EGRESS, 2 << 16 | 0x0300) + BPF + nlmsg.nested(2, nlmsg.u32(11, 88))
    found = tc.read_filter(Reply(tc.RTM_NEWTFILTER, 0, 1, body))
    assert found == tc.Filter(3, "egress", 2, 0x70, program_id=88)
