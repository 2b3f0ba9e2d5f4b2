# SPDX-License-Identifier: Apache-2.0
"""What the keys of thousands of peers cost: planning them, keeping them, changing them.

    .venv/bin/python -m benchmarks.keys [PEERS] [psk|spiffe] [bpf|xfrm]      no root; a minute

The ring, the tables, the plans and the reconcilers are an agent's own. Made up are the peers, which
answer every question at once, and the kernel, which does everything at once and says nothing of
its own. CPU seconds are all of this process's; a turn is what the event loop does between two
looks at its clock, and whatever else the agent has to do waits for its end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import sys
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final, Generic, TypeVar

from pellicle import derived
from pellicle.datapath.programs import DOOR_HOST, DOOR_XFRM
from pellicle.encryption.keying import Keying
from pellicle.encryption.routes import ANY_LENGTH, RoutePlan
from pellicle.facts import Cipher, Engine, Epoch, Link, Node, NodeName, Offer, PairId
from pellicle.keys.offers import OwnOffer
from pellicle.keys.pairing import Keyring, LocalNode, ProbeKind, Sa
from pellicle.keys.secret import Secret
from pellicle.keys.spiffe import Spiffe
from pellicle.keys.trust import Trust
from pellicle.plans import derive
from pellicle.table import Reconciler, Table, reconcile
from pellicle.tables import GARBAGE, Tables
from pellicle.wire.spiffe import read_response
from tests.spiffe import Authority, response

PEERS: Final = 5000
EVENTS: Final = 20
HOUR: Final = 3600.0
DRAIN_SECONDS: Final = 1.0
"""Short, as nothing is on its way here that would have to arrive."""
LIFETIME_SECONDS: Final = 10 * HOUR
QUIET_SECONDS: Final = 0.5
ME: Final = NodeName("n0")
TEMPLATE: Final = "spiffe://{trust_domain}/pellicle/node/{node}"
CIPHERS: Final = {
    Engine.BPF: (Cipher.CHACHA20_POLY1305,),
    Engine.XFRM: (Cipher.AES_128_GCM, Cipher.CHACHA20_POLY1305),
}

K = TypeVar("K")
R = TypeVar("R")


def node_of(number: int, engine: Engine, *offers: Offer) -> Node:
    """One that knows both families."""
    pods = (
        IPv4Network((0x0A000000 + (number << 8), 24)),
        IPv6Network((0xFD << 120 | number << 64, 64)),
    )
    outer = IPv4Address(0xC0A80000 + number), IPv6Address(0xFC << 120 | number)
    return Node(NodeName(f"n{number}"), outer, pods, offers, CIPHERS[engine])


class Trusts:
    """What proves the offers of each node."""

    def __init__(self, mode: str) -> None:
        self._secret = Secret.derive(bytes(range(32)))
        self._authority = Authority("example.org") if mode == "spiffe" else None

    def of(self, name: NodeName) -> Trust:
        if self._authority is None:
            return self._secret
        trust = Spiffe(name, [TEMPLATE], time.time)
        svid = self._authority.svid(f"/pellicle/node/{name}")
        trust.take(read_response(response([svid])))
        return trust

    def offer(self, name: NodeName, epoch: int) -> Offer:
        trust = self.of(name)
        return OwnOffer.make(name, Epoch(epoch), os.urandom(16), os.urandom, trust).offer


@dataclass
class Kernel(Generic[K, R]):
    """Has whatever is put there."""

    rows: dict[K, R] = field(default_factory=dict)

    def read(self) -> Mapping[K, R]:
        return dict(self.rows)

    def put(self, rows: Mapping[K, R]) -> Mapping[K, OSError]:
        self.rows.update(rows)
        return {}

    def remove(self, keys: Collection[K]) -> Mapping[K, OSError]:
        for key in keys:
            self.rows.pop(key, None)
        return {}


class Turns(selectors.DefaultSelector):
    """Notes the longest turn of the event loop."""

    longest = 0.0
    _begin = float("inf")

    def reset(self) -> None:
        """Begin anew, with a turn that begins now."""
        self.longest, self._begin = 0.0, time.perf_counter()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.longest = max(self.longest, time.perf_counter() - self._begin)
        found = super().select(timeout)
        self._begin = time.perf_counter()
        return found


class OneNode:
    """An agent's keys and all that is planned from them, among so many peers."""

    def __init__(self, peers: int, mode: str, engine: Engine) -> None:
        self.engine = engine
        self.trusts = Trusts(mode)
        self.own = node_of(0, engine)
        self.nodes = {ME: self.own}
        for number in range(1, peers + 1):
            name = NodeName(f"n{number}")
            self.nodes[name] = node_of(number, engine, self.trusts.offer(name, 1))
        self.tables = Tables()
        self.ring = self.make_ring()
        t = self.tables
        self.keying = Keying(
            self.ring, ME, t.nodes, t.sas_up, t.encrypt_up, t.passable, t.sas, t.sends, t.peers,
            t.kept_contexts, t.own_sends, t.own_peers,
            self._publish, self._probe, time.monotonic, lambda _: None, str,
        )  # fmt: skip

    def make_ring(self) -> Keyring:
        return Keyring(
            LocalNode(ME, self.own.addresses), [self.trusts.of(ME)], os.urandom,
            ciphers=CIPHERS[self.engine], engine=self.engine, drain_seconds=DRAIN_SECONDS,
            lifetime_seconds=LIFETIME_SECONDS,
        )  # fmt: skip

    def work(self) -> Iterator[Coroutine[Any, Any, None]]:
        """As in agent.py, where nodes or keys play a part."""
        t = self.tables
        links = {
            name: Link(name, index, "", 1500, is_up=True)
            for index, name in enumerate(("eth0", DOOR_HOST, DOOR_XFRM), 1)
        }
        t.links.replace(links)
        t.endpoints.replace({})
        t.encryption_policies.replace({})
        t.paths.replace({})
        route = RoutePlan(
            ME, "eth0", 200, "auto", self.engine, ANY_LENGTH, are_nodes_encrypted=True
        )
        planned = [
            *derived.of_cluster(t, ME, "eth0", {}),
            *derived.of_policies(t, ME),
            *derived.of_encryption(t, self.engine),
            *derived.of_routes(t, route),
            *derived.of_kernel_ipsec(t, "eth0"),
        ]
        yield from map(derive, planned)
        yield self._follow(t.sas, t.sas_up, once=True)
        for wanted, standing in (
            (t.ipcache, t.ipcache_up), (t.cidrs, t.cidrs_up), (t.encrypt, t.encrypt_up),
            (t.routes, t.routes_up), (t.policies, t.policies_up),
        ):  # fmt: skip
            yield self._follow(wanted, standing)
        yield self.keying.run()

    def _follow(
        self, wanted: Table[Any, Any], standing: Table[Any, Any], *, once: bool = False
    ) -> Coroutine[Any, Any, None]:
        reconciler = Reconciler(wanted, Kernel(), standing, once=once)
        return reconcile(reconciler, time.monotonic, HOUR)

    def _publish(self, offers: tuple[Offer, ...]) -> None:
        self.say(replace(self.own, offers=offers))

    def _probe(self, sa: Sa, kind: ProbeKind) -> None:
        if kind is ProbeKind.ASK:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.keying.probed, sa.pair, ProbeKind.ANSWER)

    def say(self, node: Node) -> None:
        """The directory has another record."""
        self.nodes[node.name] = node
        self.tables.nodes.replace(self.nodes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in self.work()]
            yield
            for task in running:
                task.cancel()

    @property
    def is_ready(self) -> bool:
        """With all peers, on the newest keys, and nothing older is left."""
        plan = self.keying.plan
        if plan is None or not plan.own or len(self.tables.encrypt_up.rows) < len(self.nodes) - 1:
            return False
        is_moved = all(peer.confirmed for peer in self.tables.peers.rows.values())
        return is_moved and len(plan.own) == 1 and len(plan.sas) == 8 * (len(self.nodes) - 1)

    async def ready(self) -> None:
        while not self.is_ready:  # noqa: ASYNC110  not all of it is in tables
            await asyncio.sleep(0.2)
        await asyncio.sleep(QUIET_SECONDS)

    def pair(self, number: int) -> PairId:
        return self.tables.sends.rows[NodeName(f"n{number}")].pair


