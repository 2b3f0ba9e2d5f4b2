# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs, and which one a node must have.

    spiffe://{trust_domain}/pellicle/node/{node}        {trust_domain}: this node's own
    spiffe://other.example/pellicle/node/{node}         the nodes of a federated cluster

A template without {node} is refused: every node could speak for every other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TRUST_DOMAIN = "{trust_domain}"
NODE = "{node}"
LONGEST_ID = 2048
"""Bytes; SPIFFE-ID §2.3."""

_ID = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)*)")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """Names a workload, or with an empty path a trust domain."""

    trust_domain: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """SPIFFE-ID §2; ValueError."""
        found = _ID.fullmatch(text) if len(text) <= LONGEST_ID else None
        if found is None:
            raise ValueError("is not a SPIFFE ID: spiffe://, a trust domain, and a path")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


def checked_template(text: str) -> str:
    """`text` when it can name nodes, each in its own way; ValueError says why not."""
    if NODE not in text:
        raise ValueError(f"has no {NODE}: every node could speak for every other")
    example = text.replace(TRUST_DOMAIN, "example.org").replace(NODE, "node-1")
    if "{" in example or "}" in example:
        raise ValueError(f"only {TRUST_DOMAIN} and {NODE} are filled in")
    if NODE in text.removeprefix("spiffe://").partition("/")[0]:
        raise ValueError(f"{NODE} must stand in the path")
    SpiffeId.parse(example)
    return text


def expected_id(template: str, trust_domain: str, node: str) -> str:
    """What `template` says of a node."""
    return template.replace(TRUST_DOMAIN, trust_domain).replace(NODE, node)
