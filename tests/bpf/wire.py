# SPDX-License-Identifier: Apache-2.0
"""Two nodes on a wire, each with a pod, the datapath on their devices and no agent.

pod 1 ═ pod0 [node 1: from_pod … pellicle_host ═ pellicle_net: door … up0: to_net, from_net]
                                                                        ║
pod 2 ═ pod0 [node 2: the same                                  … up0] ═╝
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pellicle.kernel import netns, offloads
from pellicle.kernel.bpf import attach_tc
from tests.bpf.esp import Keys
from tests.bpf.node import Node, loaded_node

LOCAL, NODE = 1, 2
PAIR = 0x77
MTU = {4: 1446, 6: 1426}
PINS = Path(f"/sys/fs/bpf/datapath-{os.getpid()}")
versions = pytest.mark.parametrize("version", [4, 6], ids=lambda v: f"IPv{v}")
SECONDS = 10

NODE_SETUP = """
ip addr add 192.0.2.{i}/24 dev up0
ip addr add 2001:db8::{i}/64 dev up0 nodad
ip link set lo up
ip link set up0 up
ip link add pellicle_host type veth peer name pellicle_net
ip link set pellicle_host mtu 1600 arp off up
ip link set pellicle_net mtu 1600 up
ip addr add 10.244.{i}.1/32 dev pellicle_host
ip link add pod0 type veth peer name eth0 netns {pod}
ip link set pod0 up
ip addr add fe80::1/64 dev pod0 nodad
ip route add 10.244.{i}.2/32 dev pod0
ip route add fd00:244:{i}::2/128 dev pod0
ip route add 10.244.{other}.0/24 via 192.0.2.{other}
ip route add fd00:244:{other}::/64 via 2001:db8::{other}
ip rule add fwmark 0xe00/0xf00 lookup 200
ip -6 rule add fwmark 0xe00/0xf00 lookup 200
ip route add default dev pellicle_host mtu {mtu} table 200
ip -6 route add default dev pellicle_host mtu {mtu} table 200
"""
POD_SETUP = """
ip link set lo up
ip link set eth0 up
ip addr add 10.244.{i}.2/32 dev eth0
ip addr add fd00:244:{i}::2/128 dev eth0 nodad
ip route add default via 10.244.{i}.1 dev eth0 onlink mtu {mtu}
ip -6 route add default via fe80::1 dev eth0 mtu {mtu}
"""


def run_lines(namespace: str, lines: str, **words: Any) -> None:
    for line in lines.format(**words).strip().splitlines():
        netns.run_in(namespace, line.split(), check=True)


def mac(namespace: str, device: str) -> bytes:
    argv = ["ip", "-o", "link", "show", device]
    shown = netns.run_in(namespace, argv, check=True, capture_output=True, text=True).stdout
    return bytes.fromhex(shown.split("link/ether ")[1].split()[0].replace(":", ""))


@dataclass(frozen=True)
class Side:
    """One node with its pod."""

    i: int
    namespace: str
    pod: str
    node: Node

    def address(self, version: int) -> str:
        return f"fd00:244:{self.i}::2" if version == 6 else f"10.244.{self.i}.2"

    def own(self, version: int) -> str:
        """The node's own."""
        return f"2001:db8::{self.i}" if version == 6 else f"192.0.2.{self.i}"

    def socket(self, version: int, kind: int) -> socket.socket:
        """In the pod, bound to its address."""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        made = netns.socket_in(self.pod, family, kind)
        made.settimeout(SECONDS)
        made.bind((self.address(version), 0))
        return made

    def on(self, device: str) -> socket.socket:
        """A packet socket on one of the node's devices."""
        made = netns.socket_in(self.namespace, socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.bind((device, 3))  # ETH_P_ALL
        made.settimeout(SECONDS)
        return made


@dataclass(frozen=True)
class Wire:
    """Two nodes that have keys for each other, ESP going over IPv`outer`."""

    outer: int
    one: Side
    two: Side


def connect(stack: ExitStack, outer: int, mode: str, scratch: Path) -> Wire:
    names = [f"datapath-{os.getpid()}-{name}" for name in ("n1", "n2", "p1", "p2")]
    for name in names:
        netns.create(name)
        stack.callback(netns.delete, name)
    first = f"ip link add up0 netns {names[0]} type veth peer name up0 netns {names[1]}"
    subprocess.run(first.split(), check=True)
    sides = []
    for i in (1, 2):
        namespace, pod = names[i - 1], names[i + 1]
        run_lines(namespace, NODE_SETUP, i=i, other=3 - i, pod=pod, mtu=MTU[outer])
        run_lines(pod, POD_SETUP, i=i, mtu=MTU[outer])
        offloads.switch_off("pellicle_host", offloads.ALL_TRANSMIT, namespace)
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            netns.write_sysctl(f"net/{name}", 1, namespace)
        for device in ("all", "up0", "pod0", "pellicle_host"):
            netns.write_sysctl(f"net/ipv4/conf/{device}/rp_filter", 0, namespace)
        sides.append(Side(i, namespace, pod, attached(stack, namespace, i, mode, scratch)))
    one, two = sides
    for mine, theirs in ((one, two), (two, one)):
        introduce(mine, theirs, outer)
    return Wire(outer, one, two)


def attached(stack: ExitStack, namespace: str, i: int, mode: str, scratch: Path) -> Node:
    """The datapath on the node's devices."""
    with netns.inside(namespace):
        uplink = socket.if_nametoindex("up0")
        node = stack.enter_context(
            loaded_node(
                scratch, self4=f"192.0.2.{i}", self6=f"2001:db8::{i}", uplink_ifindex=uplink
            )
        )
        places = (
            ("pod0", "from_pod", "ingress"),
            ("pellicle_net", "door", "ingress"),
            ("up0", "to_net", "egress"),
            ("up0", "from_net", "ingress"),
        )
        for device, name, direction in places:
            pin = PINS / f"{i}-{name}"
            attach_tc(
                socket.if_nametoindex(device),
                node.object.program(name),
                direction,  # type: ignore[arg-type]
                pin=pin,
                mode=mode,  # type: ignore[arg-type]
            )
            stack.callback(pin.unlink, missing_ok=True)
    return node


def introduce(mine: Side, theirs: Side, outer: int) -> None:
    """What the agent would write into the maps of `mine`."""
    with netns.inside(mine.namespace):
        device = socket.if_nametoindex("pod0")
    macs = {"pod_mac": mac(mine.pod, "eth0"), "host_mac": mac(mine.namespace, "pod0")}
    for cidr in ("10.244.0.0/16", "fd00:244::/32"):
        mine.node.put_cidr(cidr)
    for version in (4, 6):
        mine.node.put_endpoint(mine.address(version), ifindex=device, **macs)
        for side, flags in ((mine, LOCAL), (theirs, 0)):
            primary = f"192.0.2.{side.i}"
            own = f"2001:db8::{side.i}" if version == 6 else primary
            mine.node.put_peer(side.address(version), node=primary, flags=flags)
            mine.node.put_peer(own, node=primary, flags=flags | NODE)
    mine.node.put_encrypt(f"192.0.2.{theirs.i}", PAIR)
    ends = [f"2001:db8::{s.i}" if outer == 6 else f"192.0.2.{s.i}" for s in (mine, theirs)]
    for number in range(4):
        where = {"pair": PAIR, "number": number, "source": ends[0], "destination": ends[1]}
        keys = Keys.made_of(mine.i * 10 + number)
        mine.node.put_sa_out(keys, node=f"192.0.2.{theirs.i}", **where)  # type: ignore[arg-type]
        theirs.node.put_sa_in(keys, node=f"192.0.2.{mine.i}", **where)  # type: ignore[arg-type]


# --- what happens there --------------------------------------------------------------------------


def counted(node: Node) -> dict[str, int]:
    """Packets by reason, since the last call."""
    before, now = node._counted, node._counts()
    node._counted = now
    return {
        node.reason_names[number]: packets - before[number][0]
        for number, (packets, _) in now.items()
        if packets > before[number][0]
    }


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"no {what} within {SECONDS} s"
        time.sleep(0.02)


def stream(source: Side, sink: Side, version: int, payload: bytes) -> bytes:
    """Sends it from pod to pod by TCP; the digest of what has arrived."""
    digest: list[bytes] = []
    with sink.socket(version, socket.SOCK_STREAM) as server:
        server.listen()
        reader = threading.Thread(target=_read_all, args=(server, digest))
        reader.start()
        with source.socket(version, socket.SOCK_STREAM) as client:
            client.connect(server.getsockname())
            client.sendall(payload)
        reader.join(SECONDS)
    assert digest, "the stream did not end"
    return digest[0]


def _read_all(server: socket.socket, digest: list[bytes]) -> None:
    connection, _ = server.accept()
    whole = hashlib.sha256()
    with connection:
        connection.settimeout(SECONDS)
        while data := connection.recv(1 << 16):
            whole.update(data)
    digest.append(whole.digest())
