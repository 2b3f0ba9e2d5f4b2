# SPDX-License-Identifier: Apache-2.0
"""What differs from engine to engine, where a test looks at it: devices, limits, names.

Everything else that tests say of a node must hold whichever engine it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pellicle.kernel import netns
from pellicle.lab import agents
from pellicle.lab.topology import LabNode


@dataclass(frozen=True, slots=True)
class Engine:
    """What a person sees of one."""

    name: str
    door: str
    """The device that routes of table 200 lead to."""
    link: str
    """The pin of the program behind it."""
    longest: int
    """The longest packet that it encrypts, whatever the wire could carry."""


ENGINES = {
    each.name: each
    for each in (
        # EXPORT_LONGEST of bpf/tables.h.
        Engine("bpf", "pellicle_host", "ingress_pellicle_net", 2046),
        Engine("xfrm", "pellicle_xfrm", "egress_pellicle_xfrm", 65535),
    )
}


def of(node: LabNode) -> Engine:
    """What the node's agent says that it has."""
    return ENGINES[agents.status(node)["engine"]]


def inner_mtu(wire: int, outer: int, nodes: Sequence[LabNode]) -> int:
    """What pods may send through such a wire, IPv4 or IPv6 outside.

    ESP adds SPI, sequence number, IV, tag and the outer header, and pads to four bytes after two of
    its own (RFC 4303 §2.4). What one node encrypts the other must be able to take.
    """
    fits = (wire - {4: 20, 6: 40}[outer] - 32) // 4 * 4 - 2
    return min(fits, *(of(node).longest for node in nodes))


def kernel_drops(node: LabNode) -> Mapping[str, int]:
    """What the kernel's own IPsec has refused there, by its names (Linux: xfrm_proc.rst)."""
    argv = ["cat", "/proc/net/xfrm_stat"]
    done = netns.run_in(node.namespace, argv, capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in map(str.split, done.stdout.splitlines())}
