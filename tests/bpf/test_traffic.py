# SPDX-License-Identifier: Apache-2.0
"""What a peer was sent and has sent is counted for ever, whatever becomes of the SAs."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from pellicle.encryption.sas import SaTarget
from pellicle.encryption.traffic import SaKind, Traffic
from pellicle.keys.rows import Direction, SaKey
from tests.bpf.cluster import OVER4, POD4, furnish, put_inbound, put_outbound
from tests.bpf.node import Node, loaded_node
from tests.bpf.packets import frame, ip
from tests.bpf.tunnel import sealed

WORDS = b"x" * 80
SIZE = 20 + len(WORDS)
CHACHA20_POLY1305 = 1
"""`enum cipher`."""
PEER = ip_address(OVER4.address)
IN, OUT = (PEER, Direction.IN), (PEER, Direction.OUT)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with loaded_node(tmp_path) as loaded:
        furnish(loaded)
        put_outbound(loaded, OVER4, cipher=CHACHA20_POLY1305)
        put_inbound(loaded, OVER4, cipher=CHACHA20_POLY1305)
        yield loaded


def send(node: Node, number: int) -> None:
    for _ in range(number):
        assert node.run("door", frame(ip(POD4, OVER4.pod4, WORDS))).reason == "SEALED"


def read(sas: SaTarget) -> dict[tuple[object, Direction], Traffic]:
    return sas.totals.read(dict, {OVER4.pair}, {PEER}).traffic  # type: ignore[return-value]


def out_keys(sas: SaTarget) -> list[SaKey]:
    return [key for key in sas.read() if key.direction is Direction.OUT]


def test_both_directions_and_what_was_refused(node: Node) -> None:
    sas = SaTarget(node.object, None)
    send(node, 3)
    packet = sealed(OVER4, 1, ip(OVER4.pod4, POD4, WORDS))
    assert node.run("from_net", packet).reason == "OPENED"
    assert node.run("from_net", packet).reason == "DROP_REPLAYED"
    forged = sealed(OVER4, 2, ip(OVER4.pod4, POD4, WORDS))
    forged = forged[:-1] + bytes([forged[-1] ^ 1])
    assert node.run("from_net", forged).reason == "DROP_AUTH_FAILED"
    assert read(sas) == {OUT: Traffic(3, 3 * SIZE), IN: Traffic(1, SIZE, 1, 1)}


def test_sas_that_go_leave_their_counts(node: Node) -> None:
    sas = SaTarget(node.object, None)
    send(node, 5)
    keys = out_keys(sas)
    assert sas.remove(keys) == {}
    assert read(sas)[OUT] == Traffic(5, 5 * SIZE)
    assert sas.remove(keys) == {}, "what is gone is not counted again"
    put_outbound(node, OVER4, cipher=CHACHA20_POLY1305)
    send(node, 2)
    assert read(sas)[OUT] == Traffic(7, 7 * SIZE)
    assert read(sas)[OUT] == Traffic(7, 7 * SIZE)


def test_what_somebody_else_took_away_is_not_lost_and_hides_nothing(node: Node) -> None:
    sas = SaTarget(node.object, None)
    send(node, 5)
    assert read(sas)[OUT].packets == 5
    node.clear("sa_out")
    assert read(sas)[OUT].packets == 5
    put_outbound(node, OVER4, cipher=CHACHA20_POLY1305)
    send(node, 1)
    assert read(sas)[OUT].packets == 6


def test_sums_begin_with_the_agent(node: Node) -> None:
    """A counter that began with another's counts would seem to have leapt."""
    send(node, 5)
    sas = SaTarget(node.object, None)
    assert read(sas)[OUT] == Traffic()
    send(node, 1)
    assert read(sas)[OUT] == Traffic(1, SIZE)
    node.clear("sa_out")
    assert read(sas)[OUT] == Traffic(1, SIZE), "of these, the earlier agent's are not ours either"
    put_outbound(node, OVER4, cipher=CHACHA20_POLY1305)
    send(node, 2)
    assert read(sas)[OUT] == Traffic(3, 3 * SIZE)


def test_what_is_read_while_sas_go_is_neither_doubled_nor_missed(node: Node) -> None:
    sas = SaTarget(node.object, None)
    send(node, 4)
    assert read(sas)[OUT].packets == 4
    keys = iter(out_keys(sas))

    def states() -> dict[object, object]:
        """Between the two looks of a reading one SA goes, as often as there are any."""
        for key in keys:
            sas.remove([key])
            break
        return {}

    assert sas.totals.read(states, set(), {PEER}).traffic[OUT].packets == 4  # type: ignore[arg-type,index]
    assert read(sas)[OUT].packets == 4


def test_sas_by_what_they_are(node: Node) -> None:
    sas = SaTarget(node.object, None)
    assert node.run("from_net", sealed(OVER4, 1, ip(OVER4.pod4, POD4, WORDS))).reason == "OPENED"
    cipher = "chacha20-poly1305"
    found = sas.totals.read(dict, {OVER4.pair}, set())
    assert found.sas == {
        SaKind("out", "bpf", cipher, "used"): 4,
        SaKind("in", "bpf", cipher, "confirmed"): 1,
        SaKind("in", "bpf", cipher, "unconfirmed"): 3,
    }
    assert found.traffic == {}, "nobody of the nodes has that address"
    assert SaKind("out", "bpf", cipher, "unused") in sas.totals.read(dict, set(), set()).sas
