# SPDX-License-Identifier: Apache-2.0
"""Policies in a namespace of their own, with iproute2 as the judge in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm, XfrmChanges
from pellicle.wire.link import LinkAddress, VethEnd
from pellicle.wire.xfrm import Action, Mark, Policy, PolicyDirection, Template

HERE = f"pellicle-t{os.getpid()}-xfrm"
IF_ID = 0x70656C6C
ANY_4, ANY_6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
OUTER_4 = Template(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 0x12345678, 0x70650007)
OUTER_6 = Template(ip_address("2001:db8::1"), ip_address("2001:db8::2"), 0x100, 0x70650001)
OUT, IN, FWD = PolicyDirection.OUT, PolicyDirection.IN, PolicyDirection.FWD

OURS = {
    Policy(OUT, ANY_4, IPv4Network("10.244.2.0/24"), Mark(0x70E00, 0xFFFF3F00), IF_ID, 100,
           template=OUTER_4): """
        src 0.0.0.0/0 dst 10.244.2.0/24
        dir out priority 100
        mark 0x70e00/0xffff3f00
        tmpl src 192.0.2.1 dst 192.0.2.2
        proto esp spi 0x12345678 reqid 1885667335 mode tunnel
        if_id 0x70656c6c""",
    Policy(OUT, ANY_6, IPv6Network("fd00:244:2::/64"), Mark(0x71E00, 0xFFFF3F00), IF_ID, 100,
           template=OUTER_4): """
        src ::/0 dst fd00:244:2::/64
        dir out priority 100
        mark 0x71e00/0xffff3f00
        tmpl src 192.0.2.1 dst 192.0.2.2
        proto esp spi 0x12345678 reqid 1885667335 mode tunnel
        if_id 0x70656c6c""",
    Policy(OUT, ANY_4, IPv4Network("10.244.3.0/24"), Mark(0x10E00, 0xFFFF3F00), IF_ID, 100,
           template=OUTER_6): """
        src 0.0.0.0/0 dst 10.244.3.0/24
        dir out priority 100
        mark 0x10e00/0xffff3f00
        tmpl src 2001:db8::1 dst 2001:db8::2
        proto esp spi 0x00000100 reqid 1885667329 mode tunnel
        if_id 0x70656c6c""",
    Policy(IN, ANY_6, ANY_6, None, IF_ID, 7,
           template=Template(ip_address("::"), ip_address("::"), 0, 0)): """
        src ::/0 dst ::/0
        dir in priority 7
        tmpl src :: dst ::
        proto esp reqid 0 mode tunnel
        if_id 0x70656c6c""",
    Policy(FWD, ANY_4, IPv4Network("10.244.2.7/32"), None, 0, 0,
           template=replace(OUTER_4, is_optional=True)): """
        src 0.0.0.0/0 dst 10.244.2.7/32
        dir fwd priority 0
        tmpl src 192.0.2.1 dst 192.0.2.2
        proto esp spi 0x12345678 reqid 1885667335 mode tunnel
        level use""",
    Policy(OUT, ANY_4, ANY_4, Mark(0xE00, 0xF00), IF_ID, 2**32 - 1, Action.BLOCK): """
        src 0.0.0.0/0 dst 0.0.0.0/0
        dir out action block priority 4294967295
        mark 0xe00/0xf00
        if_id 0x70656c6c""",
    Policy(IN, IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16"), Mark(1, 2**32 - 1), 1, 3): """
        src 10.0.0.0/8 dst 10.1.0.0/16
        dir in priority 3
        mark 0x1/0xffffffff
        if_id 0x1""",
}  # fmt: skip


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    try:
        netns.create(HERE)
        with Xfrm(HERE) as opened:
            yield opened
    finally:
        netns.delete(HERE)


def ip_xfrm(*words: str) -> str:
    """What iproute2 does and says in the namespace."""
    ran = netns.run_in(HERE, ["ip", *words], capture_output=True, text=True, check=True)
    return str(ran.stdout)


def shown() -> list[list[str]]:
    """`ip -d xfrm policy`, a list of lines for each policy."""
    blocks: list[list[str]] = []
    for line in ip_xfrm("-d", "xfrm", "policy").splitlines():
        if not line.startswith("\t"):
            blocks.append([])
        # A kernel with policies of two kinds says of which kind each is, and not every kernel is.
        blocks[-1].append(line.strip().removesuffix(" ptype main"))
    return blocks


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def test_iproute2_sees_what_was_put(xfrm: Xfrm) -> None:
    for _ in range(2):  # putting again changes nothing
        assert xfrm.put_policies(OURS) == {}
        assert sorted(shown()) == sorted(lines(text) for text in OURS.values())
    assert set(xfrm.policies()) == set(OURS)
    assert len(xfrm.policies()) == len(OURS)


def test_what_iproute2_put_reads_as_the_same(xfrm: Xfrm) -> None:
    for text in OURS.values():
        words = " ".join(lines(text)).replace("/0x", " mask 0x").replace(" ptype main", "")
        ip_xfrm("xfrm", "policy", "add", *in_order(words.split()))
    assert set(xfrm.policies()) == set(OURS)


def in_order(words: list[str]) -> list[str]:
    """iproute2 wants if_id, which it shows last, before the template."""
    if "if_id" not in words or "tmpl" not in words:
        return words
    at, start = words.index("if_id"), words.index("tmpl")
    return [*words[:start], *words[at : at + 2], *words[start:at], *words[at + 2 :]]


def test_policies_are_removed_by_their_keys_and_absent_is_success(xfrm: Xfrm) -> None:
    xfrm.put_policies(OURS)
    changed = [replace(each, priority=4711, template=None) for each in OURS]
    for _ in range(2):
        assert xfrm.remove_policies(changed) == {}
        assert xfrm.policies() == []
    assert shown() == []


AS_OURS = (
    "dir out src 0.0.0.0/0 dst 10.244.2.0/24 priority 100 tmpl src 192.0.2.1 dst 192.0.2.2 "
    "proto esp spi 0x12345678 reqid 1 mode tunnel"  # but for mark and if_id
)
THEIRS = [
    AS_OURS,
    "dir out src 0.0.0.0/0 dst 0.0.0.0/0 mark 0xe00 mask 0xf00 if_id 0x1 action block",
    "dir out src 10.0.0.0/8 dst 10.9.0.0/16 proto tcp dport 80 tmpl proto ah mode transport",
    "dir in src ::/0 dst ::/0 tmpl proto esp mode tunnel tmpl proto comp mode transport level use",
    "dir fwd src 10.0.0.1/24 dst 10.9.0.0/16 limit time-hard 100000",
    "dir in src 10.0.0.0/8 dst 10.9.0.0/16 dev lo flag icmp",
]


def test_policies_of_others_are_left_alone(xfrm: Xfrm) -> None:
    for each in THEIRS:
        ip_xfrm("xfrm", "policy", "add", *each.split())
    before = sorted(shown())
    assert len(before) == len(THEIRS)
    assert len(xfrm.policies()) == 2, "two of theirs can be said by a Policy"
    assert xfrm.put_policies(OURS) == {}
    assert len(shown()) == len(THEIRS) + len(OURS)
    assert {each for each in xfrm.policies() if each.if_id == IF_ID} < set(OURS)
    assert xfrm.remove_policies(OURS) == {}
    assert sorted(shown()) == before


def test_policies_of_sockets_are_none_of_ours(xfrm: Xfrm) -> None:
    """IP_XFRM_POLICY: as an IKE daemon lets its own packets pass."""
    daemon = netns.socket_in(HERE, socket.AF_INET, socket.SOCK_DGRAM)
    selector = bytes(40) + b"\2\0" + bytes(14)
    outward = b"\1\0\0\0" + bytes(4)
    ip_xfrm_policy = 17
    info = selector + b"\xff" * 32 + bytes(32 + 32 + 8) + outward
    with daemon:
        daemon.setsockopt(socket.IPPROTO_IP, ip_xfrm_policy, info)
        assert "socket out" in ip_xfrm("xfrm", "policy")
        assert xfrm.put_policies(OURS) == {}
        assert set(xfrm.policies()) == set(OURS)


def peers(count: int) -> dict[Policy, Policy]:
    """One policy for each of many peers, with a template of its own."""
    rows = {}
    for peer in range(1, count + 1):
        outer = replace(OUTER_4, destination=IPv4Address(0xC0A80000 + peer), spi=peer + 255)
        to, mark = IPv4Network((0x0A000000 + (peer << 8), 24)), Mark(peer << 16 | 0xE00, 0xFFFF3F00)
        policy = Policy(OUT, ANY_4, to, mark, IF_ID, 100, template=outer)
        rows[policy] = policy
    return rows


def test_five_thousand_stand_after_one_batch(xfrm: Xfrm) -> None:
    wanted = peers(5000)
    assert xfrm.put_policies(wanted) == {}
    found = {each.key: each for each in xfrm.policies()}
    assert found == {each.key: each for each in wanted}
    moved = [replace(each, priority=99) for each in list(wanted)[::100]]
    assert xfrm.put_policies(moved) == {}
    differing = {each for each in xfrm.policies() if each not in wanted}
    assert differing == set(moved)
    assert xfrm.remove_policies(wanted) == {}
    assert xfrm.policies() == []


def test_each_failure_keeps_its_own_errno_and_the_rest_goes_on(xfrm: Xfrm) -> None:
    good = list(peers(2000))
    optional = replace(OUTER_4, is_optional=True)  # which the kernel refuses in an outbound policy
    bad = [replace(each, template=optional) for each in good[::100]]
    errors = xfrm.put_policies([*good[:1000], *bad, *good[1000:]])
    assert {each: error.errno for each, error in errors.items()} == dict.fromkeys(bad, errno.EINVAL)
    assert set(xfrm.policies()) == set(good)


def test_there_is_no_moment_without_a_policy_that_is_replaced(xfrm: Xfrm) -> None:
    policy = next(iter(OURS))
    xfrm.put_policies([policy])
    seen: list[int] = []
    must_end = threading.Event()

    def look() -> None:
        with Xfrm(HERE) as other:
            while not must_end.is_set():
                seen.append(len(other.policies()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for round_ in range(3000):
            assert xfrm.put_policies([replace(policy, priority=round_)]) == {}
    finally:
        must_end.set()
        looking.join()
    assert len(seen) > 10
    assert set(seen) == {1}


def test_dropped_packets_are_counted_by_their_reason(xfrm: Xfrm) -> None:
    before = xfrm.errors()
    assert before["XfrmOutPolBlock"] == 0
    assert {"XfrmInNoStates", "XfrmInTmplMismatch", "XfrmOutNoStates"} <= set(before)
    with Netlink(HERE) as netlink:
        netlink.add_veth(VethEnd("va"), VethEnd("vb"))
        for name in ("va", "vb"):
            netlink.change_link(netlink.link(name).index, is_up=True)
        address = LinkAddress(netlink.link("va").index, IPv4Interface("10.1.0.1/24"))
        netlink.put_addresses([address])
    xfrm.put_policies([Policy(OUT, ANY_4, ip_network("10.1.0.2/32"), None, 0, 0, Action.BLOCK)])
    with netns.socket_in(HERE, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            with pytest.raises(PermissionError):
                sender.sendto(b"never", ("10.1.0.2", 9))
    after = xfrm.errors()
    assert after.pop("XfrmOutPolBlock") == 3
    assert not any(after.values())


async def heard(changes: XfrmChanges, seconds: float = 1) -> int:
    """How often something was heard until it was quiet for a while."""
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            await asyncio.wait_for(anext(changes), seconds)
            count += 1
    return count


def test_what_others_take_away_is_heard(xfrm: Xfrm) -> None:
    theirs = ("dir", "out", "src", "0.0.0.0/0", "dst", "10.9.0.0/16")

    async def watch(changes: XfrmChanges) -> None:
        xfrm.put_policies(OURS)
        ip_xfrm("xfrm", "policy", "add", *theirs)
        assert await heard(changes, 0.2) == 0, "what was added takes nothing away"
        ip_xfrm("xfrm", "policy", "delete", *theirs)
        assert await heard(changes, 0.2) == 1
        ip_xfrm("xfrm", "policy", "deleteall")
        assert await heard(changes, 0.2) == 1, "many at a time are one word"
        xfrm.put_policies(OURS)
        ip_xfrm("xfrm", "policy", "flush")
        assert await heard(changes, 0.2) == 1

    with XfrmChanges(HERE, own=[xfrm.port]) as changes:
        asyncio.run(watch(changes))


def test_own_requests_are_not_heard(xfrm: Xfrm) -> None:
    many = peers(5000)

    async def watch(own: XfrmChanges, all_: XfrmChanges) -> None:
        for _ in range(2):
            xfrm.put_policies(many)
        xfrm.remove_policies(many)
        assert await heard(own, 0.2) == 0
        assert await heard(all_, 0.2) == 1

    with XfrmChanges(HERE, own=[xfrm.port]) as own, XfrmChanges(HERE) as all_:
        asyncio.run(watch(own, all_))


def test_a_closed_socket_can_be_closed_again(xfrm: Xfrm) -> None:
    xfrm.close()
    xfrm.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        xfrm.policies()
