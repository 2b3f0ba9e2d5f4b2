# SPDX-License-Identifier: Apache-2.0
"""A device's offloads: what it leaves to the hardware, or to a veth's other end.

With checksumming and segmentation switched off, the kernel finishes every packet before it hands
it to the device; a program on the other end of a veth then sees what a wire would carry.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from enum import Enum

from pellicle.kernel.netns import Namespace, socket_in

_SIOCETHTOOL = 0x8946


class Offload(Enum):
    """One feature and its two commands, to get and to set (linux/ethtool.h)."""

    RECEIVE_CHECKSUM = (0x14, 0x15)
    TRANSMIT_CHECKSUM = (0x16, 0x17)
    SCATTER_GATHER = (0x18, 0x19)
    TCP_SEGMENTATION = (0x1E, 0x1F)
    SEGMENTATION = (0x23, 0x24)
    RECEIVE_MERGING = (0x2B, 0x2C)


ALL_TRANSMIT = (
    Offload.SEGMENTATION,
    Offload.TCP_SEGMENTATION,
    Offload.SCATTER_GATHER,
    Offload.TRANSMIT_CHECKSUM,
)
"""In the order in which they can be switched off: each rests on the next."""


def switch_off(
    device: str,
    offloads: tuple[Offload, ...] = (*ALL_TRANSMIT, Offload.RECEIVE_MERGING),
    namespace: Namespace | None = None,
) -> None:
    """Switches features off; OSError EOPNOTSUPP where the device cannot."""
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as door:
        for offload in offloads:
            _ethtool(door, device, offload.value[1], 0)


def switch_on(
    device: str,
    offloads: tuple[Offload, ...] = ALL_TRANSMIT,
    namespace: Namespace | None = None,
) -> None:
    """Switches features on again; OSError EOPNOTSUPP where the device cannot."""
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as door:
        for offload in reversed(offloads):
            _ethtool(door, device, offload.value[1], 1)


def is_on(device: str, offload: Offload, namespace: Namespace | None = None) -> bool:
    """Whether a feature is on."""
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as door:
        return bool(_ethtool(door, device, offload.value[0], 0))


def _ethtool(door: socket.socket, device: str, command: int, value: int) -> int:
    """struct ethtool_value {command, data} behind the pointer of a struct ifreq."""
    row = array.array("B", struct.pack("=II", command, value))
    address, _ = row.buffer_info()
    request = struct.pack("16sP16x", os.fsencode(device), address)
    fcntl.ioctl(door, _SIOCETHTOOL, request)
    answer: int = struct.unpack("=II", row.tobytes())[1]
    return answer
