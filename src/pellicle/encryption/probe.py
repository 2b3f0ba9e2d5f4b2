# SPDX-License-Identifier: Apache-2.0
"""Probes, put before the door as packets of this node: only the datapath may count a sequence.

`door` and `door_xfrm` seal them like any other packet, by the SA that they name; see wire/probe.py.
"""

from __future__ import annotations

from pellicle.datapath.programs import DOOR_HOST, DOOR_XFRM
from pellicle.facts import Engine
from pellicle.kernel.packet import send_frame, send_packet
from pellicle.keys.rows import ProbeKind, Sa
from pellicle.wire.probe import ETHERTYPES, pack_probe


def send_probe(sa: Sa, kind: ProbeKind) -> None:
    """Send one on this outbound SA; OSError when the door of its engine is missing."""
    packet = pack_probe(sa.source, sa.destination, sa.pair, sa.number, kind)
    ethertype = ETHERTYPES[sa.source.version]
    if sa.engine is Engine.XFRM:
        send_packet(DOOR_XFRM, ethertype, packet)
    else:
        send_frame(DOOR_HOST, ethertype, packet)
