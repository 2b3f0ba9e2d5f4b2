# SPDX-License-Identifier: Apache-2.0
"""What becomes of keys, as events: which epochs were in use when, and never a key.

plan ──▶ plan: an offer was made, published, withdrawn; a peer is sent to on other keys
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from pellicle.keys.rows import KeyPlan, OfferState, PeerKeys, PeerState

_AGREE = (PeerState.READY, PeerState.CONFIRMING, PeerState.STALE)
"""States of peers with which keys can be agreed on."""


class Happened(StrEnum):
    MADE = "made"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"
    USED = "used"
    """From now on the peer is sent to on this pair."""
    STATE = "state"
    """The peer's keys are in another state."""
    GONE = "gone"
    """No such peer any more."""


class KeyEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of them. Of an offer: epoch and fingerprint. Of a peer: everything else."""

    at: str
    """UTC, ISO 8601."""
    what: Happened
    epoch: int | None = None
    fingerprint: str | None = None
    peer: str | None = None
    state: str | None = None
    why: str | None = None
    pair: str | None = None
    local_epoch: int | None = None
    peer_epoch: int | None = None
    cipher: str | None = None
    engine: str | None = None


def events(before: KeyPlan | None, after: KeyPlan, at: str) -> Iterator[KeyEvent]:
    """What happened between two plans; all that is, if there was none."""
    yield from _offers(before, after, at)
    known = before.peers if before else {}
    for name, peer in after.peers.items():
        if known.get(name) is not peer:
            yield from _peer(known.get(name), peer, at)
    for name in known.keys() - after.peers.keys():
        yield KeyEvent(at, Happened.GONE, peer=name)


def progress(plan: KeyPlan, last: int) -> dict[str, Any]:
    """How far a rotation is that was asked for when offer `last` was the newest one."""
    newest = plan.own[-1]
    peers = [peer for peer in plan.peers.values() if peer.state in _AGREE]
    is_begun = newest.epoch != last
    waiting = [peer.node for peer in peers if not (is_begun and peer.confirmed)]
    stale = [peer.node for peer in peers if peer.state is PeerState.STALE]
    is_over = is_begun and len(plan.own) == 1 and newest.state is OfferState.CURRENT
    return {
        "epoch": newest.epoch if is_begun else None,
        "fingerprint": newest.fingerprint if is_begun else None,
        "state": newest.state if is_begun else "waits for the rotation under way",
        "peers": len(peers),
        "moved": len(peers) - len(waiting),
        "waiting": waiting,
        "stale": stale,
        "done": is_over or (is_begun and set(waiting) <= set(stale)),
    }


def _offers(before: KeyPlan | None, after: KeyPlan, at: str) -> Iterator[KeyEvent]:
    were = {own.epoch: own for own in before.own} if before else {}
    for own in after.own:
        was = were.pop(own.epoch, None)
        if was is None:
            yield KeyEvent(at, Happened.MADE, own.epoch, own.fingerprint)
        is_new = was is None or was.state is OfferState.PREPARING
        if is_new and own.state is not OfferState.PREPARING:
            yield KeyEvent(at, Happened.PUBLISHED, own.epoch, own.fingerprint)
    for own in were.values():
        yield KeyEvent(at, Happened.WITHDRAWN, own.epoch, own.fingerprint)


def _peer(was: PeerKeys | None, peer: PeerKeys, at: str) -> Iterator[KeyEvent]:
    if peer.pair is not None and (was is None or was.pair != peer.pair):
        yield KeyEvent(
            at,
            Happened.USED,
            peer=peer.node,
            pair=f"{peer.pair:016x}",
            local_epoch=peer.local_epoch,
            peer_epoch=peer.peer_epoch,
            cipher=peer.cipher,
            engine=peer.engine,
        )
    if was is None or was.state is not peer.state:
        yield KeyEvent(at, Happened.STATE, peer=peer.node, state=peer.state, why=peer.why)
