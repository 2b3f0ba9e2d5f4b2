# SPDX-License-Identifier: Apache-2.0
"""States that a network card takes, which netdevsim of the kernel plays, and shows what it has.

It takes AES-128-GCM, and no state with extended sequence numbers: of ours none, with any cipher.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pellicle.choices import IpsecOffload
from pellicle.encryption.states import States, state_of
from pellicle.facts import Cipher
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.keys.rows import Direction
from pellicle.wire.xfrm import Offload, OffloadFlags, StateFlags
from tests.pure.sas_made import sa

NUMBER = os.getpid()
HERE = f"pellicle-t{NUMBER}-offload"
BUS = Path("/sys/bus/netdevsim")
CARD = "card"
PLAIN = StateFlags.AF_UNSPEC
"""Without extended sequence numbers."""
SAS = [sa(0), sa(0, Direction.IN)]


@dataclass(frozen=True)
class Card:
    """The device, in its namespace."""

    index: int
    states: Path

    def taken(self) -> list[str]:
        """The states that it has, in its words."""
        return re.findall(r"^sa\[\d+\] [rt]x .*$", self.states.read_text(), re.MULTILINE)


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    assert BUS.is_dir(), "this needs a kernel with netdevsim: `make vm KERNEL=uml` boots one"
    with ExitStack() as ends:
        netns.create(HERE)
        ends.callback(netns.delete, HERE)
        subprocess.run(["mount", "-t", "debugfs", "none", tmp_path], check=True)
        ends.callback(subprocess.run, ["umount", tmp_path], check=True)
        with Netlink(HERE) as netlink:
            others = netlink.links().keys()
        with netns.inside(HERE):
            (BUS / "new_device").write_text(f"{NUMBER} 1")
            ends.callback((BUS / "del_device").write_text, f"{NUMBER}")
        with Netlink(HERE) as netlink:
            (made,) = netlink.links().keys() - others
        for change in (f"{made} name {CARD}", f"{CARD} up"):
            netns.run_in(HERE, ["ip", "link", "set", *change.split()], check=True)
        netns.run_in(HERE, ["ip", "addr", "add", "192.0.2.1/24", "dev", CARD], check=True)
        with Netlink(HERE) as netlink:
            index = netlink.link(CARD).index
        yield Card(index, tmp_path / f"netdevsim/netdevsim{NUMBER}/ports/0/ipsec")


@contextmanager
def states(offload: IpsecOffload = IpsecOffload.AUTO) -> Iterator[States]:
    """Of the namespace, as an agent there has them."""
    with netns.inside(HERE):
        opened = States.open(CARD, offload)
    assert opened is not None
    with opened.xfrm:
        yield opened


def shown() -> str:
    """By iproute2."""
    argv = ["ip", "-d", "xfrm", "state"]
    return netns.run_in(HERE, argv, capture_output=True, text=True, check=True).stdout


def test_a_card_takes_what_it_can(card: Card) -> None:
    """What our codec asks for is what the kernel and the card understand."""
    with states() as made:
        assert made.device == card.index
        offload = Offload(card.index, OffloadFlags(0))
        plain = replace(state_of(SAS[0]), flags=PLAIN, offload=offload)
        assert made.xfrm.put_states([plain]) == {}
        assert len(card.taken()) == 1, card.states.read_text()
        assert f"crypto offload parameters: dev {CARD} dir out" in shown()
        assert len(made.read()) == 1
        assert made.offloaded == 1
        assert made.remove(made.read()) == {}
        assert card.taken() == []


@pytest.mark.parametrize("cipher", Cipher)
def test_what_the_card_refuses_is_the_kernels_own_and_says_why(card: Card, cipher: Cipher) -> None:
    size = 16 if cipher is Cipher.AES_128_GCM else 32
    with states() as made:
        assert made.put([replace(each, cipher=cipher, key=bytes(size)) for each in SAS]) == {}
        assert len(made.read()) == 2
        assert made.offloaded == 0
        assert made.software_why is not None
        assert "ESN" in made.software_why
    assert "offload" not in shown()
    assert card.taken() == []


def test_what_is_not_wanted_is_not_tried(card: Card) -> None:
    with states(IpsecOffload.OFF) as made:
        assert made.device is None
        assert made.software_why == "ipsec_offload is off"
        assert made.put(SAS) == {}
    assert card.taken() == []
