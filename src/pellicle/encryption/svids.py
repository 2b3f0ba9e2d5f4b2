# SPDX-License-Identifier: Apache-2.0
"""SVIDs at work: what the Workload API says becomes what offers are proven and judged with.

responses ──▶ Spiffe.take ──▶ the first SVID: keys begin, on what stands already
                    ├──▶ a renewed one: the same offers, signed anew
                    └──▶ other bundles: every record is judged anew
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from pellicle.encryption.keying import Keying
from pellicle.keys.spiffe import Spiffe
from pellicle.keys.svid import SvidError
from pellicle.wire.spiffe import Response

log = structlog.get_logger()


@dataclass(slots=True)
class Svids:
    """One node's identity, followed."""

    spiffe: Spiffe
    keying: Keying
    responses: Callable[[], AsyncIterator[Response]]
    api_problem: Callable[[], str | None]
    """Why nothing new is heard; None: all is well."""
    renewals: int = 0
    _unusable: str = ""
    _has_one: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Take every answer of the Workload API, for ever."""
        async for response in self.responses():
            try:
                news = self.spiffe.take(response)
            except SvidError as error:
                self._unusable = f"the SPIFFE Workload API's last answer is not used: {error}"
                log.warning("SVID refused", why=str(error))
                continue
            self._unusable = ""
            if news.is_svid_new:
                self._renew()
            if news.are_bundles_new:
                log.info("trust bundles changed", trust_domains=sorted(self.spiffe.bundles))
                self.keying.judge_anew()
            self._has_one.set()

    def _renew(self) -> None:
        assert self.spiffe.svid
        self.renewals += 1
        until = _moment(self.spiffe.svid.until)
        log.info("SVID taken", id=str(self.spiffe.svid.id), until=until)
        self.keying.prove_anew()

    async def keys(self) -> None:
        """The keys, once there is an SVID; until then what an earlier life left goes on."""
        await self._has_one.wait()
        await self.keying.run()

    def problems(self) -> Iterator[str]:
        """What is wrong with this node's identity now, in words."""
        if why := self.api_problem():
            yield why
        if self._unusable:
            yield self._unusable
        svid, now = self.spiffe.svid, self.spiffe.now()
        if svid is None:
            yield "this node has no SVID yet: no keys are made, what stands goes on"
        elif svid.until < now:
            yield f"this node's SVID expired at {_moment(svid.until)}: no peer believes it"
        elif svid.since > now:
            begins = _moment(svid.since)
            yield f"this node's SVID begins at {begins}, which this node's clock says is to come"

    @property
    def answer(self) -> dict[str, str] | None:
        """For the status."""
        svid = self.spiffe.svid
        return None if svid is None else {"id": str(svid.id), "until": _moment(svid.until)}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
