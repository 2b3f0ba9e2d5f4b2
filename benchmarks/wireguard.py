# SPDX-License-Identifier: Apache-2.0
"""A WireGuard tunnel between two nodes of a lab, by wireguard-go, a process in each of them.

     pod ── node 1 ── bench-wg1 ─ wireguard-go ═ UDP ═ wireguard-go ─ bench-wg2 ── node 2 ── pod

Both families of the pods go through it, over IPv4 outside. Its packets fill the wire's MTU as
Pellicle's do: 20 bytes of IPv4, 8 of UDP, 16 of header and 16 of tag leave 1440 of 1500.
The two processes may use every core: held to that of their node they are slower.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab.cabling import STATIC
from pellicle.lab.errors import LabError
from pellicle.lab.topology import LabNode
from pellicle.wire.netlink import Route

MTU: Final = 1440
PORT: Final = 51820
SOCKETS: Final = Path("/var/run/wireguard")
START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0


class Tunnel:
    """Stands from `with` to its end."""

    def __init__(self, left: LabNode, right: LabNode) -> None:
        self._nodes = (left, right)
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            for node in self._nodes:
                _start(node, ends)
            publics = {node: _make_key(node) for node in self._nodes}
            for node, peer in (self._nodes, self._nodes[::-1]):
                _meet(node, peer, publics[peer])
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def sent_bytes(self) -> int:
        """What the left end has sealed since it stands."""
        shown = _wg("show", _device(self._nodes[0]), "transfer")
        return sum(int(line.split()[2]) for line in shown.splitlines())


def _make_key(node: LabNode) -> str:
    """Gives the end a fresh private key; answers the public one."""
    private = _wg("genkey")
    arguments = ("listen-port", str(PORT), "private-key", "/dev/stdin")
    _wg("set", _device(node), *arguments, given=private)
    return _wg("pubkey", given=private).strip()


def _device(node: LabNode) -> str:
    return f"bench-wg{node.number}"


def _start(node: LabNode, ends: ExitStack) -> None:
    name = _device(node)
    # A session of its own: Ctrl-C is ours to handle, and takes the tunnel down in order.
    process = netns.start_in(
        node.namespace,
        ["wireguard-go", "--foreground", name],
        env={**os.environ, "LOG_LEVEL": "error"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ends.callback(_stop, process)
    deadline = time.monotonic() + START_SECONDS
    while not (SOCKETS / f"{name}.sock").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            said = process.communicate()[1].strip()
            raise LabError(f"wireguard-go does not start in {node.namespace}: {said}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr:
        process.stderr.close()


def _meet(node: LabNode, peer: LabNode, public: str) -> None:
    networks = ",".join(map(str, peer.pod_cidrs))
    endpoint = f"{peer.addresses[0]}:{PORT}"
    _wg("set", _device(node), "peer", public, "allowed-ips", networks, "endpoint", endpoint)
    with Netlink(node.namespace) as inside:
        index = inside.link(_device(node)).index
        inside.change_link(index, is_up=True, mtu=MTU)
        for error in inside.put_routes(
            Route(network, index, protocol=STATIC) for network in peer.pod_cidrs
        ).values():
            raise error


def _wg(*arguments: str, given: str = "") -> str:
    argv = ["wg", *arguments]
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"wg {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
