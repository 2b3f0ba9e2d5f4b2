# SPDX-License-Identifier: Apache-2.0
"""The nodes' records: which of them count, what each is worth, and until when.

    nodes ──▶ has it its addresses alone? ──▶ judged by our secrets ──▶ Verdict
                     changed records, expired proofs, other secrets ─┘

To judge a signature takes a third of a millisecond, so of thousands only some are judged at once;
until its turn comes, a record stays what it was found to be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from ipaddress import IPv4Address
from itertools import islice
from typing import NamedTuple

from pellicle.facts import Address, Cipher, Node, NodeName, Offer, Rejected
from pellicle.keys.claims import Claims
from pellicle.keys.derivation import best_cipher
from pellicle.keys.offers import MOST_OFFERS, prover
from pellicle.keys.rows import LocalNode, PeerState
from pellicle.keys.trust import Trust

GRACE_SECONDS = 3600.0
"""How long a secret that was replaced is still good: other nodes' files change later."""
LOOK_SECONDS = 10.0
"""Between two looks at the clock of proofs: it may be set."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What this node asks of a peer's record."""

    local: LocalNode
    secrets: tuple[Trust, ...]
    """Whatever is proven with one of them is good."""
    ciphers: Collection[Cipher]
    """Those that we can use."""
    family: str
    """Of the outer addresses: "4", "6" or "auto" (IPv4 where both nodes have it)."""


class Proven(NamedTuple):
    """A verified offer."""

    offer: Offer
    secret: Trust
    """It is proven with."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a peer's record is good for."""

    offers: tuple[Proven, ...] = ()
    """Oldest first."""
    outer: tuple[Address, Address] | None = None
    """Ours and the peer's."""
    cipher: Cipher | None = None
    """The one that both nodes choose."""
    state: PeerState = PeerState.CONFIRMING
    why: str = ""
    """Why there are no offers."""
    rejected: tuple[Rejected, ...] = ()
    until: float = float("inf")
    """When some proof in it must be judged anew."""


NOTHING = Record()


class Verdict(NamedTuple):
    """On a node, as its record is now."""

    name: NodeName
    node: Node | None
    """None: there is no such node any more."""
    record: Record
    is_refused: bool
    """Its record is not read: it is gone, or claims what is another node's."""


class Records:
    """Those of all other nodes."""

    def __init__(self, rules: Rules) -> None:
        """`rules.secrets`: our offers are proven with the first."""
        self._rules = rules
        self._secrets = rules.secrets
        self._leaving: dict[Trust, float | None] = {}
        """Secrets that were replaced, and when: None until the next `take`."""
        self._claims = Claims(rules.local)
        self._unread: dict[NodeName, None] = {}
        self._until: dict[NodeName, float] = {}
        self._ends: list[tuple[float, NodeName]] = []
        """A heap; only those that `_until` has, too, are so still."""
        self._looked_at = float("-inf")
        """At the clock of proofs."""
        self._faulty: dict[NodeName, tuple[Rejected, ...]] = {}

    @property
    def secrets(self) -> tuple[Trust, ...]:
        """Our offers are proven with the first."""
        return self._secrets

    @property
    def are_judged(self) -> bool:
        """Whether none waits for its turn."""
        return not self._unread

    @property
    def rejected(self) -> Iterator[Rejected]:
        yield from self._claims.refused.values()
        for rows in self._faulty.values():
            yield from rows

    def hear(
        self, nodes: Mapping[NodeName, Node], changed: Iterable[NodeName] | None = None
    ) -> None:
        """The nodes are these now, and only `changed` may differ from those before."""
        self._unread.update(dict.fromkeys(self._claims.hear(nodes, changed)))

    def know(self, secrets: Sequence[Trust]) -> bool:
        """The secrets are these from now on; whoever still has those before is heard for a while.

        Whether our offers are to be proven with another one.
        """
        before = {each.fingerprint: each for each in self._rules.secrets}
        now = tuple(before.get(each.fingerprint, each) for each in secrets)
        if now == self._secrets:
            return False
        is_other = now[0] is not self._secrets[0]
        gone = dict.fromkeys(each for each in self._secrets if each not in now)
        self._leaving = {
            secret: since for secret, since in (gone | self._leaving).items() if secret not in now
        }
        self._secrets = now
        self.judge_anew()
        return is_other

    def judge_anew(self) -> None:
        """Every record, by what is good now."""
        self._rules = replace(self._rules, secrets=(*self._secrets, *self._leaving))
        self._unread.update(dict.fromkeys(self._claims.held))

    def take(self, now: float, most: int) -> list[Verdict]:
        """What has changed; at most so many are judged at once."""
        self._forget_secrets(now)
        self._look_at_clock()
        names = list(islice(self._unread, most))
        for name in names:
            del self._unread[name]
        return [self._judge(name) for name in names]

    def _judge(self, name: NodeName) -> Verdict:
        node = self._claims.nodes.get(name)
        self._faulty.pop(name, None)
        self._until.pop(name, None)
        if node is None:
            return Verdict(name, None, Record(state=PeerState.NO_OFFER, why="is gone"), True)
        if name not in self._claims.held:
            why = self._claims.refused[name].why
            return Verdict(name, node, Record(state=PeerState.NO_OFFER, why=why), True)
        record = read_record(node, self._rules)
        if record.rejected:
            self._faulty[name] = record.rejected
        if record.until < float("inf"):
            self._until[name] = record.until
            heappush(self._ends, (record.until, name))
        return Verdict(name, node, record, False)

    def _look_at_clock(self) -> None:
        """Records of which some proof has come to its end or its begin; all if it was set back."""
        now = self._secrets[0].now()
        if now is None:
            return
        if now < self._looked_at:
            self.judge_anew()
        self._looked_at = now
        while self._ends and self._ends[0][0] <= now:
            until, name = heappop(self._ends)
            if self._until.get(name) == until:
                self._unread[name] = None

    def _forget_secrets(self, now: float) -> None:
        """Those that were replaced long ago."""
        for secret, since in list(self._leaving.items()):
            if since is None:
                self._leaving[secret] = now
            elif now >= since + GRACE_SECONDS:
                del self._leaving[secret]
                self.judge_anew()

    def wakes(self, now: float) -> Iterator[float]:
        """When some may have to be judged anew."""
        yield from (since + GRACE_SECONDS for since in self._leaving.values() if since is not None)
        clock = self._secrets[0].now()
        if clock is not None:
            while self._ends and self._until.get(self._ends[0][1]) != self._ends[0][0]:
                heappop(self._ends)
            until = self._ends[0][0] if self._ends else float("inf")
            yield now + min(LOOK_SECONDS, max(0.1, until - clock))


