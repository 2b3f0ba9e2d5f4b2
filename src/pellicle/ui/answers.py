# SPDX-License-Identifier: Apache-2.0
"""The agent's answers as this side reads them.

Only what is shown is named here. What an older agent does not say has a default, what a newer
one adds is passed over; a field of another type is an error that names its place.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

Shape = TypeVar("Shape")
_TURN = threading.Lock()
"""Nodes are asked side by side, but msgspec must learn a shape before another thread wants it."""

MOST_NAMED = 5
"""Peers in one line."""


class End(msgspec.Struct, frozen=True):
    """One end of a flow."""

    address: str
    port: int | None = None
    pod: str | None = None
    node: str | None = None
    identity: int = 0


class Icmp(msgspec.Struct, frozen=True):
    type: int
    code: int
    identifier: int = 0


class Flow(msgspec.Struct, frozen=True):
    """One line of `flows`."""

    time: float
    source: End
    destination: End
    verdict: str
    reason: str
    protocol: str = ""
    icmp: Icmp | None = None
    hook: str = ""
    words: str = ""
    rule: str = ""
    packets: int = 0
    bytes: int = 0
    spi: int = 0
    epoch: int = 0
    engine: str = ""
    pair: str = ""


class PolicySide(msgspec.Struct, frozen=True):
    """Whom one selector of a policy names."""

    selector: str
    here: int = 0
    addresses: int = 0


class PolicyKeys(msgspec.Struct, frozen=True):
    """Keys of a policy's own with one node."""

    node: str
    encrypts: str
    why: str = ""


class Policy(msgspec.Struct, frozen=True):
    """One line of `policies`."""

    name: str
    action: str
    between: list[PolicySide] = []
    ports: list[str] = []
    decides: int | None = None
    own_keys: list[PolicyKeys] = []


class Mtu(msgspec.Struct, frozen=True):
    v4: int | None = None
    v6: int | None = None


class Datapath(msgspec.Struct, frozen=True):
    attach: str = ""
    uplink: str = ""
    mtu: Mtu = Mtu()
    routing: str = ""
    overlay: str | None = None


class Peer(msgspec.Struct, frozen=True):
    """Another node, and how far its keys are."""

    node: str
    addresses: tuple[str, ...] = ()
    state: str = ""
    why: str | None = None
    local_epoch: int | None = None
    peer_epoch: int | None = None
    pair: str | None = None
    sas_in: int = 0
    sas_out: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    confirmed: bool = False
    engine: str | None = None
    cipher: str | None = None


class Lag(msgspec.Struct, frozen=True):
    """How far the kernel is from one table."""

    name: str
    desired: int = 0
    applied: int = 0
    failed: int = 0
    healed: int = 0


class Count(msgspec.Struct, frozen=True):
    """The packets of one reason."""

    reason: str
    words: str = ""
    verdict: str = ""
    packets: int = 0
    bytes: int = 0


class KernelDrop(msgspec.Struct, frozen=True):
    """The packets that the kernel's IPsec dropped for one reason; ours or not."""

    reason: str
    words: str = ""
    advice: str = ""
    packets: int = 0


class Offload(msgspec.Struct, frozen=True):
    """How many states the uplink has taken, and why not the others."""

    states: int = 0
    why: str | None = None


class Rejected(msgspec.Struct, frozen=True):
    source: str
    name: str
    why: str


class Svid(msgspec.Struct, frozen=True):
    """Who the node is, by SPIFFE."""

    id: str
    until: str = ""


class Subnet(msgspec.Struct, frozen=True):
    """One that is known beforehand."""

    cidr: str
    peers: int = 0
    """That are reached by what it has in the kernel."""


class Status(msgspec.Struct, frozen=True):
    """The answer to `status`."""

    node: str
    healthy: bool
    encryption: str
    version: str = ""
    engine: str = ""
    engine_why: str | None = None
    ciphers: tuple[str, ...] = ()
    key_mode: str = ""
    key_derivation: str = ""
    subnets: tuple[Subnet, ...] = ()
    svid: Svid | None = None
    datapath: Datapath = Datapath()
    peers: tuple[Peer, ...] = ()
    tables: tuple[Lag, ...] = ()
    audit: str = ""
    exempt: tuple[str, ...] = ()
    encrypt_nodes: bool = True
    audited: tuple[Count, ...] = ()
    drops: tuple[Count, ...] = ()
    counts: tuple[Count, ...] = ()
    kernel_drops: tuple[KernelDrop, ...] = ()
    offload: Offload = Offload()
    rejected: tuple[Rejected, ...] = ()
    endpoints: int = 0
    events_lost: int = 0
    problems: tuple[str, ...] = ()


