# SPDX-License-Identifier: Apache-2.0
"""What the agent's socket answers: status, encryption, flows, maps.

Everything here reads; nothing changes anything. Counters come from the kernel's maps at the
moment of asking. Keys and salts are never shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from pellicle.datapath.address import from_bytes
from pellicle.datapath.programs import PINNED_MAPS
from pellicle.encryption.routes import inner_mtu, overlay_mtu
from pellicle.encryption.sas import SaCount
from pellicle.facts import Engine, Rejected
from pellicle.flows.reasons import Verdict
from pellicle.flows.selection import Selection
from pellicle.kernel.bpf import MapType
from pellicle.keys.subnets import are_around, is_within
from pellicle.serve import CallError, Request
from pellicle.sight import (
    VERSION,
    Sight,
    all_rejected,
    events_lost,
    kernel_drops,
    packet_counts,
    read_flows,
)
from pellicle.table import Lag

SECRET_FIELDS = frozenset({"key", "salt"})
DEFAULT_FLOWS = 1000
FOLLOW_SECONDS = 0.25


def status(sight: Sight) -> dict[str, Any]:
    """Health: what is desired and applied, who is a peer, what was dropped."""
    tables = [_lag(each.lag()) for each in sight.reconcilers]
    peers = _peers(sight)
    counted = packet_counts(sight)
    counts = [row for row in counted if row["verdict"] != Verdict.AUDITED]
    problems = [*sight.problems(), *_trouble(sight, tables, peers)]
    is_on = sight.config.enable_encrypt_l3
    state = "off" if not is_on else "degraded" if problems else "on"
    return {
        "node": sight.config.node_name,
        "version": VERSION,
        "healthy": state == "on",
        "encryption": state,
        "engine": sight.choice.engine,
        "engine_why": sight.choice.why,
        "ciphers": sight.choice.ciphers,
        "key_mode": sight.config.trust,
        "key_derivation": sight.config.ipsec_key_derivation,
        "subnets": _subnets(sight),
        "svid": sight.svids.answer if sight.svids else None,
        "datapath": {
            "attach": ", ".join(sorted(sight.programs.modes)) or "nothing",
            "uplink": sight.uplink,
            "mtu": _mtu(sight),
            "routing": sight.config.routing,
            "overlay": sight.config.tunnel,
        },
        "peers": peers,
        "tables": tables,
        "audit": sight.config.audit,
        "exempt": [str(each) for each in sight.config.exempt] if sight.config.encrypt_nodes else [],
        "encrypt_nodes": sight.config.encrypt_nodes,
        "audited": [row for row in counted if row["verdict"] == Verdict.AUDITED and row["packets"]],
        "drops": [row for row in counts if row["verdict"] == Verdict.DROPPED and row["packets"]],
        "counts": counts,
        "kernel_drops": kernel_drops(sight),
        "offload": _offload(sight),
        "rejected": [_rejected(row) for row in all_rejected(sight)],
        "endpoints": sum(
            1 for row in sight.endpoints.rows.values() if row.node == sight.config.node_name
        ),
        "events_lost": events_lost(sight),
        "audit_trail": sight.trail.answer() if sight.trail else None,
        "problems": problems,
    }


def encrypt(sight: Sight) -> dict[str, Any]:
    """Peers, offers and every SA with its counters."""
    plan = sight.keying.plan if sight.keying else None
    return {
        "node": sight.config.node_name,
        "encryption": "on" if sight.keying else "off",
        "peers": _peers(sight),
        "offers": [
            {
                "epoch": own.epoch,
                "fingerprint": own.fingerprint,
                "state": own.state.value,
                "why": own.why,
            }
            for own in (plan.own if plan else ())
        ],
        "sas": [_sa(sight, count) for count in sight.sas.counts()],
    }


class FlowsWanted(msgspec.Struct, frozen=True):
    """The arguments of the call `flows`."""

    verdict: str | None = None
    source: str | None = msgspec.field(name="from", default=None)
    destination: str | None = msgspec.field(name="to", default=None)
    last: Annotated[int, msgspec.Meta(ge=0)] = DEFAULT_FLOWS
    follow: bool = False
    most: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Of the flows that changed since the last look only the newest."""


