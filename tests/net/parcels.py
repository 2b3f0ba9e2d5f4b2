# SPDX-License-Identifier: Apache-2.0
"""Parcels: packets of known bytes from socket to socket, opened in pods and nodes of the lab.

    with parcels("n1/p1", "n2/p1", 4) as post:
        assert post.carries(1418)

The sockets live in the pods' namespaces; the test holds both ends. What is asked of them beyond
the ordinary (DF, TTL, TOS, the error queue) is here, once for both families.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Self

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.topology import namespace_of, pod_named
from tests import pace
from tests.net.loaded import address_of

SECRET = b"for-your-eyes-only"
INNER = {4: 1446, 6: 1426}
"""MTU inside, by the family outside, in a wire of 1500: the same with every engine."""
IP_UDP = {4: 28, 6: 48}
"""Bytes of IP and UDP, or of IP and an echo's header."""
SECONDS = 5.0
ECHO_REQUEST = {4: 8, 6: 128}

# linux/in.h, linux/in6.h
IP_TOS, IP_TTL, IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS, IP_MTU = (
    1,
    2,
    10,
    11,
    12,
    13,
    14,
)
IPV6_UNICAST_HOPS, IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR = 16, 23, 24, 25
IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT, IPV6_DONTFRAG, IPV6_RECVTCLASS, IPV6_TCLASS = 51, 52, 62, 66, 67
MAY_FRAGMENT, MUST_NOT_FRAGMENT, PROBE_PATH = 0, 2, 3
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
TTL_OPTION, TOS_OPTION = {4: IP_TTL, 6: IPV6_UNICAST_HOPS}, {4: IP_TOS, 6: IPV6_TCLASS}
MTU_OPTION = {4: IP_MTU, 6: IPV6_MTU}
DISCOVER_OPTION = {4: IP_MTU_DISCOVER, 6: IPV6_MTU_DISCOVER}
ERRORS_OPTION = {4: IP_RECVERR, 6: IPV6_RECVERR}
_ERROR = struct.Struct("=IBBBBII")
"""struct sock_extended_err; the offender's address follows."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What arrived."""

    content: bytes
    ttl: int
    tos: int


@dataclass(frozen=True, slots=True)
class IcmpError:
    """What came back."""

    type: int
    code: int
    mtu: int
    offender: str


@cache
def content(size: int) -> bytes:
    """Other bytes for each size; the longer ones carry the secret in each kilobyte."""
    noise = hashlib.shake_128(size.to_bytes(4)).digest(size)
    pieces = (SECRET + noise[at : at + 1000] for at in range(0, size, 1000))
    return b"".join(pieces)[:size]


