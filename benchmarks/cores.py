# SPDX-License-Identifier: Apache-2.0
"""Each node of the lab has one core of this machine, as if it were a machine of its own.

Its pods' processes run there, and what its uplink receives is worked on there (receive packet
steering, as a network card does by its interrupts). Left alone, the kernel would carry a packet
through both nodes on the sender's core, and the scheduler would put both ends of a talk now on
one core and now on two, which makes more of a difference than all that is compared.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from pellicle.lab import LabError
from pellicle.lab.topology import UPLINK, LabNode


def core_of(node: LabNode) -> int:
    """The nodes share a core only where there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[(node.number - 1) % len(cores)]


def on_core(node: LabNode, argv: Sequence[str]) -> list[str]:
    """The command that runs a program on the node's core."""
    return ["taskset", "--cpu-list", f"{core_of(node)}", *argv]


def steer(node: LabNode) -> None:
    """Let the node's core work on what its uplink receives."""
    setting = f"/sys/class/net/{UPLINK}/queues/rx-0/rps_cpus"
    # Each namespace has a /sys of its own, which `ip netns exec` mounts.
    command = f"echo {1 << core_of(node):x} >{setting}"
    argv = ["ip", "netns", "exec", node.namespace, "sh", "-c", command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"steering what {node.name} receives: {done.stderr.strip()}")
