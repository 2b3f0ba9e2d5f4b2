# SPDX-License-Identifier: Apache-2.0
"""The lab itself, before any Pellicle in it: namespaces, wire, listener, processes, lock."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from scapy.all import ESP, IP, UDP, Ether, rdpcap

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents, cabling, processes
from pellicle.lab.frames import Kind
from pellicle.lab.processes import Process
from pellicle.lab.sniffer import Count, Sniffer, WireFlow
from pellicle.lab.speakers import OnNode, Speakers
from pellicle.lab.topology import LOCK, RUN, WIRE, LabNode, LabPod
from tests import pace

Footprint = Callable[[], dict[str, set[str]]]

SECRET = b"nobody-may-read-this"
MOMENTS = {
    "the wire lies": f"/run/netns/{WIRE}",
    "the first agent starts": f"{RUN}/n1/agent.pid",
    "the last node is configured": f"{RUN}/n3/config.yaml",
}
LAST_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=[600]).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): of this thread alone
"""
ENDS = {
    "exit code 0": ["/bin/true"],
    "exit code 3": ["/bin/sh", "-c", "exit 3"],
    "signal 9, Killed": ["/bin/sh", "-c", "kill -KILL $$"],
    "signal 11, Segmentation fault": ["/bin/sh", "-c", "kill -SEGV $$"],
    "its first thread is gone, and others live on": [sys.executable, "-c", LAST_THREAD],
}


def test_down_leaves_nothing_of_wire_and_nodes(lab_place: None, footprint: Footprint) -> None:
    before = footprint()
    agents.prepare()
    cabling.lay_wire()
    for node in (LabNode(1), LabNode(2)):
        cabling.connect_node(node, 1500)
        cabling.ensure_pod(LabPod(node, 1))
    assert footprint() != before
    lab.down()
    assert footprint() == before


def test_down_with_no_lab_does_nothing(lab_place: None, footprint: Footprint) -> None:
    before = footprint()
    lab.down()
    lab.down()
    assert footprint() == before


def test_nodes_reach_each_other_in_both_families(bare_wire: tuple[LabNode, ...]) -> None:
    first, second, third = bare_wire
    for source, destination in ((first, second), (third, first)):
        for address in destination.addresses:
            code = lab.exec_(source.name, ["ping", "-q", "-c", "1", "-W", "5", str(address)])
            assert code == 0, f"{source.name} does not reach {address}"


