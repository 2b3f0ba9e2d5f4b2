# SPDX-License-Identifier: Apache-2.0
"""The pods of this node: which device an address lives behind.

The map `endpoints`, read by `from_pod` (is the source really this pod?) and by
`from_net` (where does an opened packet go?).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import Address, Endpoint, EndpointName, IdentityNumber, Link, NodeName
from pellicle.kernel.bpf import Object


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """`struct endpoint`."""

    ifindex: int
    identity: IdentityNumber
    pod_mac: str
    host_mac: str


def plan(
    local: NodeName, endpoints: Mapping[EndpointName, Endpoint], links: Mapping[str, Link]
) -> dict[Address, EndpointRow]:
    """Each address of each pod here whose device is there."""
    rows: dict[Address, EndpointRow] = {}
    for endpoint in endpoints.values():
        if endpoint.node != local or endpoint.attachment is None:
            continue
        link = links.get(endpoint.attachment.host_device)
        if link is None:
            continue
        row = EndpointRow(link.index, endpoint.identity, endpoint.attachment.pod_mac, link.mac)
        rows.update((address, row) for address in endpoint.addresses)
    return rows


def target(bpf: Object) -> MapTarget[Address, EndpointRow]:
    return MapTarget(
        bpf.map("endpoints"),
        bpf.btf.struct("addr"),
        bpf.btf.struct("endpoint"),
        lambda address: {"bytes": to_bytes(address)},
        lambda _, row: {
            "ifindex": row.ifindex,
            "identity": row.identity,
            "pod_mac": _mac(row.pod_mac),
            "host_mac": _mac(row.host_mac),
        },
        _from_fields,
    )


def _from_fields(key: Fields, row: Fields) -> tuple[Address, EndpointRow]:
    return from_bytes(key["bytes"]), EndpointRow(
        row["ifindex"],
        IdentityNumber(row["identity"]),
        row["pod_mac"].hex(":"),
        row["host_mac"].hex(":"),
    )


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
