# SPDX-License-Identifier: Apache-2.0
"""A whole lab with its agents: it stands as asked, changes as asked, and goes without a trace."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents, cluster, pods, processes, state
from pellicle.lab.demo import demo
from pellicle.lab.frames import Kind
from pellicle.lab.sniffer import Sniffer
from pellicle.lab.speakers import Speakers
from pellicle.lab.topology import CLUSTER, LOCK, PSK, LabNode, pod_named
from tests import pace

Up = Callable[..., lab.LabState]
Footprint = Callable[[], dict[str, set[str]]]

MARKER = "words-of-a-pod "
UPS = {
    "the first agent answers": "/run/pellicle-lab/n1/agent.sock",
    "the first pod is made": "/run/netns/pellicle-n1-p1",
}

DEATHS = {
    signal.SIGKILL: r"\(signal 9, Killed\):\n  n1\| ",
    signal.SIGSEGV: r"\(signal 11, Segmentation fault\):\n  n1\| Fatal Python error: ",
}


def pids(state: lab.LabState) -> dict[str, int | None]:
    return {node.name: node.pid for node in state.nodes}


def ping(source: str, destination: str, family: int = 4) -> int:
    address = next(a for a in pods.addresses(pod_named(destination)) if a.version == family)
    return lab.exec_(source, ["ping", "-q", "-c", "1", "-W", "5", str(address)])


def test_a_lab_stands_as_asked(make_lab: Up) -> None:
    state = make_lab(2, 2)
    assert state.is_ready
    assert [node.name for node in state.nodes] == ["n1", "n2"]
    assert [pod.name for pod in state.nodes[1].pods] == ["n2/p1", "n2/p2"]
    assert state.nodes[0].pods[0].addresses == ("10.244.1.2", "fd00:244:1::2")
    assert lab.status() == state or lab.status().is_ready
    for node in state.nodes:
        assert node.agent is not None
        assert node.agent["encryption"] == "on"


def test_every_pod_reaches_every_pod_in_both_families(make_lab: Up) -> None:
    make_lab(2, 2)
    for source, destination in (("n1/p1", "n1/p2"), ("n1/p1", "n2/p2"), ("n2/p1", "n1/p1")):
        for family in (4, 6):
            assert ping(source, destination, family) == 0, f"{source} to {destination}, IPv{family}"


def test_pods_carry_their_labels_into_the_cluster(make_lab: Up) -> None:
    make_lab(2, 2)
    record = yaml.safe_load((CLUSTER / "endpoints/n2/default.n2-p1.yaml").read_text())
    assert record["spec"]["labels"]["app"] == "p1"
    assert record["spec"]["addresses"] == list(map(str, pods.addresses(pod_named("n2/p1"))))


def test_up_again_disturbs_nobody(make_lab: Up) -> None:
    before = make_lab(2, 2)
    after = make_lab(2, 2)
    assert pids(after) == pids(before)
    assert [node.pods for node in after.nodes] == [node.pods for node in before.nodes]


def test_another_engine_restarts_only_the_agents_that_get_it(make_lab: Up) -> None:
    before = make_lab(2, 1, engine="auto")
    after = make_lab(2, 1, engine="n2=bpf")
    assert pids(after)["n1"] == pids(before)["n1"]
    assert pids(after)["n2"] != pids(before)["n2"]
    assert after.nodes[1].agent is not None
    assert after.nodes[1].agent["engine"] == "bpf"


def test_encryption_off_and_on_restarts_agents_and_keeps_pods(make_lab: Up) -> None:
    on = make_lab(2, 1)
    off = make_lab(2, 1, encrypt=False)
    assert off.is_ready
    assert not set(pids(off).values()) & set(pids(on).values())
    assert [node.pods for node in off.nodes] == [node.pods for node in on.nodes]
    with Sniffer() as sniffer:
        assert ping("n1/p1", "n2/p1") == 0
        sniffer.settle()
        assert {flow.kind for flow in sniffer.counts()} & {Kind.CLEAR, Kind.ESP} == {Kind.CLEAR}
    make_lab(2, 1)
    with Sniffer() as sniffer:
        assert ping("n1/p1", "n2/p1") == 0
        sniffer.settle()
        assert {flow.kind for flow in sniffer.counts()} & {Kind.CLEAR, Kind.ESP} == {Kind.ESP}


def test_a_lab_grows_and_shrinks(make_lab: Up) -> None:
    make_lab(2, 1)
    assert lab.add_node() == LabNode(3)
    assert ping("n3/p1", "n1/p1", 6) == 0
    added = lab.add_pod("n3")
    assert added.name == "n3/p2"
    assert added.name in {pod.name for node in lab.status().nodes for pod in node.pods}
    lab.delete_pod("n3/p2")
    assert not added.result.exists()
    assert not (CLUSTER / "endpoints/n3/default.n3-p2.yaml").exists()
    assert lab.remove_node() == LabNode(3)
    after = lab.status()
    assert after.is_ready
    assert [node.name for node in after.nodes] == ["n1", "n2"]
    assert not (CLUSTER / "nodes/n3.yaml").exists()
    assert not LabNode(3).run_dir.exists()


def test_a_killed_agent_is_seen_and_comes_back_under_running_traffic(make_lab: Up) -> None:
    before = make_lab(2, 1)
    lab.kill_agent("n1")
    seen = lab.status()
    assert seen.nodes[0].pid is None
    assert (seen.is_up, seen.is_ready, seen.nodes[0].problem) == (True, False, "no agent runs")
    assert ping("n1/p1", "n2/p1") == 0, "the datapath goes on without its agent"
    lab.start_agent("n1")
    after = lab.status()
    assert after.is_ready
    assert pids(after)["n2"] == pids(before)["n2"]
    lab.restart_agent("n2", signal.SIGKILL)
    assert lab.status().is_ready
    with pytest.raises(lab.LabError, match="no agent runs on n9"):
        lab.kill_agent("n9")


BREAKAGES = {
    "an agent was killed": lambda: lab.kill_agent("n2"),
    "the wire's end was emptied": lambda: _on_wire("ip", "addr", "flush", "dev", "n1"),
    "an uplink was removed": lambda: _on_wire("ip", "link", "del", "n2"),
    "a node's namespace was removed": lambda: netns.delete("pellicle-n1"),
    "a pod's namespace was removed": lambda: netns.delete("pellicle-n2-p1"),
    "the wire was removed": lambda: netns.delete("pellicle-wire"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_up_repairs_what_was_broken(make_lab: Up, breakage: str) -> None:
    make_lab(2, 1)
    BREAKAGES[breakage]()
    assert make_lab(2, 1).is_ready
    assert ping("n1/p1", "n2/p1") == 0
    assert ping("n2/p1", "n1/p1", 6) == 0


def test_another_mtu_reaches_the_pods(make_lab: Up) -> None:
    for mtu in (1400, 1500):
        make_lab(2, 1, mtu=mtu)
        address = str(pods.addresses(pod_named("n2/p1"))[0])
        # The longest packet that fits is a few dozen bytes of ESP shorter than the wire's MTU.
        fits = ["ping", "-q", "-c", "1", "-W", "5", "-M", "do", "-s", str(mtu - 100), address]
        assert lab.exec_("n1/p1", fits) == 0
        too_long = ["ping", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", str(mtu - 28), address]
        assert lab.exec_("n1/p1", too_long) != 0


def test_the_secret_is_for_root_alone(make_lab: Up) -> None:
    make_lab(2, 1)
    assert PSK.stat().st_mode & 0o777 == 0o600
    secret = PSK.read_text().strip()
    for node in state.standing_nodes():
        assert secret not in node.config.read_text()
        assert secret not in node.log.read_text()


def test_an_agent_that_cannot_start_is_named_with_its_log(make_lab: Up) -> None:
    make_lab(2, 1)
    with pytest.raises(
        lab.LabError,
        match=r"(?s)the agent of (n[12]) has ended \(exit code 64\):.*\1\| .*refresh_seconds",
    ):
        make_lab(2, 1, settings={"refresh_seconds": "never"})
    assert make_lab(2, 1).is_ready


@pytest.mark.parametrize("number", DEATHS)
def test_an_agent_that_died_is_named_with_how_and_its_log(
    make_lab: Up, number: signal.Signals
) -> None:
    make_lab(2, 1)
    node = LabNode(1)
    agent = processes.read_pid_file(node.pid_file)
    assert agent is not None
    processes.send_signal(agent, number)
    assert processes.wait_end(agent, pace.patient(5))
    for act in (
        lambda: lab.add_pod("n1"),
        lambda: agents.status(node),
        lambda: agents.wait_ready([node], state.must_read_shape(), ()),
    ):
        with pytest.raises(lab.LabError, match=f"the agent of n1 has ended {DEATHS[number]}"):
            act()
    assert make_lab(2, 1).is_ready


def test_what_applications_say_is_hidden_and_no_nonce_returns(make_lab: Up) -> None:
    make_lab(2, 1)
    addresses = {pod: pods.addresses(pod) for pod in state.standing_pods()}
    with (
        Sniffer(markers=[MARKER.strip().encode()], nonces=True) as sniffer,
        Speakers({**addresses}) as speakers,
    ):
        said = [
            each
            for family in (4, 6)
            for each in speakers.talk(family, MARKER, rounds=5, pause=0.02)
        ]
        sniffer.settle()
        assert all(each.sent == each.answered == 5 for each in said), said
        assert not sniffer.marks()
        assert not sniffer.leaks()
        assert not sniffer.reuses()
        assert sum(len(ivs) for ivs in sniffer.ivs().values()) >= 2 * 2 * 3 * 5
        assert sniffer.lost() == 0


def test_down_leaves_nothing_of_a_whole_lab(make_lab: Up, footprint: Footprint) -> None:
    lab.down()
    before = footprint()
    make_lab(2, 2)
    assert len(footprint()["processes"] - before["processes"]) == 2
    lab.down()
    assert footprint() == before


def test_down_finds_an_agent_whose_pid_file_is_lost(make_lab: Up) -> None:
    make_lab(1, 1)
    agent = processes.read_pid_file(LabNode(1).pid_file)
    assert agent is not None
    LabNode(1).pid_file.unlink()
    lab.down()
    assert not processes.is_running(agent)


@pytest.mark.parametrize("moment", UPS)
def test_down_cleans_an_up_that_was_interrupted(
    lab_place: None, footprint: Footprint, moment: str, tmp_path: Path
) -> None:
    lab.down()
    before = footprint()
    code = _in_another_process(tmp_path, "lab.up(2, 1)")
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as up:
        _wait_for(lambda: Path(UPS[moment]).exists() or up.poll() is not None, moment)
        up.send_signal(signal.SIGINT)
        _, said = up.communicate(timeout=pace.patient(90))
    assert "KeyboardInterrupt" in said, said
    lab.down()
    assert footprint() == before


def test_the_demo_keeps_its_promises_and_leaves_only_its_files(
    lab_place: None, footprint: Footprint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.down()
    before = footprint()
    result = demo(out_dir=tmp_path)
    assert result.is_kept, result.verdict
    assert {path.name for path in tmp_path.iterdir()} == {
        "pellicle-demo.pcap",
        "pellicle-demo.svg",
    }
    assert capsys.readouterr().out.splitlines()[-1] == result.verdict
    assert result.verdict.startswith("KEPT")
    assert len(result.rows) == 2 * 2 * 6
    assert footprint() == before


def test_a_demo_without_encryption_is_found_out(
    lab_place: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener's proof: the same demo, but nobody switches encryption on."""
    lab.down()

    def never_encrypted(nodes: int, pods: int, *, encrypt: bool, **words: object) -> lab.LabState:
        return lab.up(nodes, pods, encrypt=False)

    monkeypatch.setattr(cluster, "up", never_encrypted)
    result = demo(json=True, out_dir=tmp_path)
    assert not result.is_kept
    broken = " ".join(promise.says for promise in result.promises if not promise.is_kept)
    for words in ("readable nowhere", "no cluster address shows", "ESP passes on every path"):
        assert words in broken
    assert result.verdict.startswith("BROKEN")
    assert asdict(result)["rows"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_takes_everything_down(
    lab_place: None, footprint: Footprint, number: signal.Signals, tmp_path: Path
) -> None:
    lab.down()
    before = footprint()
    out = tmp_path / "out"
    words = f"from pellicle.lab.demo import demo; demo(out_dir=Path({str(out)!r}))"
    code = _in_another_process(tmp_path, words)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as show:
        _wait_for((out / "pellicle-demo.pcap").exists, "the demo's traffic")
        show.send_signal(number)
        show.communicate(timeout=pace.patient(90))
    assert show.returncode != 0
    assert footprint() == before


def test_the_demo_does_not_take_the_place_of_a_lab(make_lab: Up, tmp_path: Path) -> None:
    make_lab(1, 0)
    with pytest.raises(lab.LabError, match="a lab is up"):
        demo(out_dir=tmp_path)
    assert lab.status().is_ready
    assert LOCK.exists()


def _on_wire(*argv: str) -> None:
    assert lab.exec_("wire", argv) == 0


def _in_another_process(tmp_path: Path, words: str) -> str:
    # This session holds the lock for all of its tests; the other process takes one of its own.
    return (
        "from pathlib import Path; from pellicle import lab; from pellicle.lab import lock; "
        f"lock.LOCK = Path({str(tmp_path / 'lock')!r}); {words}"
    )


def _wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    seconds = pace.patient(seconds)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.005)
