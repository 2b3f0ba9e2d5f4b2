# SPDX-License-Identifier: Apache-2.0
"""All peers: who has which pair, and whom to look at now.

said of it, or of a pair with it ─┐
its time has come ────────────────┼─▶ due ─▶ looked at, some in each plan
our own offers have changed ──────┘
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from heapq import heappop, heappush
from itertools import chain, count, islice

from pellicle.facts import Address, NodeName, PairId
from pellicle.keys.pair import Pair
from pellicle.keys.peer import Peer
from pellicle.keys.records import Verdict


class Peers:
    """Those that records name, and those of which only pairs are left."""

    def __init__(self, local: NodeName) -> None:
        self._local = local
        self._named: dict[NodeName, Peer] = {}
        self._strays: dict[Address, Peer] = {}
        """Of adopted pairs whose node no record names."""
        self._holders: dict[PairId, Peer] = {}
        self._due: dict[Peer, None] = {}
        self._alarms: list[tuple[float, int, Peer]] = []
        """A heap; only those that are their peers' `wake` are still so."""
        self._number = count()

    @property
    def pairs(self) -> Collection[PairId]:
        return self._holders.keys()

    @property
    def has_due(self) -> bool:
        return bool(self._due)

    def adopt(self, pairs: Mapping[PairId, Pair]) -> None:
        """An earlier life of this node left these behind."""
        for pair in pairs.values():
            stray = self._strays.setdefault(pair.node, Peer(NodeName(str(pair.node))))
            self.hold(stray, pair)
            self.look_at([stray])

    def believe(self, verdict: Verdict) -> None:
        """Who the peer is now; pairs with its address are its own."""
        name, node, record, is_refused = verdict
        if node is None and name not in self._named:
            return
        peer = self._named.setdefault(name, Peer(name))
        peer.node, peer.record, peer.is_refused = node, record, is_refused
        self.look_at([peer])
        is_welcome = node is not None and not is_refused and node.addresses
        stray = self._strays.get(node.addresses[0]) if node and is_welcome else None
        if stray:
            for pair in stray.pairs.values():
                pair.rank_between(self._local, name)
                self.hold(peer, pair)
            self.forget(stray)

    def holder(self, id_: PairId) -> Peer | None:
        """Who has the pair with us."""
        return self._holders.get(id_)

    def hold(self, peer: Peer, pair: Pair) -> None:
        """The pair is with this peer from now on."""
        peer.pairs[pair.id] = pair
        self._holders[pair.id] = peer

    def drop(self, peer: Peer, pair: Pair) -> None:
        """The pair is over."""
        del peer.pairs[pair.id], self._holders[pair.id]

    def is_named(self, peer: Peer) -> bool:
        return self._named.get(peer.name) is peer

    def forget(self, peer: Peer) -> None:
        """Nothing is left of it."""
        self._due.pop(peer, None)
        peer.wake = None
        if self.is_named(peer):
            del self._named[peer.name]
        else:
            self._strays = {at: stray for at, stray in self._strays.items() if stray is not peer}

    # --- whom to look at ----------------------------------------------------------------------

    def look_at(self, peers: Iterable[Peer]) -> None:
        """In the next plan."""
        self._due.update(dict.fromkeys(peers))

    def look_at_all(self) -> None:
        self.look_at(chain(self._named.values(), self._strays.values()))

    def take(self, most: int) -> list[Peer]:
        """Whom to look at, at most so many."""
        taken = list(islice(self._due, most))
        for peer in taken:
            del self._due[peer]
        return taken

    def set_alarm(self, peer: Peer, wake: float | None) -> None:
        """It is to be looked at then."""
        if wake is not None and wake != peer.wake:
            heappush(self._alarms, (wake, next(self._number), peer))
        peer.wake = wake

    def wake(self, now: float) -> None:
        """Look at those whose time has come."""
        while self._alarms and self._alarms[0][0] <= now:
            at, _, peer = heappop(self._alarms)
            if peer.wake == at:
                self.look_at([peer])

    @property
    def next_alarm(self) -> float | None:
        while self._alarms and self._alarms[0][2].wake != self._alarms[0][0]:
            heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None
