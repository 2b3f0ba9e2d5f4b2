# SPDX-License-Identifier: Apache-2.0
"""Whatever is taken away from under the traffic, nothing of it shows, and all of it comes back.

n1/p1, n1 ══ pings and numbered UDP, both families ══▶ n2/p1, n2      a listener on the wire
   └─ somebody deletes rows, routes, rules, programs, devices; agents die; pods come and go

One after the other, and then several at once, in an order that dice choose. After each the status
is well again and every path answers, within a refresh. What leads to the door, the last door, and
the last door's second stand for each other: any two may be missing at once, not all three. Nor may
one peer be unknown to both last doors while nothing leads to the door.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from itertools import product

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pellicle import lab
from pellicle.kernel import netlink, netns
from pellicle.kernel.bpf import Map
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.topology import LabNode, namespace_of
from tests import pace
from tests.net.engines import of
from tests.net.loaded import MARKER, address_of, until
from tests.net.parcels import is_echoed

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
WAYS = list(product(("n1/p1", "n1"), ("n2/p1", "n2")))
FAMILIES = (4, 6)
SETTINGS = {"refresh_seconds": 1, "drain_seconds": "2s"}
AT_ONCE, ROUNDS = 4, 6
LAST_DOORS = {"the last door's program", "the last door's second"}
LEADING = {"routes of the node", "the rule for the node", "the door", "the overlay's device"}
KNOWING = {"the ipcache", "a row of ipcache"}
DICE = random.Random(77)


@pytest.fixture(scope="module")
def two(make_lab: MakeLab, request: pytest.FixtureRequest) -> lab.LabState:
    return make_lab(2, 1, settings={**SETTINGS, "routing": request.param})


def rows_of(name: str) -> Callable[[], None]:
    """All rows of a map of n1."""

    def delete() -> None:
        with Map.open_pinned(N1.bpffs / "maps" / name) as found:
            for key in found.keys():  # noqa: SIM118  a map is no dict
                found.delete(key)

    return delete


def a_row_of(name: str) -> Callable[[], None]:
    """Any one row of a map of n1."""

    def delete() -> None:
        with Map.open_pinned(N1.bpffs / "maps" / name) as found:
            if keys := sorted(found.keys()):
                found.delete(DICE.choice(keys))

    return delete


def program(*names: str) -> Callable[[], None]:
    """The links of n1's programs at these places, as far as there are such."""

    def detach() -> None:
        for name in names:
            (N1.bpffs / "links" / name).unlink(missing_ok=True)

    return detach


def pods_program() -> None:
    for link in (N1.bpffs / "links").glob("ingress_pel*"):
        if link.name not in {"ingress_pellicle_net", "ingress_pellicle_xfrm"}:
            link.unlink()


def tc(command: str) -> Callable[[], None]:
    def run() -> None:
        netns.run_in(N1.namespace, ["tc", *command.split()], capture_output=True)

    return run


def ip(*commands: str) -> Callable[[], None]:
    """iproute2 in n1, in both families."""

    def run() -> None:
        for family, command in product(("-4", "-6"), commands):
            argv = ["ip", family, *command.split()]
            netns.run_in(N1.namespace, argv, capture_output=True)

    return run


def the_door() -> None:
    ip(f"link del {of(N1).door}")()


def an_agent() -> None:
    lab.kill_agent("n1")
    lab.start_agent("n1")


def a_pod() -> None:
    lab.delete_pod(lab.add_pod("n1").name)


HUNTS: dict[str, Callable[[], None]] = {
    "the ipcache": rows_of("ipcache"),
    "the encryption table": rows_of("encrypt"),
    "SAs that send": rows_of("sa_out"),
    "SAs that receive": rows_of("sa_in"),
    "the pods' rows": rows_of("endpoints"),
    "the cluster's CIDRs": rows_of("cluster_cidrs"),
    "what is exempt": rows_of("exempt"),
    "routes of pods": ip("route flush table 200"),
    "routes of the node": ip("route flush table 201"),
    "the rule for pods": ip("rule del pref 1"),
    "the rule for the node": ip("rule del pref 2"),
    "the pods' program": pods_program,
    "the door's program": program("ingress_pellicle_net", "egress_pellicle_xfrm"),
    "the last door's program": program("egress_eth0"),
    "the last door's second": tc("qdisc del dev eth0 clsact"),
    "the program that opens": program("ingress_eth0", "ingress_pellicle_xfrm"),
    "the door": the_door,
    **{
        f"a row of {name}": a_row_of(name)
        for name in ("ipcache", "cluster_cidrs", "endpoints", "encrypt", "sa_out", "sa_in")
    },
    "an agent": an_agent,
    "a pod": a_pod,
}
OF_OVERLAY: dict[str, Callable[[], None]] = {
    "the overlay's device": ip("link del pellicle_tunnel"),
    "the overlay's programs": program("egress_pellicle_tunnel", "ingress_pellicle_tunnel"),
    "where the overlay leads": rows_of("remotes"),
}
directly = pytest.mark.parametrize("two", ["direct"], indirect=True)
in_the_overlay = pytest.mark.parametrize("two", ["overlay"], indirect=True)


