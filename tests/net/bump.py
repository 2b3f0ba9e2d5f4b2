# SPDX-License-Identifier: Apache-2.0
"""A bump in the wire: it forwards each packet between two nodes, in place of the router.

    n1 ═══ wire: `change` ═══ n2

`change` gets each IP packet that a node sends to the other, and answers what goes on instead of it:
the same, another, several, none.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.topology import UPLINK, WIRE, LabNode

Change = Callable[[bytes], Iterable[bytes]]
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
ETHERNET = 14
OUTGOING = 4
"""linux/if_packet.h: sent by this machine itself."""


@contextmanager
def bump(first: LabNode, second: LabNode, change: Change) -> Iterator[None]:
    """Until the end of the block. What is neither node's own address goes nowhere."""
    with ExitStack() as undo:
        for name in FORWARDING:
            netns.write_sysctl(name, 0, WIRE)
            undo.callback(netns.write_sysctl, name, 1, WIRE)
        ends = [undo.enter_context(_cable(node)) for node in (first, second)]
        stop = os.eventfd(0)
        undo.callback(os.close, stop)
        nodes = (first, second)
        ways = {ends[0]: (ends[1], _header(second)), ends[1]: (ends[0], _header(first))}
        wanted = {address.packed for node in nodes for address in node.addresses}
        thread = threading.Thread(target=_forward, args=(ways, wanted, change, stop))
        thread.start()
        undo.callback(thread.join)
        undo.callback(os.eventfd_write, stop, 1)
        yield


def get_tos(packet: bytes) -> int:
    """DSCP and ECN."""
    return packet[1] if packet[0] >> 4 == 4 else (packet[0] & 0xF) << 4 | packet[1] >> 4


def set_tos(packet: bytes, tos: int) -> bytes:
    """With the IPv4 checksum that belongs to it (RFC 791 §3.1); IPv6 has none."""
    if packet[0] >> 4 == 6:
        head = bytes([0x60 | tos >> 4, (packet[1] & 0xF) | (tos & 0xF) << 4])
        return head + packet[2:]
    length = (packet[0] & 0xF) * 4
    head = packet[:1] + bytes([tos]) + packet[2:10] + bytes(2) + packet[12:length]
    total = sum(int.from_bytes(head[at : at + 2]) for at in range(0, length, 2))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~(total + (total >> 16)) & 0xFFFF
    return head[:10] + check.to_bytes(2) + head[12:] + packet[length:]


def is_esp(packet: bytes) -> bool:
    return packet[9 if packet[0] >> 4 == 4 else 6] == socket.IPPROTO_ESP


def _cable(node: LabNode) -> socket.socket:
    """The wire's end of it."""
    made = netns.socket_in(WIRE, socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: the bump must not lose any
    made.bind((node.wire_device, 0x0003))  # ETH_P_ALL
    return made


def _header(node: LabNode) -> bytes:
    """Of frames for the node, without the EtherType."""
    with Netlink(WIRE) as wire, Netlink(node.namespace) as inside:
        macs = inside.link(UPLINK).mac, wire.link(node.wire_device).mac
    return bytes.fromhex("".join(macs).replace(":", ""))


def _forward(
    ways: dict[socket.socket, tuple[socket.socket, bytes]],
    wanted: set[bytes],
    change: Change,
    stop: int,
) -> None:
    while True:
        ready, _, _ = select.select([*ways, stop], [], [])
        if stop in ready:
            return
        for end in ready:
            frame, (_, _, kind, *_) = end.recvfrom(65536)
            packet = frame[ETHERNET:]
            if kind == OUTGOING or _destination(frame) not in wanted:
                continue
            other, header = ways[end]
            for each in change(packet):
                other.send(header + frame[12:ETHERNET] + each)


def _destination(frame: bytes) -> bytes:
    if frame[12:ETHERNET] == b"\x08\x00":
        return frame[30:34]
    return frame[38:54] if frame[12:ETHERNET] == b"\x86\xdd" else b""