async def flows(sight: Sight, request: Request) -> AsyncIterator[dict[str, Any]]:
    """Flows of the recent past, oldest first, and, with follow, each as it changes."""
    try:
        wanted = msgspec.convert(request.arguments, FlowsWanted)
        selection = Selection.parse(wanted.verdict, wanted.source, wanted.destination)
    except ValueError as error:
        raise CallError(7, str(error)) from error
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    await read_flows(sight)
    seen = sight.history.change
    for flow in sight.history.last(wanted.last, selection):
        yield flow.answer(boot)
    while wanted.follow:
        await asyncio.sleep(FOLLOW_SECONDS)
        # Together: what changes while somebody slow is being told is told the next time.
        changed, seen = sight.history.since(seen, selection), sight.history.change
        for flow in changed[-wanted.most :] if wanted.most else changed:
            yield flow.answer(boot)


def dump_map(sight: Sight, name: object) -> list[dict[str, Any]]:
    """The rows of one map, decoded through BTF, secrets masked."""
    if not isinstance(name, str) or name not in PINNED_MAPS:
        raise CallError(7, f"no map {name!r}", f"known: {', '.join(sorted(PINNED_MAPS))}")
    spec, found = sight.bpf.btf.maps[name], sight.bpf.map(name)
    if spec.key is None or spec.value is None or found.type is MapType.RINGBUF:
        raise CallError(7, f"map {name} has no rows to show")
    rows = []
    for key, value in found.items():
        values = found.split_percpu(value) if "PERCPU" in found.type.name else [value]
        shown = [_shown(spec.value.read(each)) for each in values]
        row = shown[0] if len(shown) == 1 else {"cpus": shown}
        rows.append({"key": _shown(spec.key.read(key)), "value": row})
    return rows


def list_maps(sight: Sight) -> list[dict[str, Any]]:
    """Every map, and how full it is. The scratch of the programs holds keys: it is none of them."""
    return [
        {
            "name": name,
            "type": found.type.name.lower(),
            "rows": None if found.type is MapType.RINGBUF else len(found.items()),
            "max_entries": found.max_entries,
        }
        for name, found in sorted(sight.bpf.maps.items())
        if name in PINNED_MAPS
    ]


def maps(sight: Sight, name: object) -> list[dict[str, Any]]:
    """The rows of the map of that name; without one, the maps."""
    return list_maps(sight) if name is None else dump_map(sight, name)


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"bytes"}:  # struct addr: a union that is read through its bytes
            return str(from_bytes(value["bytes"]))
        return {
            name: "(secret)" if name in SECRET_FIELDS else _shown(each)
            for name, each in value.items()
        }
    if isinstance(value, bytes):
        return value.hex(":")
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return value


def _peers(sight: Sight) -> list[dict[str, Any]]:
    counts: dict[str, list[SaCount]] = {}
    for count in sight.sas.counts():
        counts.setdefault(str(count.node), []).append(count)
    rows = []
    for name, peer in sorted(sight.peers.rows.items()):
        node = sight.nodes.rows.get(name)
        addresses = [str(address) for address in node.addresses] if node else []
        mine = [count for address in addresses for count in counts.get(address, ())]
        out = [count for count in mine if count.direction == "out"]
        inside = [count for count in mine if count.direction == "in"]
        rows.append(
            {
                "node": name,
                "addresses": addresses,
                "state": peer.state.value,
                "why": peer.why,
                "local_epoch": peer.local_epoch,
                "peer_epoch": peer.peer_epoch,
                "pair": f"{peer.pair:016x}" if peer.pair else None,
                "sas_in": len(inside),
                "sas_out": len(out),
                "packets_out": sum(count.packets for count in out),
                "bytes_out": sum(count.octets for count in out),
                "packets_in": sum(count.packets for count in inside),
                "bytes_in": sum(count.octets for count in inside),
                "confirmed": peer.confirmed,
                "engine": peer.engine,
                "cipher": peer.cipher,
            }
        )
    return rows


