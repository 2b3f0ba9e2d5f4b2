# SPDX-License-Identifier: Apache-2.0
"""The ways from pod to pod that are compared, all through the same wire of the same MTU.

    pod n1/p1 ── node 1 ── wire (a router) ── node 2 ── pod n2/p1

A way is what the lab does to packets on it; a `Path` is one that stands. Before anything is
measured on it, a listener on the wire says that it is the way that it claims to be.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Final

from benchmarks import cores, ip_xfrm, pingpong, policies, wireguard
from pellicle import lab
from pellicle.encryption.engine import ALGORITHMS
from pellicle.facts import Cipher
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.kernel.offloads import ALL_TRANSMIT, switch_off, switch_on
from pellicle.kernel.xfrm import probe_device, probe_esp
from pellicle.lab import LabError, Sniffer, agents
from pellicle.lab.engines import AUTO
from pellicle.lab.frames import Kind
from pellicle.lab.patience import patient
from pellicle.lab.topology import UPLINK, WIRE, LabNode, LabPod
from pellicle.wire.netlink import MAIN_TABLE

LEFT, RIGHT = LabNode(1), LabNode(2)
CLIENT, SERVER = LabPod(LEFT, 1), LabPod(RIGHT, 1)
WIRE_MTU: Final = 1500
SEALED_MTU: Final = 1446
"""What ESP over IPv4 leaves of it to the pods, in both families."""
OVERLAY_MTU: Final = 1396
"""What VXLAN leaves of that."""
PROOF_SECONDS: Final = 0.3
LEAST_PROOF: Final = 20
"""Round trips."""
SETTLE_SECONDS: Final = 3.0
"""Agents that have just begun are busy, and not with packets."""


@dataclass(frozen=True, slots=True)
class Way:
    """How packets get from node to node."""

    name: str
    words: str
    mtu: int
    """Of the pods' routes."""
    on_wire: Kind
    """What a listener there must see, and nothing else."""
    is_readable: bool | None = None
    """Whether the listener finds there what pods say; None: if it is cleartext."""
    is_encrypted: bool = False
    """By Pellicle."""
    engine: str = AUTO
    """Pellicle's."""
    settings: tuple[tuple[str, str], ...] = ()
    """More of the agents' configuration."""
    is_cut: bool = False
    """The pods themselves make packets as they go on a wire; else later, where it must be."""
    is_offloaded: bool = False
    """Segments of 64 KB all along, checksums never computed: what only one machine can do.

    Without, each packet is as long as on a cable and has its checksum, from the pods on.
    """

    @property
    def is_clear(self) -> bool:
        return self.on_wire is Kind.CLEAR if self.is_readable is None else self.is_readable


PLAIN = Way("plaintext", "offloads on", WIRE_MTU, Kind.CLEAR, is_offloaded=True)
BARE = Way("bare", "no offloads", SEALED_MTU, Kind.CLEAR, is_cut=True)
PELLICLE = Way("pellicle", "ESP in BPF", SEALED_MTU, Kind.ESP, is_encrypted=True, engine="bpf")
WIREGUARD = Way("wireguard-go", "its own tunnel", wireguard.MTU, Kind.CLEAR, is_readable=False)
"""Its UDP between the nodes is clear to the listener, who knows ESP only; what is in it is not."""
OVERLAY = Way(
    "overlay", "ESP in BPF around VXLAN", OVERLAY_MTU, Kind.ESP, is_encrypted=True, engine="bpf",
    settings=(("routing", "overlay"),),
)  # fmt: skip
XFRM = Way(
    "xfrm", "the kernel's ESP", SEALED_MTU, Kind.ESP, is_encrypted=True, engine="xfrm",
    settings=(("cipher", ip_xfrm.CIPHER),),
)  # fmt: skip
XFRM_CROWD = replace(XFRM, name="xfrm-5000", words="5,000 peers more")
IP_XFRM = Way("ip-xfrm", "by hand, no offloads", SEALED_MTU, Kind.ESP, is_cut=True)
IP_XFRM_WHOLE = Way("ip-xfrm-whole", "by hand, cut while encrypted", SEALED_MTU, Kind.ESP)
WITH_ESP: Final = (XFRM, XFRM_CROWD, IP_XFRM, IP_XFRM_WHOLE)
"""These need the kernel's."""
WAYS: Final = (PLAIN, BARE, PELLICLE, OVERLAY, WIREGUARD, *WITH_ESP)
TUNNELS: Final = {
    WIREGUARD: wireguard.Tunnel, IP_XFRM: ip_xfrm.Tunnel, IP_XFRM_WHOLE: ip_xfrm.Tunnel,
    XFRM_CROWD: policies.Crowd,
}  # fmt: skip
"""What makes a way of the lab, beside the lab."""


@dataclass(frozen=True, slots=True)
class Path:
    """A way that stands."""

    way: Way
    addresses: Mapping[int, str]
    """Of the server's pod, by family."""
    protected_bytes: Callable[[], int]
    """What the client's node has encrypted since it stands, as it counts itself."""


def lack(way: Way) -> str:
    """What this machine does not have of what the way needs, in the kernel's words; or nothing."""
    if way not in WITH_ESP:
        return ""
    found = [probe_esp(*ALGORITHMS[Cipher(ip_xfrm.CIPHER)]), probe_device()]
    return ", ".join(str(error.strerror) for error in found if error is not None)


