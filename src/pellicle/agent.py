# SPDX-License-Identifier: Apache-2.0
"""The agent: the only file that knows every room. Read `_work` aloud.

    sources ─▶ tables ─▶ derive ─▶ tables ─▶ reconcile ─▶ the kernel ─▶ applied tables ─▶ …

It can be killed at any moment: programs, maps and links stay, and the next one reads them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any

import structlog

from pellicle import derived, exemptions, scrape
from pellicle.answers import answers
from pellicle.audit import Audit, wall
from pellicle.config import Attach, AuditMode, Config
from pellicle.datapath import endpoints, exempt, ipcache, overlay, policy, programs
from pellicle.datapath.door import DoorsTarget, DoorTarget
from pellicle.datapath.overlay import OverlayTarget
from pellicle.datapath.programs import ProgramTarget, Words
from pellicle.datapath.xfrm_device import XfrmDeviceTarget
from pellicle.encryption import engine, others
from pellicle.encryption import table as encryption_table
from pellicle.encryption.paths import PathMtus
from pellicle.encryption.policies import PolicyTarget
from pellicle.encryption.routes import ANY_LENGTH, RoutePlan, RouteTarget, RuleTarget, tables_of
from pellicle.encryption.sas import SaTarget
from pellicle.encryption.states import States
from pellicle.events import Events, Told
from pellicle.facts import Engine, Node, NodeName, Offer, Rejected
from pellicle.flows.decode import Decoder, PathMtu, ProbeSeen, SaConfirmed
from pellicle.flows.history import History
from pellicle.kernel.bpf import Object, ensure_bpffs
from pellicle.kernel.bpf.attach import Mode
from pellicle.kernel.changes import RouteChanges
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.nlsocket import Alarm
from pellicle.kernel.xfrm import XfrmChanges
from pellicle.keyhold import NO_KEYS, NodeKeys
from pellicle.keys.pairing import LocalNode, ProbeKind
from pellicle.metrics import Metrics
from pellicle.plans import derive
from pellicle.pods import PodPorts
from pellicle.policies import Policies
from pellicle.serve import CallError, Request, listen, serve
from pellicle.sight import Sight
from pellicle.sources import systemd, uplink
from pellicle.sources.audit_trail import AuditTrail
from pellicle.sources.cni import Cni, Datapath, Records
from pellicle.sources.cni_spec import CniError
from pellicle.sources.directory import Directory
from pellicle.sources.links import links, snapshot
from pellicle.sources.record import RecordTarget, defend
from pellicle.table import Reconciler, Table, reconcile
from pellicle.tables import Tables

WATCH_SECONDS = 5.0
"""How often path MTUs are tried again."""
FIRST_DOUBT_SECONDS, DOUBT_SECONDS = 0.02, 0.5
"""Between two looks at what somebody else is taking away, and goes on taking away."""

log = structlog.get_logger()


class Agent:
    """One node. Everything that can be refused is refused in the constructor, in words."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._name = NodeName(config.node_name)
        self._tables = Tables()
        self._netlink = Netlink()
        self._uplink = uplink.find(self._netlink, config.uplink, config.addresses)
        self._choice = engine.choose_for(config)
        if config.tunnel is not None:
            overlay.must_have(config.tunnel)
        self._keys = self._make_keys() if config.enable_encrypt_l3 else None
        self._socket = listen(config.run_dir / "agent.sock")
        self._bpf = self._load()
        self._rules = dict(exemptions.names(config.exempt))
        """What people call them; those that are no more, too."""
        self._decoder = Decoder.of(self._bpf.btf, self._rules)
        sealed = self._bpf.btf.enum("exported")["EXPORT_LONGEST"]
        self._longest = sealed if self._choice.engine is Engine.BPF else ANY_LENGTH
        self._directory = Directory(config.directory, config.refresh_seconds)
        self._news = asyncio.Event()
        """Of the directory."""
        self._rejected: tuple[Rejected, ...] = ()
        self._pending: tuple[Rejected, ...] = ()
        self._paths = PathMtus(
            self._tables.paths, self._uplink.mtu, time.monotonic, config.tunnel is not None
        )
        self._reconcilers: list[Reconciler[Any, Any]] = []
        mode: dict[Attach, Mode] = {Attach.TCX: "tcx", Attach.CLSACT: "clsact"}
        self._programs = ProgramTarget(self._bpf, config.bpffs / "links", mode.get(config.attach))
        self._states = States.open(self._uplink.name, config.ipsec_offload)
        self._sas = SaTarget(self._bpf, self._states)
        self._hooks = self._reconciler(self._tables.hooks, self._programs, self._tables.hooks_up)
        self._cni = Cni(
            self._name,
            config.pod_cidrs,
            Records.in_directory(config.directory),
            self._ports(),
        )
        self._sight = self._make_sight()
        self._sight.trail = AuditTrail(config.state_dir / "audit", wall)
        self._audit = Audit(self._sight, self._sight.trail)
        self._policies = Policies(self._tables, self._name, has_own_keys=not config.are_keys_manual)
        self._events = Events(
            self._bpf, self._decoder, self._sight.history, self._tables.names, self._take
        )
        self._metrics = Metrics(self._sight, self._events)
        where = config.metrics_address
        self._scraped = scrape.listen(where) if where else None

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
        cidrs = self._configured_cidrs()
        of_cluster = derived.of_cluster(t, self._name, self._uplink.name, cidrs)
        yield from map(derive, of_cluster)
        has_own = not config.are_keys_manual
        yield from map(derive, derived.of_policies(t, self._name, has_own_keys=has_own))
        self._reconciler(t.policy_ports, policy.ports_target(self._bpf), t.policy_ports_up)
        self._reconciler(t.policy_rows, policy.target(self._bpf), t.policy_rows_up)
        self._reconciler(t.doors, DoorsTarget(self._bpf), t.doors_up)
        self._reconciler(t.door, DoorTarget(self._netlink, self._uplink.name), t.door_up)
        self._reconciler(t.pods, endpoints.target(self._bpf), t.pods_up)
        self._reconciler(t.ipcache, ipcache.target(self._bpf), t.ipcache_up)
        self._reconciler(t.cidrs, ipcache.cidr_target(self._bpf), t.cidrs_up)
        t.exempt.replace(exempt.plan(config.exempt))
        self._reconciler(t.exempt, exempt.target(self._bpf), t.exempt_up)
        target = RecordTarget(config.directory, self._name, t.nodes)
        record = self._reconciler(t.record, target, t.record_up)
        yield defend(record, self._news)
        yield from self._overlay()
        yield from self._encryption()
        for each in self._reconcilers:
            yield reconcile(each, time.monotonic, config.refresh_seconds)
        yield self._events.follow()
        yield self._audit.run()
        yield self._announce()
        yield serve(self._socket, self._answers())
        if self._scraped is not None:
            yield scrape.serve(self._scraped, self._metrics.text)

    def _overlay(self) -> Iterable[Coroutine[Any, Any, None]]:
        t, config = self._tables, self._config
        self._reconciler(t.overlay, OverlayTarget(self._netlink), t.overlay_up)
        self._reconciler(t.remotes, overlay.remotes_target(self._bpf), t.remotes_up)
        name, family = self._uplink.name, str(config.outer_family)
        yield from map(derive, derived.of_overlay(t, self._name, name, config.tunnel, family))

    def _encryption(self) -> Iterable[Coroutine[Any, Any, None]]:
        """Routes and keys; with encryption off, only the overlay wants routes."""
        t, config = self._tables, self._config
        route = RoutePlan(
            self._name,
            self._uplink.name,
            config.route_table,
            str(config.outer_family),
            self._choice.engine,
            self._longest,
            config.encrypt_nodes,
            is_overlay=config.tunnel is not None,
            is_encrypting=self._keys is not None,
        )
        self._reconciler(t.sas, self._sas, t.sas_up, once=True)
        self._reconciler(t.encrypt, encryption_table.target(self._bpf), t.encrypt_up)
        self._reconciler(t.rules, RuleTarget(self._netlink), t.rules_up)
        self._reconciler(t.routes, RouteTarget(self._netlink, config.route_table), t.routes_up)
        subnets = config.encrypt_subnets
        yield from map(derive, derived.of_encryption(t, self._choice.engine, subnets))
        yield from self._kernel_ipsec()
        changes = RouteChanges(tables_of(config.route_table), own=[self._netlink.port])
        yield self._miss(changes, t.rules, t.routes)
        self._paths.forget()
        t.rules.replace(route.rules())
        if t.rules.rows:
            yield from map(derive, derived.of_routes(t, route))
        else:
            t.routes.replace({})
        if self._keys is None:
            for table in (t.sas, t.sends, t.own_sends, t.peers):
                table.replace({})
            self._publish(())
            return
        yield from self._keys.work(self._sas)
        yield self._watch_paths()

    def _kernel_ipsec(self) -> Iterable[Coroutine[Any, Any, None]]:
        """The xfrm engine's own: its device and its policies, as long as anything needs them. And
        what others do with the kernel's IPsec, whichever engine this is.
        """
        t = self._tables
        self._reconciler(t.others, others.target(self._bpf), t.others_up)
        if self._states is None:
            for table in (t.device, t.policies, t.policies_up, t.others):
                table.replace({})
            return
        subnets, is_overlay = self._config.encrypt_subnets, self._config.tunnel is not None
        of_kernel = derived.of_kernel_ipsec(t, self._uplink.name, subnets, is_overlay=is_overlay)
        yield from map(derive, of_kernel)
        self._reconciler(t.device, XfrmDeviceTarget(self._netlink), t.device_up)
        self._reconciler(t.policies, PolicyTarget(self._states.xfrm), t.policies_up)
        yield self._miss(XfrmChanges(own=[self._states.xfrm.port]), t.sas, t.policies)
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
            self._rules.update(
                (each.number, f"policy {each.name}") for each in world.policies.values()
            )
            self._tables.encryption_policies.replace(world.policies)
            self._news.set()
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

    def _take(self, event: Told) -> None:
        match event:
            case SaConfirmed() if self._keys:
                self._keys.keying.confirmed(event.pair)
            case ProbeSeen() if self._keys:
                self._keys.keying.probed(event.pair, ProbeKind[event.kind.upper()])
            case PathMtu():
                self._paths.narrow(event.destination, event.mtu, self._tables.nodes.rows.values())

    async def _watch_paths(self) -> None:
        """Path MTUs that are to be tried again."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._paths.forget()

    async def _miss(self, changes: Alarm, *tables: Table[Any, Any]) -> None:
        """What somebody else has taken away of these is put back at once."""
        with changes:
            pause, ended = DOUBT_SECONDS, time.monotonic()
            async for _ in changes:
                was_quiet = time.monotonic() > ended + DOUBT_SECONDS
                pause = FIRST_DOUBT_SECONDS if was_quiet else min(2 * pause, DOUBT_SECONDS)
                for each in self._reconcilers:
                    if each.desired in tables:
                        each.doubt()
                await asyncio.sleep(pause)
                ended = time.monotonic()

    # --- keys ---------------------------------------------------------------------------------

    def _make_keys(self) -> NodeKeys:
        local = LocalNode(self._name, self._uplink.addresses)
        return NodeKeys(self._config, local, self._choice, self._tables, self._publish)

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
            self._longest, is_encrypting=self._keys is not None,
            is_overlay=self._config.tunnel is not None,
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
        of_keys = self._keys.answers() if self._keys else NO_KEYS
        own = {
            **self._audit.answers(),
            **self._policies.answers(),
            "metrics": self._metrics.answer,
            "cni": self._answer_cni,
        }
        return {**answers(self._sight), **of_keys, **own}

    async def _answer_cni(self, request: Request) -> AsyncIterator[Any]:
        try:
            yield await self._cni.call(request.arguments, request.descriptor)
        except CniError as error:
            raise CallError(error.code, error.message, error.hint) from error

    def _make_sight(self) -> Sight:
        t, keys = self._tables, self._keys
        return Sight(
            self._config, self._uplink.name, self._choice, self._longest, self._bpf,
            self._decoder, self._programs, self._sas, self._states, keys.keying if keys else None,
            t.peers, t.nodes, t.endpoints, t.names, t.links, self._all_rejected,
            self._reconcilers, History(), self._problems,
            *((keys.svids, keys.told) if keys else ()),
        )  # fmt: skip

    def _all_rejected(self) -> tuple[Rejected, ...]:
        of_keys = self._keys.rejected() if self._keys else ()
        return (*self._rejected, *self._pending, *of_keys)

    def _problems(self) -> Iterable[str]:
        if self._directory.problem:
            yield self._directory.problem
        if self._keys is not None:
            yield from self._keys.problems()
        yield from self._audit.problems()
        yield from self._policies.problems()
        if self._tables.nodes.listed and self._name not in self._tables.nodes.rows:
            yield f"the record of this node, {self._name}, is not in force: see what is rejected"

    # --- the kernel -----------------------------------------------------------------------------

    def _load(self) -> Object:
        config = self._config
        for part in ("maps", "links"):
            ensure_bpffs(config.bpffs / part)
        words = Words(
            config.enable_encrypt_l3,
            config.encrypt_nodes,
            config.audit is AuditMode.MONITOR,
            self._uplink.index,
            int(config.flow_interval * 1000),
            self._uplink.addresses,
            *overlay.words(config.tunnel),
        )
        loaded = programs.load(words, config.bpffs / "maps")
        # Before a program runs over maps that may be new and empty: what is the cluster's, and what
        # may always pass.
        cidrs = self._configured_cidrs()
        for cidr_error in ipcache.cidr_target(loaded).put(cidrs).values():
            raise cidr_error
        for error in exempt.target(loaded).put(exempt.plan(config.exempt)).values():
            raise error
        return loaded

    def _configured_cidrs(self) -> ipcache.Cidrs:
        """What is the cluster's whatever the records say: this node, too."""
        c, own = self._config, self._uplink.addresses
        return ipcache.configured_cidrs(c.cluster_cidrs, c.node_cidrs, c.node_cidrs_except, own)

    def _reconciler(
        self, wanted: Table[Any, Any], target: Any, up: Table[Any, Any], *, once: bool = False
    ) -> Reconciler[Any, Any]:
        made: Reconciler[Any, Any] = Reconciler(wanted, target, up, once=once)
        self._reconcilers.append(made)
        return made
