# SPDX-License-Identifier: Apache-2.0
"""Whether a packet pays for the number of encryption policies.

    .venv/bin/python -m benchmarks.lookups [ROUNDS] [SECONDS]      root; some minutes

A policy here is between one pod of this node and one elsewhere, and treats a port apart: packets
that are measured are on none of these, and so take all look-ups that there are. Rows come from the
agent's own plans. The ipcache is the same whatever the number of policies.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks import loads
from benchmarks.ways import LEFT, PELLICLE, RIGHT, stand
from pellicle import lab
from pellicle.datapath import ipcache, policy
from pellicle.datapath.programs import PINNED_MAPS, object_path
from pellicle.facts import (
    Address,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    IdentityNumber,
    Node,
    NodeName,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
)
from pellicle.kernel import netns
from pellicle.kernel.bpf import Object
from pellicle.lab import LabError, agents
from pellicle.lab.patience import patient
from pellicle.lab.topology import CLUSTER, LabNode
from pellicle.policy import members, rulebook
from pellicle.policy.rulebook import Choice, PairKey, PolicyRow, PortKey
from pellicle.sources.manifest import write
from pellicle.sources.resources import place
from tests.bpf import packets
from tests.bpf.cluster import OVER4, SELF4, furnish, put_outbound
from tests.bpf.node import Node as Datapath
from tests.bpf.node import loaded_node

COUNTS: Final = (0, 10, 10_000)
PAIRS: Final = max(COUNTS)
PODS: Final = 100
"""Of this node."""
RUNS: Final = 10_000
ROUNDS: Final = 8
SECONDS: Final = 2.0
HERE, THERE = (
    Node(NodeName("n1"), (ip_address(SELF4),), ()),
    Node(NodeName("n2"), (ip_address(OVER4.address),), ()),
)
FIRST_HERE, FIRST_THERE = IPv4Address("10.244.64.0"), IPv4Address("10.244.128.0")
PORT: Final = Ports(6, 5432, 5432)
Samples = dict[str, dict[int, list[float]]]
Rows = tuple[dict[PairKey, PolicyRow], dict[PortKey, Choice]]


def pods_of(pair: int) -> Iterator[Endpoint]:
    """One of the pods here, and one elsewhere that has no other partner."""
    for node, first, app, number in (
        (HERE, FIRST_HERE, "a", pair % PODS),
        (THERE, FIRST_THERE, "b", pair),
    ):
        addresses: tuple[Address, ...] = (first + number,)
        name, labels = EndpointName("crowd", f"{app}-{number}"), {"app": f"{app}-{number}"}
        yield Endpoint(name, node.name, addresses, IdentityNumber(0), MappingProxyType(labels))


def policies_of(count: int) -> dict[PolicyName, EncryptionPolicy]:
    rows = {}
    for number in range(count):
        sides = tuple(
            Selector(namespaces=(pod.name.namespace,), labels=pod.labels) for pod in pods_of(number)
        )
        # A port of its own each, or one list would serve all.
        port = Ports(6, 1024 + number, 1024 + number)
        each = EncryptionPolicy(PolicyName(f"crowd-{number}"), PolicyAction.ENCRYPT, sides, (port,))
        rows[each.name] = each
    return rows


def planned(count: int) -> tuple[Rows, dict[Address, ipcache.Peer]]:
    """The rows of the datapath, as an agent plans them."""
    nodes = {node.name: node for node in (HERE, THERE)}
    pods = {pod.name: pod for pair in range(PAIRS) for pod in pods_of(pair)}
    books = rulebook.plan_book(policies_of(count))
    named = members.plan(books[0].selectors, nodes, pods)
    groups = rulebook.plan_groups(named, {})
    judged = rulebook.plan(books, rulebook.plan_local(HERE.name, groups), groups)
    ports = rulebook.plan_ports(judged, {}, {})
    rows = rulebook.plan_rows(judged, ports)
    if len(rows) != count:
        raise LabError(f"{count} policies come to {len(rows)} rows")
    return (rows, ports), ipcache.plan(HERE.name, nodes, pods, named)


def put(rows: Rows, bpf: Object) -> None:
    if policy.ports_target(bpf).put(rows[1]) or policy.target(bpf).put(rows[0]):
        raise LabError("the maps do not take the rows")


# --- one program, one packet ----------------------------------------------------------------------


def sealed(node: Datapath, pairs: int) -> Iterator[int]:
    """Nanoseconds of each packet, 64 bytes long, of so many pairs in turn."""
    program = node.object.program("door")
    for number in itertools.count():
        pair = number % pairs
        here, there = (str(pod.addresses[0]) for pod in pods_of(pair))
        packet = packets.ip(here, there, packets.udp(4000, 53, bytes(36)), protocol=packets.UDP)
        yield program.test_run(packets.frame(packet)).duration_ns


def each_packet(scratch: Path) -> dict[str, dict[int, float]]:
    """By pairs in turn: the median for each number of policies, all in turns."""
    medians: dict[str, dict[int, float]] = {}
    with ExitStack() as stack:
        nodes = {}
        for count in COUNTS:
            part = scratch / f"{count}"
            part.mkdir()
            nodes[count] = node = stack.enter_context(loaded_node(part, flow_interval_ms=3600_000))
            begun = time.perf_counter()
            rows, peers = planned(count)
            put(rows, node.object)
            print(f"{count} policies: planned and put in {time.perf_counter() - begun:.2f} s")
            furnish(node)
            if ipcache.target(node.object).put(peers):
                raise LabError("the ipcache does not take the rows")
            put_outbound(node, OVER4)
        for pairs, words in ((1, "one pair of pods"), (PAIRS, f"{PAIRS:,} pairs in turn")):
            runs = {count: sealed(node, pairs) for count, node in nodes.items()}
            taken: dict[int, list[int]] = {count: [] for count in COUNTS}
            for _ in range(2 * RUNS):  # the first half makes all flows known
                for count in COUNTS:
                    taken[count].append(next(runs[count]))
            medians[words] = {
                count: statistics.median(values[RUNS:]) for count, values in taken.items()
            }
    return medians


# --- on the wire ----------------------------------------------------------------------------------


def enforce(is_one: bool) -> None:
    """A policy that names all of the lab's pods, or none."""
    everybody = Selector(namespaces=("default",))
    policy_ = EncryptionPolicy(PolicyName("measured"), PolicyAction.ENCRYPT, (everybody,), (PORT,))
    path = CLUSTER / place(policy_)
    path.parent.mkdir(exist_ok=True)
    if is_one:
        path.write_text(write(policy_))
    else:
        path.unlink(missing_ok=True)
    deadline = time.monotonic() + patient(20)
    while not all(is_settled(node, is_one) for node in (LEFT, RIGHT)):
        if time.monotonic() > deadline:
            raise LabError("the policy does not come into force")
        time.sleep(0.1)


