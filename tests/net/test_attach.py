# SPDX-License-Identifier: Apache-2.0
"""tc programs on a device, as tcx links and as clsact filters, with packets passing.

+--- far ---+            +--- near ---+
|       va  ======veth======  vb      |   `passing` counts at vb
+-----------+            +------------+
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build_bpf import ROOT, compile_bpf
from pellicle.kernel import netns
from pellicle.kernel.bpf import (
    Attachment,
    Object,
    attach_tc,
    attached_tc,
    detach_tc,
    ensure_bpffs,
)
from pellicle.kernel.bpf.attach import Direction, Mode, has_tcx
from pellicle.kernel.netlink import Netlink
from pellicle.wire.link import VethEnd
from tests import pace

FAR, NEAR = (f"pellicle-t{os.getpid()}-{side}" for side in ("far", "near"))
ETHERTYPE = 0x88B5
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big") + bytes(46)
OTHER_END = {FAR: NEAR, NEAR: FAR}
DEVICE = {FAR: "va", NEAR: "vb"}
MODES: list[Mode] = ["tcx", "clsact"]


@dataclass(frozen=True)
class Bench:
    """The programs, a place for pins, and the verbs of attach.py applied to vb."""

    path: Path
    pins: Path

    @property
    def index(self) -> int:
        with Netlink(NEAR) as near:
            return near.link("vb").index

    def load(self) -> Object:
        """The counter's map is shared by all that are loaded."""
        one = struct.pack("=II", 1, 0)
        return Object.load(
            self.path, rodata={"settings": one}, pin_dir=self.pins, pinned=["numbers"]
        )

    def attach(self, obj: Object, mode: Mode, direction: Direction = "ingress") -> Attachment:
        with netns.inside(NEAR):
            program = obj.program("passing")
            return attach_tc(self.index, program, direction, pin=self.pins / "vb", mode=mode)

    def attached(self, direction: Direction = "ingress") -> Attachment | None:
        with netns.inside(NEAR):
            return attached_tc(self.index, direction, pin=self.pins / "vb")

    def detach(self, direction: Direction = "ingress") -> None:
        with netns.inside(NEAR):
            detach_tc(self.index, direction, pin=self.pins / "vb")


def counted(obj: Object, frames: int = 10, source: str = FAR) -> int:
    """Sends frames and waits until the other end has them all; how many were counted."""
    before = total(obj)
    kind = socket.SOCK_RAW
    with (
        netns.socket_in(OTHER_END[source], socket.AF_PACKET, kind) as ear,
        netns.socket_in(source, socket.AF_PACKET, kind) as mouth,
    ):
        ear.bind((DEVICE[OTHER_END[source]], ETHERTYPE))
        ear.settimeout(pace.patient(5))
        mouth.bind((DEVICE[source], 0))
        for _ in range(frames):
            mouth.send(FRAME)
            assert ear.recv(2048) == FRAME
    return total(obj) - before


def total(obj: Object) -> int:
    value = obj.map("numbers").lookup(struct.pack("=I", 3))
    assert value is not None
    (count,) = struct.unpack("=Q", value)
    return int(count)


def make_veth() -> None:
    """Returns when packets pass. Without IPv6 the kernel sends none of its own."""
    with Netlink(FAR) as far, Netlink(NEAR) as near, netns.opened(NEAR) as fd:
        far.add_veth(VethEnd("va", index=10), VethEnd("vb", netns_fd=fd, index=20))
        for side, name in ((far, "va"), (near, "vb")):
            side.change_link(side.link(name).index, is_up=True)
        end = time.monotonic() + pace.patient(10)
        while not (far.link("va").is_running and near.link("vb").is_running):
            assert time.monotonic() < end
            time.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    path = compile_bpf(ROOT / "tests" / "bpf" / "kernel.bpf.c", tmp_path / "kernel.bpf.o")
    pins = Path("/sys/fs/bpf") / f"pellicle-test-{os.getpid()}"
    ensure_bpffs(pins)
    try:
        for name in (FAR, NEAR):
            netns.create(name)
            netns.write_sysctl("net/ipv6/conf/default/disable_ipv6", 1, name)
        make_veth()
        yield Bench(path, pins)
    finally:
        netns.delete(FAR)
        netns.delete(NEAR)
        for pin in pins.iterdir():
            pin.unlink()
        pins.rmdir()