def _trouble(
    sight: Sight, tables: Iterable[Mapping[str, Any]], peers: Iterable[Mapping[str, Any]]
) -> Iterable[str]:
    if not sight.config.enable_encrypt_l3:
        yield "encryption is OFF: set enable_encrypt_l3 to switch it on"
        return
    for table in tables:
        if table["unreadable"]:
            yield f"table {table['name']} cannot be read: {table['unreadable']}"
        for failure in table["failures"]:
            yield f"table {table['name']}: {failure['key']}: {failure['why']}"
    for peer in peers:
        if peer["state"] != "ready":
            yield f"peer {peer['node']} is {peer['state']}: {peer['why']}"


def _subnets(sight: Sight) -> list[dict[str, Any]]:
    """How many peers are reached by what each subnet has in the kernel."""
    subnets, local = sight.config.encrypt_subnets, sight.config.node_name
    others = [node for node in sight.nodes.rows.values() if node.name != local]
    around = [node.pod_cidrs for node in others if are_around(subnets, node)]
    return [
        {
            "cidr": str(subnet),
            "peers": sum(any(is_within(cidr, [subnet]) for cidr in cidrs) for cidrs in around),
        }
        for subnet in subnets
    ]


def _lag(lag: Lag) -> dict[str, Any]:
    return {
        "name": lag.table,
        "desired": lag.desired,
        "applied": lag.applied,
        "failed": len(lag.failures),
        "failures": [
            {"key": key, "why": str(row.error), "since": _ago(row.since)}
            for key, row in lag.failures.items()
        ],
        "healed": lag.healed,
        "unreadable": lag.unreadable,
    }


def _ago(moment: float) -> str:
    wall = time.time() - (time.monotonic() - moment)
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")


def _offload(sight: Sight) -> dict[str, Any]:
    """Whether the uplink encrypts, and why not."""
    if sight.choice.engine is not Engine.XFRM or sight.states is None:
        return {"states": 0, "why": "the BPF engine encrypts by itself"}
    return {"states": sight.states.offloaded, "why": sight.states.software_why}


def _mtu(sight: Sight) -> dict[str, int | None]:
    link, config = sight.links.rows.get(sight.uplink), sight.config
    if link is None:
        return {"v4": None, "v6": None}
    mtus = dict.fromkeys((4, 6), link.mtu)
    if config.enable_encrypt_l3:
        mtus = {version: inner_mtu(mtu, version, sight.longest) for version, mtu in mtus.items()}
    if config.tunnel:
        mtus = {version: overlay_mtu(mtu, version) for version, mtu in mtus.items()}
    return {f"v{version}": mtu for version, mtu in mtus.items()}


def _rejected(row: Rejected) -> dict[str, str]:
    return {"source": row.source, "name": row.name, "why": row.why}


def _sa(sight: Sight, count: SaCount) -> dict[str, Any]:
    name = sight.names.rows.get(count.node)
    return {
        "direction": count.direction,
        "peer": name.node if name else str(count.node),
        "spi": count.spi,
        "number": count.number,
        "pair": f"{count.pair:016x}",
        "local_epoch": count.local_epoch,
        "peer_epoch": count.peer_epoch,
        "sequence": count.sequence,
        "packets": count.packets,
        "bytes": count.octets,
        "replayed": count.replayed,
        "auth_failed": count.auth_failed,
        "first_seen": count.first_seen,
        "engine": count.engine,
        "cipher": count.cipher,
    }


def answers(sight: Sight) -> dict[str, Callable[[Request], AsyncIterator[Any]]]:
    """The calls that only look."""

    async def one(value: Any) -> AsyncIterator[Any]:
        yield value

    return {
        "status": lambda _: one(status(sight)),
        "encrypt": lambda _: one(encrypt(sight)),
        "flows": lambda request: flows(sight, request),
        "map": lambda request: _each(maps(sight, request.arguments.get("name"))),
    }


async def _each(rows: Iterable[Any]) -> AsyncIterator[Any]:
    for row in rows:
        yield row
