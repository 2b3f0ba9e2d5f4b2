# SPDX-License-Identifier: Apache-2.0
"""Keys that an operator made: the same for every node, used as they are (RFC 4301 §4.5.1).

    3 rfc4106(gcm(aes)) <40 or 72 hex digits> 128     ──▶  SPI 3, between any two nodes

Nothing is agreed on, so any kernel that was told the same by hand can be a peer, and nothing can be
shown of it: it is sent to as soon as the SAs stand. Each line decrypts; the first one encrypts.
What makes the nonces of so many senders differ is the kernel's random number of each state, and
only that (crypto/seqiv.c). There is no protection from replay, for whoever sends may begin anew at
one (RFC 4303 §3.4.3), and numbers have 32 bits: a state that nears the last one is replaced.

As all have the same key, so they can have the same state of the kernel's. With subnets, what
receives is one state for each key; what sends to the peers in them is one for the first key. Peers
still have SAs of their own, which say whose packet it is, and count.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from pellicle.facts import (
    Address,
    Cipher,
    Engine,
    Epoch,
    Network,
    Node,
    NodeName,
    Offer,
    Owned,
    PairId,
    Rejected,
    Spi,
)
from pellicle.keys.claims import Claims
from pellicle.keys.derivation import SALT_BYTES
from pellicle.keys.records import outer_addresses
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
from pellicle.keys.secret import HASH, SecretError, read_aead, read_key_id, unguessable, wrong
from pellicle.keys.slots import Slots
from pellicle.keys.subnets import Numbers, are_around

GRACE_SECONDS = 3600.0
"""How long a key that was removed from the file still decrypts: other nodes' files change later."""
LAST_SEQUENCE = 2**32 - 1
ALGORITHM = "rfc4106(gcm(aes))"
_CIPHERS = {16 + SALT_BYTES: Cipher.AES_128_GCM, 32 + SALT_BYTES: Cipher.AES_256_GCM}


@dataclass(frozen=True, slots=True)
class ManualKey:
    """One line of the file."""

    key_id: int
    cipher: Cipher
    fingerprint: str
    """Eight hex digits to compare two nodes by; a keyed hash, cut short."""
    secret: bytes = field(repr=False)
    """Key, then salt."""

    def __str__(self) -> str:
        return f"key {self.key_id} ({self.fingerprint})"


def read_line(number: int, words: list[str]) -> ManualKey:
    """A key as it is to be used; SecretError says what is wanted instead."""
    key_id = read_key_id(number, words[0])
    if key_id is None or len(words) != 4 or words[1] != ALGORITHM or words[3] != "128":
        form = f"<key id> {ALGORITHM} <40 or 72 hex digits> 128"
        raise wrong(number, f"a key that is used as it is must be of the form '{form}'")
    secret = unguessable(number, read_aead(number, *words[1:]))
    if len(secret) not in _CIPHERS:
        raise wrong(number, "AES-192 is not known here: give 40 or 72 hex digits")
    fingerprint = hmac.digest(secret, b"pellicle manual fingerprint 1", HASH)[:4].hex()
    return ManualKey(key_id, _CIPHERS[len(secret)], fingerprint, secret)


class _Place(NamedTuple):
    """What one SA is for, however often it has to begin anew."""

    direction: Direction
    key: ManualKey
    node: Address
    """The peer's primary address."""
    source: Address
    destination: Address
    shared: int = 0
    """The number of the state that it shares."""

    @classmethod
    def of(cls, sa: Sa, key: ManualKey) -> _Place:
        return cls(sa.direction, key, sa.node, sa.source, sa.destination, sa.shared)

    def pair(self, life: int) -> PairId:
        """The name of its SA; another one in each life."""
        words = [self.direction, self.node, self.source, self.destination, life]
        words += [self.shared] * bool(self.shared)
        bound = b"pellicle manual 1|" + "|".join(map(str, words)).encode()
        return PairId(int.from_bytes(hmac.digest(self.key.secret, bound, HASH)[:8]) or 1)


