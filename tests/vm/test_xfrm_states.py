# SPDX-License-Identifier: Apache-2.0
"""States and the device on a kernel that has ESP, with iproute2 as the judge in both directions."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm, XfrmChanges, probe_device, probe_esp
from pellicle.wire.xfrm import Mark, Offload, OffloadFlags, State, StateFlags, StateKey

HERE = f"pellicle-t{os.getpid()}-states"
IF_ID = 0x70656C6C
CHACHA, AES = "rfc7539esp(chacha20,poly1305)", "rfc4106(gcm(aes))"
FOUR = ip_address("192.0.2.1"), ip_address("192.0.2.2")
SIX = ip_address("2001:db8::1"), ip_address("2001:db8::2")
ESN, AF_UNSPEC, NOECN = StateFlags.ESN, StateFlags.AF_UNSPEC, StateFlags.NOECN
KEY_128, KEY_256 = bytes(range(20)), bytes(range(36))
SPI = 0x12345678

OURS = {
    State(StateKey(*FOUR, SPI), 0x70650007, IF_ID, CHACHA, 288, ESN | AF_UNSPEC, 1,
          secret=KEY_256): f"""
        src 192.0.2.1 dst 192.0.2.2
        proto esp spi 0x12345678(305419896) reqid 1885667335(0x70650007) mode tunnel
        replay-window 0 seq 0x00000000 flag af-unspec esn (0x10100000)
        aead {CHACHA} 0x{KEY_256.hex()} (288 bits) 128
        anti-replay esn context:
        seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x0
        replay_window 1, bitmap-length 1
        if_id 0x70656c6c
        limit: soft (INF)(packets), hard (INF)(packets)""",
    State(StateKey(*FOUR[::-1], SPI, Mark(0x70D00, 0xFFFF0F00)), 0x70650007, IF_ID, CHACHA, 288,
          ESN | AF_UNSPEC | NOECN, 1024, secret=KEY_256): f"""
        src 192.0.2.2 dst 192.0.2.1
        proto esp spi 0x12345678(305419896) reqid 1885667335(0x70650007) mode tunnel
        replay-window 0 seq 0x00000000 flag noecn af-unspec esn (0x10100001)
        mark 0x70d00/0xffff0f00
        aead {CHACHA} 0x{KEY_256.hex()} (288 bits) 128
        anti-replay esn context:
        seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x0
        replay_window 1024, bitmap-length 32
        if_id 0x70656c6c
        limit: soft (INF)(packets), hard (INF)(packets)""",
    # The same SPI from another peer: only the mark tells them apart.
    State(StateKey(*FOUR[::-1], SPI, Mark(0x80D00, 0xFFFF0F00)), 0x70650008, IF_ID, AES, 160,
          ESN | AF_UNSPEC | NOECN, 1024, secret=KEY_128): f"""
        src 192.0.2.2 dst 192.0.2.1
        proto esp spi 0x12345678(305419896) reqid 1885667336(0x70650008) mode tunnel
        replay-window 0 seq 0x00000000 flag noecn af-unspec esn (0x10100001)
        mark 0x80d00/0xffff0f00
        aead {AES} 0x{KEY_128.hex()} (160 bits) 128
        anti-replay esn context:
        seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x0
        replay_window 1024, bitmap-length 32
        if_id 0x70656c6c
        limit: soft (INF)(packets), hard (INF)(packets)""",
    State(StateKey(*SIX, 0x100), 1, IF_ID, AES, 288, ESN | AF_UNSPEC, 33, packet_limit=2**32,
          secret=KEY_256): f"""
        src 2001:db8::1 dst 2001:db8::2
        proto esp spi 0x00000100(256) reqid 1(0x00000001) mode tunnel
        replay-window 0 seq 0x00000000 flag af-unspec esn (0x10100000)
        aead {AES} 0x{KEY_256.hex()} (288 bits) 128
        anti-replay esn context:
        seq-hi 0x0, seq 0x0, oseq-hi 0x0, oseq 0x0
        replay_window 33, bitmap-length 2
        if_id 0x70656c6c
        limit: soft (INF)(packets), hard 4294967296(packets)""",
    State(StateKey(*SIX, 0x101), 1, 0, CHACHA, 288, StateFlags(0), 32, secret=KEY_256): f"""
        src 2001:db8::1 dst 2001:db8::2
        proto esp spi 0x00000101(257) reqid 1(0x00000001) mode tunnel
        replay-window 32 seq 0x00000000 flag  (0x00000000)
        aead {CHACHA} 0x{KEY_256.hex()} (288 bits) 128
        anti-replay context: seq 0x0, oseq 0x0, bitmap 0x00000000
        sel src ::/0 dst ::/0 uid 0
        limit: soft (INF)(packets), hard (INF)(packets)""",
}  # fmt: skip
OTHERWISE_SHOWN = ("00000000", "lifetime", "limit: soft (INF)(bytes)", "expire", "0(bytes)", "add ",
                   "stats:", "replay-window 0 replay 0")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def kernel_with_esp() -> None:
    for version in (4, 6):
        for algorithm in (CHACHA, AES):
            error = probe_esp(algorithm, 288, version)
            assert error is None, f"this needs a kernel with ESP, `make vm` boots one: {error}"
    error = probe_device()
    assert error is None, f"this needs a kernel with xfrm interfaces, `make vm` boots one: {error}"


@pytest.fixture
def xfrm() -> Iterator[Xfrm]:
    try:
        netns.create(HERE)
        with Xfrm(HERE) as opened:
            yield opened
    finally:
        netns.delete(HERE)


def ip(*words: str) -> str:
    """What iproute2 does and says in the namespace."""
    ran = netns.run_in(HERE, ["ip", *words], capture_output=True, text=True, check=True)
    return str(ran.stdout)


def shown() -> list[list[str]]:
    """`ip -d -s xfrm state`, a list of lines for each state, without what is the same in all."""
    blocks: list[list[str]] = []
    for line in ip("-d", "-s", "xfrm", "state").splitlines():
        if not line.startswith("\t"):
            blocks.append([])
        if not line.strip().startswith(OTHERWISE_SHOWN):
            blocks[-1].append(line.strip())
    return blocks


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def standing(xfrm: Xfrm) -> set[State]:
    return {state for state, _ in xfrm.states()}


def test_iproute2_sees_what_was_put(xfrm: Xfrm) -> None:
    assert xfrm.put_states(OURS) == {}
    assert sorted(shown()) == sorted(lines(text) for text in OURS.values())


def test_what_was_put_reads_back_without_its_key(xfrm: Xfrm) -> None:
    xfrm.put_states(OURS)
    found = xfrm.states()
    assert len(found) == len(OURS)
    assert {state for state, _ in found} == set(OURS)
    assert all(state.secret == b"" for state, _ in found)
    assert all(counts.packets == counts.sequence == 0 for _, counts in found)
    assert all(counts.added_at > 1_700_000_000 for _, counts in found)


def test_what_iproute2_put_reads_as_the_same(xfrm: Xfrm) -> None:
    words = (
        "src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x12345678 reqid 0x70650008 mode tunnel "
        "replay-window 1024 flag esn af-unspec noecn mark 0x80d00 mask 0xffff0f00 if_id 0x70656c6c"
    )
    ip("xfrm", "state", "add", *words.split(), "aead", AES, f"0x{KEY_128.hex()}", "128")
    assert standing(xfrm) == {each for each in OURS if each.reqid == 0x70650008}


def test_a_state_is_never_replaced(xfrm: Xfrm) -> None:
    xfrm.put_states(OURS)
    again = [replace(each, reqid=9, secret=bytes(len(each.secret))) for each in OURS]
    errors = xfrm.put_states(again)
    assert {key: error.errno for key, error in errors.items()} == {
        each.key: errno.EEXIST for each in OURS
    }
    assert sorted(shown()) == sorted(lines(text) for text in OURS.values())


def test_states_are_removed_by_their_keys_and_absent_is_success(xfrm: Xfrm) -> None:
    xfrm.put_states(OURS)
    first, *rest = OURS
    for _ in range(2):
        assert xfrm.remove_states([first.key]) == {}
        assert standing(xfrm) == set(rest)
    for _ in range(2):
        assert xfrm.remove_states([each.key for each in OURS]) == {}
        assert shown() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"algorithm": "rfc0000(rot13)"}, "algorithm not found"),
        ({"replay_window": 0}, "must be > 0"),
        ({"key_bits": 96, "secret": bytes(12)}, ""),
    ],
)
def test_a_refusal_is_the_states_own(xfrm: Xfrm, change: dict[str, object], says: str) -> None:
    good = list(OURS)
    bad = replace(good[0], key=StateKey(*FOUR, 0x999), **change)  # type: ignore[arg-type]
    errors = xfrm.put_states([*good[:2], bad, *good[2:]])
    assert list(errors) == [bad.key]
    assert says in str(errors[bad.key])
    assert standing(xfrm) == set(OURS)


KEY = f"0x{KEY_128.hex()}"
AEAD = f"aead {AES} {KEY} 128"
THEIRS = (
    f"proto ah spi 0x200 mode transport auth hmac(sha1) {KEY}",
    "proto comp spi 0x20 mode tunnel comp deflate",
    f"proto esp spi 0x201 mode transport {AEAD}",
    f"proto esp spi 0x202 mode tunnel enc cbc(aes) 0x{KEY_128[:16].hex()} auth hmac(sha256) {KEY}",
    f"proto esp spi 0x203 mode tunnel aead {AES} {KEY} 96",
    f"proto esp spi 0x204 mode tunnel {AEAD} encap espinudp 4500 4500 0.0.0.0",
    f"proto esp spi 0x206 mode tunnel extra-flag dont-encap-dscp {AEAD}",
    f"proto esp spi 0x207 mode beet {AEAD}",
    f"proto esp spi 0x208 mode tunnel {AEAD} sel src 10.0.0.0/8 dst 10.1.0.0/16",
    f"proto esp spi 0x209 mode tunnel {AEAD} limit time-hard 100000",
)
MORE_OF_THEIRS = (
    "xfrm state add src fd00::1 dst fd00::2 proto hao mode ro coa fd00::3",
    "xfrm state allocspi src 192.0.2.1 dst 192.0.2.2 proto esp",
)


def test_states_of_others_are_left_alone(xfrm: Xfrm) -> None:
    for each in THEIRS:
        ip("xfrm", "state", "add", "src", "192.0.2.1", "dst", "192.0.2.2", *each.split())
    for words in MORE_OF_THEIRS:
        ip(*words.split())
    before = sorted(shown())
    ipip = 1  # IP compression makes a state of protocol 4 for itself
    assert len(before) == len(THEIRS) + len(MORE_OF_THEIRS) + ipip
    assert xfrm.states() == [], "none of these can be said by a State"
    assert xfrm.put_states(OURS) == {}
    assert standing(xfrm) == set(OURS)
    assert xfrm.remove_states([each.key for each in OURS]) == {}
    assert sorted(shown()) == before


def test_a_state_of_another_is_not_removed_for_ours(xfrm: Xfrm) -> None:
    """The kernel takes one without a mark for any that has the same destination and SPI."""
    ours = next(each for each in OURS if each.key.mark)
    theirs = replace(ours, key=replace(ours.key, mark=None), if_id=0, reqid=1)
    xfrm.put_states([theirs])
    assert xfrm.remove_states([ours.key]) == {}, "ours is gone, which is success"
    assert standing(xfrm) == {theirs}
    assert xfrm.put_states([ours])[ours.key].errno == errno.EEXIST


def test_a_state_that_another_hides_is_not_removed(xfrm: Xfrm) -> None:
    ours = next(each for each in OURS if each.key.mark)
    theirs = replace(ours, key=replace(ours.key, mark=None), if_id=0, reqid=1)
    assert xfrm.put_states([ours]) == {}
    assert xfrm.put_states([theirs]) == {}, "it has been added later, so it is found first"
    assert xfrm.remove_states([ours.key])[ours.key].errno == errno.EBUSY
    assert standing(xfrm) == {ours, theirs}
    assert xfrm.remove_states([theirs.key]) == {}
    assert xfrm.remove_states([ours.key]) == {}
    assert standing(xfrm) == set()


def test_a_device_that_cannot_offload_is_left_out_unless_all_was_asked_of_it(xfrm: Xfrm) -> None:
    state = next(iter(OURS))
    lo = 1
    crypto = replace(state, offload=Offload(lo, OffloadFlags(0)))
    whole = replace(state, offload=Offload(lo, OffloadFlags.PACKET))
    assert xfrm.put_states([whole])[state.key].errno == errno.EINVAL
    assert xfrm.put_states([crypto]) == {}
    assert standing(xfrm) == {state}


def test_an_xfrm_interface_is_made_once_for_an_if_id(xfrm: Xfrm) -> None:
    assert xfrm.states() == []
    with Netlink(HERE) as netlink:
        netlink.add_xfrm("pellicle_xfrm", IF_ID, netlink.link("lo").index)
        made = netlink.link("pellicle_xfrm")
        assert (made.kind, made.if_id, made.link, made.is_up) == ("xfrm", IF_ID, 1, False)
        (seen,) = json.loads(ip("-j", "-d", "link", "show", "pellicle_xfrm"))
        data = seen["linkinfo"]["info_data"]
        assert (seen["link"], int(str(data["if_id"]), 0)) == ("lo", IF_ID)
        for name, if_id in (("pellicle_xfrm", 1), ("other", IF_ID)):
            with pytest.raises(FileExistsError):
                netlink.add_xfrm(name, if_id, 1)
        netlink.change_link(made.index, is_up=True, mtu=1400)
        assert netlink.link("pellicle_xfrm").mtu == 1400
        assert netlink.remove_link("pellicle_xfrm") is True


def test_a_probe_says_why_not_and_leaves_nothing() -> None:
    def here() -> tuple[object, ...]:
        with Xfrm() as xfrm, Netlink() as netlink:
            return sorted(netlink.links()), xfrm.states(), netns.names()

    before = here()
    assert probe_esp(AES, 160) is None
    unknown, short = probe_esp("rfc0000(rot13)", 160), probe_esp(AES, 96)
    assert unknown is not None
    assert short is not None
    assert (unknown.errno, short.errno) == (errno.ENOSYS, errno.EINVAL)
    assert probe_device() is None
    assert here() == before


async def is_heard(changes: XfrmChanges) -> bool:
    try:
        await asyncio.wait_for(anext(changes), 2)
    except TimeoutError:
        return False
    return True


def test_what_others_take_away_is_heard(xfrm: Xfrm) -> None:
    async def watch(changes: XfrmChanges) -> None:
        xfrm.put_states(OURS)
        xfrm.remove_states([next(iter(OURS)).key])
        assert not await is_heard(changes), "own requests are not"
        ip(
            "xfrm",
            "state",
            "delete",
            "src",
            f"{SIX[0]}",
            "dst",
            f"{SIX[1]}",
            "proto",
            "esp",
            "spi",
            "0x100",
        )
        assert await is_heard(changes)
        ip("xfrm", "state", "flush")
        assert await is_heard(changes)
        assert standing(xfrm) == set()
        assert not await is_heard(changes)

    with XfrmChanges(HERE, own=[xfrm.port]) as changes:
        asyncio.run(watch(changes))
