# SPDX-License-Identifier: Apache-2.0
"""Answers of agents in several states of health."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
LONG_NAME = "n3.long-name.rack-12.example.internal"


def peer(node: str, number: int, **other: Any) -> Row:
    return {
        "node": node,
        "addresses": [f"192.168.{number}.2", f"fd00:168:{number}::2"],
        "state": "ready",
        "why": "",
        "local_epoch": 3,
        "peer_epoch": 12,
        "pair": f"9f86d081884c7d{number:02x}",
        "sas_in": 4,
        "sas_out": 4,
        "packets_out": 48_211,
        "bytes_out": 61_203_554,
        "packets_in": 47_902,
        "bytes_in": 3_802_117,
        "confirmed": True,
        "engine": "bpf",
        "cipher": "chacha20-poly1305",
    } | other


def table(name: str, desired: int, **other: Any) -> Row:
    row = {"name": name, "desired": desired, "applied": desired, "failed": 0, "failures": []}
    return row | {"healed": 0, "unreadable": None} | other


def count(reason: str, words: str, packets: int, octets: int) -> Row:
    verdict = {"C": "clear", "D": "dropped"}.get(reason[0], "encrypted")
    row = {"reason": reason, "words": words, "verdict": verdict, "advice": "Look."}
    return row | {"packets": packets, "bytes": octets}


def kernel_drop(reason: str, words: str, packets: int) -> Row:
    return {"reason": reason, "words": words, "advice": f"Of {reason}.", "packets": packets}


SEALED = count("SEALED", "encrypted", 96_422, 122_407_108)
CLEAR_WORLD = count("CLEAR_WORLD", "leaves the cluster", 812, 90_112)
NO_KEY = count("DROP_NO_KEY", "no key for the peer", 17, 1_428)
REPLAYED = count("DROP_REPLAYED", "seen before", 1, 120)

HEALTHY: Row = {
    "node": "n1",
    "version": "0.1.0",
    "healthy": True,
    "encryption": "on",
    "engine": "bpf",
    "engine_why": "no ESP state can be made: Function not implemented",
    "ciphers": ["chacha20-poly1305"],
    "datapath": {"attach": "tcx", "uplink": "eth0", "mtu": {"v4": 1446, "v6": 1426}},
    "peers": [peer("n2", 2), peer("n3", 3, packets_out=7, bytes_out=588)],
    "tables": [
        table("ipcache", 14),
        table("endpoints", 4),
        table("sa_in", 8),
        table("sa_out", 8),
        table("encrypt", 2),
        table("routes", 4),
    ],
    "drops": [],
    "counts": [SEALED, CLEAR_WORLD],
    "kernel_drops": [],
    "offload": {"states": 0, "why": "the BPF engine encrypts by itself"},
    "rejected": [],
    "endpoints": 2,
    "events_lost": 0,
    "problems": [],
}

DEGRADED: Row = HEALTHY | {
    "healthy": False,
    "encryption": "degraded",
    "peers": [
        peer("n2", 2),
        peer(
            LONG_NAME,
            3,
            state="unverified",
            why="its offer does not verify: another pre-shared secret?",
            local_epoch=None,
            peer_epoch=None,
            pair=None,
            confirmed=False,
            sas_in=0,
            sas_out=0,
            packets_out=0,
            bytes_out=0,
            packets_in=0,
            bytes_in=0,
        ),
        peer("n4", 4, state="confirming", why="waits for its first packet", confirmed=False),
    ],
    "tables": [
        table("ipcache", 14, healed=2),
        table(
            "routes",
            4,
            applied=3,
            failed=1,
            failures=[
                {
                    "key": "10.244.3.0/24",
                    "why": "[Errno 101] Network is unreachable",
                    "since": "2026-11-21T03:14:07+00:00",
                }
            ],
        ),
    ],
    "drops": [REPLAYED, NO_KEY],
    "counts": [SEALED, CLEAR_WORLD, NO_KEY, REPLAYED],
    "rejected": [
        {
            "source": "/var/lib/pellicle/nodes/n9.yaml",
            "name": "n9",
            "why": "spec.podCIDRs: 10.244.1.0/24 is node n1's already",
        }
    ],
    "events_lost": 1_204,
    "problems": [
        "table routes: 10.244.3.0/24: [Errno 101] Network is unreachable",
        f"peer {LONG_NAME} is unverified: its offer does not verify: another pre-shared secret?",
    ],
}

OFF: Row = HEALTHY | {
    "healthy": False,
    "encryption": "off",
    "peers": [],
    "problems": ["encryption is OFF: set enable_encrypt_l3 to switch it on"],
}

AES, CHACHA = "aes-256-gcm", "chacha20-poly1305"
KERNEL: Row = HEALTHY | {
    "engine": "xfrm",
    "engine_why": "the kernel has ESP",
    "ciphers": [AES, "aes-128-gcm", CHACHA],
    "peers": [
        peer("n2", 2, engine="xfrm", cipher=AES),
        peer("n3", 3, engine="xfrm", cipher=CHACHA),
        peer("n4", 4, engine="xfrm", cipher=AES),
        peer("n5", 5, engine=None, cipher=None, state="no-offer", why="no offer"),
    ],
    "tables": [table("sas", 24), table("policies", 34, healed=3), table("routes", 4, healed=1)],
    "kernel_drops": [
        kernel_drop("XfrmInStateSeqError", "seen before", 2),
        kernel_drop("XfrmOutNoStates", "the SA is gone", 1_700),
        kernel_drop("XfrmInNoStates", "no state", 1),
    ],
    "offload": {"states": 0, "why": "eth0 has no esp-hw-offload switched on"},
}
CARD: Row = KERNEL | {"offload": {"states": 16, "why": "Operation not supported: table full"}}

STATES = {"healthy": HEALTHY, "degraded": DEGRADED, "off": OFF, "kernel": KERNEL, "card": CARD}


def sa(direction: str, node: str, number: int, **other: Any) -> Row:
    return {
        "direction": direction,
        "peer": node,
        "spi": 0x5A3C_9100 + number,
        "number": number,
        "pair": "9f86d081884c7d02",
        "local_epoch": 3,
        "peer_epoch": 12,
        "sequence": 12_052,
        "packets": 12_052,
        "bytes": 15_300_888,
        "replayed": 0,
        "auth_failed": 0,
        "first_seen": 911_382_000_123 if direction == "in" else 0,
        "engine": "bpf",
        "cipher": "chacha20-poly1305",
    } | other


ENCRYPT: Row = {
    "node": "n1",
    "encryption": "on",
    "peers": HEALTHY["peers"],
    "offers": [{"epoch": 3, "fingerprint": "c7d3a9f0125b8e64", "state": "current"}],
    "sas": [
        sa(direction, "n2", number, replayed=2 if (direction, number) == ("in", 1) else 0)
        for direction in ("out", "in")
        for number in range(4)
    ],
}


ENCRYPT_KERNEL: Row = ENCRYPT | {
    "peers": KERNEL["peers"],
    "sas": [
        *(sa("out", "n2", number, engine="xfrm", cipher=AES) for number in range(4)),
        sa("in", "n3", 0, engine="bpf", cipher=CHACHA, auth_failed=5),
    ],
}


def flow(verdict: str, reason: str, words: str, **other: Any) -> Row:
    return {
        "time": 1_795_230_847.25,
        "since": 1_795_230_840.0,
        "source": {
            "address": "10.244.1.2",
            "port": 43210,
            "pod": "default/web-7f9c6d5b8-x2k4q",
            "node": "n1",
            "identity": 300,
        },
        "destination": {
            "address": "10.244.2.2",
            "port": 5432,
            "pod": "default/db-0",
            "node": "n2",
            "identity": 301,
        },
        "protocol": "TCP",
        "icmp": None,
        "hook": "door",
        "verdict": verdict,
        "reason": reason,
        "words": words,
        "packets": 1_204,
        "bytes": 1_602_331,
        "spi": 0x5A3C9102 if verdict == "encrypted" else 0,
        "epoch": 3 if verdict == "encrypted" else 0,
        "engine": "xfrm" if verdict == "encrypted" else "",
        "pair": "9f86d081884c7d02",
    } | other


WORLD = {"address": "2606:2800:220:1:248:1893:25c8:1946", "port": 443, "pod": None, "node": None}
FLOWS: list[Row] = [
    flow("encrypted", "SEALED", "encrypted"),
    flow("clear", "CLEAR_WORLD", "leaves the cluster", hook="from_pod", destination=WORLD),
    flow(
        "dropped",
        "DROP_UNKNOWN_PEER",
        "a cluster address nobody holds",
        hook="from_pod",
        protocol="ICMP",
        icmp={"type": 8, "code": 0, "identifier": 77},
        source={"address": "10.244.1.3", "port": None, "pod": None, "node": None},
        destination={"address": "10.244.9.9", "port": None, "pod": None, "node": None},
        packets=3,
        bytes=294,
    ),
]


def audited(
    ends: tuple[str, str], verdict: str, reason: str, packets: int, octets: int, **other: Any
) -> Row:
    """A row of an audit between n1 and n2, or with `nodes`, others."""
    source_node, destination_node = other.pop("nodes", ("n1", "n2"))
    return {
        "direction": "sent",
        "source_node": source_node,
        "destination_node": destination_node,
        "source": ends[0],
        "destination": ends[1],
        "verdict": verdict,
        "reason": reason,
        "rule": "",
        "is_exception": verdict != "encrypted",
        "is_between_nodes": verdict != "dropped",
        "packets": packets,
        "bytes": octets,
        "first": 1_795_230_840.0,
        "last": 1_795_230_847.25,
    } | other


WEB, DB = "default/web-7f9c6d5b8-x2k4q", "default/db-0"
_LOST = {"packets": 22, "bytes": 28_108}
_NONE = {"packets": 0, "bytes": 0}
AUDIT: Row = {
    "node": "n1",
    "since": 1_795_230_000.0,
    "until": 1_795_237_200.0,
    "between_nodes": {"encrypted": {"packets": 96_422, "bytes": 122_407_108}},
    "rules": {},
    "reasons": [
        SEALED | {"not_attributed": _LOST},
        CLEAR_WORLD | {"not_attributed": _NONE},
        NO_KEY | {"not_attributed": _NONE},
        REPLAYED | {"packets": 0, "bytes": 0, "not_attributed": _NONE},
    ],
    "nodes": [
        audited(("", ""), "encrypted", "SEALED", 96_400, 122_379_000),
        audited(
            ("", ""), "clear", "CLEAR_WORLD", 812, 90_112, nodes=("n1", ""),
            is_exception=False, is_between_nodes=False,
        ),
        audited(("", ""), "dropped", "DROP_NO_KEY", 17, 1_428, nodes=("n1", LONG_NAME)),
    ],
    "endpoints": [
        audited((WEB, DB), "encrypted", "SEALED", 96_400, 122_379_000),
        audited(
            (WEB, "2606:2800:220:1:248:1893:25c8:1946"), "clear", "CLEAR_WORLD", 812, 90_112,
            nodes=("n1", ""), is_exception=False, is_between_nodes=False,
        ),
        audited((WEB, "default/cache-0"), "dropped", "DROP_NO_KEY", 17, 1_428),
    ],
    "exceptions": [audited((WEB, "default/cache-0"), "dropped", "DROP_NO_KEY", 17, 1_428)],
    "rows": {"nodes": 3, "endpoints": 134, "exceptions": 1},
    "merged": 0,
    "events_lost": 0,
}  # fmt: skip
_PASSED = audited(("", ""), "clear", "CLEAR_EXEMPT", 100, 30_000, rule="bootstrap")
_MONITORED = audited(("", ""), "audited", "DROP_CLEAR_TO_CLUSTER", 9, 900)
AUDIT_RULED: Row = AUDIT | {
    "between_nodes": AUDIT["between_nodes"] | {"clear": {"packets": 100, "bytes": 30_000}},
    "rules": {"bootstrap": {"packets": 100, "bytes": 30_000}},
    "nodes": [*AUDIT["nodes"], _PASSED],
    "exceptions": [_PASSED | {"source": "n1", "destination": "n2"}, *AUDIT["exceptions"]],
}
AUDIT_MONITOR: Row = AUDIT_RULED | {
    "between_nodes": AUDIT_RULED["between_nodes"] | {"audited": {"packets": 9, "bytes": 900}},
    "rules": AUDIT_RULED["rules"] | {"": {"packets": 9, "bytes": 900}},
    "nodes": [*AUDIT_RULED["nodes"], _MONITORED],
    "exceptions": [_MONITORED | {"source": WEB, "destination": DB}, *AUDIT_RULED["exceptions"]],
}
AUDIT_EMPTY: Row = {"node": "n1", "since": None, "until": 1_795_237_200.0}

METRICS: Row = {
    "text": (
        "# HELP pellicle_packets_total by reason\n"
        "# TYPE pellicle_packets_total counter\n"
        'pellicle_packets_total{reason="SEALED",verdict="encrypted"} 96422.0\n'
        "# HELP pellicle_events_lost_total flow events without room\n"
        "# TYPE pellicle_events_lost_total counter\n"
        "pellicle_events_lost_total 0.0\n"
    )
}

MAPS: list[Row] = [
    {"name": "encrypt", "type": "hash", "rows": 2, "max_entries": 65536},
    {"name": "ipcache", "type": "hash", "rows": 14, "max_entries": 1048576},
]
IPCACHE: list[Row] = [
    {"key": "10.244.2.2", "value": {"identity": 301, "flags": 0, "node": "192.168.2.2"}},
    {"key": "fd00:244:2::2", "value": {"identity": 301, "flags": 0, "node": "192.168.2.2"}},
]
COUNTS: list[Row] = [
    {"key": 5, "value": {"cpus": [{"packets": 7, "bytes": 700}, {"packets": 2, "bytes": 200}]}}
]
