# SPDX-License-Identifier: Apache-2.0
"""Flow events made by hand, for tests that do not care how they were decoded."""

from __future__ import annotations

from ipaddress import ip_address

from pellicle.facts import Epoch, IdentityNumber, PairId, Spi
from pellicle.flows.decode import FlowEvent
from pellicle.flows.reasons import WORDS, Reason, Verdict

VERDICTS = {"C": Verdict.CLEAR, "D": Verdict.DROPPED}


def flow_event(
    source: str = "10.244.1.2",
    destination: str = "10.244.2.2",
    reason: str = "SEALED",
    *,
    port: int = 40000,
    destination_port: int = 80,
    protocol: int = 6,
    packets: int = 1,
    octets: int = 100,
    first: int = 1,
    last: int = 1,
    identities: tuple[int, int] = (0, 0),
    hook: str = "door",
) -> FlowEvent:
    ends = ip_address(source), ip_address(destination)
    verdict = VERDICTS.get(reason[0], Verdict.ENCRYPTED)
    return FlowEvent(
        f"{ends} {port} {destination_port} {protocol} {reason} {hook}".encode(),
        *ends,
        port,
        destination_port,
        protocol,
        hook,
        Reason(5, reason, verdict, WORDS[reason]),
        packets,
        octets,
        first,
        last,
        PairId(0xABC),
        IdentityNumber(identities[0]),
        IdentityNumber(identities[1]),
        Spi(4096),
        Epoch(3),
        "xfrm",
        "",
    )
