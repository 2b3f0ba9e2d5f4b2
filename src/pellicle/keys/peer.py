# SPDX-License-Identifier: Apache-2.0
"""One peer: what its record is good for, and which of our pairs with it to use and to end.

Where a policy asks for keys of its own, a peer is one more `Peer` for each such policy: the same
record, other pairs.

A pair is *live* while both its offers are published. One that is not is ended `drain` seconds
after we know that the peer does not send on it any more:
  - the peer has answered on a higher pair (see pair.py); or
  - the peer goes on answering on a live pair, but on this one it is silent although asked: it
    lost its memory (a new disk) and its epochs began anew; or
  - the peer is gone, or its record proves nothing: whatever it sends is no longer welcome.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pellicle.facts import ALL_TRAFFIC, Cipher, Context, Node, NodeName, Offer, PairId
from pellicle.keys.derivation import End, pair_id
from pellicle.keys.own import Own
from pellicle.keys.pair import Pair
from pellicle.keys.records import NOTHING, Record
from pellicle.keys.rows import LocalNode, PeerKeys, PeerState, ProbeKind
from pellicle.keys.slots import LAST_SLOT

MOST_PAIRS = 64
"""With one peer. Reached only by a peer whose record changes without end."""
STALE_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class Peer:
    """A node that we know, or of which pairs are left."""

    name: NodeName
    context: Context = ALL_TRAFFIC
    """For which of the traffic."""
    node: Node | None = None
    record: Record = NOTHING
    is_refused: bool = False
    """Its record is not read: it is gone, or claims what is another node's."""
    pairs: dict[PairId, Pair] = field(default_factory=dict)
    live: frozenset[PairId] = frozenset()
    """Of every combination of an offer of ours and a verified one of the peer."""
    best: PairId | None = None
    """Of the newest offers on both sides."""
    todo: list[tuple[Own, Offer, PairId]] = field(default_factory=list)
    """Combinations that may still have to be derived."""
    matched: tuple[int, Record] | None = None
    """What `live`, `best` and `todo` were made from."""
    cut_since: float | None = None
    """Since when nothing can be agreed with the peer."""
    behind_since: float | None = None
    """Since when it has not answered on our newest offer."""
    wake: float | None = None
    """When to look at it if nothing is said of it before."""
    has_begun: bool = False
    """Some pair of it could be sent on, once: from then on nothing else will do."""

    @property
    def is_gone(self) -> bool:
        return self.node is None

    def match(self, local: LocalNode, owns: Sequence[Own], version: int) -> None:
        """Combine the offers, if anything changed."""
        if self.matched == (version, self.record):
            return
        self.matched = (version, self.record)
        self.best, self.todo = None, []
        live = set()
        for own in owns:
            for offer in (each.offer for each in self.record.offers if each.secret is own.secret):
                self.best = pair_id(self.cipher, *self.ends(local, own, offer), self.context)
                live.add(self.best)
                if own.half:
                    self.todo.append((own, offer, self.best))
        self.live = frozenset(live)

    @property
    def cipher(self) -> Cipher:
        """Of all pairs that its record makes possible."""
        assert self.record.cipher, "a record with offers has a cipher"
        return self.record.cipher

    def ends(self, local: LocalNode, own: Own, offer: Offer) -> tuple[End, End]:
        """Our end and the peer's, of two offers."""
        assert self.record.outer, "a record with offers has addresses"
        ours, theirs = self.record.outer
        return End(local.name, ours, own.offer), End(self.name, theirs, offer)

    def is_live(self, pair: Pair) -> bool:
        return (
            pair.id in self.live and self.node is not None and pair.node == self.node.addresses[0]
        )

    def date(self, now: float) -> None:
        """Give everything that began since the last plan its time."""
        if self.record.offers:
            self.cut_since = None
        elif self.cut_since is None:
            self.cut_since = now
        for pair in self.pairs.values():
            pair.date(now)
            if self.is_live(pair):
                pair.dying_since = None
            elif pair.dying_since is None:
                pair.dying_since, pair.ask_at = now, None
        is_heard = self._heard_at() == now
        for pair in self.pairs.values():
            if pair.heard_at == now or pair.dying_since is None:
                pair.silent_since = None
            elif is_heard and pair.silent_since is None:
                pair.silent_since = now

    def _heard_at(self) -> float | None:
        """When the peer was last heard on a live pair."""
        live = (pair.heard_at for pair in self.pairs.values() if pair.dying_since is None)
        return max((heard for heard in live if heard is not None), default=None)

    def ends_at(self, pair: Pair, drain: float, sending: frozenset[PairId]) -> float | None:
        """When a pair may go; None: not foreseeable."""
        begin = pair.dying_since
        if begin is None:
            return None
        if self.cut_since is not None:
            return max(begin, self.cut_since) + drain
        passed = self._passed_at(pair)
        if passed is not None:
            return None if pair.id in sending else max(begin, passed) + drain
        heard = self._heard_at()
        if heard is None or pair.silent_since is None or heard < pair.silent_since + drain:
            return None
        return heard

    def _passed_at(self, pair: Pair) -> float | None:
        """When the peer answered on a higher pair."""
        answers = [
            other.answered_at
            for other in self.pairs.values()
            if other.answered_at is not None and other.rank > pair.rank
        ]
        return min(answers, default=None)

    def surplus(self) -> Iterator[Pair]:
        """What is too much, lowest first; live pairs are at most four and stay."""
        if len(self.pairs) <= MOST_PAIRS:
            return
        dying = sorted(
            (pair for pair in self.pairs.values() if pair.dying_since is not None),
            key=lambda pair: (pair.is_confirmed, pair.rank),
        )
        yield from dying[: len(self.pairs) - MOST_PAIRS]

    def choose(self) -> Pair | None:
        """The pair to send on: the highest one that the peer has shown to have."""
        return max(
            (pair for pair in self.pairs.values() if pair.can_send),
            key=lambda pair: pair.rank,
            default=None,
        )

    def doubt_below_broken(self) -> None:
        """A pair broke here, so we may fall back on a lower one: the peer may have ended that."""
        broken = [pair for pair in self.pairs.values() if pair.has_just_broken]
        for pair in self.pairs.values():
            if any(other.rank > pair.rank for other in broken):
                pair.doubt()
        for pair in broken:
            pair.has_just_broken = False

    def has_spi_of(self, pair: Pair) -> bool:
        """Whether an inbound SPI of `pair` is taken: one chance in 2^30."""
        taken = {at.spi for other in self.pairs.values() for at, _ in other.sas}
        return any(at.spi in taken for at, _ in pair.sas)

    def probes(self, sending: frozenset[PairId], now: float) -> Iterator[tuple[Pair, ProbeKind]]:
        """On which pairs to answer and to ask now; each counts as done."""
        for pair in self.pairs.values():
            if pair.must_answer and self.may_answer(pair, sending):
                pair.must_answer = False
                yield pair, ProbeKind.ANSWER
            if pair.ask(now, self.must_ask(pair)):
                yield pair, ProbeKind.ASK

    def must_ask(self, pair: Pair) -> bool:
        """Whether an answer on this pair would tell us anything."""
        if not pair.has_outs or (pair.own and pair.own.published_at is None):
            return False
        if pair.dying_since is not None:
            return self.cut_since is None and self._passed_at(pair) is None
        if pair.is_answered:
            return any(
                other.dying_since is not None and self._passed_at(other) is None
                for other in self.pairs.values()
            )
        if pair.own is None and not pair.is_doubted:
            return False
        return not any(
            other.is_answered and other.dying_since is None and other.rank > pair.rank
            for other in self.pairs.values()
        )

    def may_answer(self, pair: Pair, sending: frozenset[PairId]) -> bool:
        """Whether the kernel already sends to the peer on this pair or on a higher one."""
        return pair.has_outs and any(
            other.id in sending and other.rank >= pair.rank for other in self.pairs.values()
        )

    def wakes(self, drain: float, sending: frozenset[PairId]) -> Iterator[float]:
        """When something becomes due with this peer."""
        if self.behind_since is not None:
            yield self.behind_since + STALE_SECONDS
        for pair in self.pairs.values():
            for wake in (pair.ask_at, pair.overdue_at, self.ends_at(pair, drain, sending)):
                if wake is not None:
                    yield wake

    def has_moved(self, own: Own) -> bool:
        """Whether the peer is known to send on a pair of `own`."""
        return any(pair.own is own and pair.is_answered for pair in self.pairs.values())

    def is_behind(self, own: Own) -> bool:
        """Whether it could, but is not known to send on a pair of `own`."""
        return bool(self.record.offers) and not self.has_moved(own)

    def is_ready(self, own: Own) -> bool:
        """Whether every inbound SA that `own` makes possible stands."""
        return not self.todo and all(
            pair.has_ins or pair.is_lost for pair in self.pairs.values() if pair.own is own
        )

    def is_broken(self, own: Own) -> bool:
        """Whether it can be agreed with only by a newer offer than `own`, the newest."""
        if self.best is None or self.best not in own.used:
            return False
        pair = self.pairs.get(self.best)
        return pair is None or pair.is_lost or pair.is_spent or not self.is_live(pair)

    def keys(
        self, chosen: Pair | None, own: Own | None, now: float, *, has_slots: bool
    ) -> PeerKeys:
        """How things stand, in words."""
        has_moved = own is not None and self.has_moved(own)
        if has_moved or not self.record.offers:
            self.behind_since = None
        elif self.behind_since is None:
            self.behind_since = now
        state, why = self._state(chosen, now, self._waits(has_slots))
        if chosen is None:
            return PeerKeys(self.name, state, why)
        return PeerKeys(
            self.name,
            state,
            why,
            chosen.local_epoch,
            chosen.peer_epoch,
            chosen.id,
            chosen.cipher,
            chosen.engine,
            has_moved,
        )

    def _waits(self, has_slots: bool) -> str:
        """Why the pair of the newest offers is not planned yet; empty: it need not wait."""
        if all(id_ != self.best for _, _, id_ in self.todo):
            return ""
        if has_slots:
            return "the keys of the newest ones are being derived"
        return f"no slot is free for the newest ones: {LAST_SLOT} pairs stand"

    def _state(self, chosen: Pair | None, now: float, waits: str) -> tuple[PeerState, str]:
        if not self.record.offers:
            return self.record.state, self.record.why
        if chosen is not None:
            offers = f"on offers {chosen.local_epoch} (ours) and {chosen.peer_epoch} (the peer's)"
            behind = self.behind_since
            if behind is not None and now >= behind + STALE_SECONDS:
                silent = "it does not answer on the newest ones"
                return PeerState.STALE, f"{offers}; {waits or silent}"
            return PeerState.READY, f"{offers}; {waits}" if waits else offers
        if waits:
            return PeerState.CONFIRMING, waits
        if not self.live:
            why = "its offers are proven with another line of the pre-shared secret than ours"
            return PeerState.UNVERIFIED, why
        best = self.pairs.get(self.best) if self.best is not None else None
        if best is None or best.is_lost:
            return PeerState.CONFIRMING, "these offers were in use before; a new one is needed"
        if not best.has_outs:
            return PeerState.CONFIRMING, "SAs are being put in place"
        if best.own and best.own.published_at is None:
            return PeerState.CONFIRMING, "our new offer is not yet published"
        return PeerState.CONFIRMING, "asked; no packet of the peer has come in on the new SAs"
