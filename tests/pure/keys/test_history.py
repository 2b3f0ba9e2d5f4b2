# SPDX-License-Identifier: Apache-2.0
"""What is told of keys, and how far a rotation is."""

from __future__ import annotations

from pellicle.keys.history import Happened, KeyEvent, events, progress
from pellicle.keys.rows import KeyPlan

from .life import Life, node, offer


def told(before: KeyPlan | None, after: KeyPlan) -> list[tuple[str, object]]:
    rows = events(before, after, "now")
    return [(each.what, each.peer or each.epoch) for each in rows]


def test_a_life_of_an_offer() -> None:
    life = Life([node("n1", offer("n1", 5))])
    first = life.plan
    assert told(None, first) == [("made", 1), ("state", "n1")]
    life.stand()
    assert told(first, life.plan) == [("published", 1)]
    assert told(life.plan, life.plan) == []


def test_a_node_alone_tells_of_both_at_once() -> None:
    assert told(None, Life().plan) == [("made", 1), ("published", 1)]


def test_a_peer_is_sent_to_and_goes() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    before = life.plan
    life.ring.confirmed(life.pair(1, 5))
    after = life.look()
    used, state = events(before, after, "now")
    assert used == KeyEvent(
        "now", Happened.USED, peer="n1", pair=f"{life.pair(1, 5):016x}", local_epoch=1,
        peer_epoch=5, cipher="chacha20-poly1305", engine="bpf",
    )  # fmt: skip
    assert (state.what, state.peer, state.state) == (Happened.STATE, "n1", "ready")
    assert told(after, life.know()) == [("gone", "n1")]


def test_no_key_is_told() -> None:
    life = Life([node("n1", offer("n1", 5))])
    keys = {sa.key for sa in life.plan.sas.values()}
    text = repr(list(events(None, life.plan, "now")))
    assert not any(key.hex() in text or repr(key) in text for key in keys)


def test_progress_waits_for_peers_and_says_for_whom() -> None:
    life = Life([node("n1", offer("n1", 5))])
    life.install()
    life.ring.confirmed(life.pair(1, 5))
    life.look()
    said = progress(life.plan, 1)
    assert (said["epoch"], said["done"], said["waiting"]) == (None, False, ["n1"])
    said = progress(life.plan, 0)
    assert (said["epoch"], said["peers"], said["moved"]) == (1, 1, 0)
    alone = progress(Life().plan, 0)
    assert (alone["done"], alone["peers"], alone["state"]) == (True, 0, "current")
