# SPDX-License-Identifier: Apache-2.0
"""What the key ring takes and gives: frozen rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType

from pellicle.facts import (
    ALL_TRAFFIC,
    Address,
    Cipher,
    Context,
    Engine,
    Epoch,
    NodeName,
    Offer,
    Owned,
    PairId,
    Rejected,
    Spi,
)
from pellicle.keys.derivation import FIRST_SPI, SAS_PER_PAIR


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class ProbeKind(IntEnum):
    """`enum probe_kind` of bpf/tables.h."""

    ASK = 1
    """Have you these keys?"""
    ANSWER = 2
    """I have them, and I send to you with them or with newer ones."""


class PeerState(StrEnum):
    """How far the keys with a peer are, in the words of the status."""

    READY = "ready"
    CONFIRMING = "confirming"
    UNVERIFIED = "unverified"
    NO_OFFER = "no-offer"
    STALE = "stale"


class OfferState(StrEnum):
    """How far an offer of this node is."""

    PREPARING = "preparing"
    """Its inbound SAs are being put in place."""
    CURRENT = "current"
    RETIRING = "retiring"
    """A newer one is published; peers are moving to it."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This node, as its own record says."""

    name: NodeName
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class SaKey:
    """Names an SA; holds whatever the keys of the maps `sa_in` and `sa_out` are made of."""

    direction: Direction
    pair: PairId
    number: int
    spi: Spi
    source: Address
    destination: Address

    def __hash__(self) -> int:
        """Cheap: tens of thousands of these are hashed in each plan."""
        return hash((self.pair, self.number, self.direction is Direction.OUT))


@dataclass(frozen=True, slots=True)
class Sa:
    """One security association, wanted or standing.

    Key material is here only until the SA stands; it is never read back from the kernel.
    """

    direction: Direction
    pair: PairId
    number: int
    spi: Spi
    source: Address
    """Outer."""
    destination: Address
    node: Address
    """The peer's primary address."""
    local_epoch: Epoch
    peer_epoch: Epoch
    sequence_limit: int = 0
    """Outbound only: at this number the SA is spent."""
    engine: Engine = Engine.BPF
    cipher: Cipher = Cipher.CHACHA20_POLY1305
    slot: int = 0
    """The number, 1 to 65535, by which this node's marks name the pair: every SA of a pair has
    the same one, and no two pairs of this node share one. 0: adopted from rows that had none."""
    context: Context = ALL_TRAFFIC
    peer: NodeName = field(default=NodeName(""), compare=False)
    key: bytes = field(default=b"", repr=False, compare=False)
    salt: bytes = field(default=b"", repr=False, compare=False)
    first_seen: int = 0
    """Standing inbound ones: when the first packet authenticated; 0: none has."""
    shared: int = 0
    """The number, 1 to 4, of the kernel's state that it has together with other peers' SAs; 0: it
    has one of its own."""

    @property
    def is_manual(self) -> bool:
        """Its key was made by hand: only then is the SPI one of those that nobody else may choose
        (RFC 4303 §2.1).
        """
        return self.spi < FIRST_SPI

    @property
    def at(self) -> SaKey:
        return SaKey(
            self.direction, self.pair, self.number, self.spi, self.source, self.destination
        )


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """How things stand with one peer."""

    node: NodeName
    state: PeerState
    why: str
    local_epoch: Epoch | None = None
    peer_epoch: Epoch | None = None
    pair: PairId | None = None
    """The one that is sent on, or None: nothing can be sent."""
    cipher: Cipher | None = None
    """Of the pair that is sent on."""
    engine: Engine | None = None
    """Of the pair that is sent on: what encrypts it on this node."""
    confirmed: bool = False
    """The peer has answered on the newest pair: it sends with these keys too. Manual keys are not
    answered on, and need not be."""


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """How far an offer of this node is."""

    epoch: Epoch
    fingerprint: str
    state: OfferState
    why: str


@dataclass(frozen=True, slots=True)
class Send:
    """What to send to a peer on."""

    pair: PairId
    engine: Engine
    """The one that has the pair's SAs."""
    node: Address
    """The peer's primary address."""
    sas: int = SAS_PER_PAIR
    """How many it has."""
    context: Context = ALL_TRAFFIC


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What ought to be. Equal inputs give equal plans, but for the probes."""

    offers: tuple[Offer, ...]
    """To publish, oldest first."""
    sas: Mapping[SaKey, Sa]
    sends: Mapping[NodeName, Send]
    """By peer; one that is missing gets nothing."""
    probes: tuple[tuple[SaKey, ProbeKind], ...]
    """To send now, once, on those SAs."""
    peers: Mapping[NodeName, PeerKeys]
    own: tuple[OwnKeys, ...]
    rejected: tuple[Rejected, ...]
    wake: float | None
    """When to plan again if nothing happens before."""
    own_sends: Mapping[Owned, Send] = field(default_factory=lambda: MappingProxyType({}))
    """Of what has keys of its own; what is missing is not sent."""
    own_peers: Mapping[Owned, PeerKeys] = field(default_factory=lambda: MappingProxyType({}))
    changed: Collection[SaKey] | None = field(default=None, compare=False)
    """Where `sas` may differ from the plan before; None: anywhere."""
