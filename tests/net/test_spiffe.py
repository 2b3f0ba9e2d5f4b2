# SPDX-License-Identifier: Apache-2.0
"""Whole nodes that are proven by SVIDs, which live for seconds and are renewed, or are not.

authority ──▶ a Workload API for each node ──Unix socket──▶ agent n1, agent n2
                                        n1/p1 ──TCP, numbered UDP: IPv4──▶ n2/p1
                                              ◀──IPv6─────────────────────
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from pellicle import lab
from pellicle.facts import NodeName
from pellicle.lab import agents, topology
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode
from pellicle.sources.shelf import Shelf
from tests import pace
from tests.net.loaded import MARKER, address_of, assert_private, both_ways, stop, until
from tests.spiffe import Authority, Issued, WorkloadApi, der, response

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
DOMAIN = "example.org"
SETTINGS = {"key_mode": "spiffe", "drain_seconds": "2s"}
LIFE, RENEWAL = 8, 1.5
"""Seconds."""
RENEWALS = 6


class Spire:
    """What SPIRE is to a cluster: one authority, an agent on each node."""

    def __init__(self) -> None:
        self.authority = Authority(DOMAIN)
        self.bundle = self.authority.bundle
        self.apis = {node: WorkloadApi(node.spiffe_socket) for node in (N1, N2)}
        self.latest: dict[LabNode, Issued] = {}
        self.others: dict[LabNode, Authority] = {}
        """Of nodes that are not of its own trust domain."""
        self.federated: dict[LabNode, dict[str, bytes]] = {}
        """The bundles that a node has beside its own."""

    def issue(self, node: LabNode, seconds: float, path: str = "") -> Issued:
        authority = self.others.get(node, self.authority)
        svid = authority.svid(path or f"/pellicle/node/{node.name}", pace.patient(seconds))
        if node not in self.others:
            svid = replace(svid, bundle=self.bundle)
        self.apis[node].say(response([svid], self.federated.get(node)))
        self.latest[node] = svid
        return svid

    def issue_all(self, seconds: float) -> None:
        for node in self.apis:
            self.issue(node, seconds)


@pytest.fixture
def spire(lab_place: None) -> Iterator[Spire]:
    made = Spire()
    with ExitStack() as ends:
        for node, api in made.apis.items():
            node.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            ends.enter_context(api)
        yield made


@contextmanager
def repeating(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """`act` so often, beside what goes on."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(seconds):
            act()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_svids_and_roots_are_renewed_under_load_and_nothing_is_lost(
    make_lab: MakeLab, spire: Spire
) -> None:
    spire.issue_all(LIFE)
    make_lab(2, 1, settings=SETTINGS)
    before = pair(N1)
    renewed: list[str] = []

    def renew() -> None:
        spire.issue_all(LIFE)
        renewed.append(svid(N1)["until"])

    def until_renewed(times: int) -> None:
        last = len(renewed)
        until(lambda: len(renewed) >= last + times, "SVIDs are renewed")

    with Sniffer(markers=[MARKER], nonces=True) as wire, both_ways() as runs:
        with repeating(renew, pace.patient(RENEWAL)):
            until(lambda: len(set(renewed)) >= RENEWALS, "SVIDs are renewed", 120)
            # Both roots first, then SVIDs of the new one, then only the new one; each for at
            # least one whole renewal.
            fresh = Authority(DOMAIN, name="root")
            spire.bundle = spire.authority.bundle + fresh.bundle
            until_renewed(2)
            spire.authority = fresh
            until_renewed(2)
            spire.bundle = fresh.bundle
            until_renewed(4)
        until(lambda: all(is_in_record(*each) for each in spire.latest.items()),
              "all offers are proven by the new root")  # fmt: skip
        outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    for outcome in outcomes:
        assert outcome.is_intact
        assert outcome.lost == 0, outcome
        assert outcome.duplicates == 0
    assert is_ready(N1)
    assert is_ready(N2)
    assert pair(N1) == before, "the same offers, signed anew: the keys went on"


def test_an_expired_svid_costs_a_node_its_keys_and_a_fresh_one_brings_new_ones(
    make_lab: MakeLab, spire: Spire
) -> None:
    spire.issue_all(3600)
    make_lab(2, 1, settings=SETTINGS)
    short = spire.issue(N2, 11)
    expiry = short.chain[0].not_valid_after_utc.timestamp()
    until(lambda: svid(N2)["until"].startswith(f"{short.chain[0].not_valid_after_utc:%FT%T}"),
          "n2 has its short SVID")  # fmt: skip
    until(lambda: is_in_record(N2, short), "and its record is proven with it")
    spire.apis[N2].stop()
    until(lambda: "Workload API" in problems(N2), "n2 says that the API is down")
    assert "keys go on" in problems(N2)
    # An agent without an identity takes over what stands, and changes nothing.
    lab.kill_agent("n2")
    lab.start_agent("n2", wait=False)
    until(lambda: "no SVID yet" in problems(N2), "n2's next agent says so")
    while time.time() < expiry - 3:
        assert echoes(), "keys go on while the Workload API is down"
        time.sleep(0.5)

    with Sniffer(markers=[MARKER]) as wire:
        until(lambda: peer(N1)["state"] == "unverified", "n1 takes the keys away")
        assert "expired at" in peer(N1)["why"]
        assert "peer n2 is unverified" in problems(N1)
        assert 'pellicle_peer_ready{peer="n2"} 0.0' in metrics(N1)
        until(lambda: not sas_with_n2(), "its SAs go")
        assert not echoes(), "closed"
        assert wire.leaks() == ()

    spire.apis[N2].start()
    spire.issue(N2, 3600)
    until(lambda: is_ready(N1) and is_ready(N2), "n2 has an SVID again")
    until(echoes, "and its traffic passes")
    assert "pellicle_workload_api_up 1.0" in metrics(N2)


