# SPDX-License-Identifier: Apache-2.0
"""SAs as the kernel's IPsec has them: XFRM states, added once and never written again.

    out   src, dst, spi            reqid, if_id, ESN, hard packet limit; the mark becomes 0xc00
    in    src, dst, spi, mark      the same, replay window 1024, NOECN: `from_xfrm` sees to it

Those of keys that were made by hand have numbers of 32 bits and no replay window, and the outbound
ones a mark, too: of several with one SPI, a packet's mark names the one.

The mark of an inbound state tells peers apart that have chosen the same SPI: `from_net`, which
knows the sender, has set it. All that the kernel has no room for (pair, epochs, number, node) is
in the maps `sa_in` and `sa_out`; see sas.py.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption.engine import ALGORITHMS
from pellicle.kernel.offloads import has_esp_offload
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction, Sa
from pellicle.settings import IpsecOffload
from pellicle.wire.xfrm import (
    Mark,
    Offload,
    OffloadFlags,
    State,
    StateCounts,
    StateFlags,
    StateKey,
)

MARK_ENCRYPT, MARK_DECRYPT, MARK_OUT, MARK_MASK = 0xE00, 0xD00, 0xC00, 0xF00
IN_MASK = 0xFFFF0F00
"""Slot and 0xd00; the ECN bits between them are the packet's."""
OUT_MASK = 0xFFFF3F00
"""Slot, number of the SA and 0xe00."""
SLOT_SHIFT, SA_SHIFT = 16, 12
"""As in bpf/tables.h."""
REQIDS = 0x70650000
"""Ours begin here; the slot is added."""
REPLAY_WINDOW, SMALLEST_WINDOW = 1024, 32
"""What ESN asks for also of states that only send (net/xfrm/xfrm_replay.c)."""

log = structlog.get_logger()


def mark_of(sa: Sa) -> int:
    """What packets bear that this SA is for, if it is the kernel's."""
    if sa.direction is Direction.IN:
        return sa.slot << SLOT_SHIFT | MARK_DECRYPT
    return sa.slot << SLOT_SHIFT | sa.number << SA_SHIFT | MARK_ENCRYPT


def out_reqid(slot: int) -> int:
    """Joins the policies of a pair to its states."""
    return REQIDS | slot


def key_of(sa: Sa) -> StateKey:
    """The name of its state."""
    mark = None
    if sa.direction is Direction.IN:
        mark = Mark(mark_of(sa), IN_MASK)
    elif sa.is_manual:
        mark = Mark(mark_of(sa), OUT_MASK)
    return StateKey(sa.source, sa.destination, sa.spi, mark)


def receives(key: StateKey) -> bool:
    """Whether it is the name of an inbound state of ours."""
    return key.mark is not None and key.mark.mask == IN_MASK


def state_of(sa: Sa) -> State:
    """Its state, in software."""
    algorithm, bits = ALGORITHMS[sa.cipher]
    is_in = sa.direction is Direction.IN
    flags = StateFlags.AF_UNSPEC | (StateFlags.NOECN if is_in else StateFlags(0))
    window = 0
    if not sa.is_manual:
        flags |= StateFlags.ESN
        window = REPLAY_WINDOW if is_in else SMALLEST_WINDOW
    return State(
        key_of(sa),
        out_reqid(sa.slot),
        IF_ID,
        algorithm,
        bits,
        flags,
        window,
        packet_limit=sa.sequence_limit,
        # Or the route to the peer would lead ESP to the door again.
        sets_mark=None if is_in else Mark(MARK_OUT, MARK_MASK),
        secret=sa.key + sa.salt,
    )


@dataclass(slots=True)
class States:
    """Our states in the kernel, by name. `device`: the uplink, if it is to encrypt itself."""

    xfrm: Xfrm
    device: int | None = None
    software_why: str | None = None
    """Why a state that the uplink was to take is the kernel's own."""
    offloaded: int = 0
    """How many states the uplink has taken."""

    @classmethod
    def open(cls, uplink: str, offload: IpsecOffload) -> States | None:
        """Those of this namespace; None on a kernel that was built without XFRM."""
        try:
            xfrm = Xfrm()
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            return None
        if offload is IpsecOffload.OFF:
            return cls(xfrm, software_why="ipsec_offload is off")
        if not has_esp_offload(uplink):
            return cls(xfrm, software_why=f"{uplink} has no esp-hw-offload switched on")
        return cls(xfrm, socket.if_nametoindex(uplink))

    def read(self) -> Mapping[StateKey, StateCounts]:
        ours = [(state, counts) for state, counts in self.xfrm.states() if state.if_id == IF_ID]
        self.offloaded = sum(1 for state, _ in ours if state.offload)
        return {state.key: counts for state, counts in ours}

    def put(self, sas: Iterable[Sa]) -> Mapping[StateKey, OSError]:
        states = [state_of(sa) for sa in sas]
        if self.device is None:
            return self.xfrm.put_states(states)
        tried = self.xfrm.put_states(self._for_device(state) for state in states)
        again = [state for state in states if state.key in tried]
        if not again:
            return {}
        self.software_why = str(tried[again[0].key])
        log.info("the uplink does not take a state", why=self.software_why)
        return self.xfrm.put_states(again)

    def remove(
        self, keys: Collection[StateKey], last: dict[StateKey, StateCounts] | None = None
    ) -> Mapping[StateKey, OSError]:
        return self.xfrm.remove_states(keys, last)

    def _for_device(self, state: State) -> State:
        """Linux lets no device decrypt for an xfrm interface: what is inbound has an if_id."""
        if self.device is None or receives(state.key):
            return state
        is_ipv6 = state.key.source.version == 6
        flags = OffloadFlags.IPV6 if is_ipv6 else OffloadFlags(0)
        return replace(state, offload=Offload(self.device, flags))
