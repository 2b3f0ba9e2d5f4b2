# SPDX-License-Identifier: Apache-2.0
"""The audit as one page for a browser: everything is in the file, nothing is fetched, nothing runs.

The sentence comes first, then pictures and the rows they were made from, then how it was measured.
Pictures are SVG without text, stretched by the page; whatever they show is also said in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from html import escape
from math import log
from typing import Final

from pellicle.ui.answers import Audit, AuditReason, AuditRow, Status, Volume
from pellicle.ui.audit import NO_NODE, Pair, by_verdict, judged, pairs
from pellicle.ui.units import count, moment, octets, share

_KINDS: Final = {"encrypted": "good", "clear": "wary", "audited": "bad", "dropped": "quiet"}
"""How each verdict is coloured; one that is not known is wary."""
_MOST_PEERS: Final = 40

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f4f5f7; --line: #d9dce1; --ink: #1b1e23; --soft: #5b626d;
  --good: #18794e; --wary: #b25e09; --bad: #c62a2f; --quiet: #7a828e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --raised: #1e2227; --line: #343a42; --ink: #e8eaed; --soft: #a2a9b4;
    --good: #4cc38a; --wary: #f1a10d; --bad: #ff6369; --quiet: #8b939f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; }
.sentence { font-size: clamp(1.4rem, 4.5vw, 2.1rem); line-height: 1.25; font-weight: 650;
  margin: 0; }
.sentence::before {
  content: ""; display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  background: var(--kind); margin-right: .45em;
}
.good { --kind: var(--good); } .wary { --kind: var(--wary); }
.bad { --kind: var(--bad); } .quiet { --kind: var(--quiet); }
.span, .note { color: var(--soft); }
svg { display: block; width: 100%; }
svg rect { fill: var(--kind, var(--line)); }
.whole { height: 1.1rem; margin: 1.25rem 0 .4rem; border-radius: .3rem; overflow: hidden; }
.key { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0;
  list-style: none; }
.key li[class]::before, td .kind::before {
  content: ""; display: inline-block; width: .7em; height: .7em; border-radius: .15em;
  background: var(--kind); margin-right: .4em;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.75rem 0 0; }
.tiles div { background: var(--raised); border-radius: .5rem; padding: .7rem .9rem; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.kind, .rows td:last-child { white-space: nowrap; }
.map td { position: relative; padding: .55rem .7rem; border: 2px solid var(--ground); }
.map td svg { position: absolute; inset: 0; height: 100%; border-radius: .3rem; }
.map td span { position: relative; }
.map + .key { margin-top: .6rem; }
.bars { display: grid; grid-template-columns: minmax(9rem, 17rem) 1fr auto; gap: .5rem 1rem;
  align-items: center; margin: 0; }
.bars > div { display: contents; }
.bars svg { height: .9rem; border-radius: .2rem; overflow: hidden; }
.bars small { display: block; color: var(--soft); }
code { font: .86em/1.4 ui-monospace, monospace; }
footer { margin-top: 3rem; color: var(--soft); font-size: .9rem;
  border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem; }
  .bars, .bars > div { display: grid; grid-template-columns: 1fr; }
  .bars > div { grid-template-columns: 1fr auto; gap: .2rem 1rem; margin-bottom: .4rem; }
  .bars svg { grid-column: 1 / -1; order: 1; }
  .rows thead { position: absolute; left: -999rem; }
  .rows tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .rows td { display: grid; grid-template-columns: 6.5rem 1fr; border: 0; padding: .1rem 0;
    text-align: left; white-space: normal; }
  .rows td::before { content: attr(data-head); color: var(--soft); }
  .rows td:empty { display: none; }
}
"""

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(node: Status, answer: Audit) -> str:
    """The whole file."""
    style, sentence = judged(answer)
    title = f"Audit of {answer.node}"
    parts = [
        f"<h1>Pellicle · audit of node {escape(answer.node)}</h1>",
        f'<p class="sentence {style}">{escape(sentence)}</p>',
        f'<p class="span">{_span(node, answer)}</p>',
        *_whole(answer),
        *_tiles(answer),
        *_section("Between nodes", _map(answer)),
        *_section("Exceptions", _exceptions(answer)),
        *_section("By reason", _bars(answer.reasons)),
        *_section("By endpoints", _endpoints(answer)),
        *_section("How this was measured", _measured(answer)),
        *_trail(answer),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(title: str, parts: Iterable[str]) -> Iterator[str]:
    inside = list(parts)
    if inside:
        yield f"<section>\n<h2>{title}</h2>"
        yield from inside
        yield "</section>"


def _span(node: Status, answer: Audit) -> str:
    begun = f"since {_moment(answer.since)}" if answer.since is not None else "no packet yet"
    mode = f" · mode {escape(node.audit)}" if node.audit else ""
    return f"{begun} until {_moment(answer.until)} · encryption {escape(node.encryption)}{mode}"


def _moment(seconds: float) -> str:
    return f"{moment(seconds, UTC)} UTC"


def _kind(verdict: str) -> str:
    return _KINDS.get(verdict, "wary")


# --- pictures -----------------------------------------------------------------------------------


def _whole(answer: Audit) -> Iterator[str]:
    """All that was on the wire between nodes, as one bar. What is little is still to be seen."""
    total = sum((each.bytes for each in answer.between_nodes.values()), 0)
    if not total:
        return
    shown = [(name, each) for name, each in answer.between_nodes.items() if each.packets]
    widths = [max(each.bytes / total * 100, 0.6) for _, each in shown]
    at, rects = 0.0, []
    for (verdict, _), width in zip(shown, widths, strict=True):
        scaled = width / sum(widths) * 100
        rects.append(_rect(_kind(verdict), at, scaled))
        at += scaled
    words = ", ".join(f"{share(each.bytes, total)} {name}" for name, each in shown)
    yield _svg("whole", words, rects)
    keys = "".join(
        f'<li class="{_kind(name)}">{escape(name)} {octets(each.bytes)}, '
        f"{count(each.packets)} packets</li>"
        for name, each in shown
    )
    yield f'<ul class="key">{keys}</ul>'


def _svg(style: str, words: str, rects: Iterable[str]) -> str:
    return (
        f'<svg class="{style}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(words)}">{"".join(rects)}</svg>'
    )


def _rect(kind: str, at: float, width: float, opacity: float = 1.0) -> str:
    return (
        f'<rect class="{kind}" x="{at:.3f}" width="{width:.3f}" height="10" '
        f'fill-opacity="{opacity:.2f}"/>'
    )


def _tiles(answer: Audit) -> Iterator[str]:
    every = Pair("", "", answer.between_nodes)
    whole = every.on_wire
    refused = sum(each.packets for each in answer.reasons if each.verdict == "dropped")
    tiles = [
        ("encrypted", share(every.encrypted.bytes, whole.bytes) if whole.packets else "none"),
        ("between nodes", octets(whole.bytes)),
        ("packets", count(whole.packets)),
        ("in the clear", octets(every.readable.bytes)),
        ("packets dropped", count(refused)),
        ("exceptions", str(answer.rows.exceptions)),
    ]
    yield '<dl class="tiles">'
    for name, value in tiles:
        yield f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"


def _map(answer: Audit) -> Iterator[str]:
    """A line for each other node: sent to it, received from it. The more bytes, the fuller."""
    found = {(pair.source, pair.destination): pair for pair in pairs(answer.nodes)}
    own = answer.node
    peers = sorted({end for ends in found for end in ends} - {own})
    if not peers:
        yield '<p class="note">Nothing was sent or received yet.</p>'
        return
    busiest = sorted(peers, key=lambda peer: -_traffic(found, own, peer))[:_MOST_PEERS]
    most = max(pair.on_wire.bytes for pair in found.values())
    heads = f"<th>node</th><th>{escape(own)} → node</th><th>node → {escape(own)}</th>"
    yield f'<table class="map"><thead><tr>{heads}</tr></thead><tbody>'
    for peer in sorted(busiest):
        cells = [_cell(found.get(ends), most) for ends in ((own, peer), (peer, own))]
        yield f"<tr><th>{escape(peer)}</th>{''.join(cells)}</tr>"
    yield "</tbody></table>"
    yield (
        '<ul class="key"><li class="good">all encrypted</li><li class="bad">not all encrypted</li>'
        "<li>the fuller the colour, the more bytes</li></ul>"
    )
    if len(peers) > len(busiest):
        yield f'<p class="note">And {len(peers) - len(busiest)} nodes with less traffic.</p>'
    between_others = [pair for ends, pair in found.items() if own not in ends]
    if between_others:
        packets = sum(pair.dropped.packets for pair in between_others)
        yield f'<p class="note">{count(packets)} packets named other nodes at both ends.</p>'


def _traffic(found: Mapping[tuple[str, str], Pair], own: str, peer: str) -> int:
    """Bytes of both directions."""
    both = (found.get((own, peer)), found.get((peer, own)))
    return sum(pair.on_wire.bytes for pair in both if pair)


def _cell(pair: Pair | None, most: int) -> str:
    if pair is None:
        return "<td></td>"
    whole = pair.on_wire
    said = []
    picture = ""
    if whole.packets:
        said.append(f"{share(pair.encrypted.bytes, whole.bytes)} of {octets(whole.bytes)}")
        kind = "bad" if pair.readable.packets else "good"
        picture = _svg("heat", said[0], [_rect(kind, 0, 100, _heat(whole, most))])
    if pair.dropped.packets:
        said.append(f"{count(pair.dropped.packets)} dropped")
    return f"<td>{picture}<span>{escape(', '.join(said))}</span></td>"


def _heat(volume: Volume, most: int) -> float:
    """By the logarithm, for traffic differs by orders of magnitude; pale enough for words on it."""
    return 0.12 + 0.38 * log(1 + volume.bytes) / log(1 + max(most, 1))


def _bars(reasons: Sequence[AuditReason]) -> Iterator[str]:
    seen = sorted((each for each in reasons if each.packets), key=by_verdict)
    if not seen:
        return
    most = max(each.bytes for each in seen) or 1
    yield '<div class="bars">'
    for each in seen:
        lost = each.not_attributed.packets
        said = [each.words, *([each.verdict] if each.verdict != "encrypted" else [])]
        words = " · ".join([*said, *([f"{count(lost)} not attributed"] if lost else [])])
        yield f"<div><div><code>{escape(each.reason)}</code><small>{escape(words)}</small></div>"
        width = max(each.bytes / most * 100, 0.4)
        yield _svg("bar", f"{octets(each.bytes)}", [_rect(_kind(each.verdict), 0, width)])
        yield f'<div class="number">{octets(each.bytes)} · {count(each.packets)}</div></div>'
    yield "</div>"


# --- rows ---------------------------------------------------------------------------------------


def _exceptions(answer: Audit) -> Iterator[str]:
    if not answer.exceptions:
        yield '<p class="note">None: nothing passed in the clear, nothing was dropped.</p>'
        return
    yield from _table(answer.exceptions, answer.words)
    yield from _more(len(answer.exceptions), answer.rows.exceptions)


def _endpoints(answer: Audit) -> Iterator[str]:
    if answer.endpoints:
        yield from _table(answer.endpoints, answer.words)
        yield from _more(len(answer.endpoints), answer.rows.endpoints)


def _table(rows: Sequence[AuditRow], words: dict[str, str]) -> Iterator[str]:
    has_rules = any(row.rule for row in rows)
    heads = ["from", "to", "verdict", "why", *(["allowed by"] if has_rules else []), "packets",
             "bytes", "last"]  # fmt: skip
    yield '<table class="rows"><thead><tr>'
    yield "".join(
        f'<th class="number">{head}</th>' if head in {"packets", "bytes"} else f"<th>{head}</th>"
        for head in heads
    )
    yield "</tr></thead><tbody>"
    for row in rows:
        kind = f'<span class="kind {_kind(row.verdict)}">{escape(row.verdict)}</span>'
        cells = {
            "from": escape(row.source or row.source_node or NO_NODE),
            "to": escape(row.destination or row.destination_node or NO_NODE),
            "verdict": kind,
            "why": escape(words.get(row.reason) or row.reason),
            "allowed by": escape(row.rule),
            "packets": count(row.packets),
            "bytes": octets(row.bytes),
            "last": moment(row.last, UTC),
        }
        yield "<tr>" + "".join(_td(head, cells[head]) for head in heads) + "</tr>"
    yield "</tbody></table>"


def _td(head: str, inside: str) -> str:
    style = ' class="number"' if head in {"packets", "bytes"} else ""
    return f'<td{style} data-head="{head}">{inside}</td>'


def _more(shown: int, there: int) -> Iterator[str]:
    if there > shown:
        yield f'<p class="note">And {there - shown} more, with fewer bytes.</p>'


def _measured(answer: Audit) -> Iterator[str]:
    lost = sum(each.not_attributed.packets for each in answer.reasons)
    attributed = (
        f"{count(lost)} packets were counted of which it is not known whose they were; they are in "
        "all sums by reason and in the sentence."
        if lost
        else "Every counted packet is in a row."
    )
    yield (
        f"<p>The datapath of {escape(answer.node)} counts each packet once, where its journey on "
        "the node ends or it passes the border between clear and encrypted: sent where it is "
        "sealed or leaves, received where it is opened or arrives. Bytes are those of the IP "
        f"packets that the endpoints exchange. {attributed} Times are UTC.</p>"
    )
    yield (
        "<p>Exceptions are packets between members of the cluster that were not encrypted, and "
        "packets that were dropped. What stays on the node, leaves the cluster or cannot leave the "
        "link is counted, and is no exception. This is what one node has seen; its peers have seen "
        "the same packets from the other end.</p>"
    )


def _trail(answer: Audit) -> Iterator[str]:
    trail = answer.trail
    if trail.seq:
        yield (
            f"<footer><p>Audit trail: record {trail.seq}, head <code>{escape(trail.head)}</code>. "
            f"<code>pellicle audit verify --head {escape(trail.head[:16])}…</code> proves with the "
            "whole hash that the trail up to here was not changed.</p></footer>"
        )
