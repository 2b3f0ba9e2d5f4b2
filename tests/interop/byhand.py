# SPDX-License-Identifier: Apache-2.0
"""A node of the lab that Pellicle has left, and whose kernel is told by hand: ip-xfrm(8).

     pellicle-n1                    the wire                    pellicle-n2
 ┌─────────────────────┐                             ┌──────────────────────────────┐
 │ agent, its programs │ ═══════════ ESP ═══════════ │ ip xfrm state, ip xfrm policy │
 └──┬──────────────────┘                             └──────────────────┬───────────┘
  n1/p1                                                               n2/p1

Both nodes have agreed on keys as always. Then n2's agent is killed, and all that it has made is
taken away; what n1 encrypts with is read from n1's kernel and written down for n2's in the words
of iproute2. SA 1 of n1's inbound ones is for IPv4, 2 for IPv6, and 3 for whoever else will talk.
"""

from __future__ import annotations

import re
import shlex
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pellicle import lab
from pellicle.datapath.programs import object_path
from pellicle.kernel import netns
from pellicle.kernel.bpf import Map
from pellicle.lab.topology import LabNode
from pellicle.wire.btf import Btf
from tests.bpf.node import text_of

N1, N2 = LabNode(1), LabNode(2)
REQID: Final = 7
LAST_LOW: Final = 0xFFFF_FFFF
BEYOND: Final = 6
"""Packets on either side of 2^32."""
CHACHA: Final = "rfc7539esp(chacha20,poly1305)"
_STATE = re.compile(
    r"^src (?P<source>\S+) dst (?P<destination>\S+)\n"
    r"\tproto esp spi (?P<spi>0x[0-9a-f]+)"
    r"(?:.*\n)*?\taead (?P<algorithm>\S+) 0x(?P<key>[0-9a-f]+)(?: \(\d+ bits\))? 128\n",
    re.MULTILINE,
)
_COUNT = re.compile(
    r"^src.*\n\tproto esp spi (0x[0-9a-f]+)(?:.*\n)*?\t  \d+\(bytes\), (\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class Case:
    """What n1 has."""

    engine: str
    cipher: str
    outer: int

    def __str__(self) -> str:
        return f"{self.engine}, {self.cipher}, over IPv{self.outer}"


CASES = [
    Case(engine, cipher, outer)
    for engine, cipher in (
        ("bpf", "chacha20-poly1305"),
        ("xfrm", "chacha20-poly1305"),
        ("xfrm", "aes-128-gcm"),
        ("xfrm", "aes-256-gcm"),
    )
    for outer in (4, 6)
]


@dataclass(frozen=True)
class Sa:
    """As whoever shares it must know it."""

    source: str
    destination: str
    spi: int
    algorithm: str
    """As the kernel calls it."""
    key: bytes = field(repr=False)
    """The salt is its end (RFC 4106 §8.1)."""

    @property
    def number(self) -> int:
        """Its place in its pair: docs/keys.md."""
        return self.spi & 3


@dataclass(frozen=True)
class Pair:
    case: Case
    sent: Mapping[int, Sa]
    """By number: what n1 encrypts with."""
    received: Mapping[int, Sa]
    """What n1 decrypts with."""


def stand(case: Case) -> Pair:
    """The lab, and n2 as told by hand."""
    settings = {"cipher": case.cipher, "outer_family": str(case.outer)}
    lab.up(2, 1, engine=case.engine, settings=settings)
    sas = sas_of(N1, case.engine)
    own = str(N1.addresses[case.outer == 6])
    sent = {sa.number: sa for sa in sas if sa.source == own}
    received = {sa.number: sa for sa in sas if sa.destination == own}
    assert sorted(sent) == sorted(received) == [0, 1, 2, 3]
    assert len(sas) == 8, "one pair, four SAs each way"
    lab.kill_agent(N2.name)
    strip(N2)
    pair = Pair(case, sent, received)
    ip(N2, *(state(sa) for sa in (*sent.values(), received[1], received[2])))
    ip(N2, *policies(pair))
    return pair


def strip(node: LabNode) -> None:
    """Takes away all that Pellicle has made but the pods' own cables."""
    shutil.rmtree(node.bpffs)
    for device in ("pellicle_xfrm", "pellicle_host"):
        netns.run_in(node.namespace, ["ip", "link", "del", device], capture_output=True)
    ip(node, "-4 rule del pref 1", "-6 rule del pref 1", "xfrm policy flush", "xfrm state flush")
    for family in ("-4", "-6"):
        ip(node, f"{family} route flush table 200")


def ip(node: LabNode, *commands: str) -> str:
    """iproute2 in a node; what it says."""
    said = ""
    for command in commands:
        done = netns.run_in(
            node.namespace, ["ip", *shlex.split(command)], capture_output=True, text=True
        )
        assert done.returncode == 0, f"ip {command}: {done.stderr}"
        said += done.stdout
    return said


def state(sa: Sa, **replay: int) -> str:
    """A state as ip-xfrm(8) wants it; `replay`: oseq, oseq_hi, seq, seq_hi."""
    counts = " ".join(f"replay-{name.replace('_', '-')} {n:#x}" for name, n in replay.items())
    return (
        f"xfrm state add src {sa.source} dst {sa.destination} proto esp spi {sa.spi:#x} "
        f"reqid {REQID} mode tunnel flag af-unspec esn replay-window 1024 {counts} "
        f"aead '{sa.algorithm}' 0x{sa.key.hex()} 128"
    )


def anew(sa: Sa, **replay: int) -> tuple[str, str]:
    """The state once more, with other counters."""
    end = f"dst {sa.destination} proto esp spi {sa.spi:#x}"
    return f"xfrm state delete src {sa.source} {end}", state(sa, **replay)


def policies(pair: Pair) -> Iterable[str]:
    """Everything between the pods of both nodes, in tunnels between the nodes."""
    for version in (4, 6):
        near, far = (node.pod_cidrs[version == 6] for node in (N2, N1))
        out, back = pair.received[2 if version == 6 else 1], pair.sent[0]
        yield (
            f"xfrm policy add src {near} dst {far} dir out tmpl src {out.source} "
            f"dst {out.destination} proto esp spi {out.spi:#x} reqid {REQID} mode tunnel"
        )
        for direction in ("in", "fwd"):
            yield (
                f"xfrm policy add src {far} dst {near} dir {direction} tmpl src {back.source} "
                f"dst {back.destination} proto esp reqid {REQID} mode tunnel"
            )


def counts(node: LabNode) -> Mapping[int, int]:
    """Packets of each state, by SPI."""
    said = ip(node, "-s xfrm state")
    return {int(spi, 16): int(packets) for spi, packets in _COUNT.findall(said)}


def sas_of(node: LabNode, engine: str) -> list[Sa]:
    """Of its kernel, wherever its engine keeps them."""
    return _of_states(node) if engine == "xfrm" else _of_maps(node)


def _of_states(node: LabNode) -> list[Sa]:
    return [
        Sa(
            found["source"], found["destination"], int(found["spi"], 16), found["algorithm"],
            bytes.fromhex(found["key"]),
        )
        for found in _STATE.finditer(ip(node, "xfrm state"))
    ]  # fmt: skip


def _of_maps(node: LabNode) -> list[Sa]:
    return [
        Sa(
            text_of(row["source"]["bytes"]), text_of(row["destination"]["bytes"]), row["spi"],
            CHACHA, struct.pack("<8I", *row["key"]) + row["salt"].to_bytes(4, "little"),
        )
        for name in ("sa_out", "sa_in")
        for row in rows(node, name)
    ]  # fmt: skip


def rows(node: LabNode, name: str) -> list[dict[str, Any]]:
    """Of a pinned map, key and row together."""
    with Map.open_pinned(node.bpffs / "maps" / name) as pinned:
        key, value = _layouts(name)
        return [{**value.read(row), **key.read(at)} for at, row in pinned.items()]


def set_sequences(node: LabNode, sequence: int) -> None:
    """As if each outbound SA of the bpf engine had sent that many packets."""
    _, value = _layouts("sa_out")
    with Map.open_pinned(node.bpffs / "maps" / "sa_out") as pinned:
        for key, row in pinned.items():
            pinned.update(key, value.write({**value.read(row), "sequence": sequence}))


def _layouts(name: str) -> tuple[Any, Any]:
    spec = Btf.parse(object_path().read_bytes()).maps[name]
    return spec.key, spec.value
