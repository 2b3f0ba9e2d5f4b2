# SPDX-License-Identifier: Apache-2.0
"""One pair of offers: its SAs, what stands of them, and what the datapath has shown.

    planned ──▶ inbound SAs stand ──▶ outbound SAs stand ──▶ confirmed ──▶ answered
                                           asking the peer:  a packet of    the peer's answer:
                                           0.1 s … 5 s       it came in     it sends on this one,
                                                                            or on a newer one
Pairs with one peer are ranked by their epochs, alike on both nodes. Each node sends on the
highest one that it has seen confirmed, so an answer on a pair says that no lower one is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pellicle.facts import (
    ALL_TRAFFIC,
    Address,
    Cipher,
    Context,
    Engine,
    Epoch,
    NodeName,
    PairId,
)
from pellicle.keys.derivation import SAS_PER_PAIR, End, expand_sas
from pellicle.keys.own import Own
from pellicle.keys.rows import Direction, Sa, SaKey

FIRST_ASK_SECONDS = 0.1
LAST_ASK_SECONDS = 5.0
INSTALL_SECONDS = 60.0
"""An SA that does not stand by then was refused again and again, or vanished unseen."""

_ALL = (1 << SAS_PER_PAIR) - 1

Rank = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class Pair:
    """`sas`: all that this node may want of it; an adopted pair has only what was found."""

    id: PairId
    node: Address
    local_epoch: Epoch
    peer_epoch: Epoch
    sas: tuple[tuple[SaKey, Sa], ...]
    own: Own | None
    """The offer of this life that it is made from; None: adopted from the kernel."""
    rank: Rank = (0, 0, 0)
    planned_at: float | None = None
    ins: int = 0
    """Which inbound SAs stand: bit n for SA n."""
    outs: int = 0
    is_lost: bool = False
    """Something of it stood and vanished, or never came: it is not put again."""
    has_just_broken: bool = False
    is_spent: bool = False
    is_confirmed: bool = False
    is_doubted: bool = False
    """A higher pair broke: only a fresh packet from the peer confirms this one again."""
    is_answered: bool = False
    answered_at: float | None = None
    heard_at: float | None = None
    is_heard: bool = False
    """Heard since the last plan."""
    must_answer: bool = False
    dying_since: float | None = None
    """When one of its offers was withdrawn."""
    silent_since: float | None = None
    """While dying: since when the peer is heard on other pairs, but not on this one."""
    ask_at: float | None = None
    ask_wait: float = FIRST_ASK_SECONDS

    def rank_between(self, local: NodeName, peer: NodeName) -> None:
        """The later the epochs, the higher; a tie goes by the epoch of the lesser name."""
        lesser = self.local_epoch if local.encode() < peer.encode() else self.peer_epoch
        self.rank = (self.local_epoch + self.peer_epoch, lesser, self.id)

    @property
    def engine(self) -> Engine:
        return self._any.engine

    @property
    def cipher(self) -> Cipher:
        return self._any.cipher

    @property
    def slot(self) -> int:
        return self._any.slot

    @property
    def context(self) -> Context:
        return self._any.context

    @property
    def _any(self) -> Sa:
        """One for what all of them have in common."""
        return self.sas[0][1]

    @property
    def has_ins(self) -> bool:
        return self.ins == _ALL

    @property
    def has_outs(self) -> bool:
        return self.outs == _ALL

    @property
    def can_send(self) -> bool:
        """The peer has shown that it can open what is sent on it."""
        return self.has_outs and self.is_confirmed and not self.is_doubted

    def outbound(self, number: int) -> SaKey:
        """The name of that SA."""
        return next(
            at for at, sa in self.sas if (sa.direction, sa.number) == (Direction.OUT, number)
        )

    def stand(self, rows: Iterable[Sa]) -> bool:
        """Take note of what stands of it now; whether anything changed."""
        ins = outs = 0
        for sa in rows:
            if sa.direction is Direction.IN:
                ins |= 1 << sa.number
            else:
                outs |= 1 << sa.number
        if (ins, outs) == (self.ins, self.outs):
            return False
        if not self.is_lost and (self.ins & ~ins or self.outs & ~outs):
            self.is_lost = self.has_just_broken = True
        self.ins, self.outs = ins, outs
        self.planned_at = None
        if self.has_ins and self.has_outs:
            self.sas = tuple((at, replace(sa, key=b"", salt=b"")) for at, sa in self.sas)
        return True

    @property
    def overdue_at(self) -> float | None:
        """When what does not stand is no longer waited for."""
        return None if self.planned_at is None else self.planned_at + INSTALL_SECONDS

    def lose_if_overdue(self, now: float) -> bool:
        """Whether it has just been given up."""
        if self.own is None or self.is_lost or (self.has_ins and self.has_outs):
            self.planned_at = None
            return False
        if self.planned_at is None:
            self.planned_at = now
        self.is_lost = now >= self.planned_at + INSTALL_SECONDS
        return self.is_lost

    def wanted(self) -> Iterator[tuple[SaKey, Sa]]:
        """Inbound SAs first, outbound ones once those stand; of a broken pair, what is left."""
        only_standing = self.own is None or self.is_lost
        for at, sa in self.sas:
            is_in = sa.direction is Direction.IN
            stands = (self.ins if is_in else self.outs) >> sa.number & 1
            is_due = not only_standing and (is_in or self.has_ins)
            if stands or is_due:
                yield at, sa

    def see(self) -> None:
        """The kernel says that a packet of the peer authenticated some time ago."""
        if not self.is_confirmed:
            self.is_confirmed = True
            self.must_answer |= self.own is not None

    def hear(self, *, is_asked: bool = False, is_answered: bool = False) -> None:
        """A packet of the peer has just authenticated."""
        self.is_heard = True
        self.must_answer |= is_asked or not self.is_confirmed
        self.is_confirmed, self.is_doubted = True, False
        self.is_answered |= is_answered

    def date(self, now: float) -> None:
        """Give what was heard since the last plan its time."""
        if self.is_heard:
            self.is_heard, self.heard_at = False, now
        if self.is_answered and self.answered_at is None:
            self.answered_at = now

    def doubt(self) -> None:
        """What was known of the peer no longer counts."""
        self.is_doubted, self.is_answered, self.answered_at = True, False, None

    def ask(self, now: float, must_ask: bool) -> bool:
        """Whether to ask the peer now. Each time that it says so counts as asked."""
        if not must_ask:
            self.ask_at = None
            return False
        if self.ask_at is None:
            self.ask_at, self.ask_wait = now, FIRST_ASK_SECONDS
        if now < self.ask_at:
            return False
        self.ask_at = now + self.ask_wait
        self.ask_wait = min(2 * self.ask_wait, LAST_ASK_SECONDS)
        return True


@dataclass(frozen=True, slots=True)
class Terms:
    """What all SAs of a fresh pair have in common."""

    pair: PairId
    node: Address
    engine: Engine
    cipher: Cipher
    slot: int
    packet_limit: int
    context: Context = ALL_TRAFFIC


def plan_sas(prk: bytes, terms: Terms, local: End, peer: End) -> tuple[tuple[SaKey, Sa], ...]:
    """All SAs of a fresh pair, inbound ones first."""
    sas = []
    for direction, sender, receiver in (
        (Direction.IN, peer, local),
        (Direction.OUT, local, peer),
    ):
        limit = terms.packet_limit if direction is Direction.OUT else 0
        for number, keys in enumerate(
            expand_sas(prk, terms.cipher, sender, receiver, terms.context)
        ):
            sa = Sa(
                direction,
                terms.pair,
                number,
                keys.spi,
                sender.address,
                receiver.address,
                terms.node,
                local.offer.epoch,
                peer.offer.epoch,
                limit,
                terms.engine,
                terms.cipher,
                terms.slot,
                terms.context,
                peer.name,
                keys.key,
                keys.salt,
            )
            sas.append((sa.at, sa))
    return tuple(sas)


def adopted(sas: Iterable[Sa]) -> dict[PairId, Pair]:
    """The pairs that an earlier life of this agent left in the kernel, without their keys."""
    found: dict[PairId, list[Sa]] = {}
    for sa in sas:
        found.setdefault(sa.pair, []).append(sa)
    return {
        id_: Pair(
            id_,
            rows[0].node,
            rows[0].local_epoch,
            rows[0].peer_epoch,
            tuple((sa.at, sa) for sa in rows),
            None,
        )
        for id_, rows in found.items()
    }
