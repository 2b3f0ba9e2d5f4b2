# SPDX-License-Identifier: Apache-2.0
"""Two judges of what policies say of a packet: by tables, and by reading all of them each time.

Both sit on n1 of three nodes, with a few pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import MappingProxyType

from pellicle import derived
from pellicle.datapath.ipcache import CidrRow
from pellicle.facts import (
    Address,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    IdentityNumber,
    Node,
    NodeName,
    PolicyAction,
    Selector,
)
from pellicle.policy.rulebook import UNASKED, Choice, PairKey, PortKey, PortsNumber
from pellicle.tables import Tables

N1, N2, N3 = (NodeName(f"n{number}") for number in (1, 2, 3))
TCP, UDP, ICMP = 6, 17, 1
CLUSTER = {ip_network("10.244.0.0/16"): CidrRow()}
EXEMPT, ENCRYPT, OWN = PolicyAction.EXEMPT, PolicyAction.ENCRYPT, PolicyAction.OWN_KEYS


def node(number: int) -> Node:
    address = ip_address(f"192.0.2.{number}")
    return Node(NodeName(f"n{number}"), (address,), (ip_network(f"10.244.{number}.0/24"),))


def pod(name: str, on: int, last: int, namespace: str = "default", **labels: str) -> Endpoint:
    address = ip_address(f"10.244.{on}.{last}")
    found = MappingProxyType(labels)
    at = EndpointName(namespace, name)
    return Endpoint(at, NodeName(f"n{on}"), (address,), IdentityNumber(300), found)


NODES = {each.name: each for each in map(node, (1, 2, 3))}
PODS = (
    pod("web", 1, 2, "shop", app="web"),
    pod("plain", 1, 3),
    pod("db", 2, 2, "bank", app="db", tier="data"),
    pod("web-2", 2, 3, "shop", app="web"),
    pod("db-2", 3, 130, "bank", app="db"),
)
WHERE = {
    "shop web on n1": ip_address("10.244.1.2"), "plain on n1": ip_address("10.244.1.3"),
    "bank db on n2": ip_address("10.244.2.2"), "shop web on n2": ip_address("10.244.2.3"),
    "bank db on n3": ip_address("10.244.3.130"),
    "n1": ip_address("192.0.2.1"), "n2": ip_address("192.0.2.2"), "n3": ip_address("192.0.2.3"),
    "n2's gateway": ip_address("10.244.2.1"), "nobody's": ip_address("10.244.77.7"),
}  # fmt: skip
HERE = ("shop web on n1", "plain on n1", "n1")


@dataclass(frozen=True)
class Packet:
    source: Address
    destination: Address
    protocol: int = ICMP
    ports: tuple[int, int] = (0, 0)
    is_fragment: bool = False


class Tabled:
    """Policies as n1's tables have them, looked up as bpf/encrypt.h does."""

    def __init__(self, policies: Sequence[EncryptionPolicy], *, has_own_keys: bool = False) -> None:
        self.t = t = Tables()
        self._derivations = [
            *derived.of_cluster(t, N1, "eth0", CLUSTER),
            *derived.of_policies(t, N1, has_own_keys=has_own_keys),
        ]
        t.links.replace({})
        t.encrypt_up.replace({})
        t.nodes.replace(NODES)
        t.endpoints.replace({each.name: each for each in PODS})
        t.encryption_policies.replace({each.name: each for each in policies})
        t.policy_rows_up.replace({})
        t.policy_ports_up.replace({})
        for _ in range(3):
            self.plan()
            t.policy_ports_up.replace(t.policy_ports.rows)
            t.policy_rows_up.replace(t.policy_rows.rows)
        self.probes = 0

    def plan(self) -> None:
        """All that follows from what is known."""
        for each in self._derivations * 2:
            each.run()

    def group(self, address: Address) -> int:
        peer = self.t.ipcache.rows.get(address)
        if peer is not None:
            return peer.group
        near = [cidr for cidr in self.t.cidrs.rows if address in cidr]
        longest = max(near, key=lambda cidr: cidr.prefixlen)
        return self.t.cidrs.rows[longest].group

    def judge(self, packet: Packet) -> Choice:
        groups = sorted((self.group(packet.source), self.group(packet.destination)))
        self.probes = 1
        row = self.t.policy_rows.rows.get(PairKey(*groups))  # type: ignore[arg-type]
        if row is None:
            return UNASKED
        if not row.ports:
            return row.rest
        if packet.is_fragment:
            return row.fragments
        if packet.protocol not in (TCP, UDP):
            return row.rest
        self.probes += 2
        found = [
            choice
            for port in packet.ports
            if (choice := self._port(row.ports, packet.protocol, port)) is not None
        ]
        return max(found, key=lambda choice: choice.action.strictness, default=row.rest)

    def _port(self, ports: PortsNumber, protocol: int, port: int) -> Choice | None:
        return self.t.policy_ports.rows.get(PortKey(ports, protocol, port))


def read_one_by_one(policies: Sequence[EncryptionPolicy], packet: Packet) -> Choice:
    """What is said of the ports counts port by port; the stricter of both ends' holds."""
    is_with_ports = packet.protocol in (TCP, UDP)
    said = [
        most_specific(policies, packet, (packet.protocol, port) if is_with_ports else None)
        for port in packet.ports
    ]
    rest = most_specific(policies, packet, None)
    special = [choice for choice in said if choice != rest or is_on_port(policies, choice)]
    apart = [choice for choice in special if choice != rest]
    if not apart:
        return rest
    if len(apart) == 1 and len(special) == 1:
        return apart[0]
    return max(apart if len(apart) == 2 else special, key=lambda c: c.action.strictness)


def is_on_port(policies: Sequence[EncryptionPolicy], choice: Choice) -> bool:
    return any(each.number == choice.policy and each.ports for each in policies)


def most_specific(
    policies: Sequence[EncryptionPolicy], packet: Packet, port: tuple[int, int] | None
) -> Choice:
    fitting = [each for each in policies if fits(each, packet, port)]
    if not fitting:
        return UNASKED
    best = min(
        fitting,
        key=lambda p: (-len(p.between), not p.ports, -p.action.strictness, p.name),
    )
    return Choice(best.number, best.action)


def fits(one: EncryptionPolicy, packet: Packet, port: tuple[int, int] | None) -> bool:
    if one.ports and not any(
        port is not None and port[0] == each.protocol and each.first <= port[1] <= each.last
        for each in one.ports
    ):
        return False
    ends = (packet.source, packet.destination)
    if len(one.between) == 1:
        return any(selects(one.between[0], end) for end in ends)
    return any(
        all(selects(selector, end) for selector, end in zip(one.between, order, strict=False))
        for order in (ends, ends[::-1])
    )


def selects(selector: Selector, address: Address) -> bool:
    endpoint = next((each for each in PODS if address in each.addresses), None)
    holder = endpoint.node if endpoint else None
    holder = holder or next((n.name for n in NODES.values() if address in n.own_addresses), None)
    return (
        (not selector.nodes or holder in selector.nodes)
        and (not selector.cidrs or any(address in cidr for cidr in selector.cidrs))
        and (
            not (selector.namespaces or selector.labels)
            or (
                endpoint is not None
                and (not selector.namespaces or endpoint.name.namespace in selector.namespaces)
                and selector.labels.items() <= endpoint.labels.items()
            )
        )
    )
