# SPDX-License-Identifier: Apache-2.0
"""Whose address it is: the pod, the node and the identity behind every address of the cluster.

The table that `plan` makes holds the same addresses as the ipcache, with the names a person
uses. A flow keeps the names that were right when it was last seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellicle.facts import (
    IDENTITY_HOST,
    IDENTITY_REMOTE_NODE,
    Address,
    Endpoint,
    EndpointName,
    IdentityNumber,
    Node,
    NodeName,
)


@dataclass(frozen=True, slots=True)
class Name:
    """Who has an address; without a pod, the node itself has it."""

    node: NodeName
    identity: IdentityNumber
    pod: EndpointName | None = None


def plan(
    local: NodeName, nodes: Mapping[NodeName, Node], endpoints: Mapping[EndpointName, Endpoint]
) -> dict[Address, Name]:
    """A name for each address; where two claim one address, the node has it (as in the ipcache)."""
    named = {
        address: Name(endpoint.node, endpoint.identity, endpoint.name)
        for endpoint in endpoints.values()
        for address in endpoint.addresses
    }
    for node in nodes.values():
        identity = IDENTITY_HOST if node.name == local else IDENTITY_REMOTE_NODE
        name = Name(node.name, identity)
        named.update((address, name) for address in node.own_addresses)
    return named