class Sa(msgspec.Struct, frozen=True):
    """A security association as the datapath counts it."""

    direction: str
    peer: str
    spi: int
    number: int = 0
    pair: str = ""
    local_epoch: int = 0
    peer_epoch: int = 0
    sequence: int = 0
    packets: int = 0
    bytes: int = 0
    replayed: int = 0
    auth_failed: int = 0
    first_seen: float | None = None
    engine: str = ""
    cipher: str = ""


class Offer(msgspec.Struct, frozen=True):
    epoch: int
    fingerprint: str = ""
    state: str = ""


class Rotation(msgspec.Struct, frozen=True):
    """One of the answers to `rotate`."""

    state: str
    peers: int
    moved: int
    done: bool
    epoch: int | None = None
    waiting: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    def line(self) -> str:
        """For people."""
        offer = f"offer {self.epoch}: " if self.epoch is not None else ""
        if self.done and not self.stale:
            return f"{offer}done, {self.moved} of {self.peers} peers use the new keys"
        shown = ", ".join(self.waiting[:MOST_NAMED])
        more = len(self.waiting) - MOST_NAMED
        names = f"; waiting for {shown}" + (f" and {more} more" if more > 0 else "")
        if self.done:
            names = f"; stale, and no longer waited for: {', '.join(self.stale[:MOST_NAMED])}"
        return f"{offer}{self.state}, {self.moved} of {self.peers} peers have moved{names}"


class KeyEvent(msgspec.Struct, frozen=True):
    """One of the answers to `history`."""

    at: str
    what: str
    epoch: int | None = None
    fingerprint: str | None = None
    peer: str | None = None
    state: str | None = None
    why: str | None = None
    local_epoch: int | None = None
    peer_epoch: int | None = None
    cipher: str | None = None
    engine: str | None = None


class Encrypt(msgspec.Struct, frozen=True):
    """The answer to `encrypt`."""

    sas: tuple[Sa, ...] = ()
    offers: tuple[Offer, ...] = ()
    peers: tuple[Peer, ...] = ()


class Volume(msgspec.Struct, frozen=True):
    """So much traffic."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.packets + other.packets, self.bytes + other.bytes)


class AuditRow(msgspec.Struct, frozen=True):
    """Traffic of two nodes, or of two endpoints, of one verdict and reason."""

    direction: str
    verdict: str
    reason: str
    source_node: str = ""
    destination_node: str = ""
    source: str = ""
    destination: str = ""
    rule: str = ""
    is_exception: bool = False
    is_between_nodes: bool = False
    packets: int = 0
    bytes: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def volume(self) -> Volume:
        return Volume(self.packets, self.bytes)


class AuditReason(msgspec.Struct, frozen=True):
    """All packets of one reason, and those of them of which it is not known whose they were."""

    reason: str
    words: str = ""
    advice: str = ""
    verdict: str = ""
    packets: int = 0
    bytes: int = 0
    not_attributed: Volume = Volume()


class AuditSizes(msgspec.Struct, frozen=True):
    """How many rows there are in all."""

    nodes: int = 0
    endpoints: int = 0
    exceptions: int = 0


class Trail(msgspec.Struct, frozen=True):
    """Where the audit trail is, and where it stands."""

    directory: str = ""
    seq: int = 0
    head: str = ""


class Audit(msgspec.Struct, frozen=True):
    """The answer to `audit`."""

    node: str
    until: float
    since: float | None = None
    between_nodes: dict[str, Volume] = {}
    """By verdict."""
    rules: dict[str, Volume] = {}
    """What passed between nodes in the clear, by what allowed it; "": nothing did."""
    reasons: tuple[AuditReason, ...] = ()
    nodes: tuple[AuditRow, ...] = ()
    endpoints: tuple[AuditRow, ...] = ()
    exceptions: tuple[AuditRow, ...] = ()
    rows: AuditSizes = AuditSizes()
    merged: int = 0
    events_lost: int = 0
    trail: Trail = Trail()

    @property
    def words(self) -> dict[str, str]:
        """What each reason means."""
        return {each.reason: each.words for each in self.reasons}


def read(answer: Any, shape: type[Shape]) -> Shape:
    """The answer in its shape; msgspec.ValidationError names what is wrong with it."""
    with _TURN:
        return msgspec.convert(answer, shape, strict=False)
