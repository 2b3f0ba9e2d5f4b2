# SPDX-License-Identifier: Apache-2.0
"""The same packets where cleartext is dropped and where it is let through: pods' and the door.

What is dropped because it could not be encrypted passes, unchanged, by ordinary routes; what is
dropped because it is forged or broken is dropped in both modes. The uplink's own: test_borders.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf import packets
from tests.bpf.cluster import (
    KEYLESS,
    OUT,
    OVER4,
    OVER6,
    POD4,
    POD6,
    SELF4,
    SELF6,
    WORLD4,
    furnish,
    put_outbound,
)  # fmt: skip
from tests.bpf.node import OK, REDIRECT, SHOT, XFRM, Node, loaded_node
from tests.bpf.packets import ESP, frame, ip

SSH, RULE = 22, 71
LONGEST = 2046
"""What the engine seals."""
SPENT = "192.0.2.5"
"""A peer whose SAs have sent their last packet."""
KERNELS = "192.0.2.6"
"""A peer with SAs of the kernel's."""
NOBODY4, NOBODY6 = "10.244.77.7", "fd00:244:77::7"


def to_port(source: str, destination: str, port: int) -> bytes:
    return frame(ip(source, destination, packets.tcp(4000, port), protocol=packets.TCP))


FROM_POD = {
    "to a pod of a node without keys": (frame(ip(POD4, KEYLESS.pod4)), "DROP_NO_KEY"),
    "to that node": (frame(ip(POD4, KEYLESS.address)), "DROP_NO_KEY"),
    "to a cluster address nobody has": (frame(ip(POD4, NOBODY4)), "DROP_UNKNOWN_PEER"),
    "to an IPv6 one": (frame(ip(POD6, NOBODY6)), "DROP_UNKNOWN_PEER"),
    "as another": (frame(ip("10.244.1.9", OVER4.pod4)), "DROP_SPOOFED_POD"),
    "ESP of its own to a node": (
        frame(ip(POD4, OVER4.address, bytes(40), protocol=ESP)), "DROP_POD_ESP"),
    "cut short": (frame(ip(POD4, WORLD4, bytes(9))[:-1]), "DROP_MALFORMED"),
    "to a pod": (frame(ip(POD4, OVER4.pod4)), ""),
    "to a port of a node that is exempt for nodes": (to_port(POD4, OVER4.address, SSH), ""),
    "to the world": (frame(ip(POD4, WORLD4)), "CLEAR_WORLD"),
}  # fmt: skip
DOOR = {
    "to a pod of a node without keys": (frame(ip(SELF4, KEYLESS.pod4)), "DROP_NO_KEY"),
    "to a node without keys": (frame(ip(SELF4, KEYLESS.address)), "DROP_NO_KEY"),
    "to a cluster address nobody has": (frame(ip(SELF4, NOBODY4)), "DROP_UNKNOWN_PEER"),
    "to an IPv6 one": (frame(ip(SELF6, NOBODY6)), "DROP_UNKNOWN_PEER"),
    "to a node whose SAs are spent": (frame(ip(SELF4, SPENT)), "DROP_SA_EXPIRED"),
    "too long": (frame(ip(POD4, OVER4.pod4, bytes(LONGEST))), "DROP_TOO_BIG"),
    "to the other engine's peer": (frame(ip(SELF4, KERNELS)), "DROP_WRONG_DOOR"),
    "cut short": (frame(ip(POD4, OVER4.pod4, bytes(9))[:-1]), "DROP_MALFORMED"),
    "what is no IP": (packets.ethernet(0x88CC, bytes(40)), "DROP_NOT_IP"),
    "what never leaves a link": (frame(ip(SELF4, "169.254.7.7")), "CLEAR_LINK"),
    "to a node": (frame(ip(SELF4, OVER4.address)), "SEALED"),
    "to a node, IPv6": (frame(ip(SELF6, OVER6.address)), "SEALED"),
    "to a port of a node that is exempt": (to_port(SELF4, OVER4.address, SSH), "CLEAR_EXEMPT"),
    "to that port of a node without keys": (to_port(SELF4, KEYLESS.address, SSH), "CLEAR_EXEMPT"),
    "to that port of a pod": (to_port(SELF4, OVER4.pod4, SSH), "SEALED"),
    "from a pod to that port of a node": (to_port(POD4, OVER4.address, SSH), "SEALED"),
}
OPEN = {"DROP_NO_KEY", "DROP_UNKNOWN_PEER", "DROP_SA_EXPIRED", "DROP_TOO_BIG"}
"""Dropped for nothing but that it cannot be encrypted."""


@pytest.fixture(scope="module", params=[0, 1], ids=["enforce", "monitor"])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf"), monitor=request.param) as loaded:
        furnish(loaded)
        loaded.put_exempt(packets.TCP, SSH, RULE)
        loaded.is_monitoring = bool(request.param)  # type: ignore[attr-defined]
        yield loaded


@pytest.fixture(autouse=True)
def fresh(node: Node) -> None:
    node.clear("encrypt", "sa_out", "flows")
    for peer in (OVER4, OVER6):
        put_outbound(node, peer)
    for address, more in ((SPENT, {"sequence_limit": 0}), (KERNELS, {"engine": XFRM})):
        pair = hash(address) & 0xFFFF
        node.put_peer(address, node=address, flags=2)
        node.put_encrypt(address, pair, more.get("engine", 1), sas=1)
        node.put_sa_out(
            OVER4.keys_out(0), pair=pair, number=0, source=SELF4, destination=address,
            node=address, **more,
        )  # fmt: skip
    node.forget()


def is_let_through(node: Node, reason: str) -> bool:
    return node.is_monitoring and reason in OPEN  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("says", FROM_POD)
def test_what_pods_send(node: Node, says: str) -> None:
    packet, reason = FROM_POD[says]
    seen = node.run("from_pod", packet)
    if is_let_through(node, reason):
        assert (seen.action, seen.reason) == (OK, f"AUDITED_{reason}")
        assert (seen.mark, seen.frame) == (OUT, packet), "past the door, and to_net knows"
    else:
        assert (seen.action, seen.reason) == (SHOT if "DROP_" in reason else OK, reason)
        assert seen.mark == (0 if reason else 0xE00)


@pytest.mark.parametrize("says", DOOR)
def test_what_comes_to_the_door(node: Node, says: str) -> None:
    packet, reason = DOOR[says]
    seen = node.run("door", packet)
    if is_let_through(node, reason):
        assert (seen.action, seen.reason) == (REDIRECT, f"AUDITED_{reason}")
        assert (seen.mark, seen.frame) == (OUT, packet)
        return
    assert seen.reason == reason
    assert seen.action == (REDIRECT if reason in {"SEALED", "CLEAR_EXEMPT"} else SHOT)
    if reason == "CLEAR_EXEMPT":
        assert (seen.mark, seen.frame) == (OUT, packet)
        ((_, row),) = node.rows("flows")
        assert row["rule"] == RULE


def test_a_flow_says_whether_it_was_let_through(node: Node) -> None:
    node.run("door", DOOR["to a node without keys"][0])
    ((key, _),) = node.rows("flows")
    assert key["audited"] == node.is_monitoring  # type: ignore[attr-defined]
