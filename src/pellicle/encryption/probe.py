# SPDX-License-Identifier: Apache-2.0
"""ESP dummy packets (RFC 4303 §2.6), asked of the door: only the datapath may count a sequence.

The agent puts a frame of EtherType 0x88b5 with a `struct probe` on pellicle_host; `door` turns
it into a sealed packet of that SA. The frame itself never reaches a wire.
"""

from __future__ import annotations

from pellicle.datapath.programs import DOOR_HOST
from pellicle.facts import PairId
from pellicle.kernel.packet import send_frame
from pellicle.keys.pairing import ProbeKind
from pellicle.wire.btf import Btf


class ProbeSender:
    """Sends probes through this node's door."""

    def __init__(self, btf: Btf) -> None:
        self._layout = btf.struct("probe")
        self._ethertype = btf.enum("exported")["EXPORT_PROBE_ETHERTYPE"]

    def send(self, pair: PairId, number: int, kind: ProbeKind) -> None:
        """Ask for one dummy packet on SA `number` of `pair`; OSError when the door is missing."""
        payload = self._layout.pack(pair=pair, number=number, kind=int(kind))
        send_frame(DOOR_HOST, self._ethertype, payload)