@contextmanager
def cost(turns: Turns, what: str, events: int = 1) -> Iterator[None]:
    """Says what the block costs."""
    turns.reset()
    cpu, start = time.process_time(), time.perf_counter()
    yield
    cpu, took = time.process_time() - cpu, time.perf_counter() - start
    each = f"{1000 * cpu / events:9.2f} ms each" if events > 1 else f"{cpu:9.2f} s CPU"
    print(f"  {what:44} {each}  {took:6.1f} s  longest turn {1000 * turns.longest:6.0f} ms")


async def measure(turns: Turns, peers: int, mode: str, engine: Engine) -> None:
    it = OneNode(peers, mode, engine)
    alone(it)
    async with it.running():
        with cost(turns, "start: all SAs planned, derived, standing"):
            it.tables.nodes.replace(it.nodes)
            await it.ready()
        with cost(turns, f"{EVENTS * QUIET_SECONDS:.0f} s without an event"):
            await asyncio.sleep(EVENTS * QUIET_SECONDS)
        with cost(turns, "a packet on a new SA", EVENTS):
            for number in range(1, EVENTS + 1):
                it.keying.confirmed(it.pair(number))
                await asyncio.sleep(QUIET_SECONDS)
        with cost(turns, "a probe, answered", EVENTS):
            for number in range(1, EVENTS + 1):
                it.keying.probed(it.pair(number), ProbeKind.ASK)
                await asyncio.sleep(QUIET_SECONDS)
        with cost(turns, "a record that changes, but not its offer", EVENTS):
            for number in range(1, EVENTS + 1):
                it.say(replace(it.nodes[NodeName(f"n{number}")], longest=9000))
                await asyncio.sleep(QUIET_SECONDS)
        with cost(turns, "a peer with new keys, until the old are gone", EVENTS):
            for number in range(1, EVENTS + 1):
                name = NodeName(f"n{number}")
                it.say(replace(it.nodes[name], offers=(it.trusts.offer(name, 2),)))
                await asyncio.sleep(QUIET_SECONDS)
            await it.ready()
        with cost(turns, "new keys of our own with every peer"):
            it.keying.rotate()
            await asyncio.sleep(1)
            await it.ready()
        with cost(turns, "every record judged anew"):
            it.keying.judge_anew()
            await asyncio.sleep(10)
            await it.ready()
    idle(it)


