# SPDX-License-Identifier: Apache-2.0
"""Keys at work: feeds the pure key ring with what happens, and puts its plans on the tables.

    nodes, applied SAs, events of the datapath ──▶ Keyring.plan ──▶ sas, sends, peers
                                                              ├──▶ own offers, published
                                                              └──▶ probes, through the door

The only decisions here are when to ask: at each change, each event, and when the ring says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import Address, Engine, Node, NodeName, Offer, PairId
from pellicle.keys import history
from pellicle.keys.history import KeyEvent
from pellicle.keys.pairing import KeyPlan, PeerKeys, ProbeKind, Sa, SaKey
from pellicle.keys.rows import Direction, Send
from pellicle.table import Table

SETTLE_SECONDS = 0.02

log = structlog.get_logger()


class Ring(Protocol):
    """What decides about keys: `Keyring`, or `ManualKeys` where nothing is derived."""

    def start(self, published: Iterable[Offer], standing: Iterable[Sa], /) -> None: ...
    def peers(self, nodes: Mapping[NodeName, Node]) -> None: ...
    def standing(self, rows: Iterable[Sa]) -> None: ...
    def sending(self, pairs: Iterable[PairId]) -> None: ...
    def confirmed(self, pair: PairId) -> None: ...
    def probe(self, pair: PairId, kind: ProbeKind) -> None: ...
    def spent(self, pair: PairId) -> None: ...
    def rotate(self) -> None: ...
    def prove_anew(self) -> None: ...
    def judge_anew(self) -> None: ...
    def plan(self, now: float) -> KeyPlan: ...


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
        with Table.bell(self.nodes, self.standing, self.encrypt_up) as changed:
            self._event = changed
            while not (self.nodes.listed and self.standing.listed):
                changed.clear()
                await changed.wait()
            own = self.nodes.rows.get(self.local)
            self.ring.start(own.offers if own else (), self.standing.rows.values())
            while True:
                changed.clear()
                wake = self._step()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wake):
                        await changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    def _step(self) -> float | None:
        self.ring.peers(_others(self.nodes.rows, self.local))
        self.ring.standing(self.standing.rows.values())
        self.ring.sending(row.pair for row in self.encrypt_up.rows.values())
        now = self.clock()
        plan = self.ring.plan(now)
        before, self.plan = self.plan, plan
        self.sas.replace(plan.sas)
        self.sends.replace(plan.sends)
        self.peers.replace({peer.node: peer for peer in plan.peers})
        if plan.probes:
            self._send(plan)
        if before is None or (before.own, before.peers) != (plan.own, plan.peers):
            self.tell(tuple(history.events(before, plan, self.wall())))
        if before is None or before.offers != plan.offers:
            self.publish(plan.offers)
        return None if plan.wake is None else max(0.0, plan.wake - now)

    def _send(self, plan: KeyPlan) -> None:
        """Those that cannot be sent now are due again soon."""
        outbound = {
            (sa.pair, sa.number): sa
            for sa in self.standing.rows.values()
            if sa.direction is Direction.OUT
        }
        for pair, number, kind in plan.probes:
            sa = outbound.get((pair, number))
            if sa is None or (sa.engine is Engine.XFRM and pair not in self.passable.rows):
                continue
            try:
                self.probe(sa, kind)
            except OSError as error:
                log.warning("probe not sent", pair=f"{pair:016x}", error=str(error))


def _others(nodes: Mapping[NodeName, Node], local: NodeName) -> Mapping[NodeName, Node]:
    return {name: node for name, node in nodes.items() if name != local}
