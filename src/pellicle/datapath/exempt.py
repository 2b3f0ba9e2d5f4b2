# SPDX-License-Identifier: Apache-2.0
"""The map `exempt`: what nodes may say to each other in the clear, by protocol and port."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pellicle.datapath.maps import MapTarget
from pellicle.exemptions import Exemption
from pellicle.kernel.bpf import Object


@dataclass(frozen=True, slots=True)
class ExemptKey:
    """`struct exempt_key`."""

    protocol: int
    port: int
    """Of either end; 0: any."""


@dataclass(frozen=True, slots=True)
class ExemptRow:
    """`struct exempt_row`."""

    rule: int


def plan(exemptions: Iterable[Exemption]) -> dict[ExemptKey, ExemptRow]:
    """Of several that fit, the first one is named."""
    rows: dict[ExemptKey, ExemptRow] = {}
    for each in exemptions:
        for key in each.rows():
            rows.setdefault(ExemptKey(*key), ExemptRow(each.number))
    return rows


def target(bpf: Object) -> MapTarget[ExemptKey, ExemptRow]:
    return MapTarget(
        bpf.map("exempt"),
        bpf.btf.struct("exempt_key"),
        bpf.btf.struct("exempt_row"),
        lambda key: {"protocol": key.protocol, "port": key.port},
        lambda _, row: {"rule": row.rule},
        lambda key, row: (ExemptKey(key["protocol"], key["port"]), ExemptRow(row["rule"])),
    )
