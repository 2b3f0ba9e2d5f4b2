# SPDX-License-Identifier: Apache-2.0
"""Watching the wire live: one line for each packet, and a sum at the end.

A filter is words that must all hold: a kind (`esp`, `clear`, `link`, `other`), a protocol (`tcp`,
`udp`, `icmp`, `icmpv6`, `arp`), a family (`ipv4`, `ipv6`), a node (`n1`: from or to it) or an
address. `not` turns the next word around: `n1 not link`.
"""

from __future__ import annotations

import _thread
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from pellicle.kernel import netns
from pellicle.lab.errors import LabError
from pellicle.lab.frames import Header, Kind, describe
from pellicle.lab.sniffer import Count, Seen, Sniffer, WireFlow
from pellicle.lab.topology import WIRE, node_named

Test = Callable[[WireFlow, Header], bool]

KINDS: Final = {"esp": Kind.ESP, "clear": Kind.CLEAR, "link": Kind.LINK, "other": Kind.OTHER}
PROTOCOLS: Final = ("tcp", "udp", "icmp", "icmpv6", "arp")
FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
COLOURS: Final = {Kind.ESP: "\x1b[32m", Kind.CLEAR: "\x1b[1;31m", Kind.LINK: "\x1b[2m"}
PLAIN: Final = "\x1b[0m"
LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Heard:
    """What a whole listening came to."""

    counts: Mapping[WireFlow, Count]
    lost: int
    """Packets that this machine was too slow to hear."""

    @property
    def has_leaks(self) -> bool:
        return any(flow.kind is Kind.CLEAR for flow in self.counts)


def sniff(
    write: Path | None = None,
    filter: str | None = None,  # noqa: A002  what everybody calls it
    seconds: float | None = None,
    show: Callable[[str], None] | None = None,
) -> Heard:
    """Listen on the lab's wire for `seconds`, or until Ctrl-C or the end of the lab.

    Each packet that passes `filter` becomes a line for `show` (standard output when not given,
    coloured on a terminal) and a packet in the capture file `write`.
    """
    if WIRE not in netns.names():
        raise LabError("no lab is up, so there is no wire: start one with `pellicle lab up`")
    wanted = parse_filter(filter or "")
    is_coloured = show is None and sys.stdout.isatty()
    out = show or _print
    until = time.monotonic() + seconds if seconds is not None else float("inf")

    def watch(seen: Seen) -> None:
        out(line(seen, is_coloured=is_coloured))

    with Sniffer(write=write, wanted=wanted, watch=watch) as sniffer:
        try:
            while time.monotonic() < until and WIRE in netns.names():
                time.sleep(max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
        except KeyboardInterrupt:
            pass
    return Heard(sniffer.counts(), sniffer.lost())


def line(seen: Seen, *, is_coloured: bool) -> str:
    """`03:14:15.926535897 n1 > n2  ESP  192.168.1.2 > 192.168.2.2 ESP spi … seq …, 130 bytes`."""
    seconds, nanoseconds = divmod(seen.at, 1_000_000_000)
    clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09d}"
    flow = seen.flow
    words = describe(seen.frame, seen.length)
    text = f"{clock} {flow.source:>3} > {flow.destination:<3} {flow.kind:<9}  {words}"
    return f"{COLOURS.get(flow.kind, '')}{text}{PLAIN}" if is_coloured else text


def parse_filter(text: str) -> Test:
    """The filter as a predicate; ValueError says which word is not understood."""
    tests: list[Test] = []
    words = text.lower().split()
    while words:
        word = words.pop(0)
        is_wanted = word != "not"
        if not is_wanted and not words:
            raise ValueError("filter: `not` wants a word behind it")
        tests.append(_test(word if is_wanted else words.pop(0), is_wanted=is_wanted))
    return lambda flow, header: all(test(flow, header) for test in tests)


def _test(word: str, *, is_wanted: bool) -> Test:
    holds = _word(word)
    return lambda flow, header: holds(flow, header) == is_wanted


def _word(word: str) -> Test:
    if word in KINDS:
        return lambda flow, _header: flow.kind is KINDS[word]
    if word in PROTOCOLS:
        return lambda flow, _header: flow.protocol.lower() == word
    if word in FAMILIES:
        return lambda flow, _header: flow.family == FAMILIES[word]
    try:
        address = ip_address(word)
    except ValueError:
        return _node(word)
    return lambda _flow, header: address in (header.source, header.destination)


def _node(word: str) -> Test:
    try:
        name = node_named(word).name
    except ValueError:
        known = ", ".join((*KINDS, *PROTOCOLS, *FAMILIES))
        why = f"filter: {word!r} is not understood; words are {known}, a node or an address"
        raise ValueError(why) from None
    return lambda flow, _header: name in (flow.source, flow.destination)


def _print(text: str) -> None:
    """From the sniffer's thread; a reader that has gone (`| head`) ends the listening."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        _thread.interrupt_main()