def is_settled(node: LabNode, is_one: bool) -> bool:
    tables = agents.status(node)["tables"]
    decides = [row["decides"] for row in agents.ask(node, "policies")]
    stands = all(row["desired"] == row["applied"] for row in tables)
    return stands and all(decides) and bool(decides) == is_one


@contextmanager
def crowded(node: LabNode, rows: Rows) -> Iterator[None]:
    """What other policies would come to is in the node's maps, too; its agent looks no more."""
    own, ports = rows
    with ExitStack() as stack:
        stack.enter_context(netns.inside(node.namespace))
        bpf = stack.enter_context(attached(node))
        if policy.ports_target(bpf).put(ports) or policy.target(bpf).put(own):
            raise LabError(f"{node.name}: the maps do not take the rows")
        yield
        policy.target(bpf).remove(own)
        policy.ports_target(bpf).remove(ports)


def attached(node: LabNode) -> Object:
    """The node's maps; its programs loaded once more, for nothing."""
    return Object.load(object_path(), pin_dir=node.bpffs / "maps", pinned=PINNED_MAPS)


def on_the_wire(rounds: int, seconds: float) -> Samples:
    """By load and number of policies, a figure for each round."""
    samples: Samples = {load: {count: [] for count in COUNTS} for load in ("kpps", "tcp")}
    crowds = {count: planned(count - 1)[0] for count in COUNTS if count}
    with ExitStack() as stack:
        stack.enter_context(lab.locked())
        stack.callback(lab.down)
        path = stack.enter_context(stand(PELLICLE, print, refresh_seconds=3600))
        for number in range(rounds):
            for count in COUNTS[:: -1 if number % 2 else 1]:
                enforce(count > 0)
                with ExitStack() as others:
                    for node in (LEFT, RIGHT):
                        others.enter_context(crowded(node, crowds.get(count, ({}, {}))))
                    figures = loads.packets(path, 4, seconds) | loads.tcp(path, 4, 1, seconds)
                for load, by_count in samples.items():
                    by_count[count].append(figures[load])
    return samples


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    print(f"policies: {', '.join(map(str, COUNTS))}")
    with tempfile.TemporaryDirectory(prefix="pellicle-lookups-") as name:
        for words, figures in each_packet(Path(name)).items():
            print(f"  {words}, ns: {', '.join(f'{figure:.0f}' for figure in figures.values())}")
    for load, by_count in on_the_wire(rounds, seconds).items():
        print(f"  {load}, and x of none:")
        for count, values in by_count.items():
            ratios = [one / none for one, none in zip(values, by_count[0], strict=True)]
            spread = f"{min(values):.2f}-{max(values):.2f}"
            middle = f"{statistics.median(values):.2f} ({spread})"
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(f"    {count:6}  {middle}, {ratio}")


if __name__ == "__main__":
    main()
