# SPDX-License-Identifier: Apache-2.0
"""One node at a glance: is it well, is everything encrypted, and if not, why and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from pellicle.flows.reasons import WORDS
from pellicle.ui.answers import Count, KernelDrop, Lag, Peer, Status
from pellicle.ui.grid import Column, grid
from pellicle.ui.sections import INDENT, bullet, facts, indented, section
from pellicle.ui.units import count, octets

MARKS: Final = {"good": "●", "wary": "◐", "bad": "✗"}
VERDICT_STYLES: Final = {"encrypted": "good", "clear": "wary", "audited": "bad", "dropped": "bad"}
_ENCRYPTION: Final = {"on": "good", "off": "bad", "degraded": "wary"}
_PEERS: Final = {"ready": "good", "confirming": "wary", "stale": "wary"}
_FEW: Final = 5
"""So many drop reasons come with advice without being asked for."""


def status(answer: Status, width: int, *, is_verbose: bool) -> RenderableType:
    """All there is to know; what is as it should be takes one line."""
    inner = width - INDENT
    clear = _most(count for count in answer.counts if count.verdict == "clear")
    audited = _most(answer.audited)
    drops = _most(answer.drops)
    kernels = sorted(answer.kernel_drops, key=lambda each: -each.packets)
    most = len(clear) + len(audited) + len(drops) + len(kernels)
    advised = (most, most) if is_verbose else (0, _FEW)
    return Group(
        title(answer),
        indented(_facts(answer)),
        *section("Problems", _problems(answer)),
        *section("Peers", _peers(answer, inner)),
        *section("Tables", _tables(answer.tables, inner, is_verbose=is_verbose)),
        *section("In the clear", _reasons(clear, "wary", advised[0])),
        *section("Let through, as this is monitor mode", _reasons(audited, "bad", advised[1])),
        *section("Dropped", _reasons(drops, "bad", advised[1])),
        *section("Dropped by the kernel's IPsec", _kernel_drops(kernels, advised[1])),
    )


def title(answer: Status) -> Text:
    """Who, how encrypted, how well."""
    style = _ENCRYPTION.get(answer.encryption, "wary")
    health = Text("healthy", "good") if answer.healthy else Text("look at the problems", "wary")
    return Text.assemble(
        (f"{MARKS[style]} ", style),
        (answer.node, "title"),
        "  encryption ",
        (answer.encryption, style),
        "  ",
        health,
    )


def state(peer: Peer) -> Text:
    """A peer's state with its mark."""
    style = _PEERS.get(peer.state, "bad")
    return Text(f"{MARKS[style]} {peer.state}", style)


def peers_not_ready(peers: Sequence[Peer]) -> Iterator[Text]:
    """A line for each peer that traffic cannot or may soon not reach, with the reason."""
    for peer in peers:
        if peer.why and peer.state != "ready":
            yield Text.assemble((f"{peer.node}: ", "name"), peer.why)


_MODES = {
    "cluster": "agreed on by themselves; whoever may write records is believed (cluster)",
    "spiffe": "agreed on by themselves; offers are signed with the nodes' X.509-SVIDs (spiffe)",
    "psk": "agreed on by themselves; offers are proven with the pre-shared secret (psk)",
}


def _facts(answer: Status) -> RenderableType:
    path = answer.datapath
    sizes = ((path.mtu.v4, "over IPv4"), (path.mtu.v6, "over IPv6"))
    lost = f"{count(answer.events_lost)} reports of flows lost (their packets are still counted)"
    rows: list[tuple[str, str | Text]] = [
        ("engine", _engine(answer)),
        ("offload", _offload(answer)),
        ("keys", _keys(answer)),
        ("subnets", subnets(answer)),
        ("nodes", _nodes(answer)),
        ("audit", _audit(answer)),
        ("identity", f"{answer.svid.id} until {answer.svid.until}" if answer.svid else ""),
        ("uplink", f"{path.uplink}, {path.attach}" if path.uplink else ""),
        ("routing", f"overlay: pods' packets travel in {path.overlay}" if path.overlay else ""),
        ("pod MTU", ", ".join(f"{size} {family}" for size, family in sizes if size)),
        ("pods here", str(answer.endpoints)),
        ("agent", answer.version),
        ("traffic", _traffic((*answer.counts, *answer.audited))),
        ("events", Text(lost if answer.events_lost else "", "wary")),
    ]
    return facts(rows)


def _keys(answer: Status) -> str | Text:
    if answer.key_derivation == "none":
        words = "made by hand, the same for all nodes: not derived, not confirmed, no replay window"
        return Text(words, "wary")
    return _MODES.get(answer.key_mode, answer.key_mode)


def subnets(answer: Status) -> str:
    """Those that are known beforehand, and how many peers share what they have in the kernel."""
    return ", ".join(
        f"{each.cidr} ({each.peers} {'peer' if each.peers == 1 else 'peers'})"
        for each in answer.subnets
    )


def _nodes(answer: Status) -> str | Text:
    """What of the nodes' own is encrypted."""
    if answer.encryption == "off":
        return ""
    if not answer.encrypt_nodes:
        return Text("what nodes say to each other is not encrypted: encrypt_nodes is off", "wary")
    exempt = f", but for {', '.join(answer.exempt)}" if answer.exempt else ""
    return f"what they say to each other is encrypted{exempt}"


def _audit(answer: Status) -> str | Text:
    if answer.audit == "monitor":
        return Text("monitor: cleartext that should be encrypted passes, and is reported", "wary")
    return "enforce: cleartext that should be encrypted is dropped" if answer.audit else ""


