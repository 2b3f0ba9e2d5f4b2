# SPDX-License-Identifier: Apache-2.0
"""An ESP tunnel between two nodes of a lab, by ip-xfrm(8) alone: no agent, none of our programs.

     pod ── node 1: state, policy ══ ESP over IPv4 ══ node 2: state, policy ── pod

One state each way with the cipher, the extended sequence numbers and the replay window of ours;
both families of the pods go through it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from typing import Final, Self

from pellicle import lab
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.xfrm import Xfrm
from pellicle.lab.errors import LabError
from pellicle.lab.topology import LabNode

CIPHER: Final = "aes-128-gcm"
"""Of Pellicle's pair, which the tunnel is compared with."""
ALGORITHM, KEY_BYTES, TAG_BITS = "rfc4106(gcm(aes))", 20, 128
"""The same in the kernel's words; the salt is the key's end (RFC 4106 §8.1)."""
REQID: Final = 7


class Tunnel:
    """Stands from `with` to its end; the nodes' agents are gone then, and `lab.up` starts them."""

    def __init__(self, left: LabNode, right: LabNode) -> None:
        self._nodes = (left, right)
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        for node in self._nodes:
            _strip(node)
        keys = {
            end: (secrets.randbits(31) | 1 << 31, secrets.token_hex(KEY_BYTES))
            for end in permutations(self._nodes)
        }
        with ExitStack() as ends:
            for node in self._nodes:
                ends.callback(_ip, node, ["xfrm policy flush", "xfrm state flush"])
                _ip(node, [line for end, key in keys.items() for line in _state(*end, *key)])
            for node, peer in permutations(self._nodes):
                _ip(node, _policies(node, peer))
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def sent_bytes(self) -> int:
        """What the left end has encrypted since it stands."""
        return encrypted_bytes(self._nodes[0])


def encrypted_bytes(node: LabNode) -> int:
    """As the kernel counts them, over all states that send."""
    with Xfrm(node.namespace) as xfrm:
        return sum(
            counts.octets for state, counts in xfrm.states() if state.key.source in node.addresses
        )


def _strip(node: LabNode) -> None:
    """Takes away the agent and its programs; what is left is routes and the pods' cables."""
    lab.kill_agent(node.name)
    # What is pinned goes with its name: with tcx, a program leaves its device so.
    shutil.rmtree(node.bpffs)
    with Netlink(node.namespace) as inside:
        devices = inside.links()
    for device in devices:
        argv = ["tc", "qdisc", "del", "dev", device, "clsact"]
        netns.run_in(node.namespace, argv, capture_output=True)


def _state(source: LabNode, destination: LabNode, spi: int, key: str) -> Iterator[str]:
    yield (
        f"xfrm state add src {source.addresses[0]} dst {destination.addresses[0]} proto esp "
        f"spi {spi:#x} reqid {REQID} mode tunnel flag af-unspec esn replay-window 1024 "
        f"aead {ALGORITHM} 0x{key} {TAG_BITS}"
    )


def _policies(node: LabNode, peer: LabNode) -> Iterator[str]:
    for near, far in zip(node.pod_cidrs, peer.pod_cidrs, strict=True):
        yield _policy("out", (near, far), (node, peer))
        for direction in ("in", "fwd"):
            yield _policy(direction, (far, near), (peer, node))


def _policy(direction: str, between: tuple[object, object], ends: tuple[LabNode, LabNode]) -> str:
    source, destination = (end.addresses[0] for end in ends)
    return (
        f"xfrm policy add src {between[0]} dst {between[1]} dir {direction} "
        f"tmpl src {source} dst {destination} proto esp reqid {REQID} mode tunnel"
    )


def _ip(node: LabNode, lines: Iterator[str] | list[str]) -> None:
    """iproute2 in a node, told by its standard input: there are keys in it."""
    done = netns.run_in(
        node.namespace,
        ["ip", "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LabError(f"ip xfrm in {node.name}: {done.stderr.strip()}")
