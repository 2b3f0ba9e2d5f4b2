# SPDX-License-Identifier: Apache-2.0
"""The keys of a node: what proves them, what is told of them, and what may be asked of them.

pre-shared secrets ─┐
SVIDs ──────────────┼─▶ Keyring ─▶ Keying ─▶ the agent's tables
nothing ────────────┘                 ├──▶ the trail, the log
                                      └──▶ calls: rotate, history
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic

import msgspec
import structlog

from pellicle.config import Config, KeyMode
from pellicle.encryption.engine import Choice
from pellicle.encryption.keying import Keying, Ring
from pellicle.encryption.probe import send_probe
from pellicle.encryption.sas import SaTarget
from pellicle.encryption.svids import Svids
from pellicle.facts import Offer, Rejected
from pellicle.keys import manual
from pellicle.keys.history import KeyEvent, progress
from pellicle.keys.manual import LAST_SEQUENCE, ManualKeys
from pellicle.keys.pairing import Keyring, LocalNode
from pellicle.keys.secret import L, no_secret, read_line
from pellicle.keys.spiffe import Spiffe
from pellicle.keys.trust import Trust
from pellicle.serve import Answer, CallError, Request
from pellicle.sources.secrets import SecretFile
from pellicle.sources.trail import Trail
from pellicle.sources.workload import WorkloadApi
from pellicle.tables import Tables

LEAST_WATCH_SECONDS, MOST_WATCH_SECONDS = 1.0, 60.0
BUSIEST_PPS = 1 << 22
"""No SA sends more packets a second."""
MOST_OCTETS = 1 << 46
"""Under one key: 2^42 blocks of AES, far from where their number would tell anything (2^64)."""
ROTATE_LOOK_SECONDS = 0.1
MANUAL_WARNING = (
    "keys are not derived: whoever has the file decrypts everything ever sent under it, any node "
    "can speak as any other, packets can be replayed, and nothing is confirmed or rotated"
)

log = structlog.get_logger()


class NodeKeys:
    """Whatever can be refused is refused in the constructor, in words for the operator."""

    def __init__(
        self,
        config: Config,
        local: LocalNode,
        choice: Choice,
        tables: Tables,
        publish: Callable[[tuple[Offer, ...]], None],
    ) -> None:
        self._config = config
        self._spiffe = self._make_spiffe(local)
        self._trail = Trail(config.state_dir / "keys.jsonl")
        self._trail_problem = ""
        self.told: Counter[str] = Counter()
        """How often what has become of keys."""
        self._followed: _Followed[Any] | None = None
        ring, t = self._make_ring(local, choice), tables
        self.keying = Keying(
            ring, local.name, t.nodes, t.sas_up, t.encrypt_up, t.passable, t.sas, t.sends, t.peers,
            t.kept_contexts, t.own_sends, t.own_peers,
            publish, send_probe, time.monotonic, self._tell, _wall,
        )  # fmt: skip
        self.svids = self._make_svids()

    def work(self, sas: SaTarget) -> Iterable[Coroutine[Any, Any, None]]:
        """Its tasks, without end."""
        if self.svids is None:
            yield self.keying.run()
        else:
            yield self.svids.follow()
            yield self.svids.keys()
        if self._followed is not None:
            yield self._followed.run(self.keying)
        yield self._watch_counters(sas)

    def problems(self) -> Iterable[str]:
        """What is wrong now, in words."""
        if self.svids is not None:
            yield from self.svids.problems()
        if self._trail_problem:
            yield self._trail_problem

    def rejected(self) -> tuple[Rejected, ...]:
        """What of the secrets' file and of the Workload API is not used."""
        of_secrets = self._followed.file.rejected if self._followed else ()
        return (*of_secrets, *(self._spiffe.rejected if self._spiffe else ()))

    def answers(self) -> Mapping[str, Answer]:
        """The calls that concern keys."""
        return {"rotate": self._answer_rotate, "history": self._answer_history}

    # --- what proves offers -----------------------------------------------------------------------

    def _make_spiffe(self, local: LocalNode) -> Spiffe | None:
        if self._config.trust is not KeyMode.SPIFFE:
            return None
        return Spiffe(local.name, self._config.spiffe_id, time.time)

    def _make_svids(self) -> Svids | None:
        if self._spiffe is None:
            return None
        api = WorkloadApi(self._config.spiffe_socket)
        return Svids(self._spiffe, self.keying, api.responses, lambda: api.problem)

    def _make_ring(self, local: LocalNode, choice: Choice) -> Ring:
        if self._config.are_keys_manual:
            return self._make_manual(local, choice)
        known: Sequence[Trust] = (self._spiffe or no_secret(),)
        file = SecretFile(self._config.psk_file, read_line) if self._config.psk_file else None
        if file is not None:
            known = file.now
        ring = Keyring(
            local,
            known,
            os.urandom,
            ciphers=choice.ciphers,
            engine=choice.engine,
            drain_seconds=self._config.drain_seconds,
            packet_limit=self._config.sa_packet_limit,
            outer_family=str(self._config.outer_family),
            lifetime_seconds=self._config.key_lifetime,
        )
        if file is not None:
            self._followed = _Followed(file, ring.know)
        return ring

    def _make_manual(self, local: LocalNode, choice: Choice) -> ManualKeys:
        assert self._config.psk_file, "the configuration was checked"
        file = SecretFile(self._config.psk_file, manual.read_line)
        keys = ManualKeys(
            local,
            file.now,
            ciphers=choice.ciphers,
            drain_seconds=self._config.drain_seconds,
            packet_limit=self._config.sa_packet_limit,
            outer_family=str(self._config.outer_family),
            subnets=self._config.encrypt_subnets,
        )
        log.warning(MANUAL_WARNING)
        self._followed = _Followed(file, keys.know)
        return keys

    # --- what becomes of keys ---------------------------------------------------------------------

    async def _watch_counters(self, sas: SaTarget) -> None:
        """SAs that near their last packet or byte."""
        limit = self._config.sa_packet_limit
        if self._config.are_keys_manual:
            limit = min(limit, LAST_SEQUENCE)
        # All SAs of thousands of peers are read: no more often than the fastest could need it.
        seconds = min(max(limit / 4 / BUSIEST_PPS, LEAST_WATCH_SECONDS), MOST_WATCH_SECONDS)
        while True:
            await asyncio.sleep(seconds)
            for count in sas.counts():
                is_spent = count.sequence > limit // 2 or count.octets > MOST_OCTETS
                if count.direction == "out" and is_spent:
                    self.keying.spent(count.pair)

    def _tell(self, events: Sequence[KeyEvent]) -> None:
        """Into the log and the trail; who cannot write encrypts all the same, and says so."""
        for event in events:
            log.info("keys", **msgspec.to_builtins(event))
            self.told[event.what] += 1
        try:
            self._trail.add(events)
        except OSError as error:
            self._trail_problem = f"the history of keys cannot be written: {error}"
        else:
            self._trail_problem = ""

    async def _answer_rotate(self, _request: Request) -> AsyncIterator[Any]:
        """How far everybody is, whenever that changes, until all have moved or are stale."""
        plan = self.keying.plan
        if plan is None or not plan.own:
            raise CallError(7, "no keys are in use yet: they are just being made")
        if self._config.are_keys_manual:
            raise CallError(7, "keys are not derived here: a new line in the psk_file is a new key")
        last = plan.own[-1].epoch
        self.keying.rotate()
        said = None
        while True:
            assert self.keying.plan
            said, before = progress(self.keying.plan, last), said
            if said != before:
                yield said
            if said["done"]:
                return
            await asyncio.sleep(ROTATE_LOOK_SECONDS)

    async def _answer_history(self, _request: Request) -> AsyncIterator[Any]:
        for event in await asyncio.to_thread(lambda: list(self._trail.rows())):
            yield msgspec.to_builtins(event)


@dataclass(frozen=True, slots=True)
class _Followed(Generic[L]):
    """A file of secrets, and who is to know them."""

    file: SecretFile[L]
    know: Callable[[Sequence[L]], None]

    async def run(self, keying: Keying) -> None:
        """Every change of the file, for ever."""
        async for known in self.file.changes():
            log.info("pre-shared secrets changed", fingerprints=[s.fingerprint for s in known])
            self.know(known)
            keying.wake()


async def _refuse(_request: Request) -> AsyncIterator[Any]:
    raise CallError(7, "there are no keys: encryption is off")
    yield


NO_KEYS: Mapping[str, Answer] = {"rotate": _refuse, "history": _refuse}
"""What is said to the calls of a node without."""


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
