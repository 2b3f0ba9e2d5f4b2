# SPDX-License-Identifier: Apache-2.0
"""All that is Pellicle's in the kernel's IPsec, and how it goes without an agent.

    states that send     from here on nothing is encrypted for these peers
    states that receive  and nothing of theirs decrypted
    policies of pairs
    policies for all, or for subnets, the blocks last

Nothing leaves in the clear at any moment: what a policy still fits finds no state, what none fits
meets a block, and without these the device itself sends nothing (pellicle_xfrm is for what a
policy fits). Whatever does not carry our number is not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pellicle.datapath.xfrm_device import IF_ID
from pellicle.encryption.states import peer_of, receives
from pellicle.facts import Address
from pellicle.kernel.xfrm import Xfrm
from pellicle.wire.xfrm import Action, Policy, PolicyDirection, State, StateKey


@dataclass(frozen=True, slots=True)
class PeerCount:
    """How much there is for one peer's outer address; None: for all of them, or many."""

    peer: Address | None
    states_out: int
    states_in: int
    policies: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be removed."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Remains:
    """Our states and policies, each in the order in which they go."""

    states: tuple[StateKey, ...]
    policies: tuple[Policy, ...]

    @classmethod
    def among(cls, states: Iterable[State], policies: Iterable[Policy]) -> Remains:
        """Those of everybody's that are ours."""
        keys = [state.key for state in states if state.if_id == IF_ID]
        ours = [policy for policy in policies if policy.if_id == IF_ID]
        return cls(tuple(sorted(keys, key=receives)), tuple(sorted(ours, key=_lateness)))

    @classmethod
    def read(cls, xfrm: Xfrm) -> Remains:
        """What there is in the namespace of this socket."""
        return cls.among((state for state, _ in xfrm.states()), xfrm.policies())

    @property
    def is_any(self) -> bool:
        return bool(self.states or self.policies)

    def by_peer(self) -> list[PeerCount]:
        """The same, counted for each peer; first what is for all."""
        out = Counter(peer_of(key) for key in self.states if not receives(key))
        into = Counter(peer_of(key) for key in self.states if receives(key))
        policies = Counter(_peer(policy) for policy in self.policies)
        return [
            PeerCount(peer, out[peer], into[peer], policies[peer])
            for peer in sorted(out.keys() | into.keys() | policies.keys(), key=_turn)
        ]

    def remove(self, xfrm: Xfrm) -> list[Failure]:
        """Take all of it away; what somebody else has taken away meanwhile is gone, too."""
        states = xfrm.remove_states(self.states)
        policies = xfrm.remove_policies(self.policies)
        return [
            *(Failure(f"state {_name(key)}", str(error)) for key, error in states.items()),
            *(
                Failure(f"policy {_words(policy)}", str(error))
                for policy, error in policies.items()
            ),
        ]


def _lateness(policy: Policy) -> tuple[bool, bool]:
    return _peer(policy) is None, policy.action is Action.BLOCK


def _peer(policy: Policy) -> Address | None:
    """Whom a pair's policy leads to; None for those that are for all."""
    template = policy.template
    if policy.direction is not PolicyDirection.OUT or template is None or not template.spi:
        return None
    return None if template.destination.is_multicast else template.destination


def _turn(peer: Address | None) -> tuple[int, int]:
    return (peer.version, int(peer)) if peer else (0, 0)


def _name(key: StateKey) -> str:
    return f"{key.source} → {key.destination}, SPI 0x{key.spi:08x}"


def _words(policy: Policy) -> str:
    mark = f", mark 0x{policy.mark.value:x}/0x{policy.mark.mask:x}" if policy.mark else ""
    return f"{policy.direction.name.lower()} {policy.source} → {policy.destination}{mark}"
