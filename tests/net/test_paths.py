# SPDX-License-Identifier: Apache-2.0
"""Every path there is, what may be left in the clear by name, and what monitor mode makes of both.

pod, node, host-network pod ══▶ pod, node, host-network pod     by TCP, UDP, ICMP; 3 sizes
node ──tcp/22, named──▶ node                                    in the clear, and reported so
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest

from pellicle import lab
from pellicle.cli.printed import print_page
from pellicle.lab import agents, check
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from pellicle.ui.lab import checked
from tests import pace
from tests.net.loaded import address_of, until
from tests.net.parcels import (
    SECRET,
    content,
    is_echoed,
    open_in,
)
from tests.net.streams import connected, exchange

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
ENDS = ("pod", "node", "host-network pod")
SSH = "ssh=tcp/22"
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])


@pytest.mark.parametrize("outer", [6, 4], ids=["over IPv6", "over IPv4"])
def test_every_path_is_encrypted_and_answered(
    make_lab: MakeLab, outer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.down()  # pods keep the MTU that they were plugged in with
    make_lab(2, 1, settings={"outer_family": str(outer)})
    found = check.check()
    with capsys.disabled():
        print_page(lambda _width: checked(found, 120))
    assert found.problems == ()
    assert found.clear == 0
    assert found.encrypted > found.messages
    assert {(c.source, c.destination) for c in found.cells} == set(product(ENDS, ENDS))
    assert len(found.cells) == 9 * 2 * 3 * 3
    assert all(cell.is_well for cell in found.cells)


def test_the_listener_reads_all_of_it_while_encryption_is_off(make_lab: MakeLab) -> None:
    make_lab(2, 1, encrypt=False)
    found = check.check()
    assert found.problems == ()
    assert found.encrypted == 0
    assert found.clear > found.messages


@both
def test_what_is_exempt_goes_in_the_clear_by_name_and_nothing_else_does(
    make_lab: MakeLab, family: int
) -> None:
    make_lab(2, 1, settings={"exempt": [SSH]})
    with Sniffer(markers=[SECRET]) as wire:
        with served(N2, family, 22) as to, asked(N1, family, to) as said:
            assert said == content(5000)
        with served(N2, family, 2222) as to, asked(N1, family, to) as said:
            assert said == content(5000)
        wire.settle()
        clear = {leak.split(", ")[0] for leak in wire.leaks()}
    assert clear
    assert all(" TCP 22 > " in leak or leak.endswith("> 22") for leak in clear), clear
    flows = agents.ask(N1, "flows", verdict="clear", to=address_of("n2", family))
    of_ssh = [row for row in flows if row["destination"]["port"] == 22]
    assert {(row["reason"], row["rule"]) for row in of_ssh} == {("CLEAR_EXEMPT", SSH)}
    assert SSH in agents.status(N1)["exempt"]


@both
def test_a_connection_between_nodes_lives_through_the_switch_to_encryption(
    make_lab: MakeLab, family: int
) -> None:
    make_lab(2, 1, encrypt=False)
    with connected("n1", "n2", family) as (here, there):
        here.sendall(b"hello")
        assert there.recv(5) == b"hello"
        make_lab(2, 1)
        with Sniffer(markers=[SECRET]) as wire:
            assert exchange(here, there, 2) == [True, True]
            wire.settle()
            assert (wire.lost(), wire.marks()) == (0, {})


@pytest.mark.parametrize("routing", ["direct", "overlay"])
def test_monitor_lets_pass_and_reports_what_enforce_drops(make_lab: MakeLab, routing: str) -> None:
    """n2 proves itself in another way than n1 asks for: they have no keys for each other."""
    ways = [("n1/p1", "n2/p1"), ("n1", "n2/p1"), ("n1/p1", "n2"), ("n1", "n2")]
    reasons: dict[str, set[str]] = {}
    for mode, verdict in (("enforce", "dropped"), ("monitor", "audited")):
        make_lab(2, 1, settings={"audit": mode, "drain_seconds": "1s", "routing": routing})
        assert agents.status(N1)["audit"] == mode
        disagree()
        until(lambda: not any(map(sas, (N1, N2))), "there are no keys")
        for family in (4, 6):
            with Sniffer(markers=[SECRET]) as wire:
                passed = [is_echoed(here, family, address_of(to, family), 1) for here, to in ways]
                wire.settle()
                assert bool(wire.marks()) == (mode == "monitor")
            assert passed == [mode == "monitor"] * len(ways)
        flows = [
            row
            for there, family in product(("n2", "n2/p1"), (4, 6))
            for row in agents.ask(N1, "flows", verdict=verdict, to=address_of(there, family))
            if row["icmp"]
        ]
        reasons[mode] = {
            f"{row['source']['address']} > {row['destination']['address']}: {row['reason']}"
            for row in flows
        }
        lab.down()
    assert reasons["enforce"]
    assert reasons["monitor"] == reasons["enforce"]


# --- what it takes ----------------------------------------------------------------------------


def sas(node: LabNode) -> list[Any]:
    return list(agents.ask(node, "encrypt")[0]["sas"])


Served = tuple[str, int, socket.socket]


def disagree() -> None:
    """n2 from now on believes whoever may write records, and proves nothing."""
    config: dict[str, Any] = json.loads(N2.config.read_text())
    del config["psk_file"]
    N2.config.write_text(json.dumps({**config, "key_mode": "cluster"}) + "\n")
    lab.restart_agent("n2", wait=False)


@contextmanager
def served(node: LabNode, family: int, port: int) -> Iterator[Served]:
    with open_in(node.name, family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen(1)
        yield address_of(node.name, family), port, server


@contextmanager
def asked(node: LabNode, family: int, to: Served) -> Iterator[bytes]:
    """What a server says to whoever connects, as it arrives."""
    address, port, server = to
    with open_in(node.name, family, socket.SOCK_STREAM) as here:
        here.connect((address, port))
        there, _ = server.accept()
        with there:
            there.settimeout(pace.patient(5))
            there.sendall(content(5000))
            there.shutdown(socket.SHUT_WR)
            got = bytearray()
            while piece := here.recv(65536):
                got += piece
            yield bytes(got)
