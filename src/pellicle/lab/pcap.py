# SPDX-License-Identifier: Apache-2.0
"""Capture files that tcpdump and Wireshark read: classic pcap with nanosecond times.

magic 0xa1b23c4d | 2 | 4 | zone 0 | accuracy 0 | snap length | link type 1 (Ethernet)
seconds | nanoseconds | captured | on the wire | frame          … for each packet
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

SNAP_LENGTH: Final = 262144
_FILE = struct.Struct("=IHHiIII")
_PACKET = struct.Struct("=IIII")


class Pcap:
    """A capture file being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._file.write(_FILE.pack(0xA1B23C4D, 2, 4, 0, 0, SNAP_LENGTH, 1))

    def write(self, packets: Iterable[tuple[int, int, bytes]]) -> None:
        """Append (nanoseconds since 1970, length on the wire, frame)."""
        pieces: list[bytes] = []
        for at, length, frame in packets:
            pieces += (_PACKET.pack(*divmod(at, 1_000_000_000), len(frame), length), frame)
        self._file.write(b"".join(pieces))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
