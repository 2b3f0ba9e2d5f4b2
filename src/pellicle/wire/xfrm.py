# SPDX-License-Identifier: Apache-2.0
"""XFRM, the kernel's IPsec, in netlink's words: which packets (policies), and how (states).

    selector + mark + if_id ──▶ policy ──template──▶ state ──▶ ESP
    destination + SPI + mark ──▶ state ──▶ inner packet ──▶ is there a policy that wanted this?

A row read back from the kernel equals the row that was put there. What others made and our rows
cannot say (AH, transport mode, ports…) reads as None.
"""

from pellicle.wire.xfrm_frame import Mark
from pellicle.wire.xfrm_policy import (
    XFRM_MSG_DELPOLICY,
    XFRM_MSG_GETPOLICY,
    XFRM_MSG_NEWPOLICY,
    XFRM_MSG_UPDPOLICY,
    Action,
    Policy,
    PolicyDirection,
    PolicyKey,
    Template,
    dump_policies,
    put_policy,
    read_policy,
    remove_policy,
)
from pellicle.wire.xfrm_state import (
    XFRM_MSG_DELSA,
    XFRM_MSG_GETSA,
    XFRM_MSG_NEWSA,
    Offload,
    OffloadFlags,
    Place,
    State,
    StateCounts,
    StateFlags,
    StateKey,
    dump_states,
    find_state,
    put_state,
    read_place,
    read_state,
    remove_state,
)

XFRM_MSG_EXPIRE, XFRM_MSG_UPDSA, XFRM_MSG_POLEXPIRE = 0x18, 0x1A, 0x1B
XFRM_MSG_FLUSHSA, XFRM_MSG_FLUSHPOLICY = 0x1C, 0x1D

__all__ = [
    "XFRM_MSG_DELPOLICY",
    "XFRM_MSG_DELSA",
    "XFRM_MSG_EXPIRE",
    "XFRM_MSG_FLUSHPOLICY",
    "XFRM_MSG_FLUSHSA",
    "XFRM_MSG_GETPOLICY",
    "XFRM_MSG_GETSA",
    "XFRM_MSG_NEWPOLICY",
    "XFRM_MSG_NEWSA",
    "XFRM_MSG_POLEXPIRE",
    "XFRM_MSG_UPDPOLICY",
    "XFRM_MSG_UPDSA",
    "Action",
    "Mark",
    "Offload",
    "OffloadFlags",
    "Place",
    "Policy",
    "PolicyDirection",
    "PolicyKey",
    "State",
    "StateCounts",
    "StateFlags",
    "StateKey",
    "Template",
    "dump_policies",
    "dump_states",
    "find_state",
    "put_policy",
    "put_state",
    "read_place",
    "read_policy",
    "read_state",
    "remove_policy",
    "remove_state",
]
