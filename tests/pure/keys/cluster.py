# SPDX-License-Identifier: Apache-2.0
"""A cluster on a page: real key rings and reconcilers, a model of everything else.

    Directory ─ any version of any record, at any time ─▶ Agent ─ real Keyring, real Reconciler
                                                            │ ▲
                                                            ▼ │ applied rows, events
    Kernel: sa_in, sa_out, encrypt ── packets: late, twice, lost ──▶ Kernel

The kernels outlive their agents. A broken promise raises `BrokenPromiseError` at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, ip_address

from pellicle.facts import (
    ALL_TRAFFIC,
    Address,
    Cipher,
    Context,
    Engine,
    Node,
    NodeName,
    Offer,
    Owned,
    PairId,
)
from pellicle.keys.derivation import best_cipher
from pellicle.keys.offers import prover
from pellicle.keys.pairing import Direction, KeyPlan, Keyring, LocalNode, Sa, SaKey, Send
from pellicle.keys.secret import Secret
from pellicle.table import Reconciler, Table

from .kernels import BrokenPromiseError, EncryptMap, Kernel, Packet, SaMap, Way, World

DRAIN = 10.0
REFRESH = 30.0


@dataclass(frozen=True)
class Kit:
    """What a life of an agent encrypts with."""

    engine: Engine
    ciphers: tuple[Cipher, ...]

    def has(self, sa: Sa) -> bool:
        return sa.engine is self.engine and sa.cipher in self.ciphers


BPF = Kit(Engine.BPF, (Cipher.CHACHA20_POLY1305,))
XFRM = Kit(Engine.XFRM, (Cipher.CHACHA20_POLY1305, Cipher.AES_128_GCM, Cipher.AES_256_GCM))
KITS = (
    BPF,
    XFRM,
    Kit(Engine.XFRM, (Cipher.AES_128_GCM, Cipher.CHACHA20_POLY1305)),
    Kit(Engine.XFRM, (Cipher.AES_256_GCM,)),
)


@dataclass(eq=False)
class Agent:
    """One life of a node's agent."""

    ring: Keyring
    sas: Reconciler[SaKey, Sa]
    encrypt: Reconciler[Way, Send]
    plan: KeyPlan | None = None
    slots: dict[int, PairId] = field(default_factory=dict)
    """Which pair each was given to, in all of this life."""


