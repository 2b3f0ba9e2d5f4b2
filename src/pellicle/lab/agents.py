# SPDX-License-Identifier: Apache-2.0
"""The lab's agents: ordinary `pellicle agent` processes, each in its node's namespace.

One is configured by a file, started, asked over its socket, waited for, and stopped, as an
administrator would do it. It outlives whoever started it, in a session of its own.
"""

from __future__ import annotations

import json
import secrets
import signal
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from pellicle.config import KeyMode
from pellicle.facts import Address
from pellicle.lab import processes
from pellicle.lab.engines import AUTO
from pellicle.lab.errors import LabError
from pellicle.lab.patience import patient
from pellicle.lab.processes import Process
from pellicle.lab.topology import (
    BPFFS,
    CLUSTER,
    PSK,
    RUN,
    LabNode,
    Shape,
    cluster_cidrs,
    node_named,
)

READY_SECONDS: Final = 60.0
READY_SECONDS_EACH: Final = 2.0
"""They share the cores of one machine."""
STOP_SECONDS: Final = 10.0
ASK_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.1
TAIL_LINES: Final = 25
FATAL, FATAL_LINES = "Fatal Python error: ", 100
"""How what faulthandler says begins, and how long it is at most: each thread is in it."""


def prepare() -> None:
    """The directories that all agents share, and their pre-shared secret."""
    for path in (RUN, CLUSTER):
        path.mkdir(mode=0o755, exist_ok=True)
    BPFFS.mkdir(mode=0o700, exist_ok=True)
    if not PSK.exists():
        fresh = PSK.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32) + "\n")
        fresh.rename(PSK)


def configure(node: LabNode, shape: Shape) -> bool:
    """Write the agent's configuration; whether it is another than before."""
    node.run_dir.mkdir(mode=0o755, exist_ok=True)
    node.bpffs.mkdir(mode=0o700, exist_ok=True)
    if not node.psk.is_symlink():
        node.psk.symlink_to(PSK)  # as a mounted secret is a link
    # JSON is YAML.
    text = json.dumps(configuration(node, shape), indent=2) + "\n"
    if node.config.exists() and node.config.read_text() == text:
        return False
    fresh = node.config.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(node.config)
    return True


def configuration(node: LabNode, shape: Shape) -> Mapping[str, Any]:
    """What an administrator would write; uplink and addresses are the agent's to find."""
    engine = shape.engine_of(node)
    return {
        "node_name": node.name,
        "directory": str(CLUSTER),
        "enable_encrypt_l3": shape.encrypt,
        # Said only where a choice was made: auto is the agent's own.
        **({} if engine == AUTO else {"engine": engine}),
        "pod_cidrs": [str(network) for network in node.pod_cidrs],
        "cluster_cidrs": [str(network) for network in cluster_cidrs(shape.nodes)],
        **_proof(node, str(shape.settings.get("key_mode", KeyMode.PSK))),
        "run_dir": str(node.run_dir),
        "state_dir": str(node.run_dir / "state"),
        "bpffs": str(node.bpffs),
        **shape.settings,
    }


def _proof(node: LabNode, mode: str) -> Mapping[str, str]:
    """With what its offers are proven. In a lab of SPIFFE, someone else serves the sockets."""
    match mode:
        case KeyMode.SPIFFE:
            return {"spiffe_socket": str(node.spiffe_socket)}
        case KeyMode.CLUSTER:
            return {}
    return {"psk_file": str(node.psk)}


def start(node: LabNode) -> Process:
    """Start the node's agent unless it runs where it belongs."""
    running = processes.read_pid_file(node.pid_file)
    if running is not None and processes.lives_in(running, node.namespace):
        return running
    stop([node])
    # -P: the directory that the lab was started in must not shadow the package.
    argv = [sys.executable, "-P", "-m", "pellicle", "agent", "--config", str(node.config)]
    return processes.spawn(argv, node.namespace, node.log, node.pid_file)


def stop(nodes: Sequence[LabNode]) -> Sequence[LabNode]:
    """Stop the agents that run. Returns the nodes whose agent had to be killed."""
    running = {
        process: node for node in nodes if (process := processes.read_pid_file(node.pid_file))
    }
    stubborn = processes.stop(running, patient(STOP_SECONDS))
    for node in nodes:
        node.pid_file.unlink(missing_ok=True)
    return [running[process] for process in stubborn]


def kill(node: LabNode, number: signal.Signals) -> None:
    """Signal the node's agent, and see it end; LabError when there is none or it lives on."""
    process = processes.read_pid_file(node.pid_file)
    if process is None or not processes.send_signal(process, number):
        raise LabError(f"no agent runs on {node.name}")
    seconds = patient(STOP_SECONDS)
    if not processes.wait_end(process, seconds):
        raise LabError(f"the agent of {node.name} lives {seconds:g} s after {number.name}")
    node.pid_file.unlink(missing_ok=True)


