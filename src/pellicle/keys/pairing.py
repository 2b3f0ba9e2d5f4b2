# SPDX-License-Identifier: Apache-2.0
"""The key ring: from the nodes' records and the datapath's word to SAs, without a handshake.

Level-triggered and free of clocks: tell it what is so, in any order and as often as you like,
then ask for the plan. It promises that
  - no SA's key is ever put twice: each pair of offers is planned once, and what broke or was
    removed needs a new offer of ours;
  - a node is sent to only on a pair that it was seen to use itself, hence can open;
  - a pair is taken away only when the peer is known to send on a better one, or is gone;
  - a plan costs what changed since the last one, however many peers there are, and never much:
    what concerns thousands of them is spread over many plans.
See pair.py for the life of a pair, own.py for that of our offers, peer.py for the end of both,
reach.py for what comes of it, records.py for what peers are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType

from pellicle.facts import (
    ALL_TRAFFIC,
    Cipher,
    Engine,
    Node,
    NodeName,
    Offer,
    Owned,
    PairId,
)
from pellicle.keys.derivation import extract
from pellicle.keys.own import LIFETIME_SECONDS, Own, OwnOffers
from pellicle.keys.pair import Pair, Terms, adopted, plan_sas
from pellicle.keys.peer import Peer
from pellicle.keys.peers import Peers
from pellicle.keys.reach import Reach
from pellicle.keys.records import GRACE_SECONDS, LOOK_SECONDS, Records, Rules
from pellicle.keys.rows import (
    Direction,
    KeyPlan,
    LocalNode,
    OfferState,
    OwnKeys,
    PeerKeys,
    PeerState,
    ProbeKind,
    Sa,
    SaKey,
    Send,
)
from pellicle.keys.slots import Slots
from pellicle.keys.trust import Trust

__all__ = [
    "GRACE_SECONDS", "LOOK_SECONDS", "Direction", "KeyPlan", "Keyring", "LocalNode", "OfferState",
    "OwnKeys", "PeerKeys", "PeerState", "ProbeKind", "Sa", "SaKey", "Send",
]  # fmt: skip

RECORDS_PER_PLAN = 60
"""To be judged. More would hold up everything else for too long; the rest follows in the next
plan."""
PEERS_PER_PLAN = 200
"""To be looked at."""
DERIVATIONS_PER_PLAN = 60
PROBED_SA = 0
"""One SA answers for all of its pair."""

Marked = dict[Peer, None]
"""A set that keeps its order."""


class Keyring:
    """All keys of one node."""

    def __init__(
        self,
        node: LocalNode,
        secrets: Sequence[Trust],
        random: Callable[[int], bytes],
        *,
        ciphers: Sequence[Cipher],
        engine: Engine,
        drain_seconds: float = 10.0,
        packet_limit: int = 2**40,
        outer_family: str = "auto",
        lifetime_seconds: float = LIFETIME_SECONDS,
    ) -> None:
        """`secrets`: our offers are proven with the first, and others' may be with any.

        `ciphers`: what `engine`, which has the SAs of all new pairs, can and may use.
        """
        self._local = node
        self._records = Records(Rules(node, tuple(secrets), tuple(ciphers), outer_family))
        self._engine = engine
        self._random = random
        self._drain = drain_seconds
        self._packet_limit = packet_limit
        self._lifetime = lifetime_seconds
        self._peers = Peers(node.name)
        self._slots = Slots()
        self._own: OwnOffers | None = None
        self._sending: frozenset[PairId] | None = None
        self._must_rotate = False
        self._is_listed = False
        self._waiting: Marked = {}
        """With pairs that are still to be derived."""
        self._unready: Marked = {}
        """With pairs of our newest offer whose inbound SAs do not stand."""
        self._behind: Marked = {}
        """Who could, but are not known to send on a pair of it."""
        self._broken: Marked = {}
        """With whom only another offer of ours can help."""
        self._sas: dict[SaKey, Sa] = {}
        self._reach = Reach()
        self._changed: dict[SaKey, None] = {}
        """Where `_sas` differs from the last plan."""
        self._plan: KeyPlan | None = None

    # --- what is so --------------------------------------------------------------------------

    def start(self, published: Iterable[Offer], standing: Mapping[SaKey, Sa]) -> None:
        """Once, before anything else: what an earlier life of this node left behind."""
        pairs = adopted(standing.values())
        epochs = {pair.local_epoch for pair in pairs.values()}
        secrets = self._records.secrets
        self._own = OwnOffers(
            self._local.name, secrets, self._random, published, epochs, self._lifetime
        )
        self._peers.adopt(pairs)
        for pair in pairs.values():
            self._slots.keep(pair.slot)
            self._want(pair)
        self.standing(standing)

    def peers(
        self, nodes: Mapping[NodeName, Node], changed: Iterable[NodeName] | None = None
    ) -> None:
        """All other nodes, as their records say now. `changed`: only these may differ from what
        was said before.
        """
        self._is_listed = True
        self._records.hear(nodes, changed)

    def need(self, owned: Collection[Owned], changed: Iterable[Owned]) -> None:
        """With whom a policy asks for keys of its own, and which policy; `changed` as above."""
        self._peers.need(owned, changed)

    def standing(self, rows: Mapping[SaKey, Sa], changed: Collection[SaKey] | None = None) -> None:
        """All SAs that stand in the kernel now; `changed` as above."""
        ids = self._peers.pairs if changed is None else dict.fromkeys(at.pair for at in changed)
        for id_ in ids:
            peer = self._peers.holder(id_)
            if peer is None:
                continue
            pair = peer.pairs[id_]
            found = [sa for at, _ in pair.sas if (sa := rows.get(at))]
            if not pair.is_confirmed and any(sa.first_seen for sa in found):
                pair.see()
                self._peers.look_at([peer])
            if pair.stand(found):
                self._want(pair)
                self._peers.look_at([peer])
            if pair.has_just_broken:
                peer.doubt_below_broken()

    def sending(self, pairs: Iterable[PairId]) -> None:
        """All pairs that the kernel's encryption table names now.

        A peer is answered, and a pair taken away, only on the strength of this, so that both
        hold even if this agent dies at once. Never called: the last plan is taken for done.
        """
        before, self._sending = self._sending or frozenset(), frozenset(pairs)
        for id_ in before ^ self._sending:
            self._said_of(id_)

    def confirmed(self, pair: PairId) -> None:
        """The datapath authenticated the first packet on an inbound SA of `pair`."""
        for each in self._said_of(pair):
            each.hear()

    def probe(self, pair: PairId, kind: ProbeKind) -> None:
        """A probe of the peer came in on `pair`."""
        for each in self._said_of(pair):
            each.hear(is_asked=kind == ProbeKind.ASK, is_answered=kind == ProbeKind.ANSWER)

    def spent(self, pair: PairId) -> None:
        """An outbound SA of `pair` nears its last sequence number."""
        for each in self._said_of(pair):
            each.is_spent = True

    def _said_of(self, id_: PairId) -> Iterable[Pair]:
        """The pair, if it is one of ours; its peer is looked at in the next plan."""
        peer = self._peers.holder(id_)
        if peer is None:
            return ()
        self._peers.look_at([peer])
        return (peer.pairs[id_],)

    def rotate(self) -> None:
        """Make a new offer as soon as the last rotation is over."""
        self._must_rotate = True

    def know(self, secrets: Sequence[Trust]) -> None:
        """The secrets are these from now on; whoever still has those before is heard for a while.

        A new offer follows if ours are to be proven with another one.
        """
        self._must_rotate |= self._records.know(secrets)

    def prove_anew(self) -> None:
        """What proves our offers was renewed: they are the same, with another proof."""
        if self._own:
            self._own.prove_anew()

    def judge_anew(self) -> None:
        """By what others' offers are judged has changed."""
        self._records.judge_anew()

    # --- what ought to be ---------------------------------------------------------------------

    def plan(self, now: float) -> KeyPlan:
        """What ought to be, given all that was said. Probes in it count as sent."""
        assert self._own, "start() comes first"
        own = self._own
        for verdict in self._records.take(now, RECORDS_PER_PLAN):
            self._peers.believe(verdict)
        self._peers.wake(now)
        if self._slots.has_free:
            self._peers.look_at(islice(self._waiting, DERIVATIONS_PER_PLAN))
        probes: list[tuple[SaKey, ProbeKind]] = []
        if self._is_listed:
            had_slots, looked = self._slots.has_free, self._offer(own, now)
            for peer in looked:
                probes.extend(self._settle(peer, own, now))
            if self._slots.has_free != had_slots:
                # All who wait say why.
                self._peers.look_at(peer for peer in self._waiting if peer not in looked)
        self._plan = self._made(own, tuple(probes), now)
        return self._plan

    def _offer(self, own: OwnOffers, now: float) -> Marked:
        """Make, publish and withdraw our offers, and derive the pairs that they make possible.

        Who was looked at.
        """
        looked: Marked = {}
        room, budget = PEERS_PER_PLAN, DERIVATIONS_PER_PLAN
        while True:
            for peer in self._peers.take(room):
                room -= 1
                looked[peer] = None
                peer.match(self._local, own.all, own.version)
                while peer.todo and budget and self._slots.has_free:
                    budget -= self._derive(peer, *peer.todo.pop())
                self._note(peer, own)
            is_broken = bool(self._broken)
            if own.must_make(now, is_asked=self._must_rotate, is_broken=is_broken):
                self._must_rotate = False
                own.make(now, self._records.secrets[0], is_forced=is_broken)
                self._broken.clear()
            elif not own.advance(
                now,
                is_ready=not (self._is_busy or self._unready),
                has_moved=not (self._is_busy or self._behind),
            ):
                return looked
            self._peers.look_at_all()

    def _note(self, peer: Peer, own: OwnOffers) -> None:
        """How far the peer is with our newest offer."""
        newest = own.newest
        _mark(self._waiting, peer, bool(peer.todo))
        _mark(self._unready, peer, newest is not None and not peer.is_ready(newest))
        _mark(self._behind, peer, newest is not None and peer.is_behind(newest))
        _mark(self._broken, peer, newest is not None and peer.is_broken(newest))

    @property
    def _is_busy(self) -> bool:
        """Whether there is something to do at once that was too much for one plan."""
        is_deriving = bool(self._waiting) and self._slots.has_free
        return self._peers.has_due or is_deriving or not self._records.are_judged

    def _derive(self, peer: Peer, own: Own, offer: Offer, id_: PairId) -> int:
        """Plan a pair that never was; how many derivations it took."""
        if id_ in own.used or own.half is None or peer.node is None:
            return 0
        own.used.add(id_)
        address = peer.node.addresses[0]
        prk = extract(own.secret, own.half, offer)
        terms = Terms(
            id_,
            address,
            self._engine,
            peer.cipher,
            self._slots.take(),
            self._packet_limit,
            peer.context,
        )
        sas = plan_sas(prk, terms, *peer.ends(self._local, own, offer))
        pair = Pair(id_, address, own.offer.epoch, offer.epoch, sas, own)
        pair.rank_between(self._local.name, peer.name)
        if self._peers.has_spi_of(peer, pair):
            self._slots.free(pair.slot)
        else:
            self._peers.hold(peer, pair)
            self._want(pair)
        return 1

    def _settle(self, peer: Peer, own: OwnOffers, now: float) -> list[tuple[SaKey, ProbeKind]]:
        """Take away what is over, and say how things stand; what to ask and to answer."""
        sending = self._sending
        if sending is None:
            sending = frozenset(pair.id for pair in [peer.choose()] if pair)
        peer.date(now)
        for pair in list(peer.pairs.values()):
            if pair.lose_if_overdue(now):
                self._want(pair)
                self._peers.look_at([peer])
            ends_at = peer.ends_at(pair, self._drain, sending)
            if ends_at is not None and now >= ends_at:
                self._remove(peer, pair)
        for pair in list(peer.surplus()):
            self._remove(peer, pair)
        self._note(peer, own)
        probes: list[tuple[SaKey, ProbeKind]] = []
        if self._peers.is_named(peer):
            probes = [(pair.outbound(PROBED_SA), kind) for pair, kind in peer.probes(sending, now)]
            has_slots = self._slots.has_free
            is_new = self._reach.say(peer, own.newest, now, has_slots=has_slots)
            if is_new and peer.context == ALL_TRAFFIC:
                self._peers.look_at(self._peers.others_of(peer))
        if peer.is_gone and not peer.pairs:
            self._forget(peer)
            return probes
        wakes = (at for at in peer.wakes(self._drain, sending) if at > now)
        self._peers.set_alarm(peer, min(wakes, default=None))
        return probes

    def _remove(self, peer: Peer, pair: Pair) -> None:
        self._peers.drop(peer, pair)
        self._slots.free(pair.slot)
        self._want(pair)

    def _want(self, pair: Pair) -> None:
        """Note what is wanted of it now."""
        wanted = dict(pair.wanted()) if pair.id in self._peers.pairs else {}
        for at, _ in pair.sas:
            self._changed[at] = None
            if at in wanted:
                self._sas[at] = wanted[at]
            else:
                self._sas.pop(at, None)

    def _forget(self, peer: Peer) -> None:
        """Nothing is left of it."""
        for marked in (self._waiting, self._unready, self._behind, self._broken):
            marked.pop(peer, None)
        self._peers.forget(peer)

    def _made(
        self, own: OwnOffers, probes: tuple[tuple[SaKey, ProbeKind], ...], now: float
    ) -> KeyPlan:
        before, changed = self._plan, tuple(self._changed)
        self._changed.clear()
        reached = self._reach.snapshot()
        # What is past waits for an input.
        wakes = (at for at in self._wakes(own, now) if at > now)
        return KeyPlan(
            offers=own.published,
            sas=before.sas if before and not changed else MappingProxyType(self._sas.copy()),
            sends=reached.sends,
            probes=probes,
            peers=reached.peers,
            own_sends=reached.own_sends,
            own_peers=reached.own_peers,
            own=tuple(own.keys()),
            rejected=(*own.rejected, *self._records.rejected),
            wake=now if self._is_listed and self._is_busy else min(wakes, default=None),
            changed=changed,
        )

    def _wakes(self, own: OwnOffers, now: float) -> Iterator[float]:
        """When something becomes due that no input announces."""
        yield from own.wakes(is_wanted=self._must_rotate or bool(self._broken))
        yield from self._records.wakes(now)
        if self._peers.next_alarm is not None:
            yield self._peers.next_alarm


def _mark(marked: Marked, peer: Peer, is_so: bool) -> None:
    if is_so:
        marked[peer] = None
    else:
        marked.pop(peer, None)
