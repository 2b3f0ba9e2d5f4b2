# SPDX-License-Identifier: Apache-2.0
"""Which device is the uplink: of real devices in a namespace of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from pellicle.kernel.netlink import Netlink
from pellicle.sources.uplink import NoUplink, find

NAME = f"pellicle-uplink-{os.getpid()}"
Ip = Callable[[str], None]


@pytest.fixture
def ip() -> Iterator[Ip]:
    def run(words: str) -> None:
        subprocess.run(["ip", "-n", NAME, *words.split()], check=True)

    subprocess.run(["ip", "netns", "add", NAME], check=True)
    try:
        run("link add eth0 type veth peer name other")
        run("link set eth0 up")
        run("link set other up")
        yield run
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=True)


def test_it_is_the_device_of_the_default_route_with_its_addresses(ip: Ip) -> None:
    ip("address add 192.0.2.1/24 dev eth0")
    ip("address add 2001:db8::1/64 dev eth0 nodad")
    ip("route add default via 192.0.2.9")
    with Netlink(NAME) as netlink:
        found = find(netlink, None, ())
    assert (found.name, found.mtu) == ("eth0", 1500)
    assert [str(address) for address in found.addresses] == ["192.0.2.1", "2001:db8::1"]


def test_a_device_without_ethernet_is_refused(ip: Ip) -> None:
    """Its packets begin with the IP header: to_net would take each for something that is not IP."""
    ip("tuntap add mode tun name tun0")
    ip("address add 192.0.2.1/24 dev tun0")
    ip("link set tun0 up")
    ip("route add default dev tun0")
    with Netlink(NAME) as netlink:
        for name in (None, "tun0"):
            with pytest.raises(NoUplink, match="tun0 is not Ethernet"):
                find(netlink, name, ())


@pytest.mark.parametrize(
    ("name", "why"),
    [(None, "no default route"), ("eth9", "not a device"), ("other", "no global address")],
)
def test_what_is_missing_is_said(ip: Ip, name: str | None, why: str) -> None:
    with Netlink(NAME) as netlink, pytest.raises(NoUplink, match=why):
        find(netlink, name, ())