@dataclass(eq=False)
class Member:
    """A node: its kernel, its agent if it runs, and what it knows of the directory."""

    world: Cluster
    name: NodeName
    addresses: tuple[Address, ...]
    kernel: Kernel
    kit: Kit = BPF
    generation: int = 0
    """Of the pre-shared secret in its file."""
    wants: frozenset[Context] = frozenset()
    """What policies ask own keys for, as far as they have come here."""
    agent: Agent | None = None
    view: dict[NodeName, Node] = field(default_factory=dict)

    def start(self, found: tuple[Offer, ...]) -> None:
        """The agent starts and finds `found` in its own record."""
        ring = Keyring(
            LocalNode(self.name, self.addresses), self.secrets, self.world.dice.randbytes,
            ciphers=self.kit.ciphers, engine=self.kit.engine, drain_seconds=DRAIN,
        )  # fmt: skip
        sas: Reconciler[SaKey, Sa] = Reconciler(
            Table("sas"), SaMap(self.kernel), Table("sas up"), once=True
        )
        encrypt: Reconciler[Way, Send] = Reconciler(
            Table("encrypt"), EncryptMap(self.kernel), Table("encrypt up")
        )
        self.kernel.events.clear()
        sas.refresh()
        encrypt.refresh()
        ring.start(found, sas.applied.rows)
        self.agent = Agent(ring, sas, encrypt)
        self.need(self.wants)

    def need(self, contexts: frozenset[Context]) -> None:
        """Its policies ask for these from now on, with everybody."""
        before, self.wants = self.wants, contexts
        if self.agent:
            others = self.world.others(self)
            self.agent.ring.need(_owned(others, contexts), _owned(others, before | contexts))

    @property
    def ways(self) -> list[Context]:
        return [ALL_TRAFFIC, *sorted(self.wants)]

    @property
    def secrets(self) -> list[Secret]:
        """The new one first, beside the one before."""
        return [secret_of(n) for n in range(self.generation, max(-1, self.generation - 2), -1)]

    def roll(self, generation: int) -> None:
        """Its file has the secret of this generation now."""
        self.generation = generation
        if self.agent:
            self.agent.ring.know(self.secrets)

    def step(self, dies_after: int | None = None) -> None:
        """One round of the agent; what it does with a plan it does in any order, or dies."""
        if self.agent is None:
            return
        self._listen(self.agent)
        self._plan(self.agent)
        acts = [self._put_sas, self._put_encrypt, self._probe, self._publish]
        self.world.dice.shuffle(acts)
        for number, act in enumerate(acts):
            if number == dies_after:
                self.agent = None
                return
            act(self.agent)

    def _listen(self, agent: Agent) -> None:
        agent.ring.peers({name: node for name, node in self.view.items() if name != self.name})
        for pair, probe in self.kernel.events:
            if probe:
                agent.ring.probe(pair, probe)
            else:
                agent.ring.confirmed(pair)
        self.kernel.events.clear()

    def _plan(self, agent: Agent) -> None:
        agent.ring.standing(agent.sas.applied.rows)
        agent.ring.sending(send.pair for send in agent.encrypt.applied.rows.values())
        agent.plan = agent.ring.plan(self.world.now)
        for at, sa in agent.plan.sas.items():
            if agent.slots.setdefault(sa.slot, sa.pair) != sa.pair:
                raise BrokenPromiseError(f"{self.name} gave slot {sa.slot} to two pairs")
            if at not in self.kernel.rows and not self.kit.has(sa):
                raise BrokenPromiseError(f"{self.name} has {self.kit}: {sa}")

    def _put_sas(self, agent: Agent) -> None:
        assert agent.plan
        before = {row.key: row.sa.context for row in self.kernel.rows.values()}
        agent.sas.desired.replace(agent.plan.sas)
        agent.sas.run(self.world.now)
        gone = set(before) - {row.key for row in self.kernel.rows.values()}
        self.world.excuse(self, gone)
        # What no policy asks for here any more, while it still does elsewhere.
        self.kernel.excused |= {key for key in gone if before[key] not in self.ways}

    def _put_encrypt(self, agent: Agent) -> None:
        assert agent.plan
        agent.encrypt.desired.replace(
            {
                (self.view[name].addresses[0], context): send
                for (name, context), send in (
                    *(((name, ALL_TRAFFIC), send) for name, send in agent.plan.sends.items()),
                    *agent.plan.own_sends.items(),
                )
                if name in self.view
            }
        )
        agent.encrypt.run(self.world.now)

    def _probe(self, agent: Agent) -> None:
        assert agent.plan
        for key, kind in agent.plan.probes:
            packet = self.kernel.seal(key.pair, key.number, kind)
            if packet:
                self.world.air.append(packet)

    def _publish(self, agent: Agent) -> None:
        assert agent.plan
        record = Node(self.name, self.addresses, (), agent.plan.offers, self.kit.ciphers)
        if self.world.directory[self.name][-1:] != [record]:
            self.world.directory[self.name].append(record)

    def check_sends(self, other: Member) -> None:
        """Whatever this node would send now, the other can open."""
        for context in self.ways:
            self._check_way(other, context)

    def _check_way(self, other: Member, context: Context) -> None:
        send = self.kernel.encrypt.get((other.addresses[0], context))
        if send and send.context != context:
            raise BrokenPromiseError(f"{self.name} sends {context} on {send}")
        for row in self.kernel.rows.values():
            sa = row.sa
            if sa.direction is Direction.OUT and send and sa.pair == send.pair:
                if sa.engine is not send.engine:
                    raise BrokenPromiseError(f"{self.name} names {send.engine}, but {sa}")
                other.check_opens(
                    Packet(sa.source, sa.destination, sa.spi, sa.cipher, row.key, 0, sa.pair)
                )

    def send_data(self, other: Member, context: Context = ALL_TRAFFIC) -> bool:
        """One packet to each SA of the pair in use; the other must be able to open them."""
        send = self.kernel.encrypt.get((other.addresses[0], context))
        if send is None:
            return False
        for number in range(4):
            packet = self.kernel.seal(send.pair, number, None)
            if packet is None:
                if not self.kernel.excused:
                    raise BrokenPromiseError(f"{self.name} names a pair without outbound SAs")
                return False
            other.check_opens(packet)
            self.world.air.append(packet)
        return True

    def check_opens(self, packet: Packet) -> None:
        if packet.key not in self.kernel.excused and self.kernel.opens(packet) is None:
            raise BrokenPromiseError(f"{self.name} cannot open a packet on pair {packet.pair:x}")


