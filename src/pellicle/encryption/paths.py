# SPDX-License-Identifier: Apache-2.0
"""What routers between the nodes have said about the length of our ESP.

A word holds for a while and is then tried again, as the kernel does it (ip_rt_mtu_expires).
It narrows the routes to that peer; the stack then tells the pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from pellicle.encryption.routes import path_mtu
from pellicle.facts import Address, Node
from pellicle.table import Table

HOLDS_SECONDS = 600.0

log = structlog.get_logger()


@dataclass(slots=True)
class PathMtus:
    """MTU by the peer's outer address, where it is less than the uplink's."""

    table: Table[Address, int]
    uplink_mtu: int
    clock: Callable[[], float]
    is_overlay: bool = False
    _until: dict[Address, tuple[int, float]] = field(default_factory=dict)

    def narrow(self, peer: Address, mtu: int, nodes: Iterable[Node]) -> None:
        """A router refused ESP to `peer` longer than `mtu`; believed of nodes that we know.

        While a word holds only a narrower one counts: who repeats himself without end moves
        nothing and fills no log.
        """
        self.forget()
        worth = path_mtu(mtu, peer.version, is_overlay=self.is_overlay)
        if worth >= self.table.rows.get(peer, self.uplink_mtu):
            return
        if not any(peer in node.addresses for node in nodes):
            return
        self._until[peer] = (worth, self.clock() + HOLDS_SECONDS)
        self.forget()
        log.info("a narrower path", peer=str(peer), mtu=worth)

    def forget(self) -> None:
        """Drop what was said too long ago."""
        now = self.clock()
        self._until = {peer: word for peer, word in self._until.items() if word[1] > now}
        self.table.replace({peer: mtu for peer, (mtu, _) in self._until.items()})
