# SPDX-License-Identifier: Apache-2.0
"""Facts for tests: a small cluster written by hand, and strategies for everything that is valid."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import MappingProxyType

from hypothesis import strategies as st

from pellicle.facts import (
    Address,
    Attachment,
    Cipher,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Epoch,
    Identity,
    IdentityNumber,
    Network,
    Node,
    NodeName,
    Offer,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
)
from pellicle.identity import LAST_CLAIMED_IDENTITY, NAMESPACE_LABEL, candidates, canonical
from pellicle.sources.resources import Document, Resource, place


def offer(epoch: int = 1) -> Offer:
    return Offer(Epoch(epoch), bytes(range(16)), bytes([epoch % 256]) * 32, b"proof")


def node(name: str, *addresses: str, cidrs: tuple[str, ...] = (), offers: int = 0) -> Node:
    return Node(
        NodeName(name),
        tuple(ip_address(a) for a in addresses),
        tuple(ip_network(c) for c in cidrs),
        tuple(offer(epoch) for epoch in range(1, offers + 1)),
    )


def n(number: int) -> Node:
    """Node n1, n2, … with both families, a pod CIDR of each, and one offer."""
    return node(
        f"n{number}",
        f"192.0.2.{number}",
        f"2001:db8::{number}",
        cidrs=(f"10.244.{number}.0/24", f"fd00:244:{number}::/64"),
        offers=1,
    )


def identity(namespace: str = "default", **labels: str) -> Identity:
    found = canonical(namespace, labels)
    return Identity(next(candidates(found)), found)


def pod(name: str, on: str, *addresses: str, namespace: str = "default", **labels: str) -> Endpoint:
    return Endpoint(
        EndpointName(namespace, name),
        NodeName(on),
        tuple(ip_address(a) for a in addresses),
        identity(namespace, **labels).number,
        MappingProxyType(dict(sorted(labels.items()))),
    )


def document(
    resource: Resource, source: str | None = None, position: int = 1
) -> Document[Resource]:
    return Document(source or place(resource), position, resource)


_letters = "abcdefghijklmnopqrstuvwxyz0123456789"
dns_labels = st.text(_letters + "-", min_size=1, max_size=12).map(lambda t: f"a{t}z")
dns_names = st.lists(dns_labels, min_size=1, max_size=20).map(".".join)
_words = st.text(_letters + "ABC._-", max_size=61).map(lambda t: f"a{t}0")
_keys = st.one_of(_words, st.tuples(dns_names, _words).map("/".join))
# Among them what YAML would take for something else, had it a say.
_values = st.one_of(st.sampled_from(["", "no", "1e5", "0x10", "null", "2024-01-01", "010"]), _words)
labels = st.dictionaries(_keys, _values, max_size=6).map(
    lambda found: {key: value for key, value in found.items() if key != NAMESPACE_LABEL}
)

v4_addresses = st.integers(0x0B000000, 0x7EFFFFFF).map(IPv4Address)
v6_addresses = st.integers(0x2001 << 112, (0x2002 << 112) - 1).map(IPv6Address)


@st.composite
def addresses(draw: st.DrawFn) -> tuple[Address, ...]:
    both: list[Address] = [draw(v4_addresses), draw(v6_addresses)]
    return tuple(draw(st.permutations(both))[: draw(st.integers(1, 2))])


@st.composite
def cidrs(draw: st.DrawFn) -> tuple[Network, ...]:
    """None, or one of each family, where no node's address is."""
    v4 = ip_network((draw(st.integers(0x0A000000, 0x0AFFFFFF)), draw(st.integers(8, 32))), False)
    v6 = ip_network(
        (draw(st.integers(0xFD << 120, (0xFE << 120) - 1)), draw(st.integers(16, 128))), False
    )
    return draw(st.sampled_from([(), (v4,), (v6,), (v4, v6), (v6, v4)]))


@st.composite
def offers(draw: st.DrawFn) -> tuple[Offer, ...]:
    epochs = draw(st.sets(st.integers(1, 2**32 - 1), max_size=2))
    return tuple(
        Offer(
            Epoch(epoch),
            draw(st.binary(min_size=16, max_size=16)),
            draw(st.binary(min_size=32, max_size=32)),
            draw(st.binary(max_size=64)),
        )
        for epoch in sorted(epochs)
    )


nodes = st.builds(
    Node,
    dns_names.map(NodeName),
    addresses(),
    cidrs(),
    offers(),
    st.lists(st.sampled_from(list(Cipher)), min_size=1, unique=True).map(tuple),
    st.none() | st.integers(1280, 65535),
)
identity_numbers = st.integers(256, LAST_CLAIMED_IDENTITY).map(IdentityNumber)
identities = st.builds(
    Identity,
    identity_numbers,
    st.builds(canonical, dns_labels, labels),
)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
_devices = st.text(_letters + "._-@", min_size=1, max_size=15)
endpoints = st.builds(
    Endpoint,
    st.builds(EndpointName, dns_labels, dns_names),
    dns_names.map(NodeName),
    addresses(),
    identity_numbers,
    labels,
    st.none() | st.builds(Attachment, _words, _devices, _devices, macs),
)
selectors = st.builds(
    Selector,
    st.lists(dns_names.map(NodeName), max_size=2).map(tuple),
    st.lists(dns_labels, max_size=2).map(tuple),
    labels.map(lambda found: MappingProxyType(dict(sorted(found.items())))),
    cidrs(),
).filter(lambda found: found != Selector())


@st.composite
def ports(draw: st.DrawFn) -> Ports:
    first = draw(st.integers(1, 65535))
    last = draw(st.integers(first, min(first + 400, 65535)))
    return Ports(draw(st.sampled_from([6, 17, 132])), first, last)


encryption_policies = st.builds(
    EncryptionPolicy,
    dns_names.map(PolicyName),
    st.sampled_from(PolicyAction),
    st.lists(selectors, max_size=2).map(tuple),
    st.lists(ports(), max_size=2).map(tuple),
)
resources: st.SearchStrategy[Resource] = st.one_of(
    nodes, endpoints, identities, encryption_policies
)
