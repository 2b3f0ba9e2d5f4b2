# SPDX-License-Identifier: Apache-2.0
"""XFRM, the kernel's IPsec, in one network namespace: states, policies, counters, events, probes.

    with Xfrm() as xfrm, XfrmChanges(own=[xfrm.port]) as changes:
        known = xfrm.states(), xfrm.policies()      # what is there; nothing falls in between
        async for _ in changes: …                   # somebody else took something away

States are added and never replaced: the same key must not start over at sequence number one.
Policies are replaced in one step: there is no moment without.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.netns import Namespace
from pellicle.kernel.nlsocket import Alarm, NetlinkSocket
from pellicle.wire import xfrm
from pellicle.wire.nlmsg import Reply
from pellicle.wire.xfrm import Place, Policy, State, StateCounts, StateFlags, StateKey

_NETLINK_XFRM = 6
_COUNTERS = Path("/proc/thread-self/net/xfrm_stat")
_GROUPS = (2, 3, 4)  # XFRMNLGRP_EXPIRE, _SA, _POLICY
LOSSES = (
    xfrm.XFRM_MSG_DELSA, xfrm.XFRM_MSG_UPDSA, xfrm.XFRM_MSG_FLUSHSA, xfrm.XFRM_MSG_EXPIRE,
    xfrm.XFRM_MSG_DELPOLICY, xfrm.XFRM_MSG_UPDPOLICY, xfrm.XFRM_MSG_FLUSHPOLICY,
    xfrm.XFRM_MSG_POLEXPIRE,
)  # fmt: skip
STATES = (
    xfrm.XFRM_MSG_NEWSA, xfrm.XFRM_MSG_DELSA, xfrm.XFRM_MSG_UPDSA, xfrm.XFRM_MSG_FLUSHSA,
    xfrm.XFRM_MSG_EXPIRE,
)  # fmt: skip
_DOCUMENTATION = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
}
_PROBE = 0x70726F62
"""The probes' SPI and if_id. They have a namespace for themselves, so that it clashes with none."""


class Xfrm(NetlinkSocket):
    """A socket to the kernel's states and policies of one namespace."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        super().__init__(_NETLINK_XFRM, namespace)
        self._namespace = namespace

    def put_states(self, states: Iterable[State]) -> dict[StateKey, OSError]:
        """Adds states; answers those that failed, with EEXIST if the key is taken."""
        errors = self._each(states, xfrm.put_state)
        return {state.key: error for state, error in errors.items()}

    def remove_states(
        self, keys: Iterable[StateKey], last: dict[StateKey, StateCounts] | None = None
    ) -> dict[StateKey, OSError]:
        """Removes states; answers those that failed. What is gone already is success. What each
        had counted is put into `last`.

        The kernel would take a state of somebody else's, without a mark, for ours with one. So
        each is looked at first; one that stands behind another's cannot be removed: EBUSY.
        """
        wanted = list(keys)
        errors: dict[StateKey, OSError] = {}
        standing: list[StateKey] = []
        behind: list[StateKey] = []
        found = self.answers(map(xfrm.find_state, wanted))
        for key, answer in zip(wanted, found, strict=True):
            if isinstance(answer, OSError):
                if answer.errno != errno.ESRCH:
                    errors[key] = answer
            elif answer is not None:
                counts = _counts_of(answer, key)
                (behind if counts is None else standing).append(key)
                if last is not None and counts is not None:
                    last[key] = counts
        if behind:
            there = {state.key for state, _ in self.states()}
            words = "another's state of the same destination and SPI stands in front"
            errors |= {key: OSError(errno.EBUSY, words) for key in behind if key in there}
        return errors | self._each(standing, xfrm.remove_state, errno.ESRCH)

    def states(self) -> list[tuple[State, StateCounts]]:
        """The states that a State can say, whoever made them."""
        return self.dump(xfrm.dump_states(), xfrm.read_state)

    def others(self, if_id: int) -> set[Place]:
        """Where ESP states are found that are not of this interface."""
        found = self.dump(xfrm.dump_states(), xfrm.read_place)
        return {place for place, own in found if own != if_id}

    def put_policies(self, policies: Iterable[Policy]) -> dict[Policy, OSError]:
        """Adds policies, or replaces those with their keys; answers those that failed."""
        return self._each(policies, xfrm.put_policy)

    def remove_policies(self, policies: Iterable[Policy]) -> dict[Policy, OSError]:
        """Removes policies by their keys; answers those that failed."""
        return self._each(policies, xfrm.remove_policy, errno.ENOENT)

    def policies(self) -> list[Policy]:
        """The policies that a Policy can say, whoever made them."""
        return self.dump(xfrm.dump_policies(), xfrm.read_policy)

    def errors(self) -> dict[str, int]:
        """How many packets were dropped for which reason, all of them, by the kernel's names."""
        with netns.inside(self._namespace):
            lines = _COUNTERS.read_text("ascii").splitlines()
        return {name: int(count) for name, count in map(str.split, lines)}


class XfrmChanges(Alarm):
    """Something was removed, replaced, flushed or has expired, or whatever else `kinds` says."""

    def __init__(
        self,
        namespace: Namespace | None = None,
        own: Iterable[int] = (),
        kinds: Iterable[int] = LOSSES,
    ) -> None:
        super().__init__(_NETLINK_XFRM, _GROUPS, kinds, namespace, own)


def probe_esp(algorithm: str, key_bits: int, version: int = 4) -> OSError | None:
    """Whether this kernel can do ESP with this AEAD over IPv4 or IPv6; why not.

    It really makes such a state, in a namespace that is gone afterwards.
    """
    key = StateKey(*_DOCUMENTATION[version], spi=_PROBE)
    flags = StateFlags.ESN | StateFlags.AF_UNSPEC
    state = State(
        key, _PROBE, _PROBE, algorithm, key_bits, flags, 1024, secret=bytes(key_bits // 8)
    )

    def probe() -> OSError | None:
        with Xfrm() as there:
            return there.put_states([state]).get(key)

    return _probe(probe)


def probe_device() -> OSError | None:
    """Whether this kernel has xfrm interfaces; why not.

    It really makes one, in a namespace that is gone afterwards.
    """

    def probe() -> None:
        with Netlink() as there:
            there.add_xfrm("probe", _PROBE, there.link("lo").index)

    return _probe(probe)


def _probe(act: Callable[[], OSError | None]) -> OSError | None:
    try:
        return netns.in_new(act)
    except OSError as error:
        return error


def _counts_of(reply: Reply, key: StateKey) -> StateCounts | None:
    """None: it is another state."""
    found = xfrm.read_state(reply)
    return found[1] if found is not None and found[0].key == key else None
