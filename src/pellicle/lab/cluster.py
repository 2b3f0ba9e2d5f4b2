# SPDX-License-Identifier: Apache-2.0
"""The lab's verbs: up, down, and the small ones that tests and curious people need.

`up` makes the world what is asked, from whatever stands: run again it repairs, grows or shrinks.
When it fails or is interrupted it leaves what it has made, for a look; everything carries a
name of the lab, so a second `up` goes on from there and `down` removes it all.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from pellicle.config import Routing
from pellicle.kernel import netns
from pellicle.kernel.bpf import ensure_bpffs
from pellicle.lab import agents, cabling, engines, pods, processes, state
from pellicle.lab.engines import AUTO
from pellicle.lab.errors import LabError
from pellicle.lab.lock import locked
from pellicle.lab.patience import patient
from pellicle.lab.state import LabState
from pellicle.lab.topology import (
    BPFFS,
    CLUSTER,
    MOST_PODS,
    RUN,
    LabNode,
    LabPod,
    Shape,
    namespace_of,
    node_named,
    nodes_of,
    pod_named,
    pods_of,
)

Progress = Callable[[str], None]
"""Gets one line for each step."""
AT_ONCE: Final = 8
STOP_SECONDS: Final = 5.0

T = TypeVar("T")
R = TypeVar("R")


def up(
    nodes: int,
    pods: int,
    *,
    engine: str = AUTO,
    encrypt: bool = True,
    mtu: int = 1500,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda _line: None,
) -> LabState:
    """Make a lab of this shape stand, ready for traffic; LabError says what does not work.

    `pods` is the number on each node; `engine` is one for all nodes, or names some, as in
    "xfrm,n2=bpf"; `settings` are further keys of the agents' configuration.
    Agents whose configuration changes are restarted; all others go on undisturbed.
    """
    shape = Shape(nodes, pods, engine, encrypt, mtu, dict(settings or {}))
    with locked():
        _make(shape, progress)
    return state.status()


def down(progress: Progress = lambda _line: None) -> None:
    """Remove every trace of a lab, whole or broken; with none there, do nothing."""
    with locked():
        standing = state.standing_pods()
        hosts = sorted({pod.node for pod in standing})
        answering = dict(zip(hosts, _each(_answers, hosts), strict=True))
        if standing:
            progress(f"unplugging {len(standing)} pods")
        _each(lambda pod: pods.unplug(pod, is_agent_up=answering[pod.node]), standing)
        nodes = {*state.standing_nodes(), *_nodes_with_files()}
        if nodes:
            progress(f"stopping {len(nodes)} agents")
        for node in agents.stop(sorted(nodes)):
            progress(f"the agent of {node.name} did not stop and was killed")
        # What else lives in there: shells, captures, an agent whose pid file was lost.
        processes.stop(processes.inside(cabling.namespaces()), patient(STOP_SECONDS))
        for node in nodes:
            cabling.disconnect_node(node)
        cabling.clear_wire()
        for name in cabling.namespaces():
            netns.delete(name)
        for tree in (BPFFS, RUN):
            if tree.exists():
                shutil.rmtree(tree)
                progress(f"removed {tree}")


def exec_(where: str, argv: Sequence[str]) -> int:
    """Run a program in `wire`, `n1` or `n1/p1` with our own stdio; its exit code as a shell's."""
    namespace = namespace_of(where)
    if namespace not in netns.names():
        raise LabError(f"there is no {where} in the lab; see `pellicle lab status`")
    try:
        process = netns.start_in(namespace, argv)
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]}: command not found") from error
    except PermissionError as error:
        raise LabError(f"{argv[0]}: {error.strerror}") from error
    return _wait(process)


def add_node(progress: Progress = lambda _line: None) -> LabNode:
    """One node more, with as many pods as the others."""
    with locked():
        shape = state.must_read_shape()
        _make(_with(shape, nodes=shape.nodes + 1), progress)
        return LabNode(shape.nodes + 1)


def remove_node(progress: Progress = lambda _line: None) -> LabNode:
    """Take the last node away, as an administrator would: drained, stopped, struck off."""
    with locked():
        shape = state.must_read_shape()
        _make(_with(shape, nodes=shape.nodes - 1), progress)
        return LabNode(shape.nodes)


def add_pod(where: str) -> LabPod:
    """A pod on node `n1`, with the next free number; or exactly `n1/p7`."""
    with locked():
        if "/" in where:
            pod = pod_named(where)
        else:
            node = node_named(where)
            taken = {each.number for each in state.standing_pods(node)}
            free = next(n for n in range(1, MOST_PODS + 1) if n not in taken)
            pod = LabPod(node, free)
        _standing_node(pod.node.name)
        pods.plug(pod)
        return pod


def delete_pod(where: str) -> None:
    """Unplug pod `n1/p1` and remove it."""
    with locked():
        pod = pod_named(where)
        pods.unplug(pod, is_agent_up=_answers(pod.node))


def start_agent(where: str, *, wait: bool = True) -> None:
    """Start the agent of node `n1` unless it runs; `wait` until it is ready."""
    with locked():
        node, shape = node_named(where), state.must_read_shape()
        agents.start(node)
        if wait:
            agents.wait_ready([node], shape, state.standing_addresses())


def kill_agent(where: str, number: signal.Signals = signal.SIGKILL) -> None:
    """End the agent of node `n1` by a signal; its pods and its datapath stay."""
    with locked():
        agents.kill(node_named(where), number)


def restart_agent(
    where: str, number: signal.Signals = signal.SIGTERM, *, wait: bool = True
) -> None:
    """End the agent of node `n1` by a signal and start it again."""
    with locked():
        kill_agent(where, number)
        start_agent(where, wait=wait)


