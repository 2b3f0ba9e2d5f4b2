# SPDX-License-Identifier: Apache-2.0
"""A protocol analyser that has the keys reads what it heard on the wire, and without them nothing.

n1/p1 ══ n1: agent ══ ESP ══╤══ n2: ip xfrm ══ n2/p1
                            └─▶ wire.pcap ─▶ tshark
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pellicle.lab.sniffer import Sniffer
from tests import pace
from tests.interop.byhand import CASES, Pair, Sa
from tests.net.parcels import INNER, IP_UDP, SECRET, content, parcels

pytestmark = pytest.mark.usefixtures("all_is_understood")
A, B = "n1/p1", "n2/p1"
AES = [case for case in CASES if case.cipher.startswith("aes")]
"""ChaCha20-Poly1305 is in Wireshark from 4.2 on, which Debian 12 does not have."""
ALGORITHM = "AES-GCM with 16 octet ICV [RFC4106]"


@pytest.mark.parametrize("pair", AES, indirect=True, ids=str)
@pytest.mark.parametrize("inner", [4, 6], ids=lambda version: f"IPv{version} inside")
def test_tshark_reads_both_ways_with_the_keys_alone(pair: Pair, inner: int, tmp_path: Path) -> None:
    capture, largest = tmp_path / "wire.pcap", INNER[pair.case.outer] - IP_UDP[inner]
    sizes = [size for size in pace.sizes(largest) if size >= len(SECRET)]
    with Sniffer(markers=[SECRET], write=capture) as wire:
        for source, sink in ((A, B), (B, A)):
            with parcels(source, sink, inner) as post:
                assert all(post.carries(size) for size in sizes)
        wire.settle()
        assert wire.marks() == {}
    sas = [*pair.sent.values(), *pair.received.values()]
    wanted = sorted(content(size).hex() for size in sizes) * 2
    assert sorted(payloads(capture, sas, tmp_path)) == sorted(wanted)
    changed = [replace(sa, key=bytes([sa.key[0] ^ 1]) + sa.key[1:]) for sa in sas]
    assert set(payloads(capture, changed, tmp_path)).isdisjoint(wanted)


def payloads(capture: Path, sas: Iterable[Sa], home: Path) -> list[str]:
    """What was in all UDP datagrams that tshark can read, in hexadecimal digits."""
    rows = [
        [
            "IPv6" if ":" in sa.source else "IPv4", sa.source, sa.destination, f"{sa.spi:#010x}",
            ALGORITHM, f"0x{sa.key.hex()}", "NULL", "",
        ]
        for sa in sas
    ]  # fmt: skip
    table = "".join(",".join(f'"{word}"' for word in row) + "\n" for row in rows)
    (home / "esp_sa").write_text(table)
    argv = ["tshark", "-n", "-r", str(capture), "-o", "esp.enable_encryption_decode:TRUE"]
    argv += ["-Y", "esp && udp", "-T", "fields", "-e", "udp.payload"]
    place = {**os.environ, "WIRESHARK_CONFIG_DIR": str(home)}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=place)
    return done.stdout.split()
