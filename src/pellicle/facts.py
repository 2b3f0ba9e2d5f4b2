# SPDX-License-Identifier: Apache-2.0
"""The glossary: what Pellicle knows about the world, as frozen rows.

Sources make these, plans take them, nothing else is passed between rooms. Each is
one resource of `apiVersion: pellicle.dev/v1` or one thing of this node; none of them
holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import NewType

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NodeName = NewType("NodeName", str)
Epoch = NewType("Epoch", int)
"""Number of a node's offer; grows with each new one. Starts at 1."""
IdentityNumber = NewType("IdentityNumber", int)
"""What a set of labels is called in the datapath: 32 bits, 0 means any."""
PairId = NewType("PairId", int)
"""64-bit fingerprint of two offers and the nodes that made them: names a set of SAs."""
Spi = NewType("Spi", int)
"""Security Parameters Index, RFC 4303 §2.1: 32 bits, 256 and above."""

IDENTITY_WORLD = IdentityNumber(2)
IDENTITY_REMOTE_NODE = IdentityNumber(6)
IDENTITY_HOST = IdentityNumber(1)
FIRST_CLAIMED_IDENTITY = 256
"""Below are the reserved ones."""
PolicyName = NewType("PolicyName", str)
PolicyNumber = NewType("PolicyNumber", int)
"""What the datapath and its reports call an encryption policy: 32 bits, never 0."""
Context = NewType("Context", int)
"""For which traffic keys are: 0 for all of a node's, else the number of the policy that asked for
keys of its own."""
ALL_TRAFFIC = Context(0)
Owned = tuple[NodeName, Context]
"""A node, and for which of the traffic with it there are other keys than for the rest."""


class Cipher(StrEnum):
    """An AEAD as the records name it."""

    CHACHA20_POLY1305 = "chacha20-poly1305"
    AES_128_GCM = "aes-128-gcm"
    AES_256_GCM = "aes-256-gcm"


class Engine(StrEnum):
    """What encrypts on a node. Both speak the same ESP: a peer need not know which it is."""

    BPF = "bpf"
    XFRM = "xfrm"
    """The kernel's IPsec."""


class Overlay(StrEnum):
    """The tunnel in which pods' packets go from node to node."""

    VXLAN = "vxlan"
    GENEVE = "geneve"


@dataclass(frozen=True, slots=True)
class Offer:
    """The public half of a key that a node offers to all its peers."""

    epoch: Epoch
    boot_nonce: bytes
    """16 random bytes, new at every start of the agent."""
    public_key: bytes
    """X25519, 32 bytes."""
    proof: bytes
    """Says that the node itself made this offer; its form depends on the key mode."""


@dataclass(frozen=True, slots=True)
class Node:
    """A member of the cluster."""

    name: NodeName
    addresses: tuple[Address, ...]
    """At most one in each family; the first, the primary one, names the node in the datapath."""
    pod_cidrs: tuple[Network, ...]
    offers: tuple[Offer, ...] = ()
    """Oldest first, at most two."""
    ciphers: tuple[Cipher, ...] = (Cipher.CHACHA20_POLY1305,)
    """What it can do, in any order."""
    longest: int | None = None
    """The longest inner IP packet that it can open; None: any."""

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """All that the node itself answers to: in each of its pod CIDRs there is one, too."""
        return (*self.addresses, *map(gateway, self.pod_cidrs))


def gateway(cidr: Network) -> Address:
    """The address in a node's pod CIDR that the node itself answers to: the first one."""
    return cidr[1] if cidr.num_addresses > 1 else cidr[0]


@dataclass(frozen=True, slots=True)
class EndpointName:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a pod is plugged in; means something only on the pod's own node."""

    container_id: str
    interface: str
    """Inside the pod, usually eth0."""
    host_device: str
    pod_mac: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod: its addresses, and who it is."""

    name: EndpointName
    node: NodeName
    addresses: tuple[Address, ...]
    identity: IdentityNumber
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A set of labels and the number that the whole cluster knows it by."""

    number: IdentityNumber
    labels: Mapping[str, str] = field(hash=False)


class PolicyAction(StrEnum):
    """What a policy asks for. The later ones are the stricter."""

    EXEMPT = "exempt"
    """May go in the clear."""
    ENCRYPT = "encrypt"
    OWN_KEYS = "own-keys"
    """Encrypted, with keys that nothing else is encrypted with."""

    @property
    def strictness(self) -> int:
        """Also `enum policy_action` of bpf/tables.h."""
        return list(PolicyAction).index(self) + 1


@dataclass(frozen=True, slots=True)
class Selector:
    """Addresses of members: those that fit all that is given, in each list one of it.

    Pods by anything; what nodes have themselves, too, while no namespace and no label is asked for.
    """

    nodes: tuple[NodeName, ...] = ()
    namespaces: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    cidrs: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of one protocol, first and last."""

    protocol: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class EncryptionPolicy:
    """What becomes of the traffic between some members and others, answers included."""

    name: PolicyName
    action: PolicyAction
    between: tuple[Selector, ...] = ()
    """None: everybody. One: its members and anybody. Two: members of the one and of the other."""
    ports: tuple[Ports, ...] = ()
    """Of either end; none: all of the traffic."""

    @property
    def number(self) -> PolicyNumber:
        """The same on all nodes."""
        digest = sha256(b"pellicle policy " + self.name.encode()).digest()
        return PolicyNumber(int.from_bytes(digest[:4], "big") or 1)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device of this node."""

    name: str
    index: int
    mac: str
    mtu: int
    is_up: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that could not be used, and why; everything else goes on."""

    source: str
    """Where it came from: a path, a peer's record, a request."""
    name: str
    why: str
