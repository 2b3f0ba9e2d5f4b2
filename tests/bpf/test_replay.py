# SPDX-License-Identifier: Apache-2.0
"""The anti-replay window and extended sequence numbers, as tables of (number, verdict).

Each number is that of a whole packet, sealed in Python and given to from_net: RFC 4303 §3.4.3 and
Appendix A, window 1024.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest

from build_bpf import ROOT, compile_bpf
from pellicle.kernel.bpf import Object
from tests.bpf import packets
from tests.bpf.cluster import OVER4, PEERS, POD4, Peer, put_inbound, sa_in
from tests.bpf.node import REDIRECT, Node
from tests.bpf.race import run_at_once
from tests.bpf.tunnel import sealed, state

WINDOW = 1024
T = WINDOW
"""The table is written in multiples of it."""
TURN = 1 << 32
INNER = {version: packets.ip(PEERS[version].pod4, POD4) for version in (4, 6)}
PASS, SEEN, OLD, FORGED = "OPENED", "DROP_REPLAYED", "DROP_TOO_OLD", "DROP_AUTH_FAILED"


@pytest.fixture
def node(loaded: Node) -> Node:
    loaded.clear("sa_in", "flows")
    for peer in PEERS.values():
        put_inbound(loaded, peer)
    loaded.forget()
    return loaded


def receive(node: Node, sequence: int, peer: Peer = OVER4) -> str:
    version = 4 if peer is OVER4 else 6
    return node.run("from_net", sealed(peer, sequence, INNER[version])).reason


TABLE = [
    (0, SEEN),
    (1, PASS),
    (1, SEEN),
    (9, PASS),
    (8, PASS),
    (7, PASS),
    (7, SEEN),
    (T, PASS),
    (T - 1, PASS),
    (T - 1, SEEN),
    (T - 2, PASS),
    (2, PASS),
    (2, SEEN),
    (0, OLD),
    (T + 16, PASS),
    (3, OLD),
    (16, OLD),
    (17, PASS),
    (17, SEEN),
    (T + 16, SEEN),
    (T * 4, PASS),
    (T * 4 - (T - 1), PASS),
    (10, OLD),
    (T * 4 - T, OLD),
    (T * 4 - (T + 1), OLD),
    (T * 4 - (T - 2), PASS),
    (T * 4 + 1 - T, SEEN),
    (0, OLD),
    (TURN - 1, PASS),
    (TURN - T, PASS),
    (TURN - T - 1, OLD),
    (TURN, PASS),
    (TURN - 1, SEEN),
    (TURN + 1, PASS),
    (TURN - 2, PASS),
    (TURN - T + 1, OLD),
    (TURN - T + 2, PASS),
    (TURN - T, OLD),
    (TURN, SEEN),
    (TURN + T - 2, PASS),
    (TURN - 1, SEEN),
    (TURN - 2, OLD),
]


@pytest.mark.parametrize("outer", [4, 6], ids=lambda v: f"IPv{v}")
def test_the_window_as_a_table(node: Node, outer: int) -> None:
    for line, (number, verdict) in enumerate(TABLE):
        before = state(node, PEERS[outer])
        assert receive(node, number, PEERS[outer]) == verdict, f"line {line}: {number}"
        if verdict != PASS:
            assert state(node, PEERS[outer]) == before
    row = sa_in(node, PEERS[outer])
    passed = [number for number, verdict in TABLE if verdict == PASS]
    assert (row["packets"], row["top"]) == (len(passed), max(passed))
    assert (row["auth_failed"], row["replayed"]) == (0, len(TABLE) - len(passed))


JUMPS = {
    "the first number is far away": (0, [TURN - T], PASS),
    "the first number is farther away than can be told": (0, [TURN - T + 1], OLD),
    "the first number has a high half": (0, [TURN], SEEN),
    "the first number has a high half and some": (0, [TURN + 1], FORGED),
    "before the first": (5, [TURN - 5], OLD),
    "as far ahead as can be told": (T, [TURN], PASS),
    "one beyond is taken for one in the window": (T, [TURN + 1], FORGED),
    "over the edge of 2^32 in one step": (TURN - 1, [TURN * 2 - T - 1], PASS),
    "back over the edge": (TURN - 5, [TURN + 5, TURN - 6], PASS),
    "back over the edge, too far": (TURN - 5, [TURN + 5, TURN + 5 - T], OLD),
    "a whole ring ahead": (5, [5 + 2048, 5 + 2048 - 1023], PASS),
    "a whole ring ahead, the same bit": (5, [5 + 2048, 5 + 2048], SEEN),
    "several rings ahead": (5, [5 + 2048 * 7, 6 + 2048 * 7 - 1024], PASS),
    "near the end of all numbers": (0, [TURN * TURN - 1], OLD),
}


@pytest.mark.parametrize("says", JUMPS)
def test_jumps(node: Node, says: str) -> None:
    top, numbers, verdict = JUMPS[says]
    put_inbound(node, OVER4, top=top)
    for number in numbers[:-1]:
        assert receive(node, number) == PASS
    assert receive(node, numbers[-1]) == verdict


def test_the_last_of_all_numbers(node: Node) -> None:
    put_inbound(node, OVER4, top=TURN * TURN - T)
    for number, verdict in [
        (TURN * TURN - 1, PASS),
        (TURN * TURN - 1, SEEN),
        (TURN * TURN - T, PASS),
        (TURN * TURN - T + 1, PASS),
    ]:
        assert receive(node, number) == verdict


class Window:
    """What RFC 4303 wants, said with a set."""

    def __init__(self, top: int) -> None:
        self.top, self.seen = top, set[int]()

    def judge(self, number: int) -> str:
        if number <= self.top - WINDOW:
            return OLD
        if number in self.seen:
            return SEEN
        self.top = max(self.top, number)
        self.seen.add(number)
        return PASS


@pytest.mark.parametrize("start", [0, 70_000, TURN - 1500, 7 * TURN - 1500])
def test_random_walks_agree_with_a_set_of_numbers(node: Node, start: int) -> None:
    bits, window = random.Random(start), Window(start)
    put_inbound(node, OVER4, top=start)
    for _ in range(4000):
        step = bits.choice((1, 1, 1, -1, 5, -40, -1000, -1023, -1024, -1025, 63, 64, 65, 900))
        number = max(1, window.top + step + bits.randrange(-2, 3))
        assert receive(node, number) == window.judge(number), (number, window.top)
    row = sa_in(node, OVER4)
    assert (row["top"], row["packets"]) == (window.top, len(window.seen))


def test_cores_at_once_open_each_packet_once(node: Node) -> None:
    count = 3000
    frames = [sealed(OVER4, number, INNER[4]) for number in range(1, count + 1)]
    results = run_at_once(node.object.program("from_net"), frames)
    opened = [sum(each[n][0] == REDIRECT for each in results) for n in range(count)]
    assert opened == [1] * count
    row = sa_in(node, OVER4)
    assert (row["packets"], row["top"]) == (count, count)
    assert row["replayed"] == (len(results) - 1) * count
    assert row["bytes"] == count * len(INNER[4])


def test_cores_at_once_count_what_each_of_them_opened(node: Node) -> None:
    program, each = node.object.program("from_net"), WINDOW // 2
    for first in range(1, 25 * WINDOW, WINDOW):
        frames = [sealed(OVER4, first + n, INNER[4]) for n in range(2 * each)]
        results = run_at_once(program, frames[::2], frames[1::2])
        assert {action for result in results for action, _ in result} == {REDIRECT}
    row = sa_in(node, OVER4)
    assert row["packets"] == row["top"] == 25 * WINDOW
    assert row["bytes"] == 25 * WINDOW * len(INNER[4])


# --- the window alone ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Object]:
    path = tmp_path_factory.mktemp("bpf") / "replay.bpf.o"
    with Object.load(compile_bpf(ROOT / "tests" / "bpf" / "replay.bpf.c", path)) as loaded:
        yield loaded


def accept(window: Object, number: int) -> str:
    """What becomes of a number that has authenticated, whatever top was when it was inferred."""
    answer = window.program("accept").test_run(bytes(14) + struct.pack("<Q", number) + bytes(20))
    names = {value: name for name, value in window.btf.enum("reason").items()}
    return {"REASON_NONE": PASS}.get(names[answer.retval], names[answer.retval])


def test_an_authentic_number_is_accepted_once_and_only_in_the_window(window: Object) -> None:
    """Top may have moved on since the number was first looked at."""
    kind = window.btf.maps["row"].value
    assert kind is not None
    window.map("row").update(bytes(4), kind.write({"top": 0}))
    table = [
        (T * 3, PASS), (T * 3, SEEN), (T * 2, OLD), (T * 2 + 1, PASS), (T * 2 + 1, SEEN),
        (T * 2 - 1, OLD), (0, OLD), (T * 3 + 1, PASS), (T * 2 + 1, OLD), (T * 2 + 2, PASS),
        (T * 3 + TURN, PASS), (T * 3 + 1, OLD), (T * 4 + TURN * 2, OLD), (T * 2 + TURN, OLD),
    ]  # fmt: skip
    for line, (number, verdict) in enumerate(table):
        assert accept(window, number) == verdict, f"line {line}: {number}"
    window.map("row").update(bytes(4), kind.write({"top": 5}))
    assert accept(window, 0) == SEEN, "never sent"
