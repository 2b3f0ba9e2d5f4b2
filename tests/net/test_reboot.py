# SPDX-License-Identifier: Apache-2.0
"""A node loses its power under load, and boots: on its disk, on an empty one, on an old copy of it.

n1/p1 ══ TCP, numbered UDP ══▶ n3/p1     loses nothing
  └───────── ping ───────────▶ n2/p1     n2: pods, datapath, maps, pins are gone, and made anew
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pellicle import lab
from pellicle.facts import NodeName, Offer
from pellicle.kernel import netns
from pellicle.lab import agents, pods
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import CLUSTER, LabNode, pod_named
from pellicle.sources.audit_trail import verify
from pellicle.sources.shelf import Shelf
from tests import pace
from tests.net.loaded import MARKER, assert_private, dropped, load, until

MakeLab = Callable[..., lab.LabState]
NODES = N1, N2, N3 = [LabNode(number) for number in (1, 2, 3)]
RECORD, STATE = CLUSTER / "nodes" / f"{N2.name}.yaml", N2.run_dir / "state"
PPS = 1000
MOST_SECONDS = 20.0
"""Until a node that boots is talked to again; a drain interval is part of it."""


@dataclass(frozen=True)
class Disk:
    """What a node finds when it boots."""

    record: str
    state: dict[str, bytes]

    @staticmethod
    def now() -> Disk:
        files = (path for path in STATE.rglob("*") if path.is_file())
        kept = {str(path.relative_to(STATE)): path.read_bytes() for path in files}
        return Disk(RECORD.read_text(), kept)

    def put_back(self) -> None:
        lose_disk()
        STATE.mkdir()
        for name, content in self.state.items():
            (STATE / name).parent.mkdir(exist_ok=True)
            (STATE / name).write_bytes(content)
        fresh = RECORD.with_name(".restored")
        fresh.write_text(self.record)
        fresh.rename(RECORD)


def lose_disk() -> None:
    RECORD.unlink()
    shutil.rmtree(STATE)


def test_whatever_its_disk_says_it_comes_back_with_keys_that_never_were(make_lab: MakeLab) -> None:
    make_lab(3, 1, settings={"drain_seconds": "2s"})
    old = Disk.now()
    rotate()
    latest = epoch()
    with (
        Sniffer(markers=[MARKER], nonces=True) as wire,
        load("n1/p1", "n3/p1", 4, pps=PPS) as beside,
        pinging("n1/p1", "n2/p1"),
    ):
        reboot(lambda: None)
        assert epoch() == latest + 1
        reboot(old.put_back)
        assert epoch() == latest, "an epoch comes a second time"
        history = (STATE / "keys.jsonl").read_bytes()
        assert history.startswith(old.state["keys.jsonl"]), "it goes on from the copy"
        assert verify(STATE / "audit").broken is None, "and so does its audit trail"
        reboot(lose_disk)
        assert epoch() == 1, "its epochs begin anew"
        with load("n1/p1", "n2/p1", 6, pace.patient(1), pps=PPS) as again:
            assert again.outcome.lost == 0
            assert again.outcome.is_intact
        outcome = beside.stop()
        assert_private(wire, may_be=is_complaint_of_n2)
        assert wire.reuses() == ()
    assert outcome.is_intact
    assert outcome.stream_bytes == outcome.stream_sent
    assert outcome.lost == 0, f"{outcome}\n{[dropped(node) for node in (N1, N3)]}"


def is_complaint_of_n2(leak: str) -> bool:
    """Before its agent has started, a node may not know what ESP is for, and says so by ICMP."""
    return any(leak.startswith(f"n2: {own} > ") for own in N2.addresses) and " ICMP" in leak


def reboot(happens_to_disk: Callable[[], None]) -> None:
    """Of n2; returns when all is as before, with another boot nonce."""
    before = {offer.boot_nonce for offer in offers()}
    lab.power_off("n2")
    assert not N2.bpffs.exists()
    happens_to_disk()
    lab.power_on("n2", wait=False)
    until(talk_again, "traffic is there again by itself", MOST_SECONDS)
    until(lambda: all(is_settled(node) for node in NODES), "all is well")
    assert not before & {offer.boot_nonce for offer in offers()}


@contextmanager
def pinging(source: str, destination: str) -> Iterator[None]:
    """In both families, whether anybody answers or not."""
    with ExitStack() as ends:
        for address in pods.addresses(pod_named(destination)):
            argv = ["ping", "-q", "-i", "0.05", "-p", MARKER[:16].hex(), str(address)]
            ping = netns.start_in(pod_named(source).namespace, argv, stdout=subprocess.DEVNULL)
            ends.callback(ping.wait)
            ends.callback(ping.kill)
        yield


def talk_again() -> bool:
    ways = (("n1/p1", "n2/p1"), ("n2/p1", "n1/p1"), ("n3/p1", "n2/p1"))
    return all(echoes(*way) for way in ways)


def echoes(source: str, destination: str) -> bool:
    """In both families."""
    argv = ["ping", "-q", "-c", "1", "-W", str(int(pace.patient(1)))]
    found = pods.addresses(pod_named(destination))
    return all(lab.exec_(source, [*argv, str(address)]) == 0 for address in found)


def rotate() -> None:
    argv = [sys.executable, "-m", "pellicle", "encrypt", "rotate", "--node", "n2"]
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)


def offers() -> tuple[Offer, ...]:
    """Of n2, as everybody can read them."""
    shelf = Shelf(CLUSTER)
    shelf.look_everywhere()
    return shelf.world().nodes[NodeName(N2.name)].offers


def epoch() -> int:
    return offers()[-1].epoch


def is_settled(node: LabNode) -> bool:
    answer = agents.ask(node, "encrypt")[0]
    return len(answer["offers"]) == 1 and all(
        peer["state"] == "ready" and peer["confirmed"] for peer in answer["peers"]
    )
