# SPDX-License-Identifier: Apache-2.0
"""Subnets known beforehand, on real nodes: one key made by hand, `encrypt_subnets`.

n1 ══ a state that is shared, and the subnets' policies ══ n2
 ╚═══ SAs of its own: in no subnet ══════════════════════ n3
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pellicle import lab
from pellicle.cli.printed import print_page
from pellicle.kernel import netns
from pellicle.kernel.bpf import Map
from pellicle.lab import agents, check
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from pellicle.ui.lab import checked
from tests.interop.byhand import ip
from tests.net.loaded import MARKER, Load, address_of, assert_private, dropped, load, until
from tests.net.parcels import SECRET, is_echoed
from tests.net.test_encryption_policies import OWN, app, apply, policy

N1, N2, N3 = LabNode(1), LabNode(2), LabNode(3)
KEYS = {n: bytes(range(n, n + 20)).hex() for n in (3, 4)}
PODS = ("10.244.1.0/24", "10.244.2.0/24", "fd00:244:1::/64", "fd00:244:2::/64")
"""n3's are not among them."""
ALL = ("10.244.0.0/16", "fd00:244::/32", "192.168.0.0/16", "fd00:168::/32")
ENDS = ("pod", "node", "host-network pod")
PPS = 100
both = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
routings = pytest.mark.parametrize("routing", ["direct", "overlay"])


def write(path: Path, *ids: int) -> None:
    """Replaced as a whole, as an editor does."""
    fresh = path.with_name("fresh")
    fresh.touch(0o600)
    lines = (f"{id_} rfc4106(gcm(aes)) {KEYS[id_]} 128\n" for id_ in ids)
    fresh.write_text("".join(lines))
    fresh.replace(path)


@dataclass(frozen=True)
class Subnets:
    """A lab, and the file of keys of its nodes."""

    secret: Path
    outer: int

    def up(self, nodes: int, subnets: Sequence[str] = PODS, **settings: str) -> None:
        write(self.secret, 3)
        how = {
            "ipsec_key_derivation": "none",
            "encrypt_subnets": list(subnets),
            "psk_file": str(self.secret),
            "outer_family": str(self.outer),
            "drain_seconds": "1s",
            "refresh_seconds": "5s",
        }
        lab.up(nodes, 1, engine="xfrm", settings={**how, **settings})


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def subnets(
    request: pytest.FixtureRequest, lab_place: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subnets]:
    lab.down()
    yield Subnets(tmp_path_factory.mktemp("subnets") / "keys", request.param)
    lab.down()


# --- every path ----------------------------------------------------------------------------------


