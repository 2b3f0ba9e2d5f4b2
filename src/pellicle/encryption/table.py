# SPDX-License-Identifier: Apache-2.0
"""The encryption table: for which traffic, which pair of offers, hence which SAs.

The map `encrypt`: a row for all traffic to a node, and one for each policy that wants keys of its
own there. A row is there only while its outbound SAs stand; no row means drop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import ALL_TRAFFIC, Address, Context, Engine, Node, NodeName, Owned, PairId
from pellicle.kernel.bpf import Object
from pellicle.keys.derivation import SAS_PER_PAIR
from pellicle.keys.rows import Send


@dataclass(frozen=True, slots=True)
class EncryptKey:
    """`struct encrypt_key`."""

    context: Context
    node: Address


@dataclass(frozen=True, slots=True)
class EncryptRow:
    """`struct encrypt_row`."""

    pair: PairId
    engine: Engine
    sas: int = SAS_PER_PAIR
    """How many the pair has; a power of two."""


def plan(
    sends: Mapping[NodeName, Send],
    own: Mapping[Owned, Send],
    passable: Collection[PairId],
    standing: Mapping[EncryptKey, EncryptRow],
) -> dict[EncryptKey, EncryptRow]:
    """One row for each peer that can be sent to; and of `own`, for what has keys of its own.

    `passable`: the pairs of the kernel's whose policies stand. Until those of a new pair do, the
    row that is `standing` stays: its pair is not taken away before it.
    """
    rows = {}
    for send in (*sends.values(), *own.values()):
        key = EncryptKey(send.context, send.node)
        for row in (EncryptRow(send.pair, send.engine, send.sas), standing.get(key)):
            if row is not None and (row.engine is Engine.BPF or row.pair in passable):
                rows[key] = row
                break
    return rows


def key_for(node: Node, context: Context = ALL_TRAFFIC) -> EncryptKey:
    """For traffic to a node: all, or what a policy wants own keys for."""
    return EncryptKey(context, node.addresses[0])


def target(bpf: Object) -> MapTarget[EncryptKey, EncryptRow]:
    numbers = {engine: bpf.btf.enum("engine")[f"ENGINE_{engine.name}"] for engine in Engine}
    engines = {number: engine for engine, number in numbers.items()}
    return MapTarget(
        bpf.map("encrypt"),
        bpf.btf.struct("encrypt_key"),
        bpf.btf.struct("encrypt_row"),
        lambda key: {
            "context": key.context,
            "node": {"bytes": to_bytes(key.node)},
        },
        lambda _, row: {
            "pair": row.pair,
            "engine": numbers[row.engine],
            "sa_mask": row.sas - 1,
        },
        lambda key, row: (
            _key(key),
            EncryptRow(PairId(row["pair"]), engines[row["engine"]], row["sa_mask"] + 1),
        ),
    )


def _key(key: Fields) -> EncryptKey:
    return EncryptKey(Context(key["context"]), from_bytes(key["node"]["bytes"]))
