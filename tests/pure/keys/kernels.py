# SPDX-License-Identifier: Apache-2.0
"""A model of one node's datapath: its maps, and how it seals and opens. It outlives agents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from pellicle.facts import Address, Cipher, Context, Engine, PairId
from pellicle.keys.derivation import CIPHER_KEY_BYTES, SALT_BYTES
from pellicle.keys.pairing import Direction, ProbeKind, Sa, SaKey, Send

Way = tuple[Address, Context]
"""To a node, and with which keys."""


@dataclass(eq=False)
class World:
    """What all kernels share."""

    now: float = 0.0
    outbound_keys: set[bytes] = field(default_factory=set)
    """Every key that an outbound SA ever had, anywhere."""
    ciphers: dict[PairId, Cipher] = field(default_factory=dict)
    """Of every pair that ever stood, anywhere."""


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True)
class Packet:
    source: Address
    destination: Address
    spi: int
    cipher: Cipher
    key: bytes
    sequence: int
    pair: PairId
    probe: ProbeKind | None = None
    sent_at: float = 0.0


@dataclass(eq=False)
class Row:
    """One SA as the kernel has it."""

    sa: Sa
    key: bytes
    top: int = 0
    seen: set[int] = field(default_factory=set)
    first_seen: int = 0


@dataclass(eq=False)
class SaMap:
    """`sa_in` and `sa_out` of one node as a reconciler's target."""

    kernel: Kernel

    def read(self) -> Mapping[SaKey, Sa]:
        return {
            at: replace(row.sa, first_seen=row.first_seen) for at, row in self.kernel.rows.items()
        }

    def put(self, rows: Mapping[SaKey, Sa]) -> Mapping[SaKey, OSError]:
        for at, sa in rows.items():
            self.kernel.install(at, sa)
        return {}

    def remove(self, keys: Collection[SaKey]) -> Mapping[SaKey, OSError]:
        for key in keys:
            self.kernel.rows.pop(key, None)
        return {}


@dataclass(eq=False)
class EncryptMap:
    """`encrypt` of one node."""

    kernel: Kernel

    def read(self) -> Mapping[Way, Send]:
        return dict(self.kernel.encrypt)

    def put(self, rows: Mapping[Way, Send]) -> Mapping[Way, OSError]:
        self.kernel.encrypt.update(rows)
        return {}

    def remove(self, keys: Collection[Way]) -> Mapping[Way, OSError]:
        for key in keys:
            self.kernel.encrypt.pop(key, None)
        return {}


@dataclass(eq=False)
class Kernel:
    """One node's datapath."""

    world: World
    address: Address
    rows: dict[SaKey, Row] = field(default_factory=dict)
    encrypt: dict[Way, Send] = field(default_factory=dict)
    events: list[tuple[PairId, ProbeKind | None]] = field(default_factory=list)
    installed: set[tuple[Direction, bytes]] = field(default_factory=set)
    excused: set[bytes] = field(default_factory=set)
    """Keys that it lost through no fault of the agent, or was told to take away."""

    def install(self, at: SaKey, sa: Sa) -> None:
        key = sa.key + sa.salt
        if len(key) != CIPHER_KEY_BYTES[sa.cipher] + SALT_BYTES:
            raise BrokenPromiseError(f"an SA without a key of its cipher was put: {sa}")
        if sa.engine is Engine.BPF and sa.cipher is not Cipher.CHACHA20_POLY1305:
            raise BrokenPromiseError(f"the engine cannot do that: {sa}")
        if not 1 <= sa.slot <= 65535:
            raise BrokenPromiseError(f"no mark can name it: {sa}")
        if self.world.ciphers.setdefault(sa.pair, sa.cipher) is not sa.cipher:
            raise BrokenPromiseError(f"one name for pairs of two ciphers: {sa}")
        if at in self.rows:
            raise BrokenPromiseError(f"an SA was put over one that stands: {sa}")
        if (sa.direction, key) in self.installed:
            raise BrokenPromiseError(f"an SA that once stood was put again: {sa}")
        if sa.direction is Direction.OUT:
            if key in self.world.outbound_keys:
                raise BrokenPromiseError(f"two outbound SAs have one key: {sa}")
            self.world.outbound_keys.add(key)
        self.installed.add((sa.direction, key))
        self.rows[at] = Row(sa, key)

    def lose(self) -> None:
        """The maps are gone."""
        self.excused |= {row.key for row in self.rows.values()}
        self.rows.clear()
        self.encrypt.clear()

    def seal(self, pair: PairId, number: int, probe: ProbeKind | None) -> Packet | None:
        for row in self.rows.values():
            sa = row.sa
            if sa.direction is Direction.OUT and (sa.pair, sa.number) == (pair, number):
                row.top += 1
                return Packet(
                    sa.source, sa.destination, sa.spi, sa.cipher, row.key, row.top, pair, probe,
                    self.world.now,
                )  # fmt: skip
        return None

    def opens(self, packet: Packet) -> Row | None:
        for row in self.rows.values():
            sa = row.sa
            if (
                sa.direction is Direction.IN
                and (sa.source, sa.destination, sa.spi)
                == (packet.source, packet.destination, packet.spi)
                and (sa.cipher, row.key) == (packet.cipher, packet.key)
            ):
                return row
        return None

    def receive(self, packet: Packet) -> None:
        row = self.opens(packet)
        if row is None or packet.sequence in row.seen:
            return
        row.seen.add(packet.sequence)
        if not row.first_seen:
            row.first_seen = 1
            self.events.append((row.sa.pair, None))
        if packet.probe:
            self.events.append((row.sa.pair, packet.probe))
