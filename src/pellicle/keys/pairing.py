# SPDX-License-Identifier: Apache-2.0
"""The key ring: from the nodes' records and the datapath's word to SAs, without a handshake.

Level-triggered and free of clocks: tell it what is so, in any order and as often as you like,
then ask for the plan. It promises that
  - no SA's key is ever put twice: each pair of offers is planned once, and what broke or was
    removed needs a new offer of ours;
  - a node is sent to only on a pair that it was seen to use itself, hence can open;
  - a pair is taken away only when the peer is known to send on a better one, or is gone.
See pair.py for the life of a pair, own.py for that of our offers, peer.py for the end of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pellicle.facts import Address, Cipher, Engine, Node, NodeName, Offer, PairId, Rejected
from pellicle.keys.derivation import extract
from pellicle.keys.offers import fingerprint
from pellicle.keys.own import PUBLISH_SECONDS, ROTATION_SECONDS, Own, OwnOffers
from pellicle.keys.pair import Pair, Terms, adopted, plan_sas
from pellicle.keys.peer import Peer, Record, Rules, read_record
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
    "Direction", "KeyPlan", "Keyring", "LocalNode", "OfferState", "OwnKeys", "PeerKeys",
    "PeerState", "ProbeKind", "Sa", "SaKey", "Send",
]  # fmt: skip

DERIVATIONS_PER_PLAN = 512
"""More would hold up everything else for too long; the rest follows in the next plan."""
LIFETIME_SECONDS = 3600.0
"""Of an offer, before the next one is made."""
JITTER = 0.2
"""Of it, at random: nodes that started together do not go on together."""
GRACE_SECONDS = 3600.0
"""How long a secret that was replaced is still good: other nodes' files change later."""
LOOK_SECONDS = 10.0
"""Between two looks at proofs that come to an end."""
PROBED_SA = 0
"""One SA answers for all of its pair."""


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
        self._secrets = tuple(secrets)
        self._leaving: dict[Trust, float | None] = {}
        """Secrets that were replaced, and when: None until the next plan."""
        self._rules = Rules(node, self._secrets, tuple(ciphers), outer_family)
        self._engine = engine
        self._random = random
        self._drain = drain_seconds
        self._packet_limit = packet_limit
        self._lifetime = lifetime_seconds
        self._peers: dict[NodeName, Peer] = {}
        self._pairs: dict[PairId, Pair] = {}
        self._slots = Slots()
        self._strays: dict[Address, Peer] = {}
        """Of adopted pairs whose node no record names."""
        self._own: OwnOffers | None = None
        self._sending: frozenset[PairId] | None = None
        self._must_rotate = False
        self._is_listed = False
        self._looked_at = float("-inf")
        """At the clock of proofs."""
        self._sas: Mapping[SaKey, Sa] | None = None
        self._refused: tuple[Rejected, ...] = ()

    # --- what is so --------------------------------------------------------------------------

    def start(self, published: Iterable[Offer], standing: Iterable[Sa]) -> None:
        """Once, before anything else: what an earlier life of this node left behind."""
        rows = list(standing)
        self._pairs = adopted(rows)
        epochs = {pair.local_epoch for pair in self._pairs.values()}
        self._own = OwnOffers(self._local.name, self._secrets, self._random, published, epochs)
        for pair in self._pairs.values():
            self._slots.keep(pair.slot)
            stray = self._strays.setdefault(pair.node, Peer(NodeName(str(pair.node))))
            stray.pairs[pair.id] = pair
        self.standing(rows)

    def peers(self, nodes: Mapping[NodeName, Node]) -> None:
        """All other nodes, as their records say now."""
        self._is_listed = True
        holders: dict[Address, NodeName] = dict.fromkeys(self._local.addresses, self._local.name)
        refused = []
        for name in sorted(nodes.keys() - {self._local.name}, key=self._precedence):
            node = nodes[name]
            rival = next((holders[a] for a in node.addresses if a in holders), None)
            if rival is not None:
                why = f"an address of it belongs to node {rival}"
                refused.append(Rejected(f"record of node {name}", "addresses", why))
                self._refuse(name, node, why)
                continue
            holders.update(dict.fromkeys(node.addresses, name))
            self._read(name, node)
        for name in self._peers.keys() - nodes.keys():
            self._refuse(name, None, "is gone")
        self._refused = tuple(refused)

    def _precedence(self, name: NodeName) -> tuple[bool, NodeName]:
        """Who held an address before holds it still."""
        peer = self._peers.get(name)
        return peer is None or peer.is_refused, name

    def _read(self, name: NodeName, node: Node) -> None:
        peer = self._peers.setdefault(name, Peer(name))
        if peer.node == node and not peer.is_refused:
            return
        peer.node, peer.record, peer.is_refused = node, read_record(node, self._rules), False
        stray = self._strays.pop(node.addresses[0], None) if node.addresses else None
        if stray:
            for pair in stray.pairs.values():
                pair.rank_between(self._local.name, name)
            peer.pairs.update(stray.pairs)

    def _refuse(self, name: NodeName, node: Node | None, why: str) -> None:
        peer = self._peers.setdefault(name, Peer(name))
        peer.node, peer.is_refused = node, True
        peer.record = Record(state=PeerState.NO_OFFER, why=why)

    def standing(self, rows: Iterable[Sa]) -> None:
        """All SAs that stand in the kernel now."""
        ins = dict.fromkeys(self._pairs, 0)
        outs = dict.fromkeys(self._pairs, 0)
        seen: set[PairId] = set()
        for sa in rows:
            if sa.pair not in ins:
                continue
            if sa.direction is Direction.OUT:
                outs[sa.pair] |= 1 << sa.number
                continue
            ins[sa.pair] |= 1 << sa.number
            if sa.first_seen:
                seen.add(sa.pair)
        for id_ in seen:
            self._pairs[id_].see()
        has_broken = False
        for id_, pair in self._pairs.items():
            if pair.stand(ins[id_], outs[id_]):
                self._sas = None
                has_broken |= pair.has_just_broken
        if has_broken:
            for peer in self._peers.values():
                peer.doubt_below_broken()

    def sending(self, pairs: Iterable[PairId]) -> None:
        """All pairs that the kernel's encryption table names now.

        A peer is answered, and a pair taken away, only on the strength of this, so that both
        hold even if this agent dies at once. Never called: the last plan is taken for done.
        """
        self._sending = frozenset(pairs)

    def confirmed(self, pair: PairId) -> None:
        """The datapath authenticated the first packet on an inbound SA of `pair`."""
        if pair in self._pairs:
            self._pairs[pair].hear()

    def probe(self, pair: PairId, kind: ProbeKind) -> None:
        """A probe of the peer came in on `pair`."""
        if pair in self._pairs:
            self._pairs[pair].hear(
                is_asked=kind == ProbeKind.ASK, is_answered=kind == ProbeKind.ANSWER
            )

    def spent(self, pair: PairId) -> None:
        """An outbound SA of `pair` nears its last sequence number."""
        if pair in self._pairs:
            self._pairs[pair].is_spent = True

    def rotate(self) -> None:
        """Make a new offer as soon as the last rotation is over."""
        self._must_rotate = True

    def know(self, secrets: Sequence[Trust]) -> None:
        """The secrets are these from now on; whoever still has those before is heard for a while.

        A new offer follows if ours are to be proven with another one.
        """
        before = {each.fingerprint: each for each in self._rules.secrets}
        now = tuple(before.get(each.fingerprint, each) for each in secrets)
        if now == self._secrets:
            return
        self._must_rotate |= now[0] is not self._secrets[0]
        gone = dict.fromkeys(each for each in self._secrets if each not in now)
        self._leaving = {
            secret: since for secret, since in (gone | self._leaving).items() if secret not in now
        }
        self._secrets = now
        self.judge_anew()

    def prove_anew(self) -> None:
        """What proves our offers was renewed: they are the same, with another proof."""
        if self._own:
            self._own.prove_anew()

    def _judge_by_clock(self) -> None:
        """Records of which some proof has come to its end or its begin; all if it was set back."""
        now = self._secrets[0].now()
        if now is None:
            return
        if now < self._looked_at:
            self.judge_anew()
        self._looked_at = now
        for peer in self._peers.values():
            if peer.node is not None and peer.record.until <= now:
                peer.record = read_record(peer.node, self._rules)

    def judge_anew(self) -> None:
        """Every record, by what is good now."""
        good = (*self._secrets, *self._leaving)
        self._rules = replace(self._rules, secrets=good)
        for peer in self._peers.values():
            if peer.node is not None and not peer.is_refused:
                peer.record = read_record(peer.node, self._rules)

    def _forget_secrets(self, now: float) -> None:
        """Those that were replaced long ago."""
        for secret, since in list(self._leaving.items()):
            if since is None:
                self._leaving[secret] = now
            elif now >= since + GRACE_SECONDS:
                del self._leaving[secret]
                self.judge_anew()

    # --- what ought to be ---------------------------------------------------------------------

    def plan(self, now: float) -> KeyPlan:
        """What ought to be, given all that was said. Probes in it count as sent."""
        assert self._own, "start() comes first"
        own = self._own
        self._forget_secrets(now)
        self._judge_by_clock()
        sending = self._sending
        if sending is None:
            sending = frozenset(pair.id for pair in self._chosen().values())
        is_done = True
        if self._is_listed:
            self._offer(own, now)
            for peer in (*self._peers.values(), *self._strays.values()):
                is_done &= not self._end_pairs(peer, sending, now)
            self._forget_gone()
            is_done &= not (self._slots.has_free and any(p.todo for p in self._peers.values()))
        known = [peer for peer in self._peers.values() if peer.node]
        chosen = self._chosen()
        return KeyPlan(
            offers=own.published,
            sas=self._wanted(),
            sends=MappingProxyType(
                {
                    peer.name: Send(pair.id, pair.engine, peer.node.addresses[0])
                    for peer in known
                    if peer.node and not peer.is_refused and (pair := chosen.get(peer.name))
                }
            ),
            probes=tuple(self._probes(sending, now)),
            peers=tuple(
                peer.keys(chosen.get(peer.name), own.newest, now, has_slots=self._slots.has_free)
                for peer in known
            ),
            own=tuple(self._own_keys(own)),
            rejected=(
                *own.rejected,
                *self._refused,
                *(r for p in known for r in p.record.rejected),
            ),
            wake=min(self._wakes(own, sending, now), default=None) if is_done else now,
        )

    def _offer(self, own: OwnOffers, now: float) -> None:
        """Make, publish and withdraw our offers, and derive the pairs that they make possible."""
        budget = DERIVATIONS_PER_PLAN
        while True:
            for peer in (*self._peers.values(), *self._strays.values()):
                peer.match(self._local, own.all, own.version)
                while peer.todo and budget and self._slots.has_free:
                    budget -= self._derive(peer, *peer.todo.pop())
            is_broken = self._is_broken(own)
            if self._must_make(own, is_broken, now):
                self._must_rotate = False
                own.make(now, self._secrets[0], is_forced=is_broken)
            elif not self._advance(own, now):
                return

    def _is_broken(self, own: OwnOffers) -> bool:
        """Whether some peer can be agreed with only by a new offer of ours."""
        newest = own.newest
        if newest is None:
            return False
        for peer in self._peers.values():
            best = peer.best
            if best is None or best not in newest.used:
                continue
            pair = self._pairs.get(best)
            if pair is None or pair.is_lost or pair.is_spent or not peer.is_live(pair):
                return True
        return False

    def _must_make(self, own: OwnOffers, is_broken: bool, now: float) -> bool:
        newest = own.newest
        if newest is None:
            return True
        if newest.published_at is None or now < own.next_at:
            return False
        is_old = now >= newest.made_at + self._lifetime_of(newest)
        return is_broken or (not own.is_full and (self._must_rotate or is_old))

    def _lifetime_of(self, own: Own) -> float:
        """Cut short by a part that is the offer's own: its public key is as good as dice."""
        part = int.from_bytes(own.offer.public_key[-5:-1]) / 2**32
        return self._lifetime * (1 - JITTER * part)

    def _derive(self, peer: Peer, own: Own, offer: Offer, id_: PairId) -> int:
        """Plan a pair that never was; how many derivations it took."""
        if id_ in own.used or own.half is None or peer.node is None:
            return 0
        own.used.add(id_)
        address = peer.node.addresses[0]
        prk = extract(own.secret, own.half, offer)
        terms = Terms(
            id_, address, self._engine, peer.cipher, self._slots.take(), self._packet_limit
        )
        sas = plan_sas(prk, terms, *peer.ends(self._local, own, offer))
        pair = Pair(id_, address, own.offer.epoch, offer.epoch, sas, own)
        pair.rank_between(self._local.name, peer.name)
        if peer.has_spi_of(pair):
            self._slots.free(pair.slot)
        else:
            peer.pairs[id_] = self._pairs[id_] = pair
            self._sas = None
        return 1

    def _advance(self, own: OwnOffers, now: float) -> bool:
        """Publish the newest offer, withdraw the oldest; whether one of them was due."""
        newest = own.newest
        assert newest, "the first plan makes one"
        if newest.published_at is None:
            if now < newest.made_at + PUBLISH_SECONDS and not self._is_ready(newest):
                return False
            own.publish(now)
            return True
        if not own.is_full:
            return False
        everyone = (peer for peer in self._peers.values() if peer.record.offers)
        if now < newest.published_at + ROTATION_SECONDS and not all(
            p.has_moved(newest) for p in everyone
        ):
            return False
        own.withdraw_oldest()
        return True

    def _is_ready(self, own: Own) -> bool:
        """Whether every inbound SA that `own` makes possible stands."""
        return all(
            not peer.todo
            and all(pair.has_ins or pair.is_lost for pair in peer.pairs.values() if pair.own is own)
            for peer in self._peers.values()
        )

    def _chosen(self) -> dict[NodeName, Pair]:
        chosen = ((peer.name, peer.choose()) for peer in self._peers.values())
        return {name: pair for name, pair in chosen if pair}

    def _end_pairs(self, peer: Peer, sending: frozenset[PairId], now: float) -> bool:
        """Take away what is over; whether our offers must be looked at again."""
        peer.date(now)
        is_overdue = False
        for pair in list(peer.pairs.values()):
            if pair.lose_if_overdue(now):
                is_overdue, self._sas = True, None
            ends_at = peer.ends_at(pair, self._drain, sending)
            if ends_at is not None and now >= ends_at:
                self._remove(peer, pair)
        for pair in peer.surplus():
            self._remove(peer, pair)
        return is_overdue

    def _remove(self, peer: Peer, pair: Pair) -> None:
        del peer.pairs[pair.id], self._pairs[pair.id]
        self._slots.free(pair.slot)
        self._sas = None

    def _forget_gone(self) -> None:
        for name in [n for n, peer in self._peers.items() if peer.is_gone and not peer.pairs]:
            del self._peers[name]
        for address in [a for a, stray in self._strays.items() if not stray.pairs]:
            del self._strays[address]

    def _wanted(self) -> Mapping[SaKey, Sa]:
        """The same object as long as nothing changed."""
        if self._sas is None:
            wanted = (row for pair in self._pairs.values() for row in pair.wanted())
            self._sas = MappingProxyType(dict(wanted))
        return self._sas

    def _probes(
        self, sending: frozenset[PairId], now: float
    ) -> Iterator[tuple[PairId, int, ProbeKind]]:
        for peer in self._peers.values():
            for pair in peer.pairs.values():
                if pair.must_answer and peer.may_answer(pair, sending):
                    pair.must_answer = False
                    yield pair.id, PROBED_SA, ProbeKind.ANSWER
                if pair.ask(now, peer.must_ask(pair)):
                    yield pair.id, PROBED_SA, ProbeKind.ASK

    def _own_keys(self, own: OwnOffers) -> Iterator[OwnKeys]:
        for each in own.all:
            if each.published_at is None:
                state, why = OfferState.PREPARING, "its inbound SAs are being put in place"
            elif each is own.all[-1]:
                state, why = OfferState.CURRENT, "published"
            else:
                state, why = OfferState.RETIRING, "until every peer has answered on the newer one"
            yield OwnKeys(each.offer.epoch, fingerprint(each.offer), state, why)

    def _wakes(self, own: OwnOffers, sending: frozenset[PairId], now: float) -> Iterator[float]:
        """When something becomes due that no input announces; what is past waits for one."""
        newest = own.newest
        if newest is None:
            return
        dues = [newest.made_at + PUBLISH_SECONDS]
        if newest.published_at is not None:
            dues = [max(newest.made_at + self._lifetime_of(newest), own.next_at)]
            if own.is_full:
                dues.append(newest.published_at + ROTATION_SECONDS)
            if self._must_rotate or self._is_broken(own):
                dues.append(own.next_at)
        clock = self._secrets[0].now()
        if clock is not None:
            until = min((peer.record.until for peer in self._peers.values()), default=float("inf"))
            # Not later than LOOK_SECONDS from now: the clock of proofs may be set.
            dues.append(now + min(LOOK_SECONDS, max(0.1, until - clock)))
        dues.extend(since + GRACE_SECONDS for since in self._leaving.values() if since is not None)
        for peer in (*self._peers.values(), *self._strays.values()):
            dues.extend(peer.wakes(self._drain, sending))
        yield from (due for due in dues if due > now)
