# SPDX-License-Identifier: Apache-2.0
"""What changes in a namespace's devices, addresses and routes, as it happens.

    with Changes() as changes:          # listening from here on
        known = netlink.links()         # what is there; nothing falls in between
        async for change in changes: …

The kernel drops events that nobody reads in time; then one `Missed` says that the truth must be
listed anew.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from pellicle.kernel import Held
from pellicle.kernel.netns import Namespace
from pellicle.kernel.nlsocket import Alarm, open_socket
from pellicle.wire import link, netlink, nlmsg

_RECEIVE_BYTES = 64 * 1024


class Group(IntEnum):
    """What to listen to (enum rtnetlink_groups)."""

    LINK = 1
    IPV4_ADDRESS = 5
    IPV4_ROUTE = 7
    IPV4_RULE = 8
    IPV6_ADDRESS = 9
    IPV6_ROUTE = 11
    IPV6_RULE = 19


@dataclass(frozen=True, slots=True)
class Change:
    """A thing that came or changed, or, if `is_gone`, went."""

    thing: link.LinkInfo | link.LinkAddress | netlink.Route
    is_gone: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """Events were lost."""


class Changes(Held):
    """An endless asynchronous iterator of changes."""

    def __init__(
        self,
        namespace: Namespace | None = None,
        groups: Iterable[Group] = tuple(Group),
        *,
        queue: int = 4 * 1024 * 1024,
    ) -> None:
        self._socket = open_socket(socket.NETLINK_ROUTE, namespace, queue=queue)
        self._socket.setblocking(False)
        self._socket.bind((0, sum(1 << group - 1 for group in groups)))
        self._waiting: deque[Change | Missed] = deque()

    def close(self) -> None:
        """Stops listening."""
        self._socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change | Missed:
        while not self._waiting:
            self._waiting.extend(await _receive(self._socket))
        return self._waiting.popleft()


class RouteChanges(Alarm):
    """A route or a rule of one of `tables` came, went or was replaced."""

    def __init__(
        self, tables: Iterable[int], own: Iterable[int] = (), namespace: Namespace | None = None
    ) -> None:
        groups = (Group.IPV4_ROUTE, Group.IPV4_RULE, Group.IPV6_ROUTE, Group.IPV6_RULE)
        kinds = (
            netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE, netlink.RTM_NEWRULE, netlink.RTM_DELRULE,
        )  # fmt: skip
        super().__init__(socket.NETLINK_ROUTE, groups, kinds, namespace, own, tables)


async def _receive(source: socket.socket) -> list[Change | Missed]:
    try:
        data = await asyncio.get_running_loop().sock_recv(source, _RECEIVE_BYTES)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return [Missed()]
    return [change for reply in nlmsg.replies(data) if (change := _change(reply))]


def _change(reply: nlmsg.Reply) -> Change | None:
    thing: link.LinkInfo | link.LinkAddress | netlink.Route | None
    match reply.kind:
        case link.RTM_NEWLINK | link.RTM_DELLINK:
            thing = link.read_link(reply)
        case link.RTM_NEWADDR | link.RTM_DELADDR:
            thing = link.read_address(reply)
        case netlink.RTM_NEWROUTE | netlink.RTM_DELROUTE:
            thing = netlink.read_route(reply)
        case _:
            return None
    gone = {link.RTM_DELLINK, link.RTM_DELADDR, netlink.RTM_DELROUTE}
    return None if thing is None else Change(thing, reply.kind in gone)