def test_a_node_with_another_nodes_id_gets_no_keys(make_lab: MakeLab, spire: Spire) -> None:
    """Refused by its own agent; and where that is told to be content, by the others."""
    spire.issue_all(3600)
    make_lab(2, 1, settings=SETTINGS)
    assert echoes()
    kept = svid(N2)
    spire.issue(N2, 3600, "/pellicle/node/n1")
    until(lambda: "this node is to be" in problems(N2), "its agent refuses it")
    assert svid(N2) == kept
    assert echoes(), "it keeps the one that it had"

    config = json.loads(N2.config.read_text())
    N2.config.write_text(
        json.dumps({**config, "spiffe_id": f"spiffe://{DOMAIN}/pellicle/{{node}}"}) + "\n"
    )
    spire.issue(N2, 3600, "/pellicle/n2")
    lab.restart_agent("n2", wait=False)
    with Sniffer(markers=[MARKER]) as wire:
        until(lambda: peer(N1)["state"] == "unverified", "n1 does not believe it")
        assert f"is that of spiffe://{DOMAIN}/pellicle/n2, not of" in peer(N1)["why"]
        until(lambda: not sas_with_n2(), "nothing is left of its keys")
        assert not echoes()
        assert wire.leaks() == ()


def test_nodes_of_two_trust_domains_agree_while_each_has_the_others_bundle(
    make_lab: MakeLab, spire: Spire
) -> None:
    other = spire.others[N2] = Authority("other.example")
    spire.federated = {N1: {other.id: other.bundle}, N2: {spire.authority.id: spire.bundle}}
    spire.issue_all(3600)
    templates = [f"{id_}/pellicle/node/{{node}}" for id_ in (spire.authority.id, other.id)]
    make_lab(2, 1, settings={**SETTINGS, "spiffe_id": templates})
    assert svid(N2)["id"] == "spiffe://other.example/pellicle/node/n2"
    before = pair(N1)
    with Sniffer(markers=[MARKER], nonces=True) as wire, both_ways() as runs:
        was = {node: svid(node)["until"] for node in (N1, N2)}
        time.sleep(1.1)  # an expiry has whole seconds
        spire.issue_all(3600)
        until(lambda: all(svid(node)["until"] > was[node] for node in was), "both are renewed")
        until(lambda: all(is_in_record(*each) for each in spire.latest.items()), "and published")
        outcomes = stop(runs)
        assert_private(wire)
        assert wire.reuses() == ()
    for outcome in outcomes:
        assert outcome.is_intact
        assert outcome.lost == 0, outcome
    assert pair(N1) == before

    with Sniffer(markers=[MARKER]) as wire:
        spire.federated[N1] = {}
        spire.issue(N1, 3600)
        until(lambda: peer(N1)["state"] == "unverified", "no longer believed")
        assert "no bundle of the trust domain other.example is known" in peer(N1)["why"]
        until(lambda: not sas_with_n2(), "nothing is left of its keys")
        assert not echoes()
        assert wire.leaks() == ()
    spire.federated[N1] = {other.id: other.bundle}
    spire.issue(N1, 3600)
    until(lambda: is_ready(N1) and is_ready(N2), "believed again")
    until(echoes, "and its traffic passes")


# --- what the nodes say -----------------------------------------------------------------------


def svid(node: LabNode) -> Any:
    return agents.status(node)["svid"]


def is_in_record(node: LabNode, issued: Issued) -> bool:
    """Whether the others can read that the node's offers are signed with this SVID."""
    leaf = der(issued.chain[0])
    shelf = Shelf(topology.CLUSTER)
    shelf.look_everywhere()
    offers = shelf.world().nodes[NodeName(node.name)].offers
    return bool(offers) and all(leaf in offer.proof for offer in offers)


def peer(node: LabNode) -> Any:
    return agents.status(node)["peers"][0]


def pair(node: LabNode) -> str:
    return str(peer(node)["pair"])


def problems(node: LabNode) -> str:
    return "\n".join(agents.status(node)["problems"])


def metrics(node: LabNode) -> str:
    return str(agents.ask(node, "metrics")[0]["text"])


def is_ready(node: LabNode) -> bool:
    return bool(peer(node)["state"] == "ready")


def sas_with_n2() -> list[Any]:
    return list(agents.ask(N1, "encrypt")[0]["sas"])


def echoes() -> bool:
    wait = str(int(pace.patient(1)))
    argv = ["ping", "-c", "1", "-W", wait, "-p", MARKER[:16].hex(), address_of("n2/p1", 4)]
    return lab.exec_("n1/p1", argv) == 0
