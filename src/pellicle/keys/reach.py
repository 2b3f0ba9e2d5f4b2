# SPDX-License-Identifier: Apache-2.0
"""How peers are reached: the pair that each is sent to on, and what is told of its keys.

Rows that say the same as before stay the same objects, and so do whole mappings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pellicle.facts import ALL_TRAFFIC, NodeName, Owned
from pellicle.keys.own import Own
from pellicle.keys.peer import Peer
from pellicle.keys.rows import PeerKeys, Send

K = TypeVar("K")
R = TypeVar("R")


class Reached(NamedTuple):
    """All peers; with keys for all of their traffic, and those that policies have of their own."""

    sends: Mapping[NodeName, Send] = MappingProxyType({})
    peers: Mapping[NodeName, PeerKeys] = MappingProxyType({})
    own_sends: Mapping[Owned, Send] = MappingProxyType({})
    own_peers: Mapping[Owned, PeerKeys] = MappingProxyType({})


class Reach:
    """Kept from plan to plan."""

    def __init__(self) -> None:
        self._sends: dict[NodeName, Send] = {}
        self._peers: dict[NodeName, PeerKeys] = {}
        self._own_sends: dict[Owned, Send] = {}
        self._own_peers: dict[Owned, PeerKeys] = {}
        self._said = Reached()

    def say(self, peer: Peer, newest: Own | None, now: float, *, has_slots: bool) -> bool:
        """As things stand with the peer; whether another pair is sent on now."""
        is_for_all = peer.context == ALL_TRAFFIC
        sends: dict[Any, Send] = self._sends if is_for_all else self._own_sends
        peers: dict[Any, PeerKeys] = self._peers if is_for_all else self._own_peers
        at = peer.name if is_for_all else (peer.name, peer.context)
        node = peer.node
        if node is None:
            peers.pop(at, None)
            # What names a policy's own keys goes after them: it must find them to the last.
            if is_for_all or not peer.pairs:
                sends.pop(at, None)
            return False
        chosen = None if peer.is_refused or not node.addresses else peer.choose()
        keys = peer.keys(chosen, newest, now, has_slots=has_slots)
        if peers.get(at) != keys:
            peers[at] = keys
        before = sends.pop(at, None)
        if chosen is not None:
            peer.has_begun = True
            send = Send(chosen.id, chosen.engine, node.addresses[0], context=peer.context)
            sends[at] = before if send == before else send
        elif not is_for_all and not peer.has_begun and peer.name in self._sends:
            # Until its own keys stand for the first time, the node's do, or a new policy would
            # begin with a loss.
            sends[at] = replace(self._sends[peer.name], context=peer.context)
        return sends.get(at) != before

    def snapshot(self) -> Reached:
        """All that was said."""
        said = self._said
        self._said = Reached(
            _snapshot(self._sends, said.sends),
            _snapshot(self._peers, said.peers),
            _snapshot(self._own_sends, said.own_sends),
            _snapshot(self._own_peers, said.own_peers),
        )
        return self._said


def _snapshot(rows: dict[K, R], before: Mapping[K, R]) -> Mapping[K, R]:
    """The one before, if it is as good."""
    return before if before == rows else MappingProxyType(rows.copy())