@routings
def test_every_path_is_encrypted_beside_peers_of_their_own(
    subnets: Subnets, routing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subnets.up(3, routing=routing)
    assert shares() == {"n2": True, "n3": False}
    found = check.check()
    with capsys.disabled():
        print_page(lambda _width: checked(found, 120))
    assert found.problems == ()
    assert found.clear == 0
    assert {(c.source, c.destination) for c in found.cells} == set(product(ENDS, ENDS))
    assert all(cell.is_well for cell in found.cells)
    for node in (N1, N2, N3):
        assert "DROP_UNKNOWN_SLOT" not in dropped(node)


def test_no_placeholder_is_seen_on_the_wire(subnets: Subnets) -> None:
    subnets.up(3)
    with Sniffer(markers=[MARKER]) as wire:
        for family, sink in product((4, 6), ("n2", "n3")):
            assert is_echoed("n1/p1", family, pod(sink, family))
        wire.settle()
        ends = {end for flow in wire.counts() if flow.kind is Kind.ESP
                for end in (flow.source, flow.destination)}  # fmt: skip
        assert ends == {"n1", "n2", "n3"}, "not a placeholder"
        assert wire.lost() == 0


@both
def test_the_books_are_each_peers_own(subnets: Subnets, family: int) -> None:
    """The kernel counts for all together."""
    subnets.up(3)
    before = [books(N1, "n2"), books(N2, "n1"), books(N1, "n3")]
    for _ in range(5):
        assert is_echoed("n1/p1", family, pod("n2", family))
    grown = [
        tuple(now - was for now, was in zip(after, before_, strict=True))
        for after, before_ in zip(
            [books(N1, "n2"), books(N2, "n1"), books(N1, "n3")], before, strict=True
        )
    ]
    assert grown[0][:2] == grown[1][:2] == (5, 5)
    assert grown[0][2] == grown[1][3] > 5 * 28
    assert grown[2] == (0, 0, 0, 0)


# --- how much there is ---------------------------------------------------------------------------


def test_the_kernel_gets_no_more_for_more_peers(subnets: Subnets) -> None:
    seen = []
    for nodes in (2, 4):
        subnets.up(nodes, ALL)
        until(lambda: bool(agents.status(N1)["healthy"]), "all peers are ready")
        assert len(shares()) == nodes - 1
        assert all(shares().values())
        until(lambda n=nodes: len(sas(N1, "out")) == n - 1, "nothing drains any more")
        seen.append((kernels("policy"), kernels("state")))
    assert seen[0] == seen[1] == (4 + 4, 2), "a policy for each subnet; the blocks, what comes in"
    found = check.check()
    assert (found.problems, found.clear) == ((), 0)


def test_the_status_says_so(subnets: Subnets) -> None:
    subnets.up(3)
    said = agents.status(N1)
    assert said["problems"] == []
    peers = {row["cidr"]: row["peers"] for row in said["subnets"]}
    assert peers == {PODS[0]: 0, PODS[1]: 1, PODS[2]: 0, PODS[3]: 1}
    for words in (["status"], ["encrypt", "status"]):
        command = [sys.executable, "-m", "pellicle", *words, "--node", "n1"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "10.244.2.0/24" in shown
        for key in KEYS.values():
            assert key not in shown


# --- other keys ----------------------------------------------------------------------------------


@both
@routings
def test_another_key_is_rolled_out_under_load_line_by_line(
    subnets: Subnets, routing: str, family: int
) -> None:
    subnets.up(3, routing=routing)
    with (
        Sniffer(markers=[MARKER]) as wire,
        load("n1/p1", "n2/p1", family, pps=PPS) as shared,
        load("n1/p1", "n3/p1", 10 - family, pps=PPS) as own,
    ):
        for ids in ((3, 4), (4, 3), (4,)):
            write(subnets.secret, *ids)
            # The next step is for when every node has taken this one.
            until(lambda ids=ids: all(has_taken(node, *ids) for node in (N1, N2, N3)), f"{ids}")
        for run in (shared, own):
            outcome = run.stop()
            assert outcome.is_intact
            assert outcome.lost == 0, outcome
        assert_private(wire)
    until(lambda: spis(N1, "out") == {4}, "the old state has drained")


# --- somebody takes something away ---------------------------------------------------------------

LOSSES = {
    "the policy to the subnet": "xfrm policy delete src 0.0.0.0/0 dst 10.244.2.0/24 dir out "
    "mark 0xe80 mask 0x3f80 if_id 0x70656c6c",
    "the state that is shared": "xfrm state delete src {own} dst {placeholder} proto esp spi 3 "
    "mark 0xe80 mask 0x3f80",
    "the state of all that comes in": "xfrm state delete src {nobody} dst {own} proto esp spi 3 "
    "mark 0xd80 mask 0xf80",
    "all states": "xfrm state flush",
    "all policies": "xfrm policy flush",
}


@pytest.mark.parametrize("says", LOSSES)
def test_what_is_lost_heals_and_nothing_leaks(subnets: Subnets, says: str) -> None:
    subnets.up(3)
    six = subnets.outer == 6
    words = LOSSES[says].format(
        own=N1.addresses[six],
        placeholder="ff02::114" if six else "224.0.0.254",
        nobody="::" if six else "0.0.0.0",
    )
    with (
        Sniffer(markers=[MARKER]) as wire,
        load("n1/p1", "n2/p1", 4, pps=PPS) as run,
    ):
        until(lambda: passing(wire) > 20, "the load is on its way")
        before = healed(N1)
        ip(N1, words)
        until(lambda: healed(N1) > before, "a table says that it has healed something")
        goes_on(wire, run)
        assert run.stop().is_intact
        assert_private(wire)
    until(lambda: bool(agents.status(N1)["healthy"]), "all is well again")


def test_a_lost_row_of_the_sharers_is_named_and_heals(subnets: Subnets) -> None:
    subnets.up(3)
    with Sniffer(markers=[MARKER]) as wire, load("n1/p1", "n2/p1", 4, pps=PPS) as run:
        until(lambda: passing(wire) > 20, "the load is on its way")
        with Map.open_pinned(N1.bpffs / "maps" / "sharers") as pinned:
            pinned.delete_batch(pinned.keys())
        until(lambda: dropped(N1).get("DROP_UNKNOWN_SLOT", 0) > 0, "it is named")
        goes_on(wire, run)
        assert run.stop().is_intact
        assert_private(wire)


def test_an_agent_that_comes_back_goes_on_with_what_stands(subnets: Subnets) -> None:
    subnets.up(3)
    until(lambda: len(sas(N1, "out")) == 2, "nothing drains any more")
    pairs = pairs_of_file(N1)
    with Sniffer(markers=[MARKER]) as wire, load("n1/p1", "n2/p1", 6, pps=PPS) as run:
        lab.kill_agent("n1")
        lab.start_agent("n1")
        until(lambda: bool(agents.status(N1)["healthy"]), "it is back")
        outcome = run.stop()
        assert (outcome.is_intact, outcome.lost) == (True, 0)
        assert_private(wire)
    assert pairs_of_file(N1) == pairs


def test_a_flush_takes_all_of_it(subnets: Subnets) -> None:
    subnets.up(3)
    until(lambda: len(sas(N1, "out")) == 2, "nothing drains any more")
    known = len(spis(N1, "in"))
    lab.kill_agent("n1")
    command = [sys.executable, "-m", "pellicle", "encrypt", "flush", "--yes", "--json"]
    done = subprocess.run([*command, "--node", "n1"], capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    rows = {row["peer"]: row for row in answer["peers"]}
    shared = rows[None]
    assert (shared["states_out"], shared["states_in"]) == (1, known), "one for each key"
    assert rows.keys() == {None, str(N3.addresses[subnets.outer == 6])}
    with Sniffer(markers=[MARKER]) as wire:
        assert (kernels("policy"), kernels("state")) == (0, 0)
        assert not is_echoed("n1/p1", 4, pod("n2", 4), seconds=0.5)
        wire.settle()
        assert not {flow.kind for flow in wire.counts()} & {Kind.CLEAR, Kind.ESP}
    lab.start_agent("n1")
    until(lambda: is_echoed("n1/p1", 4, pod("n2", 4), seconds=0.5), "a new agent puts it again")


@both
def test_it_is_switched_off_and_on_under_load_without_a_loss(subnets: Subnets, family: int) -> None:
    """Who has it and who has not understand each other, and so do an agent's two lives."""
    subnets.up(2, ALL)
    with (
        Sniffer(markers=[MARKER]) as wire,
        load("n1/p1", "n2/p1", family, pps=PPS) as there,
        load("n2/p1", "n1/p1", 10 - family, pps=PPS) as back,
    ):
        for some in ((), ALL):
            subnets.up(2, some)
            until(lambda some=some: shares() == {"n2": bool(some)}, "as it was told")
            until(lambda: len(sas(N1, "out")) == 1, "nothing drains any more")
            goes_on(wire, there)
        for run in (there, back):
            outcome = run.stop()
            assert outcome.is_intact
            assert outcome.lost == 0, outcome
        assert_private(wire)


@routings
def test_no_policy_has_keys_of_its_own(subnets: Subnets, routing: str) -> None:
    """What one asks them for is dropped by name, and nothing else is."""
    subnets.up(2, ALL, routing=routing)
    apply(policy("mine", OWN, app("p1"), app("p1")))
    said = "policy mine asks for keys of its own, but keys are not derived here"
    assert all(said in str(agents.status(node)["problems"]) for node in (N1, N2))
    before = dropped(N1).get("DROP_NO_KEY", 0)
    with Sniffer(markers=[SECRET]) as wire:
        for family in (4, 6):
            assert not is_echoed("n1/p1", family, pod("n2", family), seconds=0.5)
            assert is_echoed("n1", family, pod("n2", family))
        assert_private(wire)
    assert dropped(N1)["DROP_NO_KEY"] > before
    apply()
    assert all(is_echoed("n1/p1", family, pod("n2", family)) for family in (4, 6))


# --- who may say what ----------------------------------------------------------------------------


def test_the_inner_source_must_be_the_senders(subnets: Subnets) -> None:
    """One state opens what all of them send; whose it is, is known all the same."""
    subnets.up(4, ALL)
    before = dropped(N2).get("DROP_SPOOFED_SOURCE", 0)
    # n3's pods live at n4, as n3 believes: it sends what has n4's address.
    n4 = pod("n4", 4)
    ip(N3, f"addr add {n4}/32 dev lo", "route add 10.244.2.0/24 dev pellicle_xfrm "
       f"src {n4} table 201 metric 1")  # fmt: skip
    netns.run_in(
        N3.namespace, ["ping", "-c", "3", "-i", "0.2", "-W", "1", "-I", n4, pod("n2", 4)],
        capture_output=True,
    )  # fmt: skip
    until(lambda: dropped(N2).get("DROP_SPOOFED_SOURCE", 0) >= before + 3, "refused and named")


def pod(node: str, family: int) -> str:
    """The address of its pod."""
    return address_of(f"{node}/p1", family)


def shares() -> dict[str, bool]:
    """By n1's peers: whether it sends to them by the state that is shared."""
    peers = agents.status(N1)["peers"]
    return {str(peer["node"]): "in subnets" in str(peer["why"]) for peer in peers}


def books(node: LabNode, peer: str) -> tuple[int, int, int, int]:
    (row,) = (row for row in agents.status(node)["peers"] if row["node"] == peer)
    names = ("packets_out", "packets_in", "bytes_out", "bytes_in")
    if node is not N1:
        names = ("packets_in", "packets_out", "bytes_out", "bytes_in")
    return tuple(int(row[name]) for name in names)  # type: ignore[return-value]


def kernels(kind: str) -> int:
    """How many of them n1's kernel has."""
    return len(re.findall(r"^src ", ip(N1, f"xfrm {kind}"), re.MULTILINE))


def sas(node: LabNode, direction: str) -> list[dict[str, Any]]:
    said = agents.ask(node, "encrypt")[0]["sas"]
    return [row for row in said if row["direction"] == direction]


def pairs_of_file(node: LabNode) -> set[str]:
    """A key that has left the file decrypts until the agent restarts."""
    both_ways = (*sas(node, "in"), *sas(node, "out"))
    return {row["pair"] for row in both_ways if row["spi"] == 3}


def spis(node: LabNode, direction: str) -> set[int]:
    return {row["spi"] for row in sas(node, direction)}


def has_taken(node: LabNode, *ids: int) -> bool:
    """Whether it decrypts with each of these keys from everybody, and encrypts with the first."""
    said = agents.ask(node, "encrypt")[0]
    into: dict[str, set[int]] = {}
    for sa in said["sas"]:
        if sa["direction"] == "in":
            into.setdefault(sa["peer"], set()).add(sa["spi"])
    sent = all(f"key {ids[0]} of the file" in str(peer["why"]) for peer in said["peers"])
    return sent and all(found >= set(ids) for found in into.values())


def healed(node: LabNode) -> int:
    return sum(int(row["healed"]) for row in agents.status(node)["tables"])


def passing(wire: Sniffer) -> int:
    return sum(int(count.packets) for flow, count in wire.counts().items() if flow.kind is Kind.ESP)


def goes_on(wire: Sniffer, run: Load) -> None:
    seen = passing(wire)
    until(lambda: passing(wire) > seen + 50, "traffic goes on")
    assert run.is_running