def ask(node: LabNode, call: str, **arguments: Any) -> list[Any]:
    """Every answer of the node's agent to one call; LabError in its own words, or why none came."""
    request = json.dumps({"call": call, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patient(ASK_SECONDS))
            connection.connect(str(node.socket))
            connection.sendall(request)
            with connection.makefile("rb") as lines:
                rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        why = epitaph(node) or f"the agent of {node.name} does not answer: {error}"
        raise LabError(why) from error
    for row in rows:
        if "error" in row:
            raise LabError(f"the agent of {node.name}: {row['error'].get('message')}")
    return [row["ok"] for row in rows]


def status(node: LabNode) -> Mapping[str, Any]:
    """The agent's own status; LabError when it does not answer."""
    rows = ask(node, "status")
    if not rows or not isinstance(rows[0], dict):
        raise LabError(f"the agent of {node.name} has no status")
    return rows[0]


def known_addresses(node: LabNode) -> frozenset[Address]:
    """Every address that the node's datapath can place, read from the kernel's own map."""
    return frozenset(ip_address(row["key"]) for row in ask(node, "map", name="ipcache"))


def wait_ready(
    nodes: Sequence[LabNode],
    shape: Shape,
    addresses: Collection[Address],
) -> None:
    """Return when each agent can carry all traffic between `addresses`; LabError says why not."""
    deadline = time.monotonic() + patient(READY_SECONDS + READY_SECONDS_EACH * len(nodes))
    waiting = dict.fromkeys(nodes, "has not answered yet")
    while waiting:
        for node in tuple(waiting):
            if processes.read_pid_file(node.pid_file) is None:
                raise LabError(epitaph(node) or f"no agent runs on {node.name}")
            waiting[node] = why_not_ready(node, shape, addresses)
            if not waiting[node]:
                del waiting[node]
        if waiting and time.monotonic() > deadline:
            raise LabError("\n".join(_reason(node, why) for node, why in waiting.items()))
        if waiting:
            time.sleep(POLL_SECONDS)


def why_not_ready(node: LabNode, shape: Shape, addresses: Collection[Address]) -> str:
    """What the node's agent still lacks, in words; empty when nothing."""
    try:
        wants = lacking(status(node), shape)
        unknown = sorted(map(str, set(addresses) - known_addresses(node)))
    except LabError as error:
        return str(error)
    if unknown:
        wants.append(f"it does not know {unknown[0]}" + f" and {len(unknown) - 1} more")
    return "; ".join(wants)


def lacking(row: Mapping[str, Any], shape: Shape) -> list[str]:
    """What keeps an agent with this status from carrying the traffic of the whole lab."""
    wants = []
    wanted = "on" if shape.encrypt else "off"
    if row["encryption"] != wanted:
        wants.append(f"encryption is {row['encryption']}, not {wanted}")
    if shape.encrypt:
        engine = shape.engine_of(node_named(row["node"]))
        if engine not in {AUTO, row["engine"]}:
            wants.append(f"its engine is {row['engine']}, not {engine}")
        peers = row["peers"]
        if len(peers) != shape.nodes - 1:
            wants.append(f"it has {len(peers)} peers, not {shape.nodes - 1}")
        wants += [
            f"{peer['node']} is {peer['state']}" + (f" ({peer['why']})" if peer["why"] else "")
            for peer in peers
            if not (peer["state"] == "ready" and peer["confirmed"])
        ]
    wants += [
        f"{table['name']}: {table['applied']} of {table['desired']} rows stand"
        for table in row["tables"]
        if table["applied"] != table["desired"] or table["failed"]
    ]
    return wants


def epitaph(node: LabNode) -> str:
    """How an agent has ended that nobody stopped, and its last words; else nothing."""
    how = processes.how_ended(node.pid_file)
    return how and f"the agent of {node.name} has ended ({how}):\n{log_tail(node)}"


def log_tail(node: LabNode) -> str:
    """The last lines of the agent's log."""
    with suppress(OSError):
        lines = node.log.read_text(errors="replace").splitlines()[-FATAL_LINES:]
        fatal = [at for at, line in enumerate(lines) if line.startswith(FATAL)]
        last = lines[fatal[-1] :] if fatal else lines[-TAIL_LINES:]
        return "\n".join(f"  {node.name}| {line}" for line in last) or f"  {node.log} is empty"
    return f"  there is no {node.log}"


def _reason(node: LabNode, why: str) -> str:
    return f"the agent of {node.name} is not ready: {why}\n{log_tail(node)}"
