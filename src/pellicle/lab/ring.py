# SPDX-License-Identifier: Apache-2.0
"""Every frame that enters a network namespace, through memory shared with the kernel.

One AF_PACKET socket (packet(7)) hears all devices of the namespace, also those made later. It
ignores outgoing frames: what one node sends through the wire to another is heard once, as it
enters. The kernel writes whole blocks of frames (TPACKET_V3); each is copied out and handed back
at once, so that bursts wait in the ring and not in Python. What did not fit is counted.

    block   | version | priv | status | frames | first frame | length | sequence (8) | …
    frame   | next | sec | nsec | snapped | length | status | mac | net | … 48: sockaddr_ll | frame
"""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from pellicle.kernel import Unsupported

# linux/if_packet.h
SOL_PACKET: Final = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PACKET_IGNORE_OUTGOING = 5, 6, 10, 23
TPACKET_V3: Final = 2
TP_STATUS_KERNEL, TP_STATUS_USER = 0, 1
ETH_P_ALL: Final = 0x0003

BLOCK_SIZE: Final = 1 << 18
"""Holds the largest frame there is (64 KiB) a few times."""
BLOCK_COUNT: Final = 256
"""64 MiB: a second of the fastest burst that two cores can send."""
RETIRE_MS: Final = 10
"""A block that is not full is handed over after this."""
FRAME_SIZE: Final = 2048

_REQUEST = struct.Struct("@7I")
_STATISTICS = struct.Struct("@3I")
_STATUS = struct.Struct("@I")
_BLOCK = struct.Struct("@8x4I")
_FRAME = struct.Struct("@5I4x2H20x4xi")


@dataclass(frozen=True, slots=True)
class Block:
    """Some frames, in the order in which they came."""

    data: bytes
    count: int
    first: int

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(nanoseconds since 1970, device index, length on the wire, frame)."""
        data, at = self.data, self.first
        unpack = _FRAME.unpack_from
        for _ in range(self.count):
            step, seconds, nanoseconds, snapped, length, mac, _, ifindex = unpack(data, at)
            start = at + mac
            at_ns = seconds * 1_000_000_000 + nanoseconds
            yield at_ns, ifindex, length, data[start : start + snapped]
            at += step


class Ring:
    """The socket and its shared memory. Make it inside the namespace that it is to hear."""

    def __init__(self) -> None:
        # All devices: Python cannot bind(2) to "any", a socket made with a protocol is. What comes
        # before the ring stands is thrown away with the socket's old queue.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        try:
            self._arrange()
            self._memory = mmap.mmap(self._socket.fileno(), BLOCK_SIZE * BLOCK_COUNT)
        except BaseException:
            self._socket.close()
            raise
        self._next = 0
        self._lost = 0

    def fileno(self) -> int:
        """For poll(2): readable when a block waits."""
        return self._socket.fileno()

    def take(self) -> Block | None:
        """The next block, copied and handed back to the kernel; None when none waits."""
        base = self._next * BLOCK_SIZE
        status, count, first, length = _BLOCK.unpack_from(self._memory, base)
        if not status & TP_STATUS_USER:
            return None
        block = Block(self._memory[base : base + length], count, first)
        _STATUS.pack_into(self._memory, base + 8, TP_STATUS_KERNEL)
        self._next = (self._next + 1) % BLOCK_COUNT
        return block

    def lost(self) -> int:
        """Frames that found the ring full, since it was made."""
        # Reading the statistics sets them to zero (packet(7)).
        _, dropped, _ = _STATISTICS.unpack(
            self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, _STATISTICS.size)
        )
        self._lost += dropped
        return self._lost

    def close(self) -> None:
        self._memory.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrange(self) -> None:
        self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        try:
            self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:
                raise Unsupported("PACKET_IGNORE_OUTGOING", "Linux 4.20") from error
            raise
        frames = BLOCK_SIZE * BLOCK_COUNT // FRAME_SIZE
        request = _REQUEST.pack(BLOCK_SIZE, BLOCK_COUNT, FRAME_SIZE, frames, RETIRE_MS, 0, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
