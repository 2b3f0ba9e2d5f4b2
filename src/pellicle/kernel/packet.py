# SPDX-License-Identifier: Apache-2.0
"""Frames and packets put straight on a device, past the stack."""

from __future__ import annotations

import socket

_BROADCAST = b"\xff" * 6


def send_frame(device: str, ethertype: int, payload: bytes) -> None:
    """Sends one Ethernet frame out of `device`; OSError ENODEV when there is none."""
    header = _BROADCAST + bytes(6) + ethertype.to_bytes(2, "big")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.sendto(header + payload, (device, 0))


def send_packet(device: str, ethertype: int, packet: bytes) -> None:
    """Sends one packet out of a `device` that has no link header; OSError ENODEV without one."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as link:
        link.sendto(packet, (device, ethertype))
