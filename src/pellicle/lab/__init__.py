# SPDX-License-Identifier: Apache-2.0
"""A cluster on one machine: real agents and the real CNI plugin in network namespaces.

    lab.up(nodes=3, pods=2)             n1 … n3 on a routed wire, pods n1/p1 … n3/p2
    lab.exec_("n1/p1", ["ping", …])     as if logged in there
    lab.sniff(filter="clear")           what a stranger on the wire can read
    lab.down()                          nothing is left

Nothing in here is simulated except the cables. `topology` says how everything is called.
"""

from pellicle.lab.agents import ask
from pellicle.lab.cluster import (
    add_node,
    add_pod,
    delete_pod,
    down,
    exec_,
    kill_agent,
    power_off,
    power_on,
    reboot,
    remove_node,
    restart_agent,
    start_agent,
    up,
)
from pellicle.lab.errors import LabError
from pellicle.lab.lock import LabBusyError, locked
from pellicle.lab.sniff import Heard, sniff
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.state import LabState, NodeState, PodState, status

__all__ = [
    "Heard",
    "LabBusyError",
    "LabError",
    "LabState",
    "NodeState",
    "PodState",
    "Sniffer",
    "add_node",
    "add_pod",
    "ask",
    "delete_pod",
    "down",
    "exec_",
    "kill_agent",
    "locked",
    "power_off",
    "power_on",
    "reboot",
    "remove_node",
    "restart_agent",
    "sniff",
    "start_agent",
    "status",
    "up",
]