def _engine(answer: Status) -> str:
    """With the ciphers that peers are sent to with, the most frequent first."""
    used = Counter(peer.cipher for peer in answer.peers if peer.cipher)
    ciphers = " and ".join(cipher for cipher, _ in used.most_common())
    words = f"{answer.engine} with {ciphers}" if ciphers else answer.engine
    return f"{words} ({answer.engine_why})" if answer.engine_why else words


def _offload(answer: Status) -> str:
    """Who does the work, where the kernel's IPsec leaves that open."""
    taken, why = answer.offload.states, answer.offload.why
    if answer.engine != "xfrm":
        return ""
    software = f"in software: {why}" if why else ""
    if not taken:
        return software or "in software"
    return ", ".join(filter(None, (f"{taken} SAs by {answer.datapath.uplink}", software)))


def _traffic(counts: Sequence[Count]) -> Text:
    sums = {
        verdict: sum(each.bytes for each in counts if each.verdict == verdict)
        for verdict in VERDICT_STYLES
    }
    parts = [
        Text(f"{octets(amount)} {verdict}", VERDICT_STYLES[verdict] if amount else "quiet")
        for verdict, amount in sums.items()
        if amount or verdict != "audited"
    ]
    return Text(" · ").join(parts) if counts else Text()


def _problems(answer: Status) -> list[RenderableType]:
    lines = [Text(problem) for problem in answer.problems]
    lines += [
        Text.assemble((f"{each.source} ", "quiet"), (each.name, "name"), f": {each.why}")
        for each in answer.rejected
    ]
    return [bullet(line, "bad") for line in lines]


def _peers(answer: Status, width: int) -> list[RenderableType]:
    if not answer.peers:
        is_off = answer.encryption == "off"
        why = "none while encryption is off" if is_off else "no other node is in the directory"
        return [Text(why, "quiet")]
    columns = [
        Column("node", shrinks=True),
        Column("state"),
        Column("address", rank=2, shrinks=True),
        Column("engine", rank=3),
        Column("cipher", rank=4),
        Column("epochs", rank=1),
        Column("bytes out", is_number=True),
        Column("packets out", rank=5, is_number=True),
        Column("bytes in", is_number=True),
        Column("packets in", rank=5, is_number=True),
    ]
    rows = [
        (
            Text(peer.node, "name"),
            state(peer),
            ", ".join(peer.addresses[:1]),
            peer.engine or "",
            peer.cipher or "",
            epochs(peer.local_epoch, peer.peer_epoch),
            octets(peer.bytes_out),
            count(peer.packets_out),
            octets(peer.bytes_in),
            count(peer.packets_in),
        )
        for peer in answer.peers
    ]
    return [grid(columns, rows, width)]


def epochs(local: int | None, peer: int | None) -> str:
    """The numbers of the two offers that a pair of keys comes from."""
    return f"{local or '-'}·{peer or '-'}" if local or peer else "-"


def _tables(tables: Sequence[Lag], width: int, *, is_verbose: bool) -> list[RenderableType]:
    behind = [lag for lag in tables if lag.failed or lag.desired != lag.applied]
    healed = [f"{count(lag.healed)} in {lag.name}" for lag in tables if lag.healed]
    rows = sum(lag.applied for lag in tables)
    line = Text(f"{len(tables) - len(behind)} of {len(tables)} in step, {count(rows)} rows")
    if healed:
        line.append(f"; healed after someone else had changed them: {', '.join(healed)}", "wary")
    shown = tables if is_verbose else behind
    if not shown:
        return [line] if tables else []
    columns = [
        Column("table", shrinks=True),
        *(Column(name, is_number=True) for name in ("wanted", "standing", "failed")),
        Column("healed", rank=1, is_number=True),
    ]
    cells = [
        (
            Text(lag.name, "name"),
            count(lag.desired),
            Text(count(lag.applied), "" if lag.applied == lag.desired else "wary"),
            Text(count(lag.failed), "bad" if lag.failed else "quiet"),
            count(lag.healed),
        )
        for lag in shown
    ]
    return [line, grid(columns, cells, width)]


def _kernel_drops(drops: Sequence[KernelDrop], advised: int) -> list[RenderableType]:
    """Nothing at all while it has dropped nothing."""
    parts: list[RenderableType] = []
    for at, each in enumerate(drops):
        parts.append(_line(each.packets, "", each.words, each.reason, "bad"))
        if at < advised and each.advice:
            parts.append(indented(Text(each.advice, "quiet"), 5))
    if parts:
        whose = "Counted for the whole network namespace: tunnels of others on this node are in it."
        parts.append(Text(whose, "quiet"))
    return parts


def _most(counts: Iterable[Count]) -> list[Count]:
    return sorted((each for each in counts if each.packets), key=lambda each: -each.packets)


def _reasons(counts: Sequence[Count], style: str, advised: int) -> list[RenderableType]:
    """A line for each, and for the first `advised` of them what to do."""
    if not counts:
        return [Text("nothing", "good")]
    parts: list[RenderableType] = []
    for at, each in enumerate(counts):
        size = f", {octets(each.bytes)}"
        parts.append(_line(each.packets, size, each.words, each.reason, style))
        if at < advised and each.reason in WORDS:
            parts.append(indented(Text(WORDS[each.reason].advice, "quiet"), 5))
    return parts


def _line(packets: int, size: str, words: str, reason: str, style: str) -> Text:
    unit = "packet" if packets == 1 else "packets"
    return Text.assemble(
        (f"{count(packets):>4}", style),
        f" {unit}{size}: ",
        (words or reason, "name"),
        (f" ({reason})", "quiet"),
    )
