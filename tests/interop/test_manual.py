# SPDX-License-Identifier: Apache-2.0
"""One key for all, made by hand: `ipsec_key_derivation: none`, and a peer that only has iproute2.

n1: agent ══ SPI 3, no ESN ══ n2: ip xfrm state, policy         the file is the only thing shared
          ╚═ SPI 3, no ESN ══ n3: agent

And once more with subnets, of which the other end knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pellicle import lab
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests import pace
from tests.interop.byhand import N1, N2, REQID, ip, strip
from tests.net.loaded import load, until
from tests.net.parcels import INNER, IP_UDP, SECRET, parcels
from tests.net.streams import connected, exchange

N3 = LabNode(3)
KEYS = {3: "0102030405060708090a0b0c0d0e0f1011121314", 4: bytes(range(36)).hex()}
BOTH = (N1, N3)
inners = pytest.mark.parametrize("inner", [4, 6], ids=lambda version: f"IPv{version} inside")
ways = pytest.mark.parametrize(
    ("source", "sink"),
    [("n1/p1", "n2/p1"), ("n2/p1", "n1/p1"), ("n1/p1", "n3/p1"), ("n3/p1", "n1/p1")],
    ids=["to the kernel", "from the kernel", "to an agent", "from an agent"],
)


def write(path: Path, *ids: int) -> None:
    """Replaced as a whole, as an editor does."""
    fresh = path.with_name("fresh")
    fresh.touch(0o600)
    lines = (f"{id_} rfc4106(gcm(aes)) {KEYS[id_]} 128\n" for id_ in ids)
    fresh.write_text("".join(lines))
    fresh.replace(path)


SUBNETS = ("10.244.0.0/16", "fd00:244::/32")


@pytest.fixture(
    scope="module",
    params=[(4, ()), (6, ()), (4, SUBNETS), (6, SUBNETS)],
    ids=["over IPv4", "over IPv6", "over IPv4, subnets", "over IPv6, subnets"],
)
def secret(
    request: pytest.FixtureRequest, lab_place: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The file of n1 and n3; n2 is told what was in it at first."""
    lab.down()
    path = tmp_path_factory.mktemp("manual") / "keys"
    write(path, 3)
    outer, subnets = request.param
    settings: dict[str, Any] = {
        "ipsec_key_derivation": "none",
        "psk_file": str(path),
        "outer_family": str(outer),
        "drain_seconds": "1s",
    }
    if subnets:
        settings["encrypt_subnets"] = list(subnets)
    lab.up(3, 1, engine="xfrm", settings=settings)
    lab.kill_agent(N2.name)
    strip(N2)
    ours, theirs = (str(node.addresses[outer == 6]) for node in (N2, N1))
    for source, destination in ((ours, theirs), (theirs, ours)):
        ip(
            N2,
            f"xfrm state add src {source} dst {destination} proto esp spi 3 reqid {REQID} "
            f"mode tunnel flag af-unspec aead 'rfc4106(gcm(aes))' 0x{KEYS[3]} 128",
        )
    for version in (4, 6):
        near, far = (node.pod_cidrs[version == 6] for node in (N2, N1))
        end = f"proto esp reqid {REQID} mode tunnel"
        ip(
            N2,
            f"xfrm policy add src {near} dst {far} dir out tmpl src {ours} dst {theirs} {end}",
            f"xfrm policy add src {far} dst {near} dir in tmpl src {theirs} dst {ours} {end}",
            f"xfrm policy add src {far} dst {near} dir fwd tmpl src {theirs} dst {ours} {end}",
        )
    yield path
    lab.down()


@inners
@ways
def test_packets_of_all_sizes_arrive(secret: Path, inner: int, source: str, sink: str) -> None:
    outer = 6 if 'outer_family": "6' in N1.config.read_text() else 4
    largest = INNER[outer] - IP_UDP[inner]
    with Sniffer(markers=[SECRET]) as wire, parcels(source, sink, inner) as post:
        for size in pace.sizes(largest):
            assert post.carries(size), f"{size} bytes"
        wire.settle()
        assert (wire.lost(), wire.leaks(), wire.marks()) == (0, (), {})


@inners
def test_streams_arrive_both_ways_at_once(secret: Path, inner: int) -> None:
    with connected("n1/p1", "n2/p1", inner) as (here, there):
        assert exchange(here, there) == [True, True]


def test_everybody_is_warned(secret: Path) -> None:
    said = agents.status(N1)
    assert said["key_derivation"] == "none"
    assert said["problems"] == []
    assert "keys are not derived: whoever has the file decrypts" in N1.log.read_text()
    shown = ip(N1, "xfrm state")
    assert "spi 0x00000003" in shown
    is_shared = "encrypt_subnets" in N1.config.read_text()
    assert shown.count("proto esp") == (2 if is_shared else 4)
    assert "esn" not in shown
    for text in (N1.log.read_text(), str(said), str(agents.ask(N1, "encrypt"))):
        assert KEYS[3] not in text


def test_another_key_is_rolled_out_under_load_line_by_line(secret: Path) -> None:
    with Sniffer(markers=[SECRET]) as wire, load("n1/p1", "n3/p1", 4, pps=500) as run:
        for ids in ((3, 4), (4, 3), (4,)):
            write(secret, *ids)
            # The next step is for when every node has taken this one.
            until(lambda ids=ids: all(has_taken(node, *ids) for node in BOTH), f"keys {ids}")
        outcome = run.stop()
        wire.settle()
        assert (wire.lost(), wire.leaks()) == (0, ())
    assert outcome.is_intact
    assert outcome.lost == 0, outcome
    until(lambda: "spi 0x00000004" in ip(N1, "xfrm state"), "the new key's SAs stand")


def has_taken(node: LabNode, *ids: int) -> bool:
    """Whether it decrypts with each of these keys, and encrypts with the first one."""
    other = next(each.name for each in BOTH if each is not node)
    said = agents.ask(node, "encrypt")[0]
    mine = {sa["spi"] for sa in said["sas"] if (sa["peer"], sa["direction"]) == (other, "in")}
    (why,) = (str(peer["why"]) for peer in said["peers"] if peer["node"] == other)
    return mine >= set(ids) and f"key {ids[0]} of the file" in why
