# SPDX-License-Identifier: Apache-2.0
"""One key ring under the microscope: its kernel, clock and peers are played by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from pellicle.facts import (
    Address,
    Cipher,
    Context,
    Engine,
    Epoch,
    Node,
    NodeName,
    Offer,
    Owned,
    PairId,
)
from pellicle.keys.offers import OwnOffer
from pellicle.keys.pairing import (
    Direction,
    KeyPlan,
    Keyring,
    LocalNode,
    PeerKeys,
    ProbeKind,
    Sa,
    SaKey,
)
from pellicle.keys.secret import Secret
from pellicle.keys.trust import Trust

SECRET = Secret.derive(bytes(range(32)))
ME = NodeName("me")
MY_ADDRESS = ip_address("192.0.2.1")
ASK, ANSWER = ProbeKind.ASK, ProbeKind.ANSWER


class Dice:
    """Random bytes that are the same in every run, and never the same twice."""

    def __init__(self) -> None:
        self.thrown = 0

    def __call__(self, count: int) -> bytes:
        self.thrown += 1
        return hashlib.shake_256(str(self.thrown).encode()).digest(count)


DICE = Dice()


def addresses(*texts: str) -> tuple[Address, ...]:
    return tuple(ip_address(text) for text in texts)


def offer(name: str, epoch: int, secret: Trust = SECRET) -> Offer:
    return OwnOffer.make(NodeName(name), Epoch(epoch), DICE(16), DICE, secret).offer


def node(name: str, *offers: Offer, at: tuple[str, ...] = ("192.0.2.9",)) -> Node:
    return Node(NodeName(name), addresses(*at), (), offers)


def ring_of(
    *at: Address,
    ciphers: tuple[Cipher, ...] = (Cipher.CHACHA20_POLY1305,),
    engine: Engine = Engine.BPF,
    secret: Trust = SECRET,
    **others: Any,
) -> Keyring:
    return Keyring(LocalNode(ME, at), [secret], DICE, ciphers=ciphers, engine=engine, **others)


@dataclass
class Life:
    """An agent's: `up` is what stands in its kernel, `plan` its last one."""

    nodes: list[Node] = field(default_factory=list)
    found: tuple[Offer, ...] = ()
    up: dict[SaKey, Sa] = field(default_factory=dict)
    now: float = 1000.0
    ciphers: tuple[Cipher, ...] = (Cipher.CHACHA20_POLY1305,)
    engine: Engine = Engine.BPF
    secret: Trust = SECRET
    owned: set[Owned] = field(default_factory=set)
    ring: Keyring = field(init=False)
    plan: KeyPlan = field(init=False)

    def __post_init__(self) -> None:
        self.ring = ring_of(
            MY_ADDRESS, ciphers=self.ciphers, engine=self.engine, secret=self.secret
        )
        self.ring.start(self.found, self.up)
        self.know(*self.nodes)

    def know(self, *nodes: Node) -> KeyPlan:
        """The directory says this now."""
        self.nodes = list(nodes)
        self.ring.peers({node.name: node for node in nodes})
        return self.look()

    def need(self, *contexts: Context) -> KeyPlan:
        """Policies ask for these keys with n1."""
        before, self.owned = self.owned, {(NodeName("n1"), context) for context in contexts}
        self.ring.need(self.owned, sorted(before | self.owned))
        return self.look()

    def look(self, after: float = 0.0) -> KeyPlan:
        self.now += after
        self.plan = self.ring.plan(self.now)
        return self.plan

    def stand(self, directions: Iterable[Direction] = tuple(Direction)) -> KeyPlan:
        """The kernel does what the plan says, of those directions."""
        wanted = {at: sa for at, sa in self.plan.sas.items() if sa.direction in directions}
        kept = {at: sa for at, sa in self.up.items() if at in self.plan.sas}
        self.up = {**wanted, **kept}
        self.ring.standing(self.up)
        return self.look()

    def send(self) -> KeyPlan:
        """The kernel sends as the plan says."""
        self.ring.sending(send.pair for send in self.plan.sends.values())
        return self.look()

    def install(self) -> KeyPlan:
        """All that the plan wants stands: first inbound, then outbound, then what is sent on."""
        self.stand()
        self.stand()
        return self.send()

    def vanish(self, *keys: SaKey) -> KeyPlan:
        """Someone took rows away."""
        self.up = {at: sa for at, sa in self.up.items() if at not in keys}
        self.ring.standing(self.up)
        return self.look()

    def hear(self, pair: PairId, kind: ProbeKind) -> KeyPlan:
        self.ring.probe(pair, kind)
        return self.look()

    def pair(self, local: int, peer: int) -> PairId:
        """The wanted pair of those epochs."""
        found = {sa.pair for sa in self.plan.sas.values() if epochs(sa) == (local, peer)}
        assert len(found) == 1, f"{len(found)} pairs of epochs {local} and {peer}"
        return found.pop()

    def pairs(self) -> set[tuple[int, int]]:
        """The epochs of all that is wanted."""
        return {epochs(sa) for sa in self.plan.sas.values()}

    def rows(self, pair: PairId, direction: Direction | None = None) -> list[SaKey]:
        return [
            at
            for at, sa in self.plan.sas.items()
            if sa.pair == pair and direction in (None, sa.direction)
        ]

    def agree(self, pair: PairId) -> KeyPlan:
        """The peer answers on a pair, and this node sends on it."""
        self.hear(pair, ANSWER)
        return self.send()

    @property
    def sends(self) -> dict[str, PairId]:
        """The pair that is sent on, by peer."""
        return {name: send.pair for name, send in self.plan.sends.items()}

    @property
    def published(self) -> list[int]:
        return [offer.epoch for offer in self.plan.offers]

    @property
    def keys(self) -> dict[str, PeerKeys]:
        return dict(self.plan.peers)

    def probes(self, kind: ProbeKind) -> list[PairId]:
        return [key.pair for key, probe in self.plan.probes if probe is kind]

    def restart(self, **changes: Any) -> Life:
        """The next life, on the same kernel; every inbound SA of ours was in use."""
        seen = {at: replace(sa, first_seen=7, key=b"", salt=b"") for at, sa in self.up.items()}
        kit = {"ciphers": self.ciphers, "engine": self.engine, "secret": self.secret, **changes}
        return Life(self.nodes, self.plan.offers, seen, self.now, **kit)


def epochs(sa: Sa) -> tuple[int, int]:
    return sa.local_epoch, sa.peer_epoch


def agreed(name: str = "n1", epoch: int = 1) -> Life:
    """A life that has one peer, and is ready with it on (1, `epoch`)."""
    life = Life([node(name, offer(name, epoch))])
    life.install()
    life.agree(life.pair(1, epoch))
    return life


def rotated() -> Life:
    """A second offer stands and is published; the peer has not said a word about it."""
    life = agreed()
    life.look(10)
    life.ring.rotate()
    life.look()
    life.install()
    assert life.published == [1, 2]
    return life