def read_record(node: Node, rules: Rules) -> Record:
    """Judge a record; never raises."""
    source = f"record of node {node.name}"
    outer = outer_addresses(rules.local.addresses, node.addresses, rules.family)
    if outer is None:
        why = "has no address of the family that the tunnels use"
        return Record(state=PeerState.NO_OFFER, why=why)
    cipher = best_cipher(rules.ciphers, node.ciphers)
    if cipher is None:
        theirs, ours = ", ".join(node.ciphers), ", ".join(rules.ciphers)
        why = f"shares no cipher with this node: it has {theirs}; this node has {ours}"
        return Record(state=PeerState.NO_OFFER, why=why)
    if not node.offers:
        return Record(state=PeerState.NO_OFFER, why="publishes no offer")
    epochs = [offer.epoch for offer in node.offers]
    if len(epochs) > MOST_OFFERS or len(set(epochs)) < len(epochs):
        why = (
            f"{len(epochs)} offers of epochs {epochs[:4]}; at most two, of different epochs, count"
        )
        rejected = (Rejected(source, "offers", why),)
        return Record(state=PeerState.UNVERIFIED, why=why, rejected=rejected)
    judged = [(offer, *prover(rules.secrets, node.name, offer)) for offer in node.offers]
    until = min(said.until for _, _, said in judged)
    good = tuple(
        Proven(offer, secret)
        for offer, secret, _ in sorted(judged, key=lambda row: row[0].epoch)
        if secret is not None
    )
    bad = tuple(
        Rejected(source, f"offer {offer.epoch}", said.why)
        for offer, secret, said in judged
        if not secret
    )
    if good:
        return Record(good, outer, cipher, rejected=bad, until=until)
    return Record(state=PeerState.UNVERIFIED, why=bad[-1].why, rejected=bad, until=until)


def outer_addresses(
    ours: Sequence[Address], theirs: Sequence[Address], family: str
) -> tuple[Address, Address] | None:
    """Ours and theirs of one family, the same choice on both nodes; None: none in common."""
    for is_v4 in {"auto": (True, False), "4": (True,), "6": (False,)}[family]:
        pair = [
            next((a for a in addresses if isinstance(a, IPv4Address) is is_v4), None)
            for addresses in (ours, theirs)
        ]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    return None
