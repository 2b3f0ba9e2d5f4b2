# SPDX-License-Identifier: Apache-2.0
"""Which node has which address: who had it before has it still, else the first name does.

A node that claims what is another's has nothing, until that one has let go of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pellicle.facts import Address, Node, NodeName, Rejected
from pellicle.keys.rows import LocalNode


class Claims:
    """Those of all other nodes; this node's own addresses are nobody else's."""

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self.nodes: dict[NodeName, Node] = {}
        """All of them."""
        self.held: dict[NodeName, None] = {}
        """Nodes that have their addresses alone."""
        self.refused: dict[NodeName, Rejected] = {}
        """All others."""
        self._claimed: dict[Address, set[NodeName]] = {}

    def hear(
        self, nodes: Mapping[NodeName, Node], changed: Iterable[NodeName] | None = None
    ) -> Collection[NodeName]:
        """The nodes are these now, and only `changed` may differ from those before.

        Answers those whose record is another, or that have won or lost their addresses.
        """
        moved: dict[NodeName, None] = {}
        news: dict[NodeName, None] = {}
        for name in {**nodes, **self.nodes} if changed is None else changed:
            was, now = self.nodes.get(name), nodes.get(name)
            if name == self._local.name or was == now:
                continue
            news[name] = moved[name] = None
            for address in was.addresses if was else ():
                self._claimed[address].discard(name)
                moved.update(dict.fromkeys(self._claimed[address]))
                if not self._claimed[address]:
                    del self._claimed[address]
            for address in now.addresses if now else ():
                self._claimed.setdefault(address, set()).add(name)
            if now:
                self.nodes[name] = now
            else:
                del self.nodes[name]
        return news | dict.fromkeys(self._settle(self._rivals(moved)))

    def _rivals(self, names: Iterable[NodeName]) -> Collection[NodeName]:
        """`names`, and whoever claims what one of them claims, and so on."""
        found = dict.fromkeys(names)
        queue = list(found)
        while queue:
            node = self.nodes.get(queue.pop())
            for address in node.addresses if node else ():
                new = [rival for rival in self._claimed[address] if rival not in found]
                found.update(dict.fromkeys(new))
                queue.extend(new)
        return found

    def _settle(self, names: Iterable[NodeName]) -> Iterable[NodeName]:
        """Between these; answers those that have won or lost."""
        holders: dict[Address, NodeName] = dict.fromkeys(self._local.addresses, self._local.name)
        changed = []
        for name in sorted(names, key=lambda name: (name not in self.held, name)):
            node = self.nodes.get(name)
            rival = next((holders[a] for a in node.addresses if a in holders), None) if node else ""
            is_held = rival is None
            if is_held != (name in self.held):
                changed.append(name)
            self.refused.pop(name, None)
            self.held.pop(name, None)
            if node and is_held:
                self.held[name] = None
                holders.update(dict.fromkeys(node.addresses, name))
            elif rival:
                why = f"an address of it belongs to node {rival}"
                self.refused[name] = Rejected(f"record of node {name}", "addresses", why)
        return changed
