# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads: the datapath's counters, and how far the kernel is from the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

from pellicle.answers import Sight, events_lost, kernel_drops, packet_counts
from pellicle.keys.pairing import PeerState
from pellicle.serve import Request


async def answer(sight: Sight, _request: Request) -> AsyncIterator[dict[str, Any]]:
    """The call `metrics`."""
    yield {"text": metrics(sight)}


def metrics(sight: Sight) -> str:
    """Prometheus exposition of the datapath's counters and the tables' lag."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  0.1 s
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    packets = CounterMetricFamily("pellicle_packets", "by reason", labels=["verdict", "reason"])
    octets = CounterMetricFamily("pellicle_bytes", "by reason", labels=["verdict", "reason"])
    for row in packet_counts(sight):
        packets.add_metric([row["verdict"], row["reason"]], row["packets"])
        octets.add_metric([row["verdict"], row["reason"]], row["bytes"])
    desired = GaugeMetricFamily("pellicle_rows_desired", "rows wanted", labels=["table"])
    applied = GaugeMetricFamily("pellicle_rows_applied", "of them standing", labels=["table"])
    healed = CounterMetricFamily("pellicle_rows_healed", "drift put right", labels=["table"])
    for lag in (reconciler.lag() for reconciler in sight.reconcilers):
        desired.add_metric([lag.table], lag.desired)
        applied.add_metric([lag.table], lag.applied)
        healed.add_metric([lag.table], lag.healed)
    ready = GaugeMetricFamily("pellicle_peer_ready", "1: can be sent to", labels=["peer"])
    for name, peer in sight.peers.rows.items():
        ready.add_metric([name], float(peer.state is PeerState.READY))
    keys = CounterMetricFamily("pellicle_key_events", "of offers and peers", labels=["what"])
    for what, number in sight.key_events.items():
        keys.add_metric([what], number)
    states = GaugeMetricFamily("pellicle_peers", "by the state of their keys", labels=["state"])
    counted = Counter(peer.state for peer in sight.peers.rows.values())
    for state in PeerState:
        states.add_metric([state.value], counted[state])
    lost = CounterMetricFamily("pellicle_events_lost", "flow events without room")
    lost.add_metric([], events_lost(sight))
    kernel = CounterMetricFamily(
        "pellicle_kernel_drops", "by the kernel's IPsec, ours or not", labels=["reason"]
    )
    for row in kernel_drops(sight):
        kernel.add_metric([row["reason"]], row["packets"])

    until = GaugeMetricFamily("pellicle_svid_until_seconds", "since 1970: when our SVID expires")
    heard = GaugeMetricFamily("pellicle_workload_api_up", "1: SVIDs are followed")
    renewals = CounterMetricFamily("pellicle_svid_renewals", "SVIDs taken, the first one too")
    if (svids := sight.svids) is not None:
        until.add_metric([], svids.spiffe.svid.until if svids.spiffe.svid else 0.0)
        heard.add_metric([], float(svids.api_problem() is None))
        renewals.add_metric([], svids.renewals)

    class Collector:
        def collect(self) -> Iterable[Any]:
            yield from (packets, octets, desired, applied, healed, ready, lost, kernel)
            yield from (keys, states, until, heard, renewals)

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry).decode()
