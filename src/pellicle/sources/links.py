# SPDX-License-Identifier: Apache-2.0
"""This node's devices, as snapshots of `Link` rows by name.

An event only rings: the devices are then listed anew. So lost events, renames, moves to
another namespace and a bridge's words about its ports (which look like devices that
went) all come out right.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from types import MappingProxyType

from pellicle.facts import Link
from pellicle.kernel.changes import Changes, Group
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.netns import Namespace

SETTLE_SECONDS = 0.02
"""A pod's device says several things while it is made; they are listened to together."""


async def links(namespace: Namespace | None = None) -> AsyncGenerator[Mapping[str, Link], None]:
    """The devices of `namespace` (default: this one's), and again whenever they change."""
    with Changes(namespace, [Group.LINK]) as changes, Netlink(namespace) as netlink:
        known: Mapping[str, Link] | None = None
        while True:
            found = _unless_too_fast(netlink)
            if found is not None and found != known:
                known = found
                yield found
            if found is not None:
                await anext(changes)
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    async for _ in changes:
                        pass


def snapshot(netlink: Netlink) -> Mapping[str, Link]:
    """The devices that are there now."""
    return MappingProxyType(
        {
            name: Link(name, row.index, row.mac, row.mtu, row.is_up)
            for name, row in netlink.links().items()
        }
    )


def _unless_too_fast(netlink: Netlink) -> Mapping[str, Link] | None:
    """The devices; None when they change faster than they can be listed."""
    try:
        return snapshot(netlink)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
            raise
        return None
