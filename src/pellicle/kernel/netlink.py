# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: one socket in one network namespace, and what Pellicle asks of it.

Requests go out in batches: a chunk of messages in one datagram, an acknowledgement asked of the
last only. The kernel does each message by itself, in order, and answers those that fail; so 5,000
routes are a handful of system calls and every failure keeps its own errno. What is there
already, or gone already, is success.

Everything here is synchronous and takes well under a millisecond of the event loop's time,
except dumps and batches of thousands.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from pellicle.kernel import Held
from pellicle.kernel.netns import Namespace, socket_in
from pellicle.wire import link as links
from pellicle.wire import netlink as routing
from pellicle.wire import nlmsg
from pellicle.wire.link import LinkAddress, LinkInfo, VethEnd
from pellicle.wire.netlink import PROTOCOL, Route, Rule

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 10, 11, 12
_CHUNK_BYTES = 64 * 1024
_CHUNK_MESSAGES = 512
_RECEIVE_BYTES = 256 * 1024
_QUEUE_BYTES = 4 * 1024 * 1024
"""Room for an error to every message of a chunk; unread answers end in ENOBUFS."""
_DUMP_TRIES = 10

R = TypeVar("R", bound=Hashable)


class Netlink(Held):
    """A socket to the kernel's routing tables, devices and addresses of one namespace."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        self._socket = route_socket(namespace)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    # What the socket can do.

    def batch(self, requests: Iterable[nlmsg.Request]) -> list[OSError | None]:
        """Sends all, in order; for each its error or None."""
        wanted = list(requests)
        errors: list[OSError | None] = [None] * len(wanted)
        first = self._sequence + 1
        self._sequence += len(wanted)
        for start, datagram in _chunks(wanted, first):
            self._socket.send(datagram)
            for reply in self._until_acknowledged(start):
                number, words = reply.error
                if number and reply.sequence >= first:  # not left over from a call that raised
                    errors[reply.sequence - first] = _error(number, words)
        return errors

    def ask(self, request: nlmsg.Request) -> None:
        """Sends one; raises its error."""
        (error,) = self.batch([request])
        if error is not None:
            raise error

    def dump(self, request: nlmsg.Request) -> list[nlmsg.Reply]:
        """All rows that answer a dump; asked again while they change under our hands."""
        for _ in range(_DUMP_TRIES):
            rows, was_interrupted = self._dump_once(request)
            if not was_interrupted:
                return rows
        raise OSError(errno.EAGAIN, "the kernel's table changes faster than it can be read")

    # Routes and rules.

    def put_routes(self, routes: Iterable[Route]) -> dict[Route, OSError]:
        """Adds or replaces routes; answers those that failed."""
        return self._each(routes, routing.put_route)

    def remove_routes(self, routes: Iterable[Route]) -> dict[Route, OSError]:
        """Removes routes by key and protocol; answers those that failed."""
        return self._each(routes, routing.remove_route, errno.ESRCH)

    def routes(self, table: int, protocol: int = PROTOCOL) -> list[Route]:
        """The routes of a table that are ours (protocol 0: anyone's)."""
        found = []
        for family in (4, 6):
            try:
                replies = self.dump(routing.dump_routes(family, table, protocol))
            except FileNotFoundError:  # a table without routes does not exist
                continue
            rows = (routing.read_route(reply) for reply in replies)
            found += [
                row for row in rows if row and row.table == table and protocol in (0, row.protocol)
            ]
        return found

    def put_rules(self, rules: Iterable[Rule]) -> dict[Rule, OSError]:
        """Adds rules; answers those that failed."""
        return self._each(rules, routing.put_rule, errno.EEXIST)

    def remove_rules(self, rules: Iterable[Rule]) -> dict[Rule, OSError]:
        """Removes rules; answers those that failed."""
        return self._each(rules, routing.remove_rule, errno.ENOENT)

    def rules(self, protocol: int = PROTOCOL) -> list[Rule]:
        """The rules that are ours (protocol 0: anyone's)."""
        replies = [each for family in (4, 6) for each in self.dump(routing.dump_rules(family))]
        rows = (routing.read_rule(reply) for reply in replies)
        return [row for row in rows if row and protocol in (0, row.protocol)]

    # Devices.

    def links(self) -> dict[str, LinkInfo]:
        """The devices of the namespace by name."""
        rows = (links.read_link(reply) for reply in self.dump(links.dump_links()))
        return {row.name: row for row in rows}

    def link(self, name: str) -> LinkInfo:
        """One device; OSError ENODEV when there is none of that name."""
        found = self.links().get(name)
        if found is None:
            raise OSError(errno.ENODEV, f"no device {name}")
        return found

    def add_veth(self, end: VethEnd, peer: VethEnd) -> None:
        """Makes a veth pair, either end in a namespace of its own; EEXIST when a name is taken."""
        self.ask(links.add_veth(end, peer))

    def change_link(
        self,
        index: int,
        *,
        is_up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        is_noarp: bool | None = None,
        has_link_local: bool | None = None,
        netns_fd: int | None = None,
        name: str | None = None,
    ) -> None:
        """Changes what is given; has_link_local=False before it is up: no fe80:: of its own."""
        request = links.change_link(
            index,
            is_up=is_up,
            mtu=mtu,
            mac=mac,
            is_noarp=is_noarp,
            has_link_local=has_link_local,
            netns_fd=netns_fd,
            name=name,
        )
        self.ask(request)

    def remove_link(self, name: str) -> bool:
        """Removes a device; False when there was none."""
        found = self.links().get(name)
        if found is None:
            return False
        (error,) = self.batch([links.remove_link(found.index)])
        if error is not None and error.errno != errno.ENODEV:
            raise error
        return error is None

    # Addresses.

    def addresses(self, index: int | None = None) -> list[LinkAddress]:
        """The addresses of one device or all."""
        rows = (links.read_address(reply) for reply in self.dump(links.dump_addresses()))
        return [row for row in rows if row and index in (None, row.index)]

    def put_addresses(
        self, addresses: Iterable[LinkAddress], *, has_prefix_route: bool = True
    ) -> dict[LinkAddress, OSError]:
        """Adds addresses, usable at once; answers those that failed."""

        def put(address: LinkAddress) -> nlmsg.Request:
            return links.put_address(address, has_prefix_route=has_prefix_route)

        return self._each(addresses, put, errno.EEXIST)

    def remove_addresses(self, addresses: Iterable[LinkAddress]) -> dict[LinkAddress, OSError]:
        """Removes addresses; answers those that failed."""
        return self._each(addresses, links.remove_address, errno.EADDRNOTAVAIL, errno.ENODEV)

    def _each(
        self, rows: Iterable[R], request: Callable[[R], nlmsg.Request], *success: int
    ) -> dict[R, OSError]:
        wanted = list(rows)
        errors = self.batch(map(request, wanted))
        return {
            row: error
            for row, error in zip(wanted, errors, strict=True)
            if error is not None and error.errno not in success
        }

    def _until_acknowledged(self, last: int) -> Iterator[nlmsg.Reply]:
        """The errors of a chunk; ends with the answer to its last message."""
        while True:
            for reply in nlmsg.replies(self._socket.recv(_RECEIVE_BYTES)):
                if reply.kind == nlmsg.ERROR:
                    yield reply
                    if reply.sequence == last:
                        return

    def _dump_once(self, request: nlmsg.Request) -> tuple[list[nlmsg.Reply], bool]:
        self._sequence += 1
        self._socket.send(request.pack(self._sequence))
        rows: list[nlmsg.Reply] = []
        was_interrupted = False
        while True:
            for reply in nlmsg.replies(self._socket.recv(_RECEIVE_BYTES)):
                if reply.sequence != self._sequence:  # left over from a call that raised
                    continue
                was_interrupted |= bool(reply.flags & nlmsg.DUMP_INTERRUPTED)
                if reply.kind in (nlmsg.ERROR, nlmsg.DONE):
                    number, words = reply.error
                    if number:
                        raise _error(number, words)
                    return rows, was_interrupted
                rows.append(reply)


def route_socket(namespace: Namespace | None, *, queue: int = _QUEUE_BYTES) -> socket.socket:
    """An rtnetlink socket, not yet bound, that answers tersely and filters dumps."""
    opened = socket_in(namespace, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    so_rcvbufforce = 33
    opened.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, queue)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _CHUNK_BYTES)
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
        opened.setsockopt(_SOL_NETLINK, option, 1)
    return opened


def _chunks(requests: Sequence[nlmsg.Request], first: int) -> Iterator[tuple[int, bytes]]:
    """Datagrams and the sequence number of each one's last message, which asks for an answer."""
    parts: list[bytes] = []
    size = 0
    for number, request in enumerate(requests):
        sequence = first + number
        size += len(request.body) + 32
        is_last = (
            number + 1 == len(requests) or len(parts) + 1 == _CHUNK_MESSAGES or size > _CHUNK_BYTES
        )
        parts.append(request.pack(sequence, nlmsg.ACK if is_last else 0))
        if is_last:
            yield sequence, b"".join(parts)
            parts, size = [], 0


def _error(number: int, words: str) -> OSError:
    reason = os.strerror(number)
    return OSError(number, f"{reason}: {words}" if words else reason)
