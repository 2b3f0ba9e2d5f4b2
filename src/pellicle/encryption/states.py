# SPDX-License-Identifier: Apache-2.0
"""SAs as the kernel's IPsec has them: XFRM states, added once and never written again.

    out   src, dst, spi            reqid, if_id, ESN, hard packet limit; the mark becomes 0xc00
    in    src, dst, spi, mark      the same, replay window 1024, NOECN: `from_xfrm` sees to it

Those of keys that were made by hand have numbers of 32 bits and no replay window, and the outbound
ones a mark, too: of several with one SPI, a packet's mark names the one.

    shared, out   src, placeholder, spi, mark     all peers of subnets; `to_net` puts the peer's
    shared, in    any, dst, spi, mark             address in the placeholder's place

A state that many pairs share leaves the slot in its mark out, which goes on to say whose packet it
is. Its placeholder is an address that no node can have: a multicast one, for which the kernel needs
no neighbour, of those for experiments on one link (RFC 4727), which no router forwards.

The mark of an inbound state tells peers apart that have chosen the same SPI: `from_net`, which
knows the sender, has set it. All that the kernel has no room for (pair, epochs, number, node) is
in the maps `sa_in` and `sa_out`; see sas.py.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from types import MappingProxyType

import structlog

from pellicle.choices import IpsecOffload
from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption.engine import ALGORITHMS
from pellicle.facts import Address
from pellicle.kernel.offloads import has_esp_offload
from pellicle.kernel.xfrm import Xfrm
from pellicle.keys.rows import Direction, Sa
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
MARK_SHARED = 0x80
"""As in bpf/tables.h."""
SHARED_IN_MASK, SHARED_OUT_MASK = IN_MASK & 0xFFFF | MARK_SHARED, OUT_MASK & 0xFFFF | MARK_SHARED
"""The slot is left out."""
PLACEHOLDERS = MappingProxyType({4: ip_address("224.0.0.254"), 6: ip_address("ff02::114")})
NOBODY = MappingProxyType({4: ip_address("0.0.0.0"), 6: ip_address("::")})
REQIDS = 0x70650000
"""Ours begin here; the slot is added."""
REPLAY_WINDOW, SMALLEST_WINDOW = 1024, 32
"""What ESN asks for also of states that only send (net/xfrm/xfrm_replay.c)."""

log = structlog.get_logger()


def mark_of(sa: Sa) -> int:
    """What packets bear that this SA is for, if it is the kernel's."""
    if sa.direction is Direction.IN:
        return sa.slot << SLOT_SHIFT | MARK_DECRYPT | (MARK_SHARED if sa.shared else 0)
    if sa.shared:
        return sa.slot << SLOT_SHIFT | shared_out_mark(sa.shared)
    return sa.slot << SLOT_SHIFT | sa.number << SA_SHIFT | MARK_ENCRYPT


def shared_out_mark(number: int) -> int:
    """The same without a slot, of all that this shared state encrypts."""
    return (number - 1) << SA_SHIFT | MARK_ENCRYPT | MARK_SHARED


def shared_of(mark: int) -> int:
    """The number of the shared state, of a row's mark."""
    return (mark >> SA_SHIFT & 3) + 1 if mark & MARK_SHARED else 0


def out_reqid(slot: int) -> int:
    """Joins the policies of a pair to its states; 0: to what pairs share."""
    return REQIDS | slot


def key_of(sa: Sa) -> StateKey:
    """The name of its state."""
    if sa.shared:
        return _shared_key(sa)
    mark = None
    if sa.direction is Direction.IN:
        mark = Mark(mark_of(sa), IN_MASK)
    elif sa.is_manual:
        mark = Mark(mark_of(sa), OUT_MASK)
    return StateKey(sa.source, sa.destination, sa.spi, mark)


def _shared_key(sa: Sa) -> StateKey:
    version = sa.source.version
    if sa.direction is Direction.IN:
        mark = Mark(MARK_DECRYPT | MARK_SHARED, SHARED_IN_MASK)
        return StateKey(NOBODY[version], sa.destination, sa.spi, mark)
    mark = Mark(shared_out_mark(sa.shared), SHARED_OUT_MASK)
    return StateKey(sa.source, PLACEHOLDERS[version], sa.spi, mark)


def receives(key: StateKey) -> bool:
    """Whether it is the name of an inbound state of ours."""
    return key.mark is not None and key.mark.value & MARK_MASK == MARK_DECRYPT


def peer_of(key: StateKey) -> Address | None:
    """At the other end of a state of ours; None: many."""
    address = key.source if receives(key) else key.destination
    return None if address.is_unspecified or address.is_multicast else address


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
        out_reqid(0 if sa.shared else sa.slot),
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
