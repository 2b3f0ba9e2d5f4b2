# SPDX-License-Identifier: Apache-2.0
"""Which keys stand, who has confirmed them, and what went over each SA."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.ui.answers import Encrypt, KeyEvent, Offer, Sa, Status
from pellicle.ui.grid import Column, grid
from pellicle.ui.sections import INDENT, bullet, section
from pellicle.ui.status import epochs, peers_not_ready, subnets, title
from pellicle.ui.units import count, octets

_ARROWS: Final = {"in": "←", "out": "→"}
_REFUSED: Final = (Column("replayed", is_number=True), Column("forged", is_number=True))


def encrypt(node: Status, answer: Encrypt, width: int, *, is_verbose: bool) -> RenderableType:
    """The node's own offers, then each pair of keys, or with `is_verbose` each SA."""
    inner = width - INDENT
    used = {peer.pair for peer in answer.peers or node.peers}
    sas = _sas(answer.sas, used, inner) if is_verbose else _pairs(answer.sas, used, inner)
    shared = subnets(node)
    none = Text("none: nothing can be encrypted", "bad")
    waiting = [bullet(line, "wary") for line in peers_not_ready(answer.peers or node.peers)]
    return Group(
        title(node),
        *section("Offers of this node", [_offers(answer.offers, inner)]),
        *section("Security associations", [sas if answer.sas else none, *waiting]),
        *section("Subnets that share states", [Text(shared)] if shared else []),
    )


def _offers(offers: Sequence[Offer], width: int) -> RenderableType:
    if not offers:
        return Text("none", "quiet")
    columns = [
        Column("epoch", is_number=True),
        Column("state"),
        Column("fingerprint", shrinks=True),
    ]
    rows = [(str(each.epoch), each.state, Text(each.fingerprint, "quiet")) for each in offers]
    return grid(columns, rows, width)


def _pairs(sas: Sequence[Sa], used: Collection[str | None], width: int) -> RenderableType:
    """One line for each peer, direction and pair of offers: its SAs together."""
    groups: dict[tuple[str, str, str], list[Sa]] = {}
    for sa in sas:
        groups.setdefault((sa.peer, sa.pair, sa.direction), []).append(sa)
    columns = [
        Column("peer", shrinks=True),
        Column("direction"),
        Column("engine", rank=2),
        Column("cipher", rank=3),
        Column("epochs", rank=4),
        Column("SAs", rank=5, is_number=True),
        Column("packets", rank=1, is_number=True),
        Column("bytes", is_number=True),
        *_REFUSED,
        Column("state"),
        Column("pair", rank=6),
    ]
    rows = [
        (
            Text(peer, "name"),
            _direction(direction),
            group[0].engine,
            group[0].cipher,
            epochs(group[0].local_epoch, group[0].peer_epoch),
            str(len(group)),
            count(sum(sa.packets for sa in group)),
            octets(sum(sa.bytes for sa in group)),
            *_refused(group),
            _state(group, used),
            Text(pair, "quiet"),
        )
        for (peer, pair, direction), group in sorted(groups.items())
    ]
    return grid(columns, rows, width)


def _sas(sas: Sequence[Sa], used: Collection[str | None], width: int) -> RenderableType:
    columns = [
        Column("peer", shrinks=True),
        Column("direction"),
        Column("SPI"),
        Column("engine", rank=2),
        Column("cipher", rank=3),
        Column("number", rank=5, is_number=True),
        Column("epochs", rank=4),
        Column("packets", is_number=True),
        Column("bytes", is_number=True),
        Column("sequence", rank=1, is_number=True),
        *_REFUSED,
        Column("state"),
        Column("pair", rank=6),
    ]
    rows = [
        (
            Text(sa.peer, "name"),
            _direction(sa.direction),
            spi(sa.spi),
            sa.engine,
            sa.cipher,
            str(sa.number),
            epochs(sa.local_epoch, sa.peer_epoch),
            count(sa.packets),
            octets(sa.bytes),
            str(sa.sequence),
            *_refused([sa]),
            _state([sa], used),
            Text(sa.pair, "quiet"),
        )
        for sa in sorted(sas, key=lambda sa: (sa.peer, sa.pair, sa.direction, sa.number))
    ]
    return grid(columns, rows, width)


def history(events: Sequence[KeyEvent], width: int) -> RenderableType:
    """Oldest first."""
    if not events:
        return Text("nothing has happened yet", "quiet")
    columns = [Column("when"), Column("who"), Column("what", shrinks=True)]
    rows = [
        (
            Text(each.at, "quiet"),
            Text(each.peer or "this node", "name" if each.peer else "quiet"),
            _event(each),
        )
        for each in events
    ]
    return grid(columns, rows, width)


def _event(event: KeyEvent) -> str:
    match event.what:
        case "used":
            pair = epochs(event.local_epoch, event.peer_epoch)
            return f"is sent to on epochs {pair}: {event.cipher} by {event.engine}"
        case "state":
            return f"is {event.state}" + (f": {event.why}" if event.why else "")
        case "gone":
            return "is gone"
        case _:
            return f"offer {event.epoch} ({event.fingerprint}) was {event.what}"


def spi(number: int) -> str:
    """As packet analysers write it."""
    return f"0x{number:08x}"


def _direction(direction: str) -> Text:
    return Text(f"{_ARROWS.get(direction, '')} {direction}")


def _refused(group: Sequence[Sa]) -> tuple[Text, Text]:
    """Empty while nothing was refused, so that the columns are shown only when they matter."""
    replayed, forged = (sum(sa.replayed for sa in group), sum(sa.auth_failed for sa in group))
    return (
        Text(count(replayed) if replayed else "", "wary"),
        Text(count(forged) if forged else "", "bad"),
    )


def _state(group: Sequence[Sa], used: Collection[str | None]) -> Text:
    """Inbound: has the peer shown that it has the keys?  Outbound: is data sent with them?"""
    if group[0].direction == "in":
        is_seen = any(sa.first_seen for sa in group)
        return Text("confirmed", "good") if is_seen else Text("nothing yet", "wary")
    return Text("in use", "good") if group[0].pair in used else Text("not in use", "quiet")
