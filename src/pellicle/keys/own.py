# SPDX-License-Identifier: Apache-2.0
"""The offers of this node: made, published, withdrawn, and the private half forgotten.

    made ──▶ its inbound SAs stand (or 5 s) ──▶ published ──▶ every peer answered on the next
                                                              one (or 5 min) ──▶ withdrawn

An offer found in the node's own record is of an earlier life: its private half is gone, it
makes no new pair, but the SAs that it once made may still carry traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pellicle.facts import Epoch, NodeName, Offer, PairId, Rejected
from pellicle.keys.offers import LAST_EPOCH, MOST_OFFERS, NONCE_BYTES, OwnOffer, prove, prover
from pellicle.keys.trust import Trust

PUBLISH_SECONDS = 5.0
"""A new offer is published then even if some SA does not stand yet: probes will find out."""
ROTATION_SECONDS = 300.0
"""A peer that has not moved by then is stale, and no longer keeps the old offer alive."""
FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 300.0
"""Between two offers; the pause doubles while pairs break in quick succession."""


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
    ) -> None:
        """`secrets`: what is proven with any of them may be ours."""
        self._node, self._random = node, random
        self._boot_nonce = random(NONCE_BYTES)
        self._standing_epochs = standing_epochs
        self.rejected: list[Rejected] = []
        found = [own for offer in published if (own := self._found(offer, secrets))]
        self.all = sorted(found, key=lambda own: own.offer.epoch)[-MOST_OFFERS:]
        self._last_epoch = max((0, *standing_epochs, *(own.offer.epoch for own in found)))
        self._pause = FIRST_PAUSE_SECONDS
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

    @property
    def next_at(self) -> float:
        """When the next one may be made."""
        return self._next_at

    def make(self, now: float, secret: Trust, *, is_forced: bool) -> None:
        """A new offer, proven with this secret and not yet published; a rotation under way ends.

        `is_forced`: a pair broke, which may happen again and again.
        """
        if self.newest and self.is_full:
            self.withdraw_oldest()
        epoch = Epoch(self._last_epoch % LAST_EPOCH + 1)
        half = OwnOffer.make(self._node, epoch, self._boot_nonce, self._random, secret)
        if now >= self._next_at + LAST_PAUSE_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._next_at = now + self._pause
        if is_forced:
            self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)
        self._last_epoch = epoch
        self.all.append(Own(half.offer, half, secret, now))
        self.version += 1

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
