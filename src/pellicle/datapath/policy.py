# SPDX-License-Identifier: Apache-2.0
"""Encryption policies as the datapath has them: the maps `policies` and `policy_ports`.

What stands is read back without the ports' names: two rows are alike when their list's number is.
"""

from __future__ import annotations

from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import PolicyAction, PolicyNumber
from pellicle.kernel.bpf import Object
from pellicle.policy.members import GroupNumber
from pellicle.policy.rulebook import Choice, PairKey, PolicyRow, PortKey, PortsNumber

_ACTIONS = {action.strictness: action for action in PolicyAction}


def target(bpf: Object) -> MapTarget[PairKey, PolicyRow]:
    return MapTarget(
        bpf.map("policies"),
        bpf.btf.struct("policy_key"),
        bpf.btf.struct("policy_row"),
        lambda key: {"groups": list(key)},
        lambda _, row: {
            "rest": _fields(row.rest),
            "fragments": _fields(row.fragments),
            "ports": row.ports,
        },
        lambda key, row: (
            PairKey(*map(GroupNumber, key["groups"])),
            PolicyRow(_choice(row["rest"]), _choice(row["fragments"]), PortsNumber(row["ports"])),
        ),
    )


def ports_target(bpf: Object) -> MapTarget[PortKey, Choice]:
    return MapTarget(
        bpf.map("policy_ports"),
        bpf.btf.struct("policy_port_key"),
        bpf.btf.struct("policy"),
        lambda key: {"ports": key.ports, "protocol": key.protocol, "port": key.port},
        lambda _, row: _fields(row),
        lambda key, row: (
            PortKey(PortsNumber(key["ports"]), key["protocol"], key["port"]),
            _choice(row),
        ),
    )


def _fields(choice: Choice) -> Fields:
    return {"rule": choice.policy, "action": choice.action.strictness}


def _choice(row: Fields) -> Choice:
    return Choice(PolicyNumber(row["rule"]), _ACTIONS[row["action"]])
