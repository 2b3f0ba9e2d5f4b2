# SPDX-License-Identifier: Apache-2.0
"""The encryption table: for which traffic, which pair of offers, hence which SAs.

The map `encrypt`, looked up from the most specific key to the wildcard. A row is there only
while its outbound SAs stand; no row means drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import Address, IdentityNumber, Node, NodeName, PairId
from pellicle.kernel.bpf import Object
from pellicle.keys.rows import Send

ANY = IdentityNumber(0)
ENGINE_BPF = 1


@dataclass(frozen=True, slots=True)
class EncryptKey:
    """`struct encrypt_key`."""

    source_identity: IdentityNumber
    destination_identity: IdentityNumber
    node: Address


@dataclass(frozen=True, slots=True)
class EncryptRow:
    """`struct encrypt_row`."""

    pair: PairId
    engine: int = ENGINE_BPF


def plan(
    sends: Mapping[NodeName, Send], nodes: Mapping[NodeName, Node]
) -> dict[EncryptKey, EncryptRow]:
    """One row for each peer that can be sent to."""
    return {
        EncryptKey(ANY, ANY, nodes[name].addresses[0]): EncryptRow(send.pair)
        for name, send in sends.items()
        if name in nodes and nodes[name].addresses
    }


def target(bpf: Object) -> MapTarget[EncryptKey, EncryptRow]:
    return MapTarget(
        bpf.map("encrypt"),
        bpf.btf.struct("encrypt_key"),
        bpf.btf.struct("encrypt_row"),
        lambda key: {
            "source_identity": key.source_identity,
            "destination_identity": key.destination_identity,
            "node": {"bytes": to_bytes(key.node)},
        },
        lambda _, row: {"pair": row.pair, "engine": row.engine},
        _from_fields,
    )


def _from_fields(key: Fields, row: Fields) -> tuple[EncryptKey, EncryptRow]:
    source, destination = key["source_identity"], key["destination_identity"]
    node = from_bytes(key["node"]["bytes"])
    return EncryptKey(IdentityNumber(source), IdentityNumber(destination), node), EncryptRow(
        PairId(row["pair"]), row["engine"]
    )
