# SPDX-License-Identifier: Apache-2.0
"""What offers are proven with, whatever the key mode."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pellicle.facts import NodeName


class Judgement(NamedTuple):
    """What a proof is worth."""

    why: str = ""
    """Why it is worth nothing; empty: it is good."""
    until: float = float("inf")
    """When it must be judged anew, by the clock of what judged it."""


class Trust(Protocol):
    """A pre-shared secret, or SPIFFE."""

    @property
    def fingerprint(self) -> str:
        """To tell it from others, for people too."""

    @property
    def pair_salt(self) -> bytes:
        """Salts the extraction of the keys of every pair that was proven with it."""

    def now(self) -> float | None:
        """The clock by which proofs come to their end; None: they do not."""

    def prove(self, message: bytes) -> bytes:
        """The proof that this node says `message`."""

    def judge(self, node: NodeName, message: bytes, proof: bytes) -> Judgement:
        """Whether `proof` shows that `node` says `message`."""