def test_the_wire_carries_the_longest_packet_and_no_longer(bare_wire: tuple[LabNode, ...]) -> None:
    first, second, _ = bare_wire
    to = str(second.addresses[0])
    longest = ["ping", "-q", "-c", "1", "-W", "5", "-M", "do", "-s", str(1500 - 28), to]
    longer = ["ping", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", str(1500 - 27), to]
    assert lab.exec_(first.name, longest) == 0
    assert lab.exec_(first.name, longer) != 0


def test_connecting_again_repairs_a_broken_node(bare_wire: tuple[LabNode, ...]) -> None:
    first, second, _ = bare_wire
    netns.run_in(WIRE, ["ip", "link", "del", first.wire_device], check=True)
    cabling.connect_node(first, 1400)
    ping = ["ping", "-q", "-c", "1", "-W", "5", str(second.addresses[1])]
    assert lab.exec_(first.name, ping) == 0


def test_a_name_without_a_namespace_is_replaced(lab_place: None) -> None:
    Path("/run/netns/pellicle-n1").touch()
    cabling.lay_wire()
    cabling.connect_node(LabNode(1), 1500)
    assert lab.exec_("n1", ["true"]) == 0
    lab.down()
    assert not cabling.namespaces()


def test_exec_passes_the_exit_code_and_names_what_is_not_there(
    bare_wire: tuple[LabNode, ...],
) -> None:
    assert lab.exec_("wire", ["sh", "-c", "exit 42"]) == 42
    assert lab.exec_("n1", ["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM
    with pytest.raises(lab.LabError, match="n9/p1"):
        lab.exec_("n9/p1", ["true"])
    with pytest.raises(lab.LabError, match="no-such-program: command not found"):
        lab.exec_("n1", ["no-such-program"])
    with pytest.raises(ValueError, match="nodes are called n1"):
        lab.exec_("everywhere", ["true"])


def test_the_listener_hears_each_packet_once_and_finds_the_marker(
    bare_wire: tuple[LabNode, ...], tmp_path: Path
) -> None:
    capture = tmp_path / "wire.pcap"
    with (
        Sniffer(markers=[SECRET, b"never sent"], write=capture) as sniffer,
        _sockets(bare_wire[0], bare_wire[1]) as (sender, receiver),
    ):
        for number in range(7):
            sender.send(SECRET + bytes([number]))
            receiver.recv(100)
        sniffer.settle()
        flow = WireFlow("n1", "n2", 4, Kind.CLEAR, "UDP")
        length = 14 + 20 + 8 + len(SECRET) + 1
        assert sniffer.counts()[flow] == Count(7, 7 * length)
        assert sniffer.marks() == {(flow, SECRET): 7}
    packets = [
        packet for packet in rdpcap(str(capture)) if UDP in packet and SECRET in bytes(packet)
    ]
    assert [bytes(packet[UDP].payload)[-1] for packet in packets] == list(range(7))
    assert all(abs(float(packet.time) - time.time()) < 60 for packet in packets)
    assert capture.read_bytes()[:4] == (0xA1B23C4D).to_bytes(4, sys.byteorder)


def test_the_listener_calls_a_cluster_address_a_leak(bare_wire: tuple[LabNode, ...]) -> None:
    first, second, _ = bare_wire
    addresses = [f"{second.pod_cidrs[0][2]}/32", f"{second.pod_cidrs[1][2]}/128"]
    for address in addresses:
        netns.run_in(second.namespace, ["ip", "addr", "add", address, "dev", "lo"], check=True)
    with Sniffer() as sniffer:
        for address in addresses:
            ping = ["ping", "-q", "-c", "2", "-i", "0.1", "-W", "5", address.partition("/")[0]]
            assert lab.exec_(first.name, ping) == 0
        sniffer.settle()
        counts = sniffer.counts()
        assert counts[WireFlow("n1", "n2", 4, Kind.CLEAR, "ICMP")].packets == 2
        assert counts[WireFlow("n2", "n1", 6, Kind.CLEAR, "ICMPv6")].packets == 2
        assert any("10.244.2.2 ICMP" in leak for leak in sniffer.leaks())


def test_the_listener_tells_a_reused_nonce_from_a_repeated_packet(
    bare_wire: tuple[LabNode, ...],
) -> None:
    first, second, _ = bare_wire
    repeated, reused = _esp(first, second, 7, b"same"), _esp(first, second, 8, b"one")
    frames = [repeated, repeated, reused, _esp(first, second, 8, b"two"), _esp(first, second, 9)]
    with Sniffer(nonces=True) as sniffer:
        _inject(first, frames)
        sniffer.settle()
        ends = (str(first.addresses[0]), str(second.addresses[0]), 0x1001)
        assert sniffer.ivs()[ends] == (7, 7, 8, 8, 9)
        found = [(reuse.spi, reuse.field, reuse.number) for reuse in sniffer.reuses()]
        assert found == [(0x1001, "IV", 8)]
        assert sniffer.counts()[WireFlow("n1", "n2", 4, Kind.ESP, "ESP")].packets == 5


def test_the_listener_finds_a_count_that_began_again_under_other_ivs(
    bare_wire: tuple[LabNode, ...],
) -> None:
    """As from the kernel, when someone puts the same key a second time."""
    first, second, _ = bare_wire
    numbers = [(1, 0xA1), (2, 0xA2), (1, 0xB1), (3, 0xA3)]
    frames = [_esp(first, second, iv, bytes([iv]), sequence=seq) for seq, iv in numbers]
    with Sniffer(nonces=True) as sniffer:
        _inject(first, frames)
        sniffer.settle()
        found = [(reuse.spi, reuse.field, reuse.number) for reuse in sniffer.reuses()]
        assert found == [(0x1001, "sequence number", 1)]


def test_the_listener_keeps_up_with_a_burst(bare_wire: tuple[LabNode, ...]) -> None:
    burst = pace.amount(50_000, 5_000)
    with (
        Sniffer(markers=[SECRET], nonces=True) as sniffer,
        _sockets(bare_wire[0], bare_wire[1]) as (sender, _),
    ):
        message = b"x" * 200
        for _ in range(burst):
            sender.send(message)
        sniffer.settle()
        heard = sniffer.counts()[WireFlow("n1", "n2", 4, Kind.CLEAR, "UDP")].packets
        assert (heard, sniffer.lost()) == (burst, 0)


def test_the_listener_says_when_it_has_lost_packets(bare_wire: tuple[LabNode, ...]) -> None:
    with _sockets(bare_wire[0], bare_wire[1]) as (sender, _):
        sniffer = Sniffer()  # not yet started: nobody empties the ring
        deadline = time.monotonic() + pace.patient(60)
        while sniffer.lost() == 0 and time.monotonic() < deadline:
            for _ in range(1000):
                sender.send(b"x" * 60_000)  # in some forty fragments
        with sniffer:
            assert sniffer.lost() > 0


def test_sniff_shows_a_line_for_each_packet_that_passes_the_filter(
    bare_wire: tuple[LabNode, ...], tmp_path: Path
) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        ["nsenter", "--net=/run/netns/pellicle-n1", "ping", "-i", "0.1", "-c", "5", "192.168.3.2"],
        stdout=subprocess.DEVNULL,
    ) as ping:
        heard = lab.sniff(
            tmp_path / "s.pcap", "n3 icmp", seconds=pace.patient(1.5), show=lines.append
        )
        ping.wait()
    assert heard.lost == 0
    assert heard.has_leaks, "two nodes talk in the clear"
    assert 0 < len(lines) <= 10
    assert all(" ICMP, 98 bytes" in line for line in lines), lines
    assert len(rdpcap(str(tmp_path / "s.pcap"))) == len(lines)


def test_sniff_without_a_lab_says_so(lab_place: None) -> None:
    lab.down()
    with pytest.raises(lab.LabError, match="no lab is up"):
        lab.sniff(seconds=1)


def test_applications_in_namespaces_talk_and_tell(bare_wire: tuple[LabNode, ...]) -> None:
    with Speakers({OnNode(node): node.addresses for node in bare_wire}) as speakers:
        for family in (4, 6):
            said = speakers.talk(family, "hello ", rounds=2, pause=0.01)
            assert len(said) == 3 * 2 * 3
            assert {(each.sent, each.answered, each.problem) for each in said} == {(2, 2, "")}


def test_a_second_process_is_refused_while_one_is_at_work(lab_place: None) -> None:
    code = "from pellicle import lab; lab.up(1, 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"another process (pid {os.getpid()}) is at work on the lab" in done.stderr


def test_the_lock_ends_with_its_holder(lab_place: None, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from pellicle.lab import lock; "
        "lock.LOCK = pathlib.Path(sys.argv[1]); "
        "held = lock.locked(); held.__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "lock")]
    for end in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n", "the dead one's lock stood in the way"
            holder.send_signal(end)
    assert LOCK.exists()


def test_a_recycled_pid_is_never_killed(lab_place: None, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        stat = Path(f"/proc/{bystander.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        pid_file = tmp_path / "agent.pid"
        pid_file.write_text(json.dumps({"pid": bystander.pid, "started": started - 1}))
        assert processes.read_pid_file(pid_file) is None
        processes.stop([Process(bystander.pid, started - 1)], 1)
        assert bystander.poll() is None
        processes.stop([Process(bystander.pid, started)], pace.patient(5))
        assert bystander.wait(pace.patient(5)) == -signal.SIGTERM


def test_what_ignores_sigterm_is_killed(bare_wire: tuple[LabNode, ...], tmp_path: Path) -> None:
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    argv = ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]
    process = processes.spawn(argv, bare_wire[0].namespace, log, pid_file)
    _wait_for(lambda: "ready" in log.read_text(), "the process to start")
    assert processes.read_pid_file(pid_file) == process
    assert processes.stop([process], 0.2) == (process,)
    assert processes.read_pid_file(pid_file) is None


@pytest.mark.parametrize("says", ENDS)
def test_how_a_process_ended_is_told(
    bare_wire: tuple[LabNode, ...], tmp_path: Path, says: str
) -> None:
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    process = processes.spawn(ENDS[says], bare_wire[0].namespace, log, pid_file)
    try:
        _wait_for(lambda: not processes.is_running(process), "the process to end")
        assert processes.how_ended(pid_file) == says
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def test_of_a_process_that_runs_or_is_not_ours_no_end_is_told(
    bare_wire: tuple[LabNode, ...], tmp_path: Path
) -> None:
    log, pid_file = tmp_path / "log", tmp_path / "pid"
    process = processes.spawn(["/bin/sleep", "600"], bare_wire[0].namespace, log, pid_file)
    assert processes.how_ended(pid_file) == ""
    pid_file.write_text(json.dumps({"pid": process.pid, "started": process.started - 1}))
    assert processes.how_ended(pid_file) == "how, only the command that started it could tell"
    pid_file.unlink()
    assert processes.how_ended(pid_file) == ""


def test_down_ends_every_process_in_the_lab(bare_wire: tuple[LabNode, ...], tmp_path: Path) -> None:
    lost = processes.spawn(
        ["/bin/sleep", "600"], bare_wire[1].namespace, tmp_path / "log", tmp_path / "pid"
    )
    assert lost in processes.inside(cabling.namespaces())
    lab.down()
    assert not processes.is_running(lost)


@pytest.mark.parametrize("moment", MOMENTS)
def test_down_cleans_an_interrupted_up(
    lab_place: None, footprint: Footprint, moment: str, tmp_path: Path
) -> None:
    before = footprint()
    # The session holds the lock, and this one stands for a person's `pellicle lab up`.
    code = (
        "from pathlib import Path; from pellicle import lab; from pellicle.lab import lock; "
        f"lock.LOCK = Path({str(tmp_path / 'lock')!r}); lab.up(3, 1)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as up:
        _wait_for(lambda: Path(MOMENTS[moment]).exists() or up.poll() is not None, moment)
        up.send_signal(signal.SIGINT)
        _, said = up.communicate(timeout=pace.patient(90))
    assert "KeyboardInterrupt" in said, said
    lab.down()
    assert footprint() == before


def _wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    seconds = pace.patient(seconds)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.005)


class _sockets:  # noqa: N801  reads as a verb where it is used
    """A connected UDP socket on one node, and the one on another that it sends to."""

    def __init__(self, source: LabNode, destination: LabNode) -> None:
        kind = (socket.AF_INET, socket.SOCK_DGRAM)
        self.receiver = netns.socket_in(destination.namespace, *kind)
        self.sender = netns.socket_in(source.namespace, *kind)
        self.receiver.bind((str(destination.addresses[0]), 0))
        self.receiver.settimeout(pace.patient(10))
        self.sender.connect(self.receiver.getsockname())

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        return self.sender, self.receiver

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        self.receiver.close()


def _esp(
    source: LabNode, destination: LabNode, iv: int, content: bytes = b"", sequence: int = 0
) -> bytes:
    data = iv.to_bytes(8, "big") + content.ljust(32, b"\0")
    link = Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
    outer = IP(src=str(source.addresses[0]), dst=str(destination.addresses[0]))
    return bytes(link / outer / ESP(spi=0x1001, seq=sequence or iv, data=data))


def _inject(node: LabNode, frames: list[bytes]) -> None:
    with netns.socket_in(node.namespace, socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for frame in frames:
            raw.send(frame)