@pytest.fixture
def obj(bench: Bench) -> Iterator[Object]:
    with bench.load() as loaded:
        yield loaded


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_an_attached_program_sees_every_packet_of_its_direction(
    bench: Bench, obj: Object, mode: Mode, direction: Direction
) -> None:
    said = bench.attach(obj, mode, direction)
    assert (said.mode, said.direction) == (mode, direction)
    assert said == bench.attached(direction)
    inwards, outwards = counted(obj, source=FAR), counted(obj, source=NEAR)
    assert (inwards, outwards) == ((10, 0) if direction == "ingress" else (0, 10))


def test_without_a_mode_the_kernels_best_is_taken(bench: Bench, obj: Object) -> None:
    index, pin = bench.index, bench.pins / "vb"
    with netns.inside(NEAR):
        best = "tcx" if has_tcx(index) else "clsact"
        assert attach_tc(index, obj.program("passing"), "ingress", pin=pin).mode == best


@pytest.mark.parametrize("mode", MODES)
def test_it_stays_when_its_loader_is_gone(bench: Bench, obj: Object, mode: Mode) -> None:
    with bench.load() as other:
        bench.attach(other, mode)
    assert counted(obj) == 10


@pytest.mark.parametrize("mode", MODES)
def test_attaching_again_replaces_and_does_not_add(bench: Bench, obj: Object, mode: Mode) -> None:
    for _ in range(3):
        bench.attach(obj, mode)
    with bench.load() as other:
        said = bench.attach(other, mode)
        assert bench.attached() == said
    assert counted(obj) == 10


@pytest.mark.parametrize("mode", MODES)
def test_a_detached_program_sees_nothing(bench: Bench, obj: Object, mode: Mode) -> None:
    bench.attach(obj, mode)
    for _ in range(2):
        bench.detach()
        assert bench.attached() is None
        assert counted(obj) == 0


@pytest.mark.parametrize("modes", [MODES, MODES[::-1]])
def test_a_change_of_mode_leaves_one_program(bench: Bench, obj: Object, modes: list[Mode]) -> None:
    for mode in modes:
        assert bench.attach(obj, mode) == bench.attached()
        assert counted(obj) == 10


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_comes_again_is_attached_again(bench: Bench, obj: Object, mode: Mode) -> None:
    bench.attach(obj, mode)
    with Netlink(FAR) as far:
        far.remove_link("va")
    make_veth()
    assert bench.attached() is None
    assert counted(obj) == 0
    bench.attach(obj, mode)
    assert counted(obj) == 10


@pytest.mark.parametrize("mode", MODES)
def test_a_swap_under_traffic_lets_no_packet_by(bench: Bench, obj: Object, mode: Mode) -> None:
    sent, stop = [0], threading.Event()

    def send() -> None:
        with netns.socket_in(FAR, socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("va", 0))
            while not stop.is_set():
                mouth.send(FRAME)
                sent[0] += 1

    with bench.load() as other:
        bench.attach(obj, mode)
        before = total(obj)
        thread = threading.Thread(target=send)
        thread.start()
        try:
            for swaps in range(100_000):
                if swaps >= 25 and sent[0] > 1000:  # on a busy machine it begins late
                    break
                bench.attach(other, mode)
                bench.attach(obj, mode)
        finally:
            stop.set()
            thread.join()
        last = counted(obj)
    assert sent[0] > 100
    assert total(obj) - before == sent[0] + last


@pytest.mark.parametrize("mode", MODES)
def test_a_device_that_is_not_there_is_an_error(bench: Bench, obj: Object, mode: Mode) -> None:
    pin = bench.pins / "nowhere"
    with netns.inside(NEAR), pytest.raises(OSError, match="device") as caught:
        attach_tc(9999, obj.program("passing"), "ingress", pin=pin, mode=mode)
    assert caught.value.errno in (errno.ENODEV, errno.EINVAL)
    with netns.inside(NEAR):
        detach_tc(9999, "ingress", pin=pin)
        assert attached_tc(9999, "ingress", pin=pin) is None
