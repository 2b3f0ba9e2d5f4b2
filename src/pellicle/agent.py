# SPDX-License-Identifier: Apache-2.0
"""The agent: the only file that knows every room. Read `_work` aloud.

    sources ─▶ tables ─▶ derive ─▶ tables ─▶ reconcile ─▶ the kernel ─▶ applied tables ─▶ …

It can be killed at any moment: programs, maps and links stay, and the next one reads them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import structlog

from pellicle import logs
from pellicle.answers import Sight, answers
from pellicle.config import Attach, Config, KeyMode
from pellicle.datapath import door, endpoints, ipcache, programs, xfrm_device
from pellicle.datapath.door import DoorsTarget, DoorTarget
from pellicle.datapath.programs import ProgramTarget, Words
from pellicle.datapath.xfrm_device import XfrmDeviceTarget
from pellicle.encryption import engine, others, policies
from pellicle.encryption import table as encryption_table
from pellicle.encryption.keying import Keying
from pellicle.encryption.paths import PathMtus
from pellicle.encryption.policies import PolicyTarget
from pellicle.encryption.probe import send_probe
from pellicle.encryption.routes import (
    ANY_LENGTH,
    RoutePlan,
    RouteTarget,
    RuleTarget,
)
from pellicle.encryption.sas import SaTarget
from pellicle.encryption.states import States
from pellicle.encryption.svids import Svids
from pellicle.facts import (
    Engine,
    Node,
    NodeName,
    Offer,
    Rejected,
)
from pellicle.flows import names
from pellicle.flows.decode import Decoder, FlowEvent, PathMtu, ProbeSeen, SaConfirmed
from pellicle.flows.history import History
from pellicle.kernel import Unsupported, libc
from pellicle.kernel.bpf import Object, RingBuffer, ensure_bpffs
from pellicle.kernel.bpf.attach import Mode
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm, XfrmChanges
from pellicle.keys.history import KeyEvent, progress
from pellicle.keys.pairing import Keyring, LocalNode, ProbeKind
from pellicle.keys.secret import SecretError, no_secret
from pellicle.keys.spiffe import Spiffe
from pellicle.keys.trust import Trust
from pellicle.pods import PodPorts
from pellicle.serve import CallError, Request, listen, serve
from pellicle.sources import systemd, uplink
from pellicle.sources.cni import Cni, Datapath, Records
from pellicle.sources.cni_spec import CniError
from pellicle.sources.directory import Directory
from pellicle.sources.links import links, snapshot
from pellicle.sources.record import RecordTarget
from pellicle.sources.secrets import SecretFile, SecretFileError
from pellicle.sources.trail import Trail
from pellicle.sources.workload import NoGrpc, WorkloadApi
from pellicle.table import Reconciler, Table, derive, reconcile
from pellicle.tables import Tables

EVENTS_AT_ONCE = 4096
"""Then everything else has its turn, however fast they come."""
WATCH_SECONDS = 5.0
LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS = 1.0, 60.0
BUSIEST_PPS = 1 << 22
"""No SA sends more packets a second."""
MOST_OCTETS = 1 << 46
"""Under one key: 2^42 blocks of AES, far from where their number would tell anything (2^64)."""

ROTATE_LOOK_SECONDS = 0.1
DOUBT_SECONDS = 0.5
"""Between two looks at what somebody else is taking away."""

REFUSALS = (uplink.NoUplink, SecretFileError, SecretError, NoGrpc, Unsupported, OSError)
"""What keeps an agent from starting, in words for the operator."""

log = structlog.get_logger()


class Agent:
    """One node. Everything that can be refused is refused in the constructor, in words."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name = NodeName(config.node_name)
        self._tables = Tables()
        self._netlink = Netlink()
        self._uplink = uplink.find(self._netlink, config.uplink, config.addresses)
        path = config.psk_file if config.enable_encrypt_l3 else None
        self._secrets = None if path is None else SecretFile(path)
        self._choice = engine.choose_for(config)
        self._socket = listen(config.run_dir / "agent.sock")
        self._bpf = self._load()
        self._decoder = Decoder.of(self._bpf.btf)
        sealed = self._bpf.btf.enum("exported")["EXPORT_LONGEST"]
        self._longest = sealed if self._choice.engine is Engine.BPF else ANY_LENGTH
        self._directory = Directory(config.directory, config.refresh_seconds)
        self._rejected: tuple[Rejected, ...] = ()
        self._pending: tuple[Rejected, ...] = ()
        self._paths = PathMtus(self._tables.paths, self._uplink.mtu, time.monotonic)
        self._reconcilers: list[Reconciler[Any, Any]] = []
        mode: dict[Attach, Mode] = {Attach.TCX: "tcx", Attach.CLSACT: "clsact"}
        self._programs = ProgramTarget(self._bpf, config.bpffs / "links", mode.get(config.attach))
        self._states = States.open(self._uplink.name, config.ipsec_offload)
        self._sas = SaTarget(self._bpf, self._states)
        self._trail = Trail(config.state_dir / "keys.jsonl")
        self._trail_problem = ""
        self._spiffe = self._make_spiffe()
        self._keying = self._make_keying() if config.enable_encrypt_l3 else None
        self._svids = self._make_svids()
        self._hooks = self._reconciler(self._tables.hooks, self._programs, self._tables.hooks_up)
        self._cni = Cni(
            self._name,
            config.pod_cidrs,
            Records.in_directory(config.directory),
            self._ports(),
        )
        self._sight = self._make_sight()

    async def run(self) -> None:
        """Until cancelled. The datapath stays as it is when this ends."""
        async with asyncio.TaskGroup() as tasks:
            for work in self._work():
                tasks.create_task(work)

    def _work(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Every task of the agent: sources, plans, reconcilers, keys, events, the socket."""
        t, config = self._tables, self._config
        yield self._follow_directory()
        yield self._follow_links()
        yield derive(t.names, partial(names.plan, self._name), [t.nodes, t.endpoints])
        yield derive(t.hooks, partial(programs.plan, self._uplink.name), [t.links])
        yield derive(t.pods, partial(endpoints.plan, self._name), [t.endpoints, t.links])
        yield derive(t.ipcache, partial(ipcache.plan, self._name), [t.nodes, t.endpoints])
        yield derive(t.cidrs, partial(ipcache.plan_cidrs, config.cluster_cidrs), [t.nodes])
        yield derive(t.door, partial(door.plan, self._name, self._uplink.name), [t.nodes, t.links])
        yield derive(t.doors, door.plan_doors, [t.links])
        self._reconciler(t.doors, DoorsTarget(self._bpf), t.doors_up)
        self._reconciler(t.door, DoorTarget(self._netlink, self._uplink.name), t.door_up)
        self._reconciler(t.pods, endpoints.target(self._bpf), t.pods_up)
        self._reconciler(t.ipcache, ipcache.target(self._bpf), t.ipcache_up)
        self._reconciler(t.cidrs, ipcache.cidr_target(self._bpf), t.cidrs_up)
        record = RecordTarget(config.directory, self._name, t.nodes)
        self._reconciler(t.record, record, t.record_up)
        yield from self._encryption()
        for each in self._reconcilers:
            yield reconcile(each, time.monotonic, config.refresh_seconds)
        yield self._follow_events()
        yield self._announce()
        yield serve(self._socket, self._answers())

    def _encryption(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Routes to the door and keys; with encryption off, neither is wanted."""
        t, config = self._tables, self._config
        route = RoutePlan(
            self._name,
            self._uplink.name,
            config.route_table,
            str(config.outer_family),
            self._choice.engine,
            self._longest,
        )
        self._reconciler(t.sas, self._sas, t.sas_up, once=True)
        self._reconciler(t.encrypt, encryption_table.target(self._bpf), t.encrypt_up)
        self._reconciler(t.rules, RuleTarget(self._netlink, config.route_table), t.rules_up)
        self._reconciler(t.routes, RouteTarget(self._netlink, config.route_table), t.routes_up)
        yield derive(t.encrypt, encryption_table.plan, [t.sends, t.nodes, t.passable])
        yield from self._kernel_ipsec()
        self._paths.forget()
        if self._keying is None:
            for table in (t.sas, t.sends, t.rules, t.routes, t.peers):
                table.replace({})
            self._publish(())
            return
        t.rules.replace(route.rules())
        yield derive(t.routes, route.routes, [t.nodes, t.links, t.paths, t.encrypt_up])
        if self._svids is None:
            yield self._keying.run()
        else:
            yield self._svids.follow()
            yield self._svids.keys()
        if self._secrets is not None:
            yield self._follow_secrets(self._secrets, self._keying)
        yield self._watch_counters(self._keying)
        yield self._watch_paths()

    def _kernel_ipsec(self) -> Iterable[Coroutine[Any, Any, None]]:
        """The xfrm engine's own: its device and its policies, as long as anything needs them. And
        what others do with the kernel's IPsec, whichever engine this is.
        """
        t, used = self._tables, self._choice.engine
        yield derive(t.passable, policies.plan_passable, [t.sas_up, t.policies, t.policies_up])
        self._reconciler(t.others, others.target(self._bpf), t.others_up)
        if self._states is None:
            for table in (t.device, t.policies, t.policies_up, t.others):
                table.replace({})
            return
        yield derive(
            t.device, partial(xfrm_device.plan, self._uplink.name, used), [t.links, t.sas_up]
        )
        yield derive(t.policies, partial(policies.plan, used), [t.sas_up, t.nodes])
        self._reconciler(t.device, XfrmDeviceTarget(self._netlink), t.device_up)
        self._reconciler(t.policies, PolicyTarget(self._states.xfrm), t.policies_up)
        yield self._watch_kernel(self._states.xfrm)
        yield others.follow(self._states.xfrm, t.others)

    # --- sources ------------------------------------------------------------------------------

    async def _follow_directory(self) -> None:
        is_adopted = False
        async for world in self._directory.worlds():
            self._rejected = world.rejected
            self._pending = tuple(
                Rejected(each.source, str(each.endpoint.name), f"waits: {each.why}")
                for each in world.pending
            )
            self._tables.nodes.replace(world.nodes)
            self._tables.endpoints.replace(world.endpoints)
            if not is_adopted:
                known = [*world.endpoints.values(), *(each.endpoint for each in world.pending)]
                await self._cni.adopt(known, snapshot(self._netlink))
                is_adopted = True

    async def _follow_links(self) -> None:
        async for devices in links():
            self._tables.links.replace(devices)
            found = devices.get(self._uplink.name)
            if found is not None and found.index != self._uplink.index:
                why = f"uplink {self._uplink.name} was replaced by another device of that name"
                raise RuntimeError(f"{why}: the agent starts anew to serve it")

    async def _follow_events(self) -> None:
        loop = asyncio.get_running_loop()
        with RingBuffer(self._bpf.map("events")) as ring:
            loop.add_reader(ring, lambda: self._take(ring.consume(EVENTS_AT_ONCE)))
            try:
                await asyncio.Event().wait()
            finally:
                loop.remove_reader(ring)

    def _take(self, records: list[bytes]) -> None:
        decoded = self._decoder.events(records)
        flows = [event for event in decoded.events if isinstance(event, FlowEvent)]
        self._sight.history.add(flows, self._tables.names.rows)
        for event in decoded.events:
            match event:
                case SaConfirmed() if self._keying:
                    self._keying.confirmed(event.pair)
                case ProbeSeen() if self._keying:
                    self._keying.probed(event.pair, ProbeKind[event.kind.upper()])
                case PathMtu():
                    self._paths.narrow(
                        event.destination, event.mtu, self._tables.nodes.rows.values()
                    )

    async def _watch_counters(self, keying: Keying) -> None:
        """SAs that near their last packet or byte."""
        limit = self._config.sa_packet_limit
        # All SAs of thousands of peers are read: no more often than the fastest could need it.
        seconds = min(max(limit / 4 / BUSIEST_PPS, LEAST_WATCH_SECONDS), MOST_WATCH_SECONDS)
        while True:
            await asyncio.sleep(seconds)
            for count in self._sas.counts():
                is_spent = count.sequence > limit // 2 or count.octets > MOST_OCTETS
                if count.direction == "out" and is_spent:
                    keying.spent(count.pair)

    async def _watch_paths(self) -> None:
        """Path MTUs that are to be tried again."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._paths.forget()

    async def _watch_kernel(self, xfrm: Xfrm) -> None:
        """States or policies that somebody else has taken away are missed at once."""
        tables = {self._tables.sas, self._tables.policies}
        with XfrmChanges(own=[xfrm.port]) as changes:
            async for _ in changes:
                for each in self._reconcilers:
                    if each.desired in tables:
                        each.doubt()
                await asyncio.sleep(DOUBT_SECONDS)

    # --- keys ---------------------------------------------------------------------------------

    async def _follow_secrets(self, file: SecretFile, keying: Keying) -> None:
        async for known in file.changes():
            log.info("pre-shared secrets changed", fingerprints=[s.fingerprint for s in known])
            keying.know(known)

    def _make_spiffe(self) -> Spiffe | None:
        config = self._config
        if not config.enable_encrypt_l3 or config.trust is not KeyMode.SPIFFE:
            return None
        return Spiffe(self._name, config.spiffe_id, time.time)

    def _make_svids(self) -> Svids | None:
        if self._spiffe is None or self._keying is None:
            return None
        api = WorkloadApi(self._config.spiffe_socket)
        return Svids(self._spiffe, self._keying, api.responses, lambda: api.problem)

    def _make_keying(self) -> Keying:
        t, config = self._tables, self._config
        known: Sequence[Trust] = (self._spiffe or no_secret(),)
        if self._secrets is not None:
            known = self._secrets.now
        ring = Keyring(
            LocalNode(self._name, self._uplink.addresses),
            known,
            os.urandom,
            ciphers=self._choice.ciphers,
            engine=self._choice.engine,
            drain_seconds=config.drain_seconds,
            packet_limit=config.sa_packet_limit,
            outer_family=str(config.outer_family),
            lifetime_seconds=config.key_lifetime,
        )
        return Keying(
            ring, self._name, t.nodes, t.sas_up, t.encrypt_up, t.passable, t.sas, t.sends, t.peers,
            self._publish, send_probe, time.monotonic, self._tell, _wall,
        )  # fmt: skip

    def _tell(self, events: Sequence[KeyEvent]) -> None:
        """Into the log and the trail; who cannot write encrypts all the same, and says so."""
        for event in events:
            log.info("keys", **msgspec.to_builtins(event))
            self._sight.key_events[event.what] += 1
        try:
            self._trail.add(events)
        except OSError as error:
            self._trail_problem = f"the history of keys cannot be written: {error}"
        else:
            self._trail_problem = ""

    async def _answer_rotate(self, _request: Request) -> AsyncIterator[Any]:
        """How far everybody is, whenever that changes, until all have moved or are stale."""
        keying = self._keying
        if keying is None or keying.plan is None or not keying.plan.own:
            raise CallError(7, "no keys are in use yet: encryption is off, or just begins")
        last = keying.plan.own[-1].epoch
        keying.rotate()
        said = None
        while True:
            said, before = progress(keying.plan, last), said
            if said != before:
                yield said
            if said["done"]:
                return
            await asyncio.sleep(ROTATE_LOOK_SECONDS)

    async def _answer_history(self, _request: Request) -> AsyncIterator[Any]:
        for event in await asyncio.to_thread(lambda: list(self._trail.rows())):
            yield msgspec.to_builtins(event)

    def _publish(self, offers: tuple[Offer, ...]) -> None:
        choice = self._choice
        node = Node(
            self._name,
            self._uplink.addresses,
            self._config.pod_cidrs,
            offers,
            choice.ciphers,
            self._longest if choice.engine is Engine.BPF else None,
        )
        self._tables.record.replace({self._name: node})

    def _ports(self) -> Datapath:
        ports = PodPorts(
            self._tables, self._hooks, self._netlink, self._uplink, str(self._config.outer_family),
            self._longest, is_encrypting=self._keying is not None,
        )  # fmt: skip
        return Datapath(ports.attach, ports.detach, ports.ready, ports.mtu, self._cni_trouble)

    def _cni_trouble(self) -> str:
        return next(iter(self._problems()), "")

    # --- what it says ---------------------------------------------------------------------------

    async def _announce(self) -> None:
        """READY when the datapath stands."""
        t = self._tables
        with Table.bell(t.hooks_up, t.door_up, t.record_up) as changed:
            while not (t.hooks_up.rows and t.door_up.rows and t.record_up.rows):
                changed.clear()
                await changed.wait()
        log.info("ready", node=self._name, uplink=self._uplink.name)
        systemd.notify(os.environ, "READY=1")

    def _answers(self) -> Mapping[str, Any]:
        return {
            **answers(self._sight),
            "cni": self._answer_cni,
            "rotate": self._answer_rotate,
            "history": self._answer_history,
        }

    async def _answer_cni(self, request: Request) -> AsyncIterator[Any]:
        try:
            yield await self._cni.call(request.arguments, request.descriptor)
        except CniError as error:
            raise CallError(error.code, error.message, error.hint) from error

    def _make_sight(self) -> Sight:
        t = self._tables
        return Sight(
            self._config, self._uplink.name, self._choice, self._longest, self._bpf,
            self._decoder, self._programs, self._sas, self._states, self._keying, t.peers,
            t.nodes, t.endpoints, t.names, t.links, self._all_rejected, self._reconcilers,
            History(), self._problems, svids=self._svids,
        )  # fmt: skip

    def _all_rejected(self) -> tuple[Rejected, ...]:
        of_secrets = self._secrets.rejected if self._secrets else ()
        of_svids = self._spiffe.rejected if self._spiffe else ()
        return (*self._rejected, *self._pending, *of_secrets, *of_svids)

    def _problems(self) -> Iterable[str]:
        if self._directory.problem:
            yield self._directory.problem
        if self._svids is not None:
            yield from self._svids.problems()
        if self._trail_problem:
            yield self._trail_problem
        if self._tables.nodes.listed and self._name not in self._tables.nodes.rows:
            yield f"the record of this node, {self._name}, is not in force: see what is rejected"

    # --- the kernel -----------------------------------------------------------------------------

    def _load(self) -> Object:
        config = self._config
        for part in ("maps", "links"):
            ensure_bpffs(config.bpffs / part)
        words = Words(
            config.enable_encrypt_l3,
            self._uplink.index,
            int(config.flow_interval * 1000),
            self._uplink.addresses,
        )
        loaded = programs.load(words, config.bpffs / "maps")
        # Before a program runs over maps that may be new and empty: what is the cluster's.
        cidrs = ipcache.plan_cidrs(config.cluster_cidrs, {})
        for error in ipcache.cidr_target(loaded).put(cidrs).values():
            raise error
        return loaded

    def _reconciler(
        self, wanted: Table[Any, Any], target: Any, up: Table[Any, Any], *, once: bool = False
    ) -> Reconciler[Any, Any]:
        made: Reconciler[Any, Any] = Reconciler(wanted, target, up, once=once)
        self._reconcilers.append(made)
        return made


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class CannotStart(Exception):  # noqa: N818  it is an answer for the operator
    """Why there is no agent, in words; nothing was changed that encrypts less than before."""


async def run(config: Config) -> None:
    """Be this node's agent until SIGTERM or SIGINT; `CannotStart` says why not."""
    libc.forbid_core_dumps()
    logs.configure(config.log_level, config.log_format)
    try:
        agent = Agent(config)
    except REFUSALS as error:
        raise CannotStart(str(error)) from error
    work = asyncio.ensure_future(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        systemd.notify(os.environ, "STOPPING=1")
        log.info("stopped; the datapath goes on")
