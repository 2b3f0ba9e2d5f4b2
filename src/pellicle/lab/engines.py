# SPDX-License-Identifier: Apache-2.0
"""Which engine is asked of which node, in the words of `--engine`.

auto               each agent chooses by itself
xfrm               all have this one
xfrm,n2=bpf        all but n2
n1=bpf,n2=xfrm     these two; the others are auto
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

AUTO: Final = "auto"
ENGINES: Final = (AUTO, "bpf", "xfrm")


@dataclass(frozen=True, slots=True)
class Engines:
    """The words, read."""

    others: str
    """Of every node that is not named."""
    named: Mapping[str, str]
    """n1 -> bpf"""

    def of(self, node: str) -> str:
        return self.named.get(node, self.others)

    def without(self, node: str) -> Engines:
        """As if `node` had not been named: it is about to leave."""
        return Engines(self.others, {n: e for n, e in self.named.items() if n != node})

    def __str__(self) -> str:
        """The shortest words that say it."""
        named = [f"{node}={engine}" for node, engine in self.named.items()]
        return ",".join(named if named and self.others == AUTO else [self.others, *named])


def parse(text: str, nodes: int) -> Engines:
    """Read the words for a lab of so many nodes; ValueError says in a sentence what is wrong."""
    plain: list[str] = []
    named: dict[str, str] = {}
    for word in text.split(","):
        node, equals, engine = word.strip().rpartition("=")
        if engine not in ENGINES:
            raise ValueError(f"{engine!r} is not an engine: give {_either(ENGINES)}")
        if not equals:
            plain.append(engine)
        elif node in named:
            raise ValueError(f"node {node} is given two engines, {named[node]} and {engine}")
        elif not _is_node(node, nodes):
            raise ValueError(
                f"{node!r} is not a node of a lab of {nodes}, which are {_span(nodes)}"
            )
        else:
            named[node] = engine
    if len(plain) > 1:
        raise ValueError(f"the nodes that are not named are given {len(plain)} engines: {text}")
    return Engines(plain[0] if plain else AUTO, named)


def _is_node(name: str, nodes: int) -> bool:
    number = name.removeprefix("n")
    return number.isdecimal() and name == f"n{int(number)}" and 1 <= int(number) <= nodes


def _span(nodes: int) -> str:
    return "n1 alone" if nodes == 1 else f"n1 to n{nodes}"


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
