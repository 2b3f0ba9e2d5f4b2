# SPDX-License-Identifier: Apache-2.0
"""What each command makes of an agent's answers: exit code, words, JSON."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from . import recorded
from .conftest import Agent, Pellicle, Played


@dataclass(frozen=True)
class Case:
    says: str
    words: tuple[str, ...]
    played: Played
    code: int
    shows: tuple[str, ...]
    hides: tuple[str, ...] = field(default=())


def status(state: str) -> Played:
    return {"status": [recorded.STATES[state]], "encrypt": [recorded.ENCRYPT]}


def audit(answer: dict[str, Any], state: str = "healthy", mode: str = "") -> Played:
    return {"status": [recorded.STATES[state] | {"audit": mode}], "audit": [answer]}


CASES = [
    Case(
        "a healthy node",
        ("status",),
        status("healthy"),
        0,
        (
            "● n1  encryption on  healthy",
            "bpf with chacha20-poly1305 (no ESP state can be made: Function not implemented)",
            "6 of 6 in step, 40 rows",
            "122 MB encrypted",
            "● ready",
        ),
        ("Problems", "DROP_", "wanted", "offload", "kernel's IPsec", "healed"),
    ),
    Case(
        "a healthy node, all told",
        ("status", "--verbose"),
        status("healthy"),
        0,
        ("ipcache", "sa_out", "add its network to cluster_cidrs"),
    ),
    Case(
        "a degraded node",
        ("status",),
        status("degraded"),
        1,
        (
            "encryption degraded",
            "! table routes: 10.244.3.0/24: [Errno 101] Network is unreachable",
            "n9: spec.podCIDRs: 10.244.1.0/24 is node n1's already",
            f"{recorded.LONG_NAME}  ✗ unverified",
            "◐ confirming",
            "routes       4         3       1       0",
            "healed after someone else had changed them: 2 in ipcache",
            "17 packets, 1.4 kB: no key for the peer (DROP_NO_KEY)",
            "1 packet, 120 B: seen before (DROP_REPLAYED)",
            "`pellicle status`: it has published no offer",
            "1.2k reports of flows lost",
            "812 packets, 90 kB: leaves the cluster (CLEAR_WORLD)",
        ),
        ("add its network to cluster_cidrs",),
    ),
    Case(
        "a node with encryption off",
        ("status",),
        status("off"),
        3,
        ("✗ n1  encryption off", "! encryption is OFF", "none while encryption is off"),
    ),
    Case(
        "a node that the kernel encrypts on",
        ("status",),
        status("kernel"),
        0,
        (
            "xfrm with aes-256-gcm and chacha20-poly1305 (the kernel has ESP)",
            "in software: eth0 has no esp-hw-offload switched on",
            "n3    ● ready     192.168.3.2  xfrm    chacha20-poly1305  3·12",
            "n5    ✗ no-offer  192.168.5.2                             3·12",
            (
                "3 of 3 in step, 62 rows; healed after someone else had changed them: "
                "3 in policies, 1 in routes"
            ),
            (
                "Dropped by the kernel's IPsec\n  1.7k packets: the SA is gone (XfrmOutNoStates)\n"
                "       Of XfrmOutNoStates.\n     2 packets: seen before (XfrmInStateSeqError)\n"
            ),
            "     1 packet: no state (XfrmInNoStates)\n",
            "tunnels of others on this node are in it",
        ),
    ),
    Case(
        "a node whose card encrypts a part",
        ("status",),
        status("card"),
        0,
        ("16 SAs by eth0, in software: Operation not supported: table full",),
    ),
    Case(
        "keys of a node of the kernel's, one pair still the BPF engine's",
        ("encrypt", "status"),
        {"status": [recorded.KERNEL], "encrypt": [recorded.ENCRYPT_KERNEL]},
        0,
        (
            "n2    → out      xfrm    aes-256-gcm        3·12      4      48k  61 MB",
            "n3    ← in       bpf     chacha20-poly1305  3·12      1      12k  15 MB       5  conf",
        ),
        ("replayed",),
    ),
    Case(
        "each SA of a node of the kernel's",
        ("encrypt", "status", "-v"),
        {"status": [recorded.KERNEL], "encrypt": [recorded.ENCRYPT_KERNEL]},
        0,
        ("0x5a3c9103  xfrm    aes-256-gcm             3  3·12        12k  15 MB     12052",),
    ),
    Case(
        "everything was encrypted",
        ("audit",),
        audit(recorded.AUDIT),
        0,
        (
            "All of 122 MB between nodes was encrypted; 17 packets were dropped.",
            "100 %  122 MB      96k",
            "17 packets",
            "default/cache-0",
            "no key for the peer",
            "encrypted  SEALED           96k  122 MB      22 packets  encrypted",
            "131 more pairs of endpoints: see them with --most 134",
        ),
        ("REPLAYED", "without a rule", "mode"),
    ),
    Case(
        "what passed in the clear was allowed",
        ("audit", "report"),
        audit(recorded.AUDIT_RULED, mode="enforce"),
        0,
        (
            "99.97 % of 122 MB between nodes was encrypted; 30 kB passed in the clear, allowed by",
            "allowed by bootstrap; 17 packets were dropped.",
            "mode   enforce",
            "99.97 %",
        ),
        ("without a rule",),
    ),
    Case(
        "what would be dropped is let through",
        ("audit", "--most", "5"),
        audit(recorded.AUDIT_MONITOR, mode="monitor"),
        1,
        ("31 kB passed in the clear, allowed by bootstrap but for 900 B; 17", "audited"),
    ),
    Case(
        "nothing to audit yet",
        ("audit",),
        audit(recorded.AUDIT_EMPTY),
        0,
        ("Nothing was sent or received between nodes.", "none: nothing passed in the clear"),
    ),
    Case("an audit without encryption", ("audit",), audit(recorded.AUDIT, "off"), 3, ("122 MB",)),
    Case(
        "an audit for programs",
        ("audit", "--json"),
        audit(recorded.AUDIT, mode="enforce"),
        0,
        ('"mode": "enforce"', '"bytes": 122407108'),
    ),
    Case(
        "keys of a healthy node",
        ("encrypt", "status"),
        status("healthy"),
        0,
        (
            "3  current  c7d3a9f0125b8e64",
            "← in       bpf     chacha20-poly1305  3·12      4      48k  61 MB         2  confirm",
            "→ out      bpf     chacha20-poly1305  3·12      4      48k  61 MB            in use",
        ),
        ("forged",),
    ),
    Case(
        "each SA of a healthy node",
        ("encrypt", "status", "-v"),
        status("healthy"),
        0,
        ("0x5a3c9102", "12052"),
    ),
    Case(
        "keys of a degraded node",
        ("encrypt", "status"),
        {"status": [recorded.DEGRADED], "encrypt": [{"sas": [], "offers": [], "peers": []}]},
        1,
        ("none: nothing can be encrypted", "n4: waits for its first packet"),
    ),
    Case(
        "keys of a node with encryption off",
        ("encrypt", "status"),
        status("off"),
        3,
        ("encryption off",),
    ),
    Case(
        "flows",
        ("flows",),
        {"flows": recorded.FLOWS},
        0,
        (
            "default/web-7f9c6d5b8-x2k4q:43210",
            "[2606:2800:220:1:248:1893:25c8:1946]:443",
            "ICMP echo",
            "unknown peer",
            "a cluster address nobody holds",
            "epoch 3, SPI 0x5a3c9102, xfrm",
            "n1 → n2",
        ),
    ),
    Case(
        "flows as they change, into a pipe",
        ("flows", "--follow"),
        {"flows": recorded.FLOWS},
        0,
        (
            "encrypted default/web-7f9c6d5b8-x2k4q:43210 → default/db-0:5432 TCP 1204 packets",
            "dropped   10.244.1.3 → 10.244.9.9 ICMP echo 3 packets 294 B DROP_UNKNOWN_PEER",
        ),
    ),
    Case("no flows", ("flows", "--dropped"), {"flows": []}, 0, ("no flows",)),
    Case("maps", ("map", "list"), {"map": recorded.MAPS}, 0, ("ipcache", "1048576")),
    Case(
        "rows of a map",
        ("map", "dump", "ipcache"),
        {"map": recorded.IPCACHE},
        0,
        ("key            identity  flags  node", "10.244.2.2          301      0  192.168.2.2"),
    ),
    Case(
        "rows of a map that counts on each CPU",
        ("map", "dump", "counts"),
        {"map": recorded.COUNTS},
        0,
        ("cpus.packets", "7 2"),
    ),
    Case("an empty map", ("map", "dump", "flows"), {"map": []}, 0, ("no rows",)),
    Case(
        "metrics",
        ("metrics",),
        {"metrics": [recorded.METRICS]},
        0,
        ('pellicle_packets_total{reason="SEALED",verdict="encrypted"} 96422.0',),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_a_person_sees_what_matters(case: Case, agent: Agent, pellicle: Pellicle) -> None:
    agent.played = case.played
    result = pellicle(*case.words)
    assert result.exit_code == case.code, result.output
    assert result.stderr == ""
    for text in case.shows:
        assert text in result.stdout
    for text in case.hides:
        assert text not in result.stdout
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "played", "code", "expected"),
    [
        (("status",), status("healthy"), 0, recorded.HEALTHY),
        (("status",), status("degraded"), 1, recorded.DEGRADED),
        (("status",), status("off"), 3, recorded.OFF),
        (("status",), status("kernel"), 0, recorded.KERNEL),
        (("encrypt", "status"), status("healthy"), 0, recorded.ENCRYPT),
        (("map", "list"), {"map": recorded.MAPS}, 0, recorded.MAPS),
        (("map", "dump", "ipcache"), {"map": recorded.IPCACHE}, 0, recorded.IPCACHE),
        (("map", "dump", "flows"), {"map": []}, 0, []),
        (
            ("metrics",),
            {"metrics": [recorded.METRICS]},
            0,
            [
                {
                    "name": "pellicle_packets_total",
                    "labels": {"reason": "SEALED", "verdict": "encrypted"},
                    "value": 96422.0,
                },
                {"name": "pellicle_events_lost_total", "labels": {}, "value": 0.0},
            ],
        ),
    ],
)
def test_json_is_the_answer_with_its_numbers_as_they_are(
    *,
    words: tuple[str, ...],
    played: Played,
    code: int,
    expected: Any,
    agent: Agent,
    pellicle: Pellicle,
) -> None:
    agent.played = played
    result = pellicle(*words, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_flows_in_json_are_a_line_each(
    follow: tuple[str, ...], agent: Agent, pellicle: Pellicle
) -> None:
    agent.played = {"flows": recorded.FLOWS}
    result = pellicle("flows", "--json", *follow)
    assert [json.loads(line) for line in result.stdout.splitlines()] == recorded.FLOWS


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), {"follow": False, "verdict": None, "from": None, "to": None, "last": 100}),
        (("-f", "--dropped"), {"follow": True, "verdict": "dropped"}),
        (("--clear", "--from", "n1"), {"verdict": "clear", "from": "n1"}),
        (("--encrypted", "--to", "10.0.0.0/8", "--last", "5"), {"to": "10.0.0.0/8", "last": 5}),
    ],
)
def test_what_is_asked_of_flows_is_asked_of_the_agent(
    words: tuple[str, ...], asked: dict[str, Any], agent: Agent, pellicle: Pellicle
) -> None:
    agent.played = {"flows": []}
    assert pellicle("flows", *words).exit_code == 0
    (request,) = agent.asked
    assert {name: request[name] for name in asked} == asked


@pytest.mark.parametrize(
    ("words", "seconds"),
    [("90s", 90), ("15m", 900), ("1.5h", 5400), ("2d", 172_800)],
)
def test_an_audit_since_so_long(
    words: str, seconds: float, agent: Agent, pellicle: Pellicle
) -> None:
    agent.played = audit(recorded.AUDIT)
    before = time.time()
    assert pellicle("audit", "--since", words).exit_code == 0
    assert before - seconds <= agent.asked[-1]["since"] <= time.time() - seconds


def test_an_audit_since_a_moment(agent: Agent, pellicle: Pellicle) -> None:
    agent.played = audit(recorded.AUDIT)
    for words in ("2026-11-28T09:00", "2026-11-28T10:00+01:00"):
        assert pellicle("audit", "--since", words).exit_code == 0
        assert agent.asked[-1]["since"] == 1_795_856_400.0
    assert pellicle("audit", "--since", "yesterday").exit_code == 64