def power_off(where: str) -> None:
    """Node `n1` loses its power, pods and datapath with it; what is on disks stays.

    Those are its records in the directory, its `state_dir`, and what the container runtime knows.
    """
    with locked():
        node = _standing_node(where)
        places = [node.namespace, *(pod.namespace for pod in state.standing_pods(node))]
        running = processes.inside(places)
        cabling.disconnect_node(node)
        processes.kill(running, patient(STOP_SECONDS))
        for place in places:
            netns.delete(place)
        for path in (node.pid_file, node.socket):
            path.unlink(missing_ok=True)
        shutil.rmtree(node.bpffs)


def power_on(where: str, *, wait: bool = True) -> None:
    """Node `n1` boots: its agent starts, and its pods are made anew as soon as that takes them."""
    with locked():
        node, shape = node_named(where), state.must_read_shape()
        cabling.connect_node(node, shape.mtu)
        agents.configure(node, shape)
        agents.start(node)
        for pod in pods.remembered(node):
            pods.plug_again(pod)
        if wait:
            agents.wait_ready([node], shape, state.standing_addresses())


def reboot(where: str) -> None:
    """Node `n1` loses its power and boots again."""
    with locked():
        power_off(where)
        power_on(where)


def _make(shape: Shape, progress: Progress) -> None:
    ensure_bpffs(BPFFS.parent)
    agents.prepare()
    before = state.read_shape()
    state.write_shape(shape)
    cabling.lay_wire()
    for node in state.standing_nodes():
        if node.number > shape.nodes:
            progress(f"removing {node.name}")
            _strike_off(node)
    nodes = nodes_of(shape.nodes)
    progress(f"{len(nodes)} nodes on a routed wire, MTU {shape.mtu}")
    made = _each(lambda node: cabling.connect_node(node, shape.mtu), nodes)
    changed = [agents.configure(node, shape) for node in nodes]
    agents.stop([node for node, *news in zip(nodes, made, changed, strict=True) if any(news)])
    words = "on" if shape.encrypt else "off"
    progress(f"starting the agents, encryption {words}")
    _each(agents.start, nodes)
    # Not yet the pods' addresses: an agent may have lost them, and gets them back below.
    agents.wait_ready(nodes, shape, state.node_addresses())
    if before is not None and _mtu_of(before) != _mtu_of(shape):
        progress("pods have another MTU now: they are made anew")
        _each(pods.unplug, state.standing_pods())
    _fit_pods(nodes, shape, progress)
    agents.wait_ready(nodes, shape, state.standing_addresses())
    progress(f"ready: encryption {words}, every peer known" + (" and confirmed" * shape.encrypt))


def _fit_pods(nodes: Sequence[LabNode], shape: Shape, progress: Progress) -> None:
    wanted = {node: pods_of(node, shape.pods) for node in nodes}
    for pod in state.standing_pods():
        if pod not in wanted[pod.node]:
            progress(f"unplugging {pod.name}")
            pods.unplug(pod)
    known = {node: agents.known_addresses(node) for node in nodes}
    missing = {
        node: [pod for pod in wanted[node] if not pods.is_plugged(pod, known[node])]
        for node in nodes
    }
    count = sum(map(len, missing.values()))
    if count:
        progress(f"plugging in {count} pods")
    # One after the other on a node: the first gets the first address.
    _each(_replug, missing.values())


def _mtu_of(shape: Shape) -> tuple[int, Any]:
    """What decides on the MTU that pods are plugged in with."""
    return shape.mtu, shape.settings.get("routing", Routing.DIRECT)


def _replug(missing: Sequence[LabPod]) -> None:
    for pod in missing:
        if pods.read_result(pod) is not None:
            pods.unplug(pod)
        pods.plug(pod)


def _strike_off(node: LabNode) -> None:
    """Drain, stop, unplug from the wire, and delete its records, as for a machine that is sold."""
    is_answering = _answers(node)
    _each(lambda pod: pods.unplug(pod, is_agent_up=is_answering), state.standing_pods(node))
    agents.stop([node])
    processes.stop(processes.inside([node.namespace]), patient(STOP_SECONDS))
    cabling.disconnect_node(node)
    (CLUSTER / "nodes" / f"{node.name}.yaml").unlink(missing_ok=True)
    for tree in (CLUSTER / "endpoints" / node.name, node.run_dir, node.bpffs):
        if tree.exists():
            shutil.rmtree(tree)


def _standing_node(where: str) -> LabNode:
    node = node_named(where)
    if node not in state.standing_nodes():
        raise LabError(f"there is no node {node.name} in the lab")
    return node


def _answers(node: LabNode) -> bool:
    try:
        agents.status(node)
    except LabError:
        return False
    return True


def _nodes_with_files() -> set[LabNode]:
    """Nodes that left a run directory, though perhaps no namespace."""
    found: set[LabNode] = set()
    for path in RUN.glob("n*"):
        with suppress(ValueError):
            found.add(node_named(path.name))
    return found


def _each(act: Callable[[T], R], rows: Iterable[T]) -> list[R]:
    """`act` on all rows, a few at once; the first error is raised when all have ended."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="lab") as pool:
        return [future.result() for future in [pool.submit(act, row) for row in rows]]


def _wait(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal told the program too: its answer counts
        return code if code >= 0 else 128 - code


def _with(shape: Shape, *, nodes: int) -> Shape:
    engine = engines.parse(shape.engine, shape.nodes)
    for leaving in nodes_of(shape.nodes)[nodes:]:
        engine = engine.without(leaving.name)
    return replace(shape, nodes=nodes, engine=str(engine))