@contextmanager
def stand(way: Way, tell: Callable[[str], None], **settings: Any) -> Iterator[Path]:
    """Make a lab carry packets this way, and prove it; LabError when it does not.

    `settings`: more of the agents' configuration.
    """
    # New pods each time: nothing is left of the way before, and they are as this way has them.
    for pods in (0, 1):
        lab.up(
            nodes=2, pods=pods, engine=way.engine, encrypt=way.is_encrypted, mtu=WIRE_MTU,
            # What the way before has encrypted is forgotten before this one is counted.
            settings={"drain_seconds": "1s", **dict(way.settings), **settings},
        )  # fmt: skip
    with ExitStack() as ends:
        protected = _agents_count
        if way in TUNNELS:
            protected = ends.enter_context(TUNNELS[way](LEFT, RIGHT)).sent_bytes
        _fit(way)
        path = Path(way, _addresses(SERVER), protected)
        heard = [_prove(path, family) for family in path.addresses]
        tell(f"{way.name}: {', '.join(heard)}")
        time.sleep(patient(SETTLE_SECONDS))
        yield path


@contextmanager
def process_in(pod: LabPod, argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a pod, on its node's core, ended at the end; its output is to be read."""
    # A session of its own: Ctrl-C is ours to handle.
    process = netns.start_in(
        pod.namespace,
        cores.on_core(pod.node, argv),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def round_trips(path: Path, family: int, seconds: float, text: str = "") -> dict[str, Any]:
    """What pingpong.py says in the client's pod."""
    program = [sys.executable, "-I", pingpong.__file__]
    with process_in(SERVER, [*program, "serve"]) as server:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise LabError(f"the echo server does not start: {server.communicate()[1]}")
        order = [*program, "ask", path.addresses[family], f"{seconds}", text]
        with process_in(CLIENT, order) as client:
            said, wrong = client.communicate(timeout=patient(seconds + 30))
    if client.returncode:
        raise LabError(f"round trips: {wrong}")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _prove(path: Path, family: int) -> str:
    """See with a listener's eyes that these packets go this way; what it saw, in words."""
    marker = f"bench-{secrets.token_hex(8)}"
    way = path.way
    with Sniffer(markers=[marker.encode()]) as wire:
        answered = round_trips(path, family, PROOF_SECONDS, marker)["answered"]
        wire.settle()
        kinds: dict[Kind, int] = {}
        for flow, count in wire.counts().items():
            kinds[flow.kind] = kinds.get(flow.kind, 0) + count.packets
        kinds.pop(Kind.LINK, None)
        readable, lost = sum(wire.marks().values()), wire.lost()
    if answered < LEAST_PROOF or lost:
        raise LabError(f"{way.name}: {answered} round trips, {lost} frames unheard: no proof")
    if set(kinds) != {way.on_wire} or kinds[way.on_wire] < 2 * answered:
        raise LabError(f"{way.name} is not what it should be: the wire saw {kinds}")
    if bool(readable) != way.is_clear:
        raise LabError(f"{way.name}: {readable} messages were readable on the wire")
    words = f"{way.on_wire} on the wire" if way is not WIREGUARD else "UDP between the nodes"
    return f"IPv{family} {words}, {'' if readable else 'not '}readable"


def _fit(way: Way) -> None:
    """Offloads, the MTU of the pods' routes, and who does the work, at both ends."""
    for pod in (CLIENT, SERVER):
        # Pellicle's datapath needs nothing of its pods: they keep what they were born with.
        _switch("eth0", pod.namespace, is_on=not way.is_cut)
        with Netlink(pod.node.namespace) as node:
            for name in node.links():
                if name.startswith("pel") and not name.startswith("pellicle"):
                    _switch(name, pod.node.namespace, is_on=not way.is_cut)
        _switch(UPLINK, pod.node.namespace, is_on=way.is_offloaded)
        _switch(pod.node.wire_device, WIRE, is_on=way.is_offloaded)
        _route(pod.namespace, way)
        cores.steer(pod.node)


def _switch(device: str, namespace: str, *, is_on: bool) -> None:
    if is_on:
        switch_on(device, ALL_TRANSMIT, namespace)
    else:
        switch_off(device, namespace=namespace)


def _route(namespace: str, way: Way) -> None:
    with Netlink(namespace) as pod:
        routes = [
            route
            for route in pod.routes(MAIN_TABLE, protocol=0)
            if route.destination.prefixlen == 0
        ]
        if way.is_encrypted and {route.mtu for route in routes} != {way.mtu}:
            found = ", ".join(f"{route.destination} mtu {route.mtu}" for route in routes)
            raise LabError(f"the pods' routes should have the MTU {way.mtu}: {found}")
        for error in pod.put_routes(replace(route, mtu=way.mtu) for route in routes).values():
            raise error


def _addresses(pod: LabPod) -> dict[int, str]:
    plugged = (row for node in lab.status().nodes for row in node.pods if row.name == pod.name)
    return {ip_address(text).version: text for row in plugged for text in row.addresses}


def _agents_count() -> int:
    return sum(int(peer["bytes_out"]) for peer in agents.status(LEFT)["peers"])