@directly
@pytest.mark.parametrize("what", HUNTS)
def test_what_is_taken_away_leaks_nothing_and_is_healed(two: lab.LabState, what: str) -> None:
    take_away(what)


@directly
def test_several_at_once_in_any_order(two: lab.LabState) -> None:
    several_at_once(HUNTS)


@directly
def test_only_without_all_three_is_anything_readable(two: lab.LabState) -> None:
    """And with no agent to put them back. It shows that the listener would hear of a leak."""
    with Sniffer(markers=[MARKER[:16]]) as wire, all_talk():
        lab.kill_agent("n1")
        for what in sorted(LAST_DOORS):
            HUNTS[what]()
        wire.settle()
        assert wire.marks() == {}
        HUNTS["the rule for the node"]()
        until(lambda: bool(wire.marks()), "readable")
        lab.start_agent("n1")
        until_healed("all that", 20)


@directly
def test_who_knows_no_node_any_more_leaks_nothing_either(two: lab.LabState) -> None:
    with heard():
        for what in ("the ipcache", "the cluster's CIDRs", "the door", "the door's program"):
            HUNTS[what]()
        until_healed("all that", 30)


@pytest.mark.parametrize("table", [200, 7000])
def test_the_ways_are_back_before_any_refresh(make_lab: MakeLab, table: int) -> None:
    """Other software flushes routes and rules that it does not know."""
    make_lab(2, 1, settings={"refresh_seconds": 3600, "route_table": table})
    with heard():
        ip("rule del pref 1", "rule del pref 2")()
        until(all_is_well, "the rules are back")
        ip(f"route flush table {table}", f"route flush table {table + 1}")()
        until(all_is_well, "the routes are back")


def test_another_route_table_leaves_nothing_in_the_old_one(make_lab: MakeLab) -> None:
    for table in (7000, 200):
        make_lab(2, 1, settings={"route_table": table})
        until(all_is_well, "healthy")
        with netlink.Netlink(N1.namespace) as kernel:
            led = {rule.table for rule in kernel.rules()}
            found = {each: len(kernel.routes(each)) for each in (200, 201, 7000, 7001)}
        assert led == {table, table + 1}
        assert {each for each, count in found.items() if count} == led


@in_the_overlay
@pytest.mark.parametrize("what", HUNTS | OF_OVERLAY)
def test_nor_does_it_in_the_overlay(two: lab.LabState, what: str) -> None:
    take_away(what)


@in_the_overlay
def test_nor_do_several_at_once(two: lab.LabState) -> None:
    several_at_once(HUNTS | OF_OVERLAY)


def take_away(what: str) -> None:
    with heard():
        (HUNTS | OF_OVERLAY)[what]()
        until_healed(what, 20)


def several_at_once(hunts: Mapping[str, Callable[[], None]]) -> None:
    with heard():
        for _ in range(pace.amount(ROUNDS, 2)):
            chosen = DICE.sample(sorted(hunts), AT_ONCE)
            while is_all(set(chosen)):
                chosen = DICE.sample(sorted(hunts), AT_ONCE)
            for what in chosen:
                with suppress(lab.LabError):  # a pod cannot be plugged in while all is down
                    hunts[what]()
            until_healed(", ".join(chosen), 30)


def is_all(chosen: AbstractSet[str]) -> bool:
    """Whether nothing would be left that stops the traffic of some peer."""
    is_unknown = "a row of cluster_cidrs" in chosen and not KNOWING.isdisjoint(chosen)
    return not LEADING.isdisjoint(chosen) and (chosen >= LAST_DOORS or is_unknown)


@contextmanager
def heard() -> Iterator[None]:
    """Everybody talks all the time, and nothing of it can be read on the wire."""
    with Sniffer(markers=[MARKER[:16]], nonces=True) as wire, all_talk():
        yield
        wire.settle()
        assert (wire.lost(), wire.marks()) == (0, {})
        assert wire.leaks() == ()
        assert wire.reuses() == ()


@contextmanager
def all_talk() -> Iterator[None]:
    with ExitStack() as ends:
        for (source, to), family in product(WAYS, FAMILIES):
            argv = ["ping", "-q", "-i", "0.02", "-p", MARKER[:16].hex(), address_of(to, family)]
            ping = netns.start_in(namespace_of(source), argv, stdout=subprocess.DEVNULL)
            ends.callback(ping.wait)
            ends.callback(ping.kill)
        yield


def until_healed(what: str, seconds: float) -> None:
    """Also that of which nobody would feel the loss until something else is missing."""
    since = time.time()
    until(lambda: has_looked(N1, since) and all_is_well(), f"{what}: healed", seconds)


def has_looked(node: LabNode, since: float) -> bool:
    """Whether it has compared everything with the kernel since then."""
    for family in text_string_to_metric_families(agents.ask(node, "metrics")[0]["text"]):
        if family.name == "pellicle_reconcile_refresh_timestamp_seconds":
            return all(sample.value > since for sample in family.samples)
    return False


def all_is_well() -> bool:
    return all(bool(agents.status(node)["healthy"]) for node in (N1, N2)) and all(
        is_echoed(source, family, address_of(to, family), 0.5)
        for (source, to), family in product(WAYS, FAMILIES)
    )
