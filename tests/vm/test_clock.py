# SPDX-License-Identifier: Apache-2.0
"""The time of day jumps by a day, forward and back, under a cluster at work.

n1/p1 ══ TCP, numbered UDP ══▶ n2/p1     Monday ─▶ Tuesday ─▶ Monday ─▶ Sunday ─▶ Monday

It sets the clock of the whole machine, so the machine must be one of tests/vm/boot.sh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pellicle import lab
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from tests import pace
from tests.net.loaded import MARKER, assert_private, load, until
from tests.net.test_rotation import is_settled, newest
from tests.net.test_spiffe import SETTINGS as OF_SPIFFE
from tests.net.test_spiffe import Spire, echoes, is_ready, peer, problems, sas_with_n2, spire

__all__ = ["spire"]

MakeLab = Callable[..., lab.LabState]
Step = Callable[[float], None]
N1, N2 = NODES = LabNode(1), LabNode(2)
DAY = 86_400.0
LIFETIME, DRAIN = 5, 2
PPS = 100


@pytest.fixture
def step() -> Iterator[Step]:
    """Sets the machine's clock by so many seconds; it is right again afterwards."""
    words = Path("/proc/cmdline").read_text().split()
    assert any(word.startswith("vm.job=") for word in words), (
        "this test sets the machine's clock: run it in a machine of its own, by tests/vm/boot.sh"
    )
    sum_of_steps = 0.0

    def set_by(seconds: float) -> None:
        nonlocal sum_of_steps
        sum_of_steps += seconds
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)

    yield set_by
    set_by(-sum_of_steps)


@pytest.mark.parametrize("psk_file", [{}, {"psk_file": "null"}], ids=["psk", "cluster"])
def test_keys_go_on_by_their_own_clock(
    make_lab: MakeLab, step: Step, psk_file: dict[str, str]
) -> None:
    make_lab(
        2, 1, settings={"key_lifetime": f"{LIFETIME}s", "drain_seconds": f"{DRAIN}s", **psk_file}
    )
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n2/p1", 4, pps=PPS) as run,
    ):
        for days in (1, -1, -1, 1):
            before = newest(N1)
            step(days * DAY)
            began = time.monotonic()
            until(lambda before=before: newest(N1) >= before + 2, "it rotates, and again")  # type: ignore[misc]
            assert time.monotonic() - began < pace.patient(4 * LIFETIME), "at its own pace"
            assert newest(N1) - before <= 2 + (time.monotonic() - began) / (LIFETIME / 2)
        outcome = run.stop()
        assert_private(wire)
        assert wire.reuses() == ()
    assert outcome.is_intact
    assert outcome.lost == 0, outcome


@pytest.mark.parametrize(
    ("days", "says"), [(1, "expired at"), (-1, "not valid before")], ids=["forward", "back"]
)
def test_svids_that_are_not_of_today_close_the_traffic_until_the_clock_is_right(
    make_lab: MakeLab, spire: Spire, step: Step, days: int, says: str
) -> None:
    spire.issue_all(3600)
    make_lab(2, 1, settings=OF_SPIFFE)
    assert echoes()
    with Sniffer(markers=[MARKER], nonces=True) as wire, load("n1/p1", "n2/p1", 4, pps=PPS) as run:
        time.sleep(pace.patient(1))
        step(days * DAY)
        for node in NODES:
            until(lambda node=node: peer(node)["state"] == "unverified", "the peer is not believed")  # type: ignore[misc]
            assert says in peer(node)["why"]
            assert "is unverified" in problems(node)
        until(lambda: not sas_with_n2(), "its keys go")
        assert not echoes(), "closed"
        step(-days * DAY)
        until(lambda: is_ready(N1) and is_ready(N2), "new keys, by themselves", 30)
        until(echoes, "and its traffic passes")
        assert run.stop().is_intact, "the connection outlives it"
        assert_private(wire)
        assert wire.reuses() == ()
    assert all(is_settled(node) for node in NODES)
