# SPDX-License-Identifier: Apache-2.0
"""Why a packet's journey ended, or passed a border: the datapath's reasons, in words.

`enum reason` of bpf/tables.h has the numbers and is read from the object's BTF; here are the
words that a person reads. `read` refuses an object whose reasons are not exactly these.
Counters, flows, metrics and the command line all speak of a reason by its name in C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pellicle.wire.btf import Btf

ENUM: Final = "reason"
_MARKS: Final = frozenset({"REASON_NONE", "DROP_FIRST", "REASON_COUNT"})
"""Constants of the enum that are not reasons: nothing, and the ends of ranges."""


class Verdict(StrEnum):
    """What happened to the packets of a flow."""

    ENCRYPTED = "encrypted"
    CLEAR = "clear"
    DROPPED = "dropped"
    AUDITED = "audited"
    """Let through in the clear, as this is monitor mode; enforce mode would have dropped it."""


@dataclass(frozen=True, slots=True)
class Words:
    """A reason for a person: what happened, and the likely cause or what to do about it."""

    short: str
    advice: str


@dataclass(frozen=True, slots=True)
class Reason:
    """One constant of `enum reason`."""

    number: int
    name: str
    verdict: Verdict
    words: Words


WORDS: Final[Mapping[str, Words]] = MappingProxyType(
    {
        "CLEAR_LOCAL": Words(
            "both ends are on this node",
            "The packet never reaches a wire; nothing needs to be done.",
        ),
        "CLEAR_WORLD": Words(
            "leaves the cluster",
            "The destination is not a cluster address. If it should be one, add its network to "
            "cluster_cidrs.",
        ),
        "CLEAR_DISABLED": Words(
            "encryption is off",
            "Start every node's agent with --enable-encrypt-l3.",
        ),
        "CLEAR_LINK": Words(
            "ARP, neighbour discovery or link-local",
            "It cannot leave the link, and the network needs it; nothing needs to be done.",
        ),
        "CLEAR_EXEMPT": Words(
            "exempt",
            "The list `exempt` of the configuration says that nodes may say this to each other in "
            "the clear, or an encryption policy does; the flow names the rule.",
        ),
        "SEALED": Words(
            "encrypted",
            "Sent as ESP to the node that holds the destination.",
        ),
        "OPENED": Words(
            "decrypted",
            "Arrived as ESP; authenticated, fresh, and from the right node.",
        ),
        "PROBE_SENT": Words(
            "key probe sent",
            "An encrypted packet that asks a peer whether it has the new keys; it carries no "
            "data.",
        ),
        "PROBE_RECEIVED": Words(
            "key probe received",
            "An encrypted packet from a peer that has the new keys; it carries no data.",
        ),
        "ESP_DUMMY_RECEIVED": Words(
            "ESP dummy packet",
            "A peer hides how much it says (RFC 4303 §2.6); nothing needs to be done.",
        ),
        "PATH_MTU_RECEIVED": Words(
            "a router's word on the path",
            "A router between the nodes carries less than the uplink: routes to that peer have a "
            "smaller MTU now; nothing needs to be done.",
        ),
        "DROP_UNKNOWN_PEER": Words(
            "a cluster address nobody holds",
            "No node has published an endpoint with this address: the pod is gone or just "
            "starting, or its node's agent cannot write to the directory.",
        ),
        "DROP_NO_KEY": Words(
            "no key for the peer",
            "Look at the peer's state in `pellicle status`: it has published no offer, its offer "
            "does not verify (other pre-shared key?), or it was restarted and confirms new keys.",
        ),
        "DROP_SA_EXPIRED": Words(
            "key spent",
            "An SA reached its packet or age limit before its successor was confirmed: see in "
            "`pellicle encrypt status` which peer does not confirm.",
        ),
        "DROP_SEAL_FAILED": Words(
            "could not be sealed",
            "The engine refused a packet that it should carry. This is a bug: please report it, "
            "with the flow and the kernel's version.",
        ),
        "DROP_TOO_BIG": Words(
            "too big to be sealed",
            "The packet is longer than the route's MTU allows; something by-passed the routes of "
            "table 200, or the uplink's MTU was lowered.",
        ),
        "DROP_SPOOFED_POD": Words(
            "a pod used a foreign address",
            "The source is not the pod's own address. Look into that pod; a pod that routes for "
            "others needs those addresses as its own.",
        ),
        "DROP_MALFORMED": Words(
            "headers do not parse",
            "A truncated or crafted packet; look at who sent it.",
        ),
        "DROP_NOT_IP": Words(
            "neither IP nor ARP",
            "A pod speaks a protocol that cannot be routed, so it cannot be encrypted either.",
        ),
        "DROP_UNKNOWN_SPI": Words(
            "ESP of an unknown key",
            "A few come with each change of keys: probes that were early. If it goes on, the "
            "sender does not see this node's current offer: compare the epochs on both nodes.",
        ),
        "DROP_ESP_FRAGMENT": Words(
            "fragmented ESP",
            "Pellicle never fragments ESP: the path between the nodes has a smaller MTU than "
            "their uplinks, or someone else sends ESP.",
        ),
        "DROP_ESP_MALFORMED": Words(
            "malformed ESP",
            "Too short, unaligned or badly padded: a broken or hostile sender.",
        ),
        "DROP_REPLAYED": Words(
            "seen before",
            "The network duplicates packets, or someone replays recorded ones; neither gets "
            "through.",
        ),
        "DROP_TOO_OLD": Words(
            "older than the replay window",
            "The network reorders by more than 1024 packets, or someone replays old ones.",
        ),
        "DROP_AUTH_FAILED": Words(
            "the tag does not verify",
            "The packet was altered on its way or forged; a few after a bit error, many mean an "
            "attack or a peer with another key under the same SPI.",
        ),
        "DROP_SPOOFED_SOURCE": Words(
            "the source is not of that node",
            "A node sent for an address that another node holds: a pod that has just moved, or a "
            "compromised node.",
        ),
        "DROP_NO_ENDPOINT": Words(
            "no such pod here",
            "The sender believes that this node holds the address: the pod has gone or moved.",
        ),
        "DROP_TTL_EXCEEDED": Words(
            "TTL exceeded",
            "A traceroute, or a routing loop.",
        ),
        "DROP_CLEAR_FROM_CLUSTER": Words(
            "cleartext from the cluster",
            "It should have come encrypted: encryption is off on the sending node, it has another "
            "list `exempt`, or its source is forged.",
        ),
        "DROP_CLEAR_TO_CLUSTER": Words(
            "cleartext to the cluster",
            "The last door met it: something sends to pods or nodes past Pellicle (a socket bound "
            "to a device, a route or a NAT rule of someone else), or there is no key yet.",
        ),
        "DROP_CONGESTED_ECN": Words(
            "congestion mark that cannot be kept",
            "RFC 6040: a router marked congestion on a packet whose sender does not know ECN, so "
            "it counts as lost to congestion.",
        ),
        "DROP_POD_ESP": Words(
            "a pod's own ESP to a node",
            "It could be taken for Pellicle's: a pod must not send ESP to nodes of the cluster.",
        ),
        "DROP_WRONG_DOOR": Words(
            "a route to the other engine's door",
            "One engine encrypts for this peer, but a route led to the other one: it is put right "
            "within moments. If this lasts, `pellicle status` names the route.",
        ),
        "DROP_UNKNOWN_SLOT": Words(
            "encrypted for a peer that is gone",
            "A peer of a subnet left, or its SAs were replaced, while this was encrypted. If it "
            "lasts, rows of the map `sharers` are missing: the next refresh puts them again.",
        ),
        "DROP_FORGED_OVERLAY": Words(
            "not from a node's overlay",
            "Something else than a node's overlay sent to the overlay's UDP port of a node: a pod, "
            "a process, or somebody on the wire. A tunnel of your own needs another port.",
        ),
        "DROP_WRONG_IDENTITY": Words(
            "the overlay names another identity",
            "The packet's VNI is not the identity that its source has here: a pod's labels have "
            "just changed, or a node is compromised.",
        ),
        "DROP_WRONG_ROUTING": Words(
            "past the overlay",
            "A node sent a pod's packet without the overlay that this one is set to: all nodes "
            "must have the same `routing` and `overlay`.",
        ),
    }
)  # fmt: skip


def read(btf: Btf) -> Mapping[int, Reason]:
    """Every reason of the object by its number; ValueError if C and Python do not agree.

    Drops are there twice: as such, and, REASON_COUNT behind, as monitor mode lets them through.
    """
    constants = btf.enum(ENUM)
    named = constants.keys() - _MARKS
    if named != WORDS.keys():
        strange, missing = sorted(named - WORDS.keys()), sorted(WORDS.keys() - named)
        raise ValueError(
            f"enum {ENUM} and its words differ: only in C {strange}, only in Python {missing}"
        )
    first_drop, count = constants["DROP_FIRST"], constants["REASON_COUNT"]
    found = {
        number: Reason(number, name, _verdict(name, number, first_drop), WORDS[name])
        for name, number in constants.items()
        if name in named
    }
    audited = {
        number + count: replace(reason, number=number + count, verdict=Verdict.AUDITED)
        for number, reason in found.items()
        if number >= first_drop
    }
    return MappingProxyType(found | audited)


def _verdict(name: str, number: int, first_drop: int) -> Verdict:
    if number >= first_drop:
        return Verdict.DROPPED
    return Verdict.CLEAR if name.startswith("CLEAR_") else Verdict.ENCRYPTED