@dataclass(eq=False)
class Cluster(World):
    """Everything, and the clock."""

    dice: random.Random = field(default_factory=random.Random)
    members: dict[NodeName, Member] = field(default_factory=dict)
    directory: dict[NodeName, list[Node]] = field(default_factory=dict)
    air: list[Packet] = field(default_factory=list)
    untold: set[tuple[NodeName, NodeName]] = field(default_factory=set)
    """Who hears no record of whom."""
    unheard: set[tuple[NodeName, NodeName]] = field(default_factory=set)
    """Who hears no packet of whom."""

    def add(self, name: str, address: str) -> Member:
        node, outer = NodeName(name), ip_address(address)
        member = Member(self, node, (outer,), Kernel(self, outer))
        self.members[node] = member
        self.directory[node] = []
        return member

    def excuse(self, member: Member, keys: Iterable[bytes]) -> None:
        """What a node takes away because its directory has no peer, or none of its ciphers."""
        known = {
            node.addresses[0]
            for name, node in member.view.items()
            if any(self.is_good(member, node, offer) for offer in node.offers)
            and node in self.directory[name]
            and best_cipher(member.kit.ciphers, node.ciphers)
        }
        if any(other.addresses[0] not in known for other in self.others(member)):
            member.kernel.excused |= set(keys)

    def is_good(self, member: Member, node: Node, offer: Offer) -> bool:
        """Whether a secret in its file proves it."""
        return prover(member.secrets, node.name, offer)[0] is not None

    def others(self, member: Member) -> list[Member]:
        return [other for other in self.members.values() if other is not member]

    def deliver_packets(self, *, twice: bool = False) -> None:
        """All that is on its way, in any order."""
        packets, self.air = self.air, []
        self.dice.shuffle(packets)
        for packet in packets * (2 if twice else 1):
            for member in self.members.values():
                if packet.destination in member.addresses and not self._is_cut(packet, member):
                    if packet.probe is None and self.now - packet.sent_at < DRAIN:
                        member.check_opens(packet)
                    member.kernel.receive(packet)

    def _is_cut(self, packet: Packet, to: Member) -> bool:
        return any(
            (to.name, member.name) in self.unheard and packet.source in member.addresses
            for member in self.members.values()
        )

    def deliver_records(self) -> None:
        for member in self.members.values():
            for name, versions in self.directory.items():
                if versions and (member.name, name) not in self.untold:
                    member.view[name] = versions[-1]

    def refresh(self) -> None:
        for member in self.members.values():
            if member.agent:
                member.agent.sas.refresh()
                member.agent.encrypt.refresh()

    def act(self) -> None:
        """Every agent once, and every packet arrives."""
        for member in self.members.values():
            member.step()
        self.deliver_packets()

    def go_on(self, seconds: float) -> None:
        """Time goes by; no record changes hands."""
        end = self.now + seconds
        while self.now < end:
            self.act()
            self.check_sends()
            self.now = min(end, self.now + 1.0)

    def live_on(self, seconds: float, step: float) -> None:
        """Time goes by; whoever is not cut off hears of everything."""
        end = self.now + seconds
        while self.now < end:
            self.deliver_records()
            self.act()
            self.check_sends()
            self.now += step

    def heal(self) -> None:
        """Nobody is cut off from anybody."""
        self.untold.clear()
        self.unheard.clear()

    def check_sends(self) -> None:
        for member in self.members.values():
            for other in self.others(member):
                member.check_sends(other)

    def agree_on_policies(self) -> None:
        """Every node knows all of them."""
        wanted = frozenset[Context]().union(*(m.wants for m in self.members.values()))
        for member in self.members.values():
            member.need(wanted)

    def agree_on_a_secret(self) -> None:
        """Every file has the newest one."""
        newest = max(member.generation for member in self.members.values())
        for member in self.members.values():
            member.roll(newest)

    def settle(self, seconds: float = 2000.0) -> None:
        """Nothing happens any more but what the agents do; stops early when they all rest."""
        end, refresh_at = self.now + seconds, self.now
        while self.now < end:
            if self.now >= refresh_at:
                self.refresh()
                refresh_at = self.now + REFRESH
            self.deliver_records()
            self.act()
            self.check_sends()
            wakes = [m.agent.plan.wake for m in self.members.values() if m.agent and m.agent.plan]
            wake = min((wake for wake in wakes if wake is not None), default=end)
            is_quiet = not any(
                member.kernel.events
                or any(member.view.get(name) != said[-1] for name, said in self.directory.items())
                for member in self.members.values()
            )
            if is_quiet and wake > self.now + 1000:
                return
            self.now = max(self.now + 0.02, min(wake, refresh_at)) if is_quiet else self.now + 0.02

    def check_settled(self) -> None:
        """All whose agents run are ready, send on the same newest pairs, and nothing is left."""
        alive = [member for member in self.members.values() if member.agent]
        for one in alive:
            for other in alive:
                for context in one.ways if one is not other else ():
                    self._check_pair(one, other, context)

    def _check_pair(self, one: Member, other: Member, context: Context) -> None:
        assert one.agent
        plan = one.agent.plan
        assert plan
        keys = plan.own_peers[other.name, context] if context else plan.peers[other.name]
        says = f"{one.name} to {other.name} ({context}) at {self.now}: {keys}"
        there = other.addresses[0]
        mine_to = [sa for sa in plan.sas.values() if sa.node == there]
        assert {sa.context for sa in mine_to} <= set(one.ways), says
        left = {sa.pair for sa in mine_to if sa.context == context}
        cipher = best_cipher(one.kit.ciphers, other.kit.ciphers)
        if cipher is None:
            assert (keys.state, keys.pair) == ("no-offer", None), says
            assert (there, context) not in one.kernel.encrypt, says
            assert not left, says
            return
        mine, theirs = (self.directory[member.name][-1].offers for member in (one, other))
        assert keys.state == "ready", says
        assert keys.confirmed, says
        assert (keys.local_epoch, keys.peer_epoch) == (mine[-1].epoch, theirs[-1].epoch), says
        assert (keys.cipher, keys.engine) == (cipher, one.kit.engine), says
        assert one.kernel.encrypt[there, context].pair == keys.pair, says
        assert other.kernel.encrypt[one.addresses[0], context].pair == keys.pair, says
        assert left == {keys.pair}, f"{says}: {len(left)} pairs are left"
        assert len(mine) == 1, f"{one.name} still publishes {len(mine)} offers"


def _owned(others: Iterable[Member], contexts: Iterable[Context]) -> list[Owned]:
    return [(other.name, context) for other in others for context in sorted(contexts)]


@cache
def secret_of(generation: int) -> Secret:
    """The pre-shared one of that generation: the same object each time, as if read once."""
    return Secret.derive(b"secret %d of this cluster, all of it" % generation)


def cluster_of(count: int, seed: int = 0) -> Cluster:
    world = Cluster(dice=random.Random(seed))
    for number in range(1, count + 1):
        world.add(f"n{number}", str(IPv4Address("192.0.2.0") + number))
    return world
