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
_GET_STRINGS, _GET_SET_INFO, _GET_FEATURES = 0x1B, 0x37, 0x3A
_FEATURES, _NAME_BYTES = 4, 32
"""ETH_SS_FEATURES and ETH_GSTRING_LEN."""
_ESP = "esp-hw-offload"


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


def has_esp_offload(device: str, namespace: Namespace | None = None) -> bool:
    """Whether the device says that it can encrypt ESP, and is meant to (esp-hw-offload)."""
    with socket_in(namespace, socket.AF_INET, socket.SOCK_DGRAM) as door:
        try:
            names = _feature_names(door, device)
            blocks = (len(names) + 31) // 32
            answer = _exchange(
                door, device, struct.pack("=II", _GET_FEATURES, blocks) + bytes(16 * blocks)
            )
        except OSError:
            return False
    number = names.index(_ESP) if _ESP in names else None
    if number is None:
        return False
    # struct ethtool_get_features_block: available, requested, active, never_changed
    (active,) = struct.unpack_from("=I", answer, 8 + 16 * (number // 32) + 8)
    return bool(active >> number % 32 & 1)


def _feature_names(door: socket.socket, device: str) -> list[str]:
    """What the bits of the device's features are called."""
    ask = struct.pack("=IIQI", _GET_SET_INFO, 0, 1 << _FEATURES, 0)
    (count,) = struct.unpack_from("=I", _exchange(door, device, ask), 16)
    ask = struct.pack("=III", _GET_STRINGS, _FEATURES, count) + bytes(_NAME_BYTES * count)
    names = _exchange(door, device, ask)[12:]
    rows = (names[at : at + _NAME_BYTES] for at in range(0, _NAME_BYTES * count, _NAME_BYTES))
    return [row.split(b"\0", 1)[0].decode("ascii", "replace") for row in rows]


def _ethtool(door: socket.socket, device: str, command: int, value: int) -> int:
    """struct ethtool_value {command, data} behind the pointer of a struct ifreq."""
    answer: int = struct.unpack("=II", _exchange(door, device, struct.pack("=II", command, value)))[
        1
    ]
    return answer


def _exchange(door: socket.socket, device: str, asked: bytes) -> bytes:
    """What the kernel makes of a struct that begins with an ethtool command."""
    row = array.array("B", asked)
    address, _ = row.buffer_info()
    request = struct.pack("16sP16x", os.fsencode(device), address)
    fcntl.ioctl(door, _SIOCETHTOOL, request)
    return row.tobytes()