def open_in(where: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket in a pod or node, with a time limit."""
    of = socket.AF_INET if family == 4 else socket.AF_INET6
    made = netns.socket_in(namespace_of(where), of, kind, protocol)
    made.settimeout(pace.patient(SECONDS))
    return made


def udp_in(where: str, family: int) -> socket.socket:
    """Bound to a free port, and told how each datagram travelled."""
    made = open_in(where, family, socket.SOCK_DGRAM)
    options = (IP_RECVTTL, IP_RECVTOS) if family == 4 else (IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS)
    for option in (*options, ERRORS_OPTION[family]):
        made.setsockopt(LEVEL[family], option, 1)
    made.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    made.bind(("", 0))
    return made


class Post:
    """A connected sender in one place, and the receiver in another."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, family: int) -> None:
        self.sender, self.receiver, self.family = sender, receiver, family

    def discover(self, mode: int) -> None:
        """Whether what is too long is fragmented, refused, or sent anyway to see what happens."""
        self.sender.setsockopt(LEVEL[self.family], DISCOVER_OPTION[self.family], mode)
        if self.family == 6:
            self.sender.setsockopt(LEVEL[6], IPV6_DONTFRAG, int(mode != MAY_FRAGMENT))

    @property
    def mtu(self) -> int:
        """Of the path, as the sender's kernel knows it."""
        return self.sender.getsockopt(LEVEL[self.family], MTU_OPTION[self.family])

    def send(self, data: bytes, *, ttl: int | None = None, tos: int | None = None) -> None:
        for option, value in ((TTL_OPTION, ttl), (TOS_OPTION, tos)):
            if value is not None:
                self.sender.setsockopt(LEVEL[self.family], option[self.family], value)
        self.sender.send(data)

    def receive(self) -> Parcel:
        data, notes, _, _ = self.receiver.recvmsg(65536, 256)
        values = {kind: struct.unpack("=i", (note + bytes(4))[:4])[0] for _, kind, note in notes}
        if self.family == 4:
            return Parcel(data, values[IP_TTL], values[IP_TOS])
        return Parcel(data, values[IPV6_HOPLIMIT], values[IPV6_TCLASS])

    def carries(self, size: int) -> bool:
        """Whether this many bytes of UDP arrive as they were sent."""
        self.sender.send(content(size))
        return self.receive().content == content(size)

    @property
    def is_silent(self) -> bool:
        """Whether nothing more has arrived."""
        waiting, _, _ = select.select([self.receiver], [], [], 0)
        return not waiting

    def error(self) -> IcmpError | None:
        """The next ICMP error that comes back to the sender; None when none comes."""
        poll = select.poll()
        poll.register(self.sender, 0)  # POLLERR is always waited for
        if not poll.poll(pace.patient(SECONDS) * 1000):
            return None
        _, notes, _, _ = self.sender.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        note = next(
            note for level, _, note in notes if level == LEVEL[self.family] and len(note) > 16
        )
        _, _, kind, code, _, info, _ = _ERROR.unpack_from(note)
        at = (20, 24) if self.family == 4 else (24, 40)
        return IcmpError(kind, code, info, str(ipaddress.ip_address(note[slice(*at)])))


@contextmanager
def parcels(source: str, destination: str, family: int, address: str = "") -> Iterator[Post]:
    """From `source` to `destination`, both pods, or to an `address` that is there."""
    with udp_in(source, family) as sender, udp_in(destination, family) as receiver:
        to = address or address_of(destination, family)
        sender.connect((to, receiver.getsockname()[1]))
        yield Post(sender, receiver, family)


class Echo:
    """Echo requests by hand; the kernel does the checksums and finds the replies."""

    def __init__(self, where: str, family: int, to: str) -> None:
        netns.write_sysctl("net/ipv4/ping_group_range", "0 0", namespace_of(where))
        protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
        self.socket = open_in(where, family, socket.SOCK_DGRAM, protocol)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
        self.socket.connect((to, 0))
        self._type, self._number = ECHO_REQUEST[family], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def answers(self, size: int) -> bool:
        """Whether this many bytes come back as they were sent."""
        self._number += 1
        self.socket.send(struct.pack("!BBHHH", self._type, 0, 0, 0, self._number) + content(size))
        reply = self.socket.recv(65536)
        number = int.from_bytes(reply[6:8])
        return number == self._number and reply[8:] == content(size)


def is_echoed(source: str, family: int, to: str, seconds: float = SECONDS) -> bool:
    """Whether `to` answers one echo request of `source`."""
    with Echo(source, family, to) as echo, suppress(TimeoutError):
        echo.socket.settimeout(pace.patient(seconds))
        try:
            return echo.answers(1000)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # a program on the way out has dropped it
                raise
    return False


def refusal(act: Callable[[], object]) -> int:
    """The errno with which a call fails; 0 when it does not."""
    try:
        act()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


@contextmanager
def raw_link(pod: str) -> Iterator[Callable[[bytes], None]]:
    """Puts IP packets on a pod's device as they are: past the pod's own stack."""
    inside, node = pod_named(pod).namespace, pod_named(pod).node.namespace
    with Netlink(inside) as here, Netlink(node) as there:
        own = here.link("eth0")
        host = next(link for link in there.links().values() if link.index == own.peer)
    addresses = bytes.fromhex((host.mac + own.mac).replace(":", ""))
    with netns.socket_in(inside, socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
        link.bind(("eth0", 0))

        def send(packet: bytes) -> None:
            ethertype = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
            link.send(addresses + ethertype + packet)

        yield send
