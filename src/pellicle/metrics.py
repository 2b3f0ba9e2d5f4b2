# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads: packets, peers, SAs, keys, and how far the kernel is from the tables.

Nothing here holds up the event loop: what belongs to it is taken at once, and the maps are read
and the text is written in another thread. Series: a few hundred, and nine for each peer.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pellicle.encryption.states import States
from pellicle.encryption.traffic import SaKind, Seen, Traffic
from pellicle.events import Events
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.pairing import PeerState
from pellicle.keys.rows import Direction
from pellicle.serve import Request
from pellicle.sight import (
    VERSION,
    Sight,
    all_rejected,
    events_lost,
    kernel_drops,
    no_collection,
    packet_counts,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

FRESH_SECONDS = 1.0
"""However many ask, a text is made no more often."""

Sums = Mapping[tuple[str, Direction], Traffic]
Sample = tuple[tuple[str, ...], float]


class Metrics:
    """Made anew whenever somebody asks."""

    def __init__(self, sight: Sight, events: Events) -> None:
        self._sight, self._events = sight, events
        self._states = States(Xfrm()) if sight.states else None
        """Of its own: no socket serves two threads."""
        self._turn = asyncio.Lock()
        self._made = float("-inf")
        self._text = ""

    async def answer(self, _request: Request) -> AsyncIterator[dict[str, Any]]:
        """The call `metrics`."""
        yield {"text": await self.text()}

    async def text(self) -> str:
        """The exposition, in Prometheus' text format; at most a second old."""
        async with self._turn:
            if time.monotonic() >= self._made + FRESH_SECONDS:
                moment = Moment.of(self._sight)
                with no_collection():
                    self._text = await asyncio.to_thread(self._write, moment)
                self._made = time.monotonic()
            return self._text

    def _write(self, moment: Moment) -> str:
        import prometheus_client as prometheus  # noqa: PLC0415  0.1 s

        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        registry.register(_Collector(lambda: self._families(moment)))
        return prometheus.generate_latest(registry).decode()

    def _families(self, moment: Moment) -> Iterable[Metric]:
        sight, peers = self._sight, self._sight.peers.rows
        used = {peer.pair for peer in peers.values() if peer.pair is not None}
        names = {
            address: name for name, node in sight.nodes.rows.items() for address in node.addresses
        }
        seen = sight.sas.totals.read(self._read_states, used, names.keys())
        sums: dict[tuple[str, Direction], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for (address, direction), traffic in seen.traffic.items():
            whole = sums[names[address], direction]
            whole[:] = [one + other for one, other in zip(whole, traffic, strict=True)]
        yield from _of_packets(sight)
        yield from _of_peers(sight, {ends: Traffic(*each) for ends, each in sums.items()})
        yield from _of_sas(sight, seen, moment)
        yield from _of_tables(sight)
        yield from _of_events(sight, self._events)
        yield from _of_agent(sight, moment)
        yield from _of_svids(sight)

    def _read_states(self) -> Any:
        return self._states.read() if self._states else {}


@dataclass(frozen=True, slots=True)
class Moment:
    """What only the event loop may look at."""

    key_events: Mapping[str, int]
    problems: int
    rejected: int

    @classmethod
    def of(cls, sight: Sight) -> Moment:
        return cls(dict(sight.key_events), len(list(sight.problems())), len(all_rejected(sight)))


@dataclass(frozen=True, slots=True)
class _Collector:
    families: Callable[[], Iterable[Metric]]

    def collect(self) -> Iterable[Metric]:
        return self.families()


def counter(name: str, words: str, samples: Iterable[Sample], *labels: str) -> Metric:
    """A family of counters; `name` without the _total that each sample's gets."""
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(name, words, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def gauge(name: str, words: str, samples: Iterable[Sample], *labels: str) -> Metric:
    """A family of gauges."""
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    family = GaugeMetricFamily(name, words, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _of_packets(sight: Sight) -> Iterable[Metric]:
    rows = [((row["verdict"], row["reason"]), row) for row in packet_counts(sight)]
    labels = ("verdict", "reason")
    packets = [(names, row["packets"]) for names, row in rows]
    octets = [(names, row["bytes"]) for names, row in rows]
    yield counter("pellicle_packets", "Packets by what came of them.", packets, *labels)
    yield counter(
        "pellicle_bytes", "Bytes of these packets, from their IP headers on.", octets, *labels
    )
    drops = [((row["reason"],), row["packets"]) for row in kernel_drops(sight)]
    words = "Packets dropped by the kernel's IPsec in this network namespace, ours or not."
    yield counter("pellicle_kernel_drops", words, drops, "reason")


def _of_peers(sight: Sight, sums: Sums) -> Iterable[Metric]:
    peers = sight.peers.rows
    ends = [(name, way) for name in peers for way in Direction]
    packets = [((name, way.value), sums.get((name, way), Traffic()).packets) for name, way in ends]
    octets = [((name, way.value), sums.get((name, way), Traffic()).octets) for name, way in ends]
    words = "Encrypted packets to and from a peer since the agent began, over all of its SAs."
    yield counter("pellicle_peer_packets", words, packets, "peer", "direction")
    words = "Bytes of these packets, without ESP; of the engine xfrm as the kernel counts them."
    yield counter("pellicle_peer_bytes", words, octets, "peer", "direction")
    inbound = [(name, sums.get((name, Direction.IN), Traffic())) for name in peers]
    replayed = [((name,), each.replayed) for name, each in inbound]
    words = "Packets from a peer that were seen before, or too old to tell."
    yield counter("pellicle_peer_replayed_packets", words, replayed, "peer")
    failed = [((name,), each.auth_failed) for name, each in inbound]
    words = "Packets in a peer's name whose tag does not verify."
    yield counter("pellicle_peer_auth_failed_packets", words, failed, "peer")
    ready = [((name,), float(peer.state is PeerState.READY)) for name, peer in peers.items()]
    yield gauge("pellicle_peer_ready", "1: the peer is sent to.", ready, "peer")
    epochs = [
        ((name, side), float(epoch))
        for name, peer in peers.items()
        for side, epoch in (("local", peer.local_epoch), ("peer", peer.peer_epoch))
        if epoch is not None
    ]
    words = "The number of the key offer in use with a peer: this node's, and the peer's."
    yield gauge("pellicle_peer_key_epoch", words, epochs, "peer", "side")
    counted = Counter(peer.state for peer in peers.values())
    states = [((state.value,), counted[state]) for state in PeerState]
    yield gauge("pellicle_peers", "Peers by the state of their keys.", states, "state")


def _of_sas(sight: Sight, seen: Seen, moment: Moment) -> Iterable[Metric]:
    sas = [(tuple(kind), number) for kind, number in seen.sas.items()]
    yield gauge("pellicle_sas", "Security associations that stand.", sas, *SaKind._fields)
    offloaded = sight.states.offloaded if sight.states else 0
    yield gauge("pellicle_sas_offloaded", "Of them, done by the uplink.", [((), offloaded)])
    events = [((what,), number) for what, number in moment.key_events.items()]
    words = "What has become of this node's key offers, and of its peers."
    yield counter("pellicle_key_events", words, events, "what")


def _of_tables(sight: Sight) -> Iterable[Metric]:
    now, wall = time.monotonic(), time.time()
    lags = [reconciler.lag() for reconciler in sight.reconcilers]
    behind = [
        ((lag.table,), 0.0 if lag.behind_since is None else now - lag.behind_since) for lag in lags
    ]
    refreshed = [
        ((lag.table,), wall - now + lag.refreshed) for lag in lags if lag.refreshed is not None
    ]
    of = ("table",)
    yield gauge(
        "pellicle_rows_desired",
        "Rows that are wanted.",
        [((lag.table,), lag.desired) for lag in lags],
        *of,
    )
    yield gauge(
        "pellicle_rows_applied",
        "Of them, those that stand.",
        [((lag.table,), lag.applied) for lag in lags],
        *of,
    )
    yield gauge(
        "pellicle_rows_failed",
        "Rows that the kernel refuses.",
        [((lag.table,), len(lag.failures)) for lag in lags],
        *of,
    )
    words = "Rows that somebody else had changed, put right."
    yield counter("pellicle_rows_healed", words, [((lag.table,), lag.healed) for lag in lags], *of)
    words = "For how long the kernel has not been what the table wants; 0: it is."
    yield gauge("pellicle_reconcile_lag_seconds", words, behind, *of)
    words = "Since 1970: when the kernel was last compared with the table."
    yield gauge("pellicle_reconcile_refresh_timestamp_seconds", words, refreshed, *of)


def _of_events(sight: Sight, events: Events) -> Iterable[Metric]:
    history = sight.history
    yield counter(
        "pellicle_events_lost",
        "Events that found the ring buffer full.",
        [((), events_lost(sight))],
    )
    yield counter("pellicle_events_read", "Events that were read.", [((), events.read)])
    words = "Events that could not be understood."
    yield counter("pellicle_events_rejected", words, [((), events.rejected)])
    yield gauge("pellicle_flows", "Flows that are remembered.", [((), len(history))])
    words = "Flows that were forgotten for newer ones."
    yield counter("pellicle_flows_forgotten", words, [((), history.forgotten)])


def _of_agent(sight: Sight, moment: Moment) -> Iterable[Metric]:
    config = sight.config
    labels = {
        "version": VERSION,
        "engine": str(sight.choice.engine),
        "key_mode": str(config.trust),
    }
    yield gauge(
        "pellicle_build_info", "1: which agent this is.", [(tuple(labels.values()), 1)], *labels
    )
    is_on = float(config.enable_encrypt_l3)
    yield gauge("pellicle_encryption_enabled", "1: what goes to peers is encrypted.", [((), is_on)])
    words = "What is wrong with sources and keys; `pellicle status` says it in words."
    yield gauge("pellicle_problems", words, [((), moment.problems)])
    words = "Records, secrets and answers that are not used; `pellicle status` says why."
    yield gauge("pellicle_rejected_records", words, [((), moment.rejected)])
    words = "In the audit trail; 0: it cannot be kept."
    records = sight.trail.seq if sight.trail else 0
    yield gauge("pellicle_audit_records", words, [((), records)])


def _of_svids(sight: Sight) -> Iterable[Metric]:
    until: list[Sample] = []
    is_up: list[Sample] = []
    renewals: list[Sample] = []
    if (svids := sight.svids) is not None:
        until.append(((), svids.spiffe.svid.until if svids.spiffe.svid else 0.0))
        is_up.append(((), float(svids.api_problem() is None)))
        renewals.append(((), svids.renewals))
    words = "Since 1970: when this node's SVID expires."
    yield gauge("pellicle_svid_until_seconds", words, until)
    yield gauge("pellicle_workload_api_up", "1: SVIDs are followed.", is_up)
    yield counter("pellicle_svid_renewals", "SVIDs taken, the first one too.", renewals)