def alone(it: OneNode) -> None:
    """Planning and deriving, and nothing else."""
    ring, now, plans, longest = it.make_ring(), 0.0, 0, 0.0
    cpu = time.process_time()
    ring.start((), {})
    ring.peers(it.nodes)
    while True:
        begin = time.perf_counter()
        plan = ring.plan(now)
        plans, longest = plans + 1, max(longest, time.perf_counter() - begin)
        if plan.wake != now:
            break
    cpu = time.process_time() - cpu
    assert len(plan.sas) == 4 * (len(it.nodes) - 1), "all that receive: the others come after them"
    words = f"{cpu:9.2f} s CPU  {plans} plans, the longest {1000 * longest:.0f} ms"
    print(f"  {'the ring alone: all planned and derived':44} {words}")


def idle(it: OneNode) -> None:
    """What the ring does by itself."""
    now = begin = time.monotonic()
    plans, cpu = 0, time.process_time()
    while now < begin + HOUR:
        wake = it.ring.plan(now).wake
        plans += 1
        now = max(now + 0.02, begin + HOUR if wake is None else wake)
    cpu = time.process_time() - cpu
    print(f"  {'an hour of wakes, nothing happens':44} {cpu:9.2f} s CPU  {plans} plans")


def main() -> None:
    words = sys.argv[1:]
    peers = int(words[0]) if words else PEERS
    mode = words[1] if len(words) > 1 else "psk"
    engine = Engine(words[2] if len(words) > 2 else "bpf")
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs: {peers} peers, {mode}, {engine}")
    gc.set_threshold(*GARBAGE)
    turns = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        runner.run(measure(turns, peers, mode, engine))


if __name__ == "__main__":
    main()
