# SPDX-License-Identifier: Apache-2.0
"""A device without Ethernet, as pellicle_xfrm is one: bare IP packets leave by it, marked.

with Tun(namespace, "pellicle_xfrm") as device:
    device.send(packet)            # as the stack would: tc egress runs before this returns
    [(packet, mark)] = device.left()
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pellicle.kernel import netns
from tests.bpf import packets

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_TUNSETOFFLOAD, _TUN_F_CSUM = 0x400454D0, 1
"""As pellicle_xfrm: the stack leaves checksums to whoever comes next."""
_ETH_P_ALL = 3
_SO_RCVMARK = 75
"""Since Linux 5.19 a packet socket tells what an outgoing packet's mark was."""


@dataclass(frozen=True)
class Left:
    """A packet that left, past the device's tc programs."""

    packet: bytes
    mark: int


class Tun:
    """Up, without addresses and silent by itself; it ends with its descriptor."""

    def __init__(self, namespace: str, name: str) -> None:
        self.name = name
        with netns.inside(namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self._fd, _TUNSETIFF, request)
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, _TUN_F_CSUM)
            self.ifindex = socket.if_nametoindex(name)
        netns.write_sysctl(f"net/ipv6/conf/{name}/addr_gen_mode", 1, namespace)  # none
        netns.run_in(namespace, f"ip link set {name} up".split(), check=True)
        self._sender = netns.socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._tap = netns.socket_in(namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._tap.setsockopt(socket.SOL_SOCKET, _SO_RCVMARK, 1)
        self._tap.setblocking(False)
        self._tap.bind((name, _ETH_P_ALL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sender.close()
        self._tap.close()
        os.close(self._fd)

    def send(self, packet: bytes, *, ethertype: int | None = None, mark: int = 0) -> None:
        """Out of the device; OSError ENOBUFS when a program there has dropped it."""
        if ethertype is None:
            is_ipv6 = packet[:1] and packet[0] >> 4 == 6
            ethertype = packets.ETH_IPV6 if is_ipv6 else packets.ETH_IPV4
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("<I", mark))
        self._sender.sendto(packet, (self.name, ethertype))

    def left(self) -> list[Left]:
        """What has left since the last call."""
        seen = []
        while True:
            try:
                packet, ancillary, _, _ = self._tap.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            except BlockingIOError:
                break
            ((_, _, mark),) = ancillary
            seen.append(Left(packet, *struct.unpack("<I", mark)))
        self._drain()
        return seen

    def _drain(self) -> None:
        """Nobody reads the other end of the wire, and its queue is short."""
        while True:
            try:
                os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
