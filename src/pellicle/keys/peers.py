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

from pellicle.facts import ALL_TRAFFIC, Address, Context, NodeName, Owned, PairId
from pellicle.keys.pair import Pair
from pellicle.keys.peer import Peer
from pellicle.keys.records import NOTHING, Verdict


class Peers:
    """Those that records name, and those of which only pairs are left."""

    def __init__(self, local: NodeName) -> None:
        self._local = local
        self._named: dict[NodeName, dict[Context, Peer]] = {}
        self._strays: dict[Owned, Peer] = {}
        """Of adopted pairs whose node no record names; they are called by its address."""
        self._contexts: dict[NodeName, dict[Context, None]] = {}
        self._verdicts: dict[NodeName, Verdict] = {}
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
            at = _stray(pair.node, pair.context)
            stray = self._strays.setdefault(at, Peer(*at))
            self.hold(stray, pair)
            self.look_at([stray])

    def believe(self, verdict: Verdict) -> None:
        """Who the peer is now; pairs with its address are its own."""
        name = verdict.name
        if verdict.node is None and name not in self._named:
            return
        mine = self._named.setdefault(name, {})
        self._verdicts[name] = verdict
        needed = (ALL_TRAFFIC, *self._contexts.get(name, ()))
        for context in {**dict.fromkeys(needed), **mine} if verdict.node else [*mine]:
            peer = mine.setdefault(context, Peer(name, context))
            self._tell(peer, verdict if context in needed else _gone(name))

    def _tell(self, peer: Peer, verdict: Verdict) -> None:
        name, node, record, is_refused = verdict
        peer.node, peer.record, peer.is_refused = node, record, is_refused
        self.look_at([peer])
        is_welcome = node is not None and not is_refused and node.addresses
        at = _stray(node.addresses[0], peer.context) if node and is_welcome else None
        stray = self._strays.get(at) if at else None
        if stray:
            for pair in stray.pairs.values():
                pair.rank_between(self._local, name)
                self.hold(peer, pair)
            self.forget(stray)

    def need(self, owned: Collection[Owned], changed: Iterable[Owned]) -> None:
        """With whom keys are needed for which of the traffic, beyond those for all of it.
        `changed`: there it may be other than what was said before.
        """
        for name, context in changed:
            mine = self._contexts.setdefault(name, {})
            was, now = context in mine, (name, context) in owned
            if now:
                mine[context] = None
            else:
                mine.pop(context, None)
            if not mine:
                del self._contexts[name]
            verdict = self._verdicts.get(name)
            if was == now or verdict is None or verdict.node is None:
                continue
            if now:
                peer = self._named[name].setdefault(context, Peer(name, context))
                self._tell(peer, verdict)
            elif context in self._named[name]:
                self._tell(self._named[name][context], _gone(name))

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
        return self._named.get(peer.name, {}).get(peer.context) is peer

    def others_of(self, peer: Peer) -> list[Peer]:
        """The same node, for other traffic."""
        return [each for each in self._named[peer.name].values() if each is not peer]

    def forget(self, peer: Peer) -> None:
        """Nothing is left of it."""
        self._due.pop(peer, None)
        peer.wake = None
        if self.is_named(peer):
            del self._named[peer.name][peer.context]
            if not self._named[peer.name]:
                del self._named[peer.name]
                self._verdicts.pop(peer.name, None)
        elif self._strays.get((peer.name, peer.context)) is peer:
            del self._strays[peer.name, peer.context]

    # --- whom to look at ----------------------------------------------------------------------

    def look_at(self, peers: Iterable[Peer]) -> None:
        """In the next plan."""
        self._due.update(dict.fromkeys(peers))

    def look_at_all(self) -> None:
        self.look_at(chain.from_iterable(mine.values() for mine in self._named.values()))
        self.look_at(self._strays.values())

    def has_spi_of(self, peer: Peer, pair: Pair) -> bool:
        """Whether an inbound SPI of `pair` is taken, for whichever traffic: one chance in 2^30."""
        return any(each.has_spi_of(pair) for each in self._named.get(peer.name, {}).values())

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


def _stray(address: Address, context: Context) -> Owned:
    return NodeName(str(address)), context


def _gone(name: NodeName) -> Verdict:
    """On keys that are not needed any more, whatever the node's record says."""
    return Verdict(name, None, NOTHING, is_refused=True)