class ManualKeys:
    """All keys of one node, where none is derived. Speaks to its agent as `Keyring` does."""

    def __init__(
        self,
        node: LocalNode,
        keys: Sequence[ManualKey],
        *,
        ciphers: Collection[Cipher],
        drain_seconds: float = 10.0,
        packet_limit: int = LAST_SEQUENCE,
        outer_family: str = "auto",
        subnets: Sequence[Network] = (),
    ) -> None:
        """`ciphers`: those of the kernel. SecretError when no key is for any of them."""
        self._local, self._ciphers, self._family = node, ciphers, outer_family
        self._drain, self._limit = drain_seconds, min(packet_limit, LAST_SEQUENCE)
        self._subnets = subnets
        self._numbers = Numbers()
        self._keys: tuple[ManualKey, ...] = ()
        self._leaving: dict[ManualKey, float | None] = {}
        """Keys that were removed, and when: None until the next plan."""
        self._claims = Claims(node)
        self._standing: Mapping[SaKey, Sa] = {}
        self._lives: dict[_Place, int] = {}
        self._strange: set[PairId] = set()
        """What stood at first, by keys that are not in the file: they may come back."""
        self._wanted: dict[SaKey, _Place] = {}
        self._ended: dict[SaKey, float] = {}
        """What is neither wanted nor sent by any more, and since when."""
        self._sending: frozenset[PairId] = frozenset()
        self._slots = Slots()
        self._slot_of: dict[PairId, int] = {}
        self._rejected: Sequence[Rejected] = []
        self.know(keys)
        if not self._keys:
            why = "; ".join(f"{each.name} {each.why}" for each in self._rejected)
            raise SecretError(f"no key can be used: {why}")

    # --- what is so ---------------------------------------------------------------------------

    def start(self, _published: Iterable[Offer], standing: Mapping[SaKey, Sa]) -> None:
        """Once, before anything else: what an earlier life of this node left behind."""
        for sa in standing.values():
            if sa.pair not in self._slot_of:
                self._slot_of[sa.pair] = sa.slot
                self._slots.keep(sa.slot)
            for key in self._keys:
                place = _Place.of(sa, key)
                if place.pair(sa.local_epoch) == sa.pair:
                    self._lives[place] = max(sa.local_epoch, self._lives.get(place, 0))
                    self._wanted[sa.at] = place
                    if _sends_shared(sa):
                        self._numbers.keep((key, sa.source), sa.shared)
        self._strange = {sa.pair for at, sa in standing.items() if at not in self._wanted}
        self.standing(standing)

    def peers(
        self, nodes: Mapping[NodeName, Node], changed: Iterable[NodeName] | None = None
    ) -> None:
        """All other nodes, as their records say now. A claim of another's address is refused."""
        self._claims.hear(nodes, changed)

    def need(self, _owned: Collection[Owned], _changed: Iterable[Owned]) -> None:
        """There are no keys but those of the file: what wants its own is not sent."""

    def standing(self, rows: Mapping[SaKey, Sa], _changed: Collection[SaKey] | None = None) -> None:
        """All SAs that stand in the kernel now. What vanished is not put again under its name."""
        before, self._standing = self._standing, rows
        for at in before.keys() - self._standing.keys():
            if at in self._wanted:
                self._lives[self._wanted[at]] += 1

    def spent(self, pair: PairId) -> None:
        """An outbound SA nears its last sequence number."""
        for at, place in self._wanted.items():
            if at.pair == pair == place.pair(self._lives[place]):
                if place.shared:
                    self._numbers.wear((place.key, place.source))
                else:
                    self._lives[place] += 1

    def know(self, keys: Sequence[ManualKey]) -> None:
        """The keys are these from now on: all of them decrypt, the first one encrypts."""
        held = {key.key_id: key for key in (*self._keys, *self._leaving)}
        good, rejected = [], []
        for key in keys:
            why = ""
            if held.get(key.key_id, key) != key:
                why = "is in use with other bytes: give the new key another id"
            elif key.cipher not in self._ciphers:
                why = f"is for {key.cipher}, which this kernel does not have"
            if why:
                rejected.append(Rejected("the pre-shared secret", str(key), why))
            else:
                good.append(key)
        self._rejected = tuple(rejected)
        if not good:
            return
        gone = dict.fromkeys(key for key in self._keys if key not in good)
        self._leaving = {
            key: since for key, since in (gone | self._leaving).items() if key not in good
        }
        self._keys = tuple(good)

    def sending(self, pairs: Iterable[PairId]) -> None:
        """These are what the datapath sends on. None of them is taken away before it moves."""
        self._sending = frozenset(pairs)

    def confirmed(self, pair: PairId) -> None:
        """That a packet came in shows nothing: everybody has these keys."""

    def probe(self, pair: PairId, kind: ProbeKind) -> None:
        """Nobody is asked."""

    def rotate(self) -> None:
        """Only the file's owner makes keys."""

    def prove_anew(self) -> None:
        """There are no offers."""

    def judge_anew(self) -> None:
        """Nor proofs."""

    # --- what ought to be ---------------------------------------------------------------------

    def plan(self, now: float) -> KeyPlan:
        """What ought to be, given all that was said."""
        self._forget_keys(now)
        nodes = {name: self._claims.nodes[name] for name in self._claims.held}
        outers = {
            name: outer_addresses(self._local.addresses, node.addresses, self._family)
            for name, node in nodes.items()
        }
        wanted: dict[SaKey, Sa] = {}
        before, self._wanted = self._wanted, {}
        around = {n for n, node in nodes.items() if are_around(self._subnets, node)}
        ours = dict.fromkeys(o[0] for n, o in outers.items() if o is not None and n in around)
        standing = {sa.shared for sa in self._standing.values() if _sends_shared(sa)}
        self._numbers.settle([(self._keys[0], each) for each in ours], standing)
        for name, outer in outers.items():
            if outer is not None and self._keys:
                for place in self._places(nodes[name], *outer, is_around=name in around):
                    sa = self._sa(name, place)
                    wanted[sa.at], self._wanted[sa.at] = sa, place
        for place in set(before.values()) - set(self._wanted.values()):
            self._lives[place] += 1  # it may come back, and nothing is put twice under its name
        sas = wanted | self._draining(wanted, now)
        self._free_slots({sa.pair for sa in sas.values()})
        stands = self._outs(wanted)
        used = {
            name: stands[node.addresses[0]]
            for name, node in nodes.items()
            if outers[name] is not None and node.addresses[0] in stands
        }
        sends = {
            name: Send(newest.pair, Engine.XFRM, nodes[name].addresses[0], sas=1)
            for name, (newest, *_) in used.items()
        }
        return KeyPlan(
            offers=(),
            sas=MappingProxyType(sas),
            sends=MappingProxyType(sends),
            probes=(),
            peers={
                name: self._peer(name, outer, used.get(name, ())) for name, outer in outers.items()
            },
            own=tuple(self._own()),
            rejected=(*self._rejected, *self._claims.refused.values()),
            wake=min(self._wakes(), default=None),
        )

    def _forget_keys(self, now: float) -> None:
        for key, since in list(self._leaving.items()):
            if since is None:
                self._leaving[key] = now
            elif now >= since + GRACE_SECONDS:
                del self._leaving[key]

    def _places(
        self, node: Node, ours: Address, theirs: Address, *, is_around: bool
    ) -> Iterator[_Place]:
        peer, first = node.addresses[0], self._keys[0]
        for key in (*self._keys, *self._leaving):
            yield _Place(Direction.IN, key, peer, theirs, ours, int(bool(self._subnets)))
        number = self._numbers.get((first, ours)) if is_around else 0
        yield _Place(Direction.OUT, first, peer, ours, theirs, number)

    def _sa(self, peer: NodeName, place: _Place) -> Sa:
        life = self._lives.setdefault(place, 1)
        while place.pair(life) in self._strange:
            self._lives[place] = life = life + 1  # nothing is put twice under its name
        pair = place.pair(life)
        if pair not in self._slot_of:
            self._slot_of[pair] = self._slots.take()
        secret = place.key.secret
        return Sa(
            place.direction,
            pair,
            0,
            Spi(place.key.key_id),
            place.source,
            place.destination,
            place.node,
            Epoch(life),
            Epoch(place.key.key_id),
            sequence_limit=self._limit if place.direction is Direction.OUT else 0,
            engine=Engine.XFRM,
            cipher=place.key.cipher,
            slot=self._slot_of[pair],
            shared=place.shared,
            peer=peer,
            key=secret[:-SALT_BYTES],
            salt=secret[-SALT_BYTES:],
        )

    def _draining(self, wanted: Mapping[SaKey, Sa], now: float) -> dict[SaKey, Sa]:
        """What packets under way may still be marked for."""
        ended = {
            at: now if sa.pair in self._sending else self._ended.get(at, now)
            for at, sa in self._standing.items()
            if at not in wanted and sa.direction is Direction.OUT
        }
        self._ended = {at: since for at, since in ended.items() if now < since + self._drain}
        return {at: self._standing[at] for at in self._ended}

    def _free_slots(self, pairs: Collection[PairId]) -> None:
        for pair in self._slot_of.keys() - pairs - {sa.pair for sa in self._standing.values()}:
            self._slots.free(self._slot_of.pop(pair))

    def _outs(self, wanted: Mapping[SaKey, Sa]) -> dict[Address, list[Sa]]:
        """By peer: the outbound SAs that stand, what is to be sent on first."""
        outs: dict[Address, list[Sa]] = {}
        for sa in self._standing.values():
            if sa.direction is Direction.OUT and sa.is_manual:
                outs.setdefault(sa.node, []).append(sa)
        for each in outs.values():
            each.sort(key=lambda sa: (sa.at in wanted, sa.local_epoch), reverse=True)
        return outs

    def _peer(
        self, name: NodeName, outer: tuple[Address, Address] | None, used: Sequence[Sa]
    ) -> PeerKeys:
        if outer is None:
            why = "has no address of the family that the tunnels use"
            return PeerKeys(name, PeerState.NO_OFFER, why)
        if not used:
            return PeerKeys(name, PeerState.CONFIRMING, "SAs are being put in place")
        newest = used[0]
        why = f"key {newest.spi} of the file, the same for all nodes"
        if newest.shared:
            why += "; in subnets that have one policy each"
        return PeerKeys(
            name,
            PeerState.READY,
            why,
            pair=newest.pair,
            cipher=newest.cipher,
            engine=newest.engine,
            confirmed=True,
        )

    def _own(self) -> Iterator[OwnKeys]:
        for key in self._leaving:
            why = "left the file: decrypts for an hour more"
            yield OwnKeys(Epoch(key.key_id), key.fingerprint, OfferState.RETIRING, why)
        for key in reversed(self._keys[1:]):
            why = "decrypts; the first line of the file encrypts"
            yield OwnKeys(Epoch(key.key_id), key.fingerprint, OfferState.RETIRING, why)
        first = self._keys[0]
        why = "not derived: the same for all nodes"
        yield OwnKeys(Epoch(first.key_id), first.fingerprint, OfferState.CURRENT, why)

    def _wakes(self) -> Iterator[float]:
        yield from (since + self._drain for since in self._ended.values())
        yield from (since + GRACE_SECONDS for since in self._leaving.values() if since is not None)


def _sends_shared(sa: Sa) -> bool:
    return sa.direction is Direction.OUT and sa.shared != 0
