# SPDX-License-Identifier: Apache-2.0
"""The offers of this node: made, published, withdrawn, and the private half forgotten.

    made ──▶ its inbound SAs stand (or 5 s) ──▶ published ──▶ every peer answered on the next
                                                              one (or 5 min) ──▶ withdrawn

An offer found in the node's own record is of an earlier life: its private half is gone, it
makes no new pair, but the SAs that it once made may still carry traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from pellicle.facts import Epoch, NodeName, Offer, PairId, Rejected
from pellicle.keys.offers import (
    LAST_EPOCH,
    MOST_OFFERS,
    NONCE_BYTES,
    OwnOffer,
    fingerprint,
    prove,
    prover,
)
from pellicle.keys.rows import OfferState, OwnKeys
from pellicle.keys.trust import Trust

LIFETIME_SECONDS = 3600.0
"""Of an offer, before the next one is made."""
JITTER = 0.2
"""Of it, at random: nodes that started together do not go on together."""
PUBLISH_SECONDS = 5.0
"""A new offer is published then even if some SA does not stand yet: probes will find out."""
ROTATION_SECONDS = 300.0
"""A peer that has not moved by then is stale, and no longer keeps the old offer alive."""
FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 300.0
"""Between two offers."""
PATIENCE = 8
"""So many that broke in quick succession are replaced at once; then the pause doubles each time."""


@dataclass(slots=True, eq=False)
class Own:
    """One offer of this node."""

    offer: Offer
    half: OwnOffer | None
    """None: found in the record."""
    secret: Trust
    """It is proven with."""
    made_at: float
    published_at: float | None = None
    used: set[PairId] = field(default_factory=set)
    """Every pair ever planned with it. None of them is ever planned a second time."""


class OwnOffers:
    """At most two, oldest first."""

    def __init__(
        self,
        node: NodeName,
        secrets: Sequence[Trust],
        random: Callable[[int], bytes],
        published: Iterable[Offer],
        standing_epochs: set[Epoch],
        lifetime: float = LIFETIME_SECONDS,
    ) -> None:
        """`secrets`: what is proven with any of them may be ours."""
        self._node, self._random, self._lifetime = node, random, lifetime
        self._boot_nonce = random(NONCE_BYTES)
        self._standing_epochs = standing_epochs
        self.rejected: list[Rejected] = []
        found = [own for offer in published if (own := self._found(offer, secrets))]
        self.all = sorted(found, key=lambda own: own.offer.epoch)[-MOST_OFFERS:]
        self._last_epoch = max((0, *standing_epochs, *(own.offer.epoch for own in found)))
        self._broken = 0
        """In quick succession."""
        self._next_at = float("-inf")
        self.version = 0
        """Changes with the offers."""

    def _found(self, offer: Offer, secrets: Sequence[Trust]) -> Own | None:
        secret, said = prover(secrets, self._node, offer)
        if secret is not None:
            return Own(offer, None, secret, float("-inf"), float("-inf"))
        source = f"own record of node {self._node}"
        self.rejected.append(Rejected(source, f"offer {offer.epoch}", said.why))
        return None

    @property
    def newest(self) -> Own | None:
        """The newest one of this life."""
        return self.all[-1] if self.all and self.all[-1].half else None

    @property
    def published(self) -> tuple[Offer, ...]:
        return tuple(own.offer for own in self.all if own.published_at is not None)

    @property
    def is_full(self) -> bool:
        """Whether a rotation is under way."""
        return len(self.all) >= MOST_OFFERS

    def must_make(self, now: float, *, is_asked: bool, is_broken: bool) -> bool:
        """Whether it is time for another one. `is_broken`: only that can help some peer."""
        newest = self.newest
        if newest is None:
            return True
        if newest.published_at is None or now < self._next_at:
            return False
        is_old = now >= newest.made_at + self._lifetime_of(newest)
        return is_broken or (not self.is_full and (is_asked or is_old))

    def _lifetime_of(self, own: Own) -> float:
        """Cut short by a part that is the offer's own: its public key is as good as dice."""
        part = int.from_bytes(own.offer.public_key[-5:-1]) / 2**32
        return self._lifetime * (1 - JITTER * part)

    def make(self, now: float, secret: Trust, *, is_forced: bool) -> None:
        """A new offer, proven with this secret and not yet published; a rotation under way ends.

        `is_forced`: a pair broke, which may happen again and again.
        """
        if self.newest and self.is_full:
            self.withdraw_oldest()
        epoch = Epoch(self._last_epoch % LAST_EPOCH + 1)
        half = OwnOffer.make(self._node, epoch, self._boot_nonce, self._random, secret)
        if now >= self._next_at + LAST_PAUSE_SECONDS:
            self._broken = 0
        doublings = min(max(0, self._broken - PATIENCE), 10)
        self._next_at = now + min(FIRST_PAUSE_SECONDS * 2**doublings, LAST_PAUSE_SECONDS)
        self._broken += is_forced
        self._last_epoch = epoch
        self.all.append(Own(half.offer, half, secret, now))
        self.version += 1

    def advance(self, now: float, *, is_ready: bool, has_moved: bool) -> bool:
        """Publish the newest one, withdraw the oldest; whether one of them was due.

        `is_ready`: all inbound SAs of the newest stand; `has_moved`: every peer sends on it.
        """
        newest = self.newest
        assert newest, "it was made"
        if newest.published_at is None:
            if now < newest.made_at + PUBLISH_SECONDS and not is_ready:
                return False
            self.publish(now)
            return True
        if not self.is_full:
            return False
        if now < newest.published_at + ROTATION_SECONDS and not has_moved:
            return False
        self.withdraw_oldest()
        return True

    def wakes(self, *, is_wanted: bool) -> Iterator[float]:
        """When something becomes due. `is_wanted`: the next one is, as soon as may be."""
        newest = self.newest
        if newest is None:
            return
        if newest.published_at is None:
            yield newest.made_at + PUBLISH_SECONDS
            return
        yield max(newest.made_at + self._lifetime_of(newest), self._next_at)
        if self.is_full:
            yield newest.published_at + ROTATION_SECONDS
        if is_wanted:
            yield self._next_at

    def keys(self) -> Iterator[OwnKeys]:
        """How far they are, in words."""
        for own in self.all:
            if own.published_at is None:
                state, why = OfferState.PREPARING, "its inbound SAs are being put in place"
            elif own is self.all[-1]:
                state, why = OfferState.CURRENT, "published"
            else:
                state, why = OfferState.RETIRING, "until every peer has answered on the newer one"
            yield OwnKeys(own.offer.epoch, fingerprint(own.offer), state, why)

    def prove_anew(self) -> None:
        """The same offers, proven with what proves them now."""
        for own in self.all:
            if own.half:
                proof = prove(own.secret, self._node, own.offer)
                own.offer = own.half.offer = replace(own.offer, proof=proof)
        self.version += 1

    def publish(self, now: float) -> None:
        """The newest one; of those found, the newest that is still in use stays beside it."""
        newest = self.all[-1]
        newest.published_at = now
        older = self.all[:-1]
        in_use = [own for own in older if own.half or own.offer.epoch in self._standing_epochs][
            -(MOST_OFFERS - 1) :
        ]
        if len(in_use) < len(older):
            self.all = [*in_use, newest]
            self.version += 1

    def withdraw_oldest(self) -> None:
        """And forget its private half."""
        own = self.all.pop(0)
        if own.half:
            own.half.wipe()
        self.version += 1
