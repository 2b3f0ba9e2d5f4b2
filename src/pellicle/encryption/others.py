# SPDX-License-Identifier: Apache-2.0
"""IPsec of others on this node: by which SAs ESP between nodes is theirs, and the stack's.

    XFRM states without our if_id ──▶ others ──▶ `from_net` lets their ESP pass

A tunnel that an administrator or strongSwan has made between two nodes' own addresses goes on so.
What comes out of it is looked at like anything else from the wire: no pod's packet may.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import MapTarget
from pellicle.datapath.xfrm_device import IF_ID
from pellicle.kernel.bpf import Object
from pellicle.kernel.xfrm import STATES, Xfrm, XfrmChanges
from pellicle.table import Table
from pellicle.wire.xfrm import Place

PAUSE_SECONDS = 0.5
"""Between two looks at what somebody else is doing."""


@dataclass(frozen=True, slots=True)
class OtherRow:
    """That there is such an SA."""

    flags: int = 0


async def follow(xfrm: Xfrm, others: Table[Place, OtherRow]) -> None:
    """Keep the table equal to what others have in the kernel."""
    with XfrmChanges(own=[xfrm.port], kinds=STATES) as changes:
        while True:
            others.replace(dict.fromkeys(xfrm.others(IF_ID), OtherRow()))
            await anext(changes)
            await asyncio.sleep(PAUSE_SECONDS)


def target(bpf: Object) -> MapTarget[Place, OtherRow]:
    return MapTarget(
        bpf.map("others"),
        bpf.btf.struct("other_key"),
        bpf.btf.struct("other_row"),
        lambda place: {
            "destination": {"bytes": to_bytes(place.destination)},
            "spi": place.spi,
        },
        lambda _, row: {"flags": row.flags},
        lambda key, row: (
            Place(from_bytes(key["destination"]["bytes"]), key["spi"]),
            OtherRow(row["flags"]),
        ),
    )
