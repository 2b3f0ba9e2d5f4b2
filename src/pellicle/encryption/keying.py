# SPDX-License-Identifier: Apache-2.0
"""Keys at work: feeds the pure key ring with what happens, and puts its plans on the tables.

    nodes, applied SAs, events of the datapath ──▶ Keyring.plan ──▶ sas, sends, peers
                                                              ├──▶ own offers, published
                                                              └──▶ probes, through the door

The only decisions here are when to ask: at each change, each event, and when the ring says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import structlog

from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import (
    Address,
    Engine,
    Node,
    NodeName,
    Offer,
    Owned,
    PairId,
    PolicyNumber,
)
from pellicle.keys import history
from pellicle.keys.history import KeyEvent
from pellicle.keys.pairing import KeyPlan, PeerKeys, ProbeKind, Sa, SaKey
from pellicle.keys.rows import Send
from pellicle.table import Changes, Table

SETTLE_SECONDS = 0.02

log = structlog.get_logger()


class Ring(Protocol):
    """What decides about keys: `Keyring`, or `ManualKeys` where nothing is derived."""

    def start(self, published: Iterable[Offer], standing: Mapping[SaKey, Sa], /) -> None: ...
    def peers(self, nodes: Mapping[NodeName, Node], changed: Iterable[NodeName], /) -> None: ...
    def need(self, owned: Collection[Owned], changed: Iterable[Owned], /) -> None: ...
    def standing(self, rows: Mapping[SaKey, Sa], changed: Collection[SaKey], /) -> None: ...
    def sending(self, pairs: Iterable[PairId]) -> None: ...
    def confirmed(self, pair: PairId) -> None: ...
    def probe(self, pair: PairId, kind: ProbeKind) -> None: ...
    def spent(self, pair: PairId) -> None: ...
    def rotate(self) -> None: ...
    def prove_anew(self) -> None: ...
    def judge_anew(self) -> None: ...
    def plan(self, now: float) -> KeyPlan: ...


class _News(NamedTuple):
    """Where to look in what the ring is told."""

    nodes: Changes[NodeName]
    contexts: Changes[Owned]
    standing: Changes[SaKey]
    encrypt_up: Changes[EncryptKey]


@dataclass(slots=True)
class Keying:
    """One node's keys. `publish` writes the own record, `probe` asks or answers on an SA."""

    ring: Ring
    local: NodeName
    nodes: Table[NodeName, Node]
    standing: Table[SaKey, Sa]
    encrypt_up: Table[EncryptKey, EncryptRow]
    passable: Table[PairId, Address]
    """The kernel's pairs whose policies stand."""
    sas: Table[SaKey, Sa]
    sends: Table[NodeName, Send]
    peers: Table[NodeName, PeerKeys]
    contexts: Table[Owned, PolicyNumber]
    """With whom a policy asks for keys of its own."""
    own_sends: Table[Owned, Send]
    own_peers: Table[Owned, PeerKeys]
    publish: Callable[[tuple[Offer, ...]], None]
    probe: Callable[[Sa, ProbeKind], None]
    clock: Callable[[], float]
    tell: Callable[[Sequence[KeyEvent]], None]
    """Is told what becomes of keys."""
    wall: Callable[[], str]
    """UTC, for people: nothing is decided by it."""
    plan: KeyPlan | None = None
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def confirmed(self, pair: PairId) -> None:
        """The datapath authenticated the first packet on an inbound SA of `pair`."""
        self.ring.confirmed(pair)
        self._event.set()

    def probed(self, pair: PairId, kind: ProbeKind) -> None:
        """A probe of the peer came in."""
        self.ring.probe(pair, kind)
        self._event.set()

    def spent(self, pair: PairId) -> None:
        """An outbound SA of `pair` nears its last sequence number."""
        self.ring.spent(pair)
        self._event.set()

    def wake(self) -> None:
        """The ring was told something."""
        self._event.set()

    def prove_anew(self) -> None:
        """What proves our offers was renewed."""
        self.ring.prove_anew()
        self._event.set()

    def judge_anew(self) -> None:
        """By what others' offers are judged has changed."""
        self.ring.judge_anew()
        self._event.set()

    def rotate(self) -> None:
        """New keys with everybody, as soon as the last rotation is over."""
        self.ring.rotate()
        self._event.set()

    async def run(self) -> None:
        """Plan at every change, for ever. The nodes and the standing SAs must be listed first."""
        with Table.bell(self.nodes, self.contexts, self.standing, self.encrypt_up) as changed:
            self._event = changed
            while not (self.nodes.listed and self.standing.listed):
                changed.clear()
                await changed.wait()
            own = self.nodes.rows.get(self.local)
            news = _News(
                self.nodes.follow(),
                self.contexts.follow(),
                self.standing.follow(),
                self.encrypt_up.follow(),
            )
            self.ring.start(own.offers if own else (), self.standing.rows)
            while True:
                changed.clear()
                wake = self._step(news)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wake):
                        await changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    def _step(self, news: _News) -> float | None:
        self.ring.peers(self.nodes.rows, news.nodes.take())
        self.ring.need(self.contexts.rows.keys(), news.contexts.take())
        self.ring.standing(self.standing.rows, news.standing.take())
        if news.encrypt_up.take() or self.plan is None:
            self.ring.sending(row.pair for row in self.encrypt_up.rows.values())
        now = self.clock()
        before, self.plan = self.plan, self.ring.plan(now)
        self._show(before, self.plan)
        for key, kind in self.plan.probes:
            self._send(key, kind)
        return None if self.plan.wake is None else max(0.0, self.plan.wake - now)

    def _show(self, before: KeyPlan | None, plan: KeyPlan) -> None:
        """Put what is new of a plan where it belongs."""
        if plan.changed is None:
            self.sas.replace(plan.sas)
        else:
            put = {key: plan.sas[key] for key in plan.changed if key in plan.sas}
            self.sas.change(put, [key for key in plan.changed if key not in put])
        if before is None or before.sends is not plan.sends:
            self.sends.replace(plan.sends)
        if before is None or before.peers is not plan.peers:
            self.peers.replace(plan.peers)
        if before is None or before.own_sends is not plan.own_sends:
            self.own_sends.replace(plan.own_sends)
        if before is None or before.own_peers is not plan.own_peers:
            self.own_peers.replace(plan.own_peers)
        if before is None or (before.own, before.peers) != (plan.own, plan.peers):
            self.tell(tuple(history.events(before, plan, self.wall())))
        if before is None or before.offers != plan.offers:
            self.publish(plan.offers)

    def _send(self, key: SaKey, kind: ProbeKind) -> None:
        """What cannot be sent now is due again soon."""
        sa = self.standing.rows.get(key)
        if sa is None or (sa.engine is Engine.XFRM and sa.pair not in self.passable.rows):
            return
        try:
            self.probe(sa, kind)
        except OSError as error:
            log.warning("probe not sent", pair=f"{sa.pair:016x}", error=str(error))
