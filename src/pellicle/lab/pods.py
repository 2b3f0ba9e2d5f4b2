# SPDX-License-Identifier: Apache-2.0
"""Pods of the lab, plugged in by the real CNI plugin as a container runtime would do it.

The runtime's part (CNI specification 1.1.0, section 2): a namespace with only lo, the plugin
executed in the node's own network, the network configuration on its stdin, the answer kept for
the later DEL.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import pellicle
from pellicle.facts import Address
from pellicle.kernel import netns
from pellicle.kernel.netlink import Netlink
from pellicle.lab import agents, cabling, processes
from pellicle.lab.errors import LabError
from pellicle.lab.patience import patient
from pellicle.lab.topology import MOST_PODS, POD_NAMESPACE, LabNode, LabPod

CNI_VERSION: Final = "1.1.0"
NETWORK: Final = "pellicle"
PLUGIN: Final = "pellicle-cni"
INTERFACE: Final = "eth0"
PLUGIN_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 0.2


def plug(pod: LabPod) -> Mapping[str, Any]:
    """Make the pod and give it its network; LabError when it has one already."""
    cabling.ensure_pod(pod)
    result = call_plugin(pod, "ADD")
    pod.result.parent.mkdir(parents=True, exist_ok=True)
    fresh = pod.result.with_suffix(".new")
    fresh.write_text(json.dumps(result))
    fresh.rename(pod.result)
    return result


def unplug(pod: LabPod, *, is_agent_up: bool = True) -> None:
    """Take the pod away: through the plugin when somebody answers, and its namespace always."""
    if is_agent_up:
        with suppress(LabError):
            call_plugin(pod, "DEL")
    pod.result.unlink(missing_ok=True)
    netns.delete(pod.namespace)


def plug_again(pod: LabPod) -> None:
    """After a boot: the old one is unplugged, and a new one tried until the agent takes it."""
    deadline = monotonic() + patient(PLUGIN_SECONDS)
    while True:
        unplug(pod)
        try:
            plug(pod)
        except LabError:
            if monotonic() > deadline or processes.read_pid_file(pod.node.pid_file) is None:
                raise
            sleep(AGAIN_SECONDS)
        else:
            return


def is_plugged(pod: LabPod, known: Collection[Address]) -> bool:
    """Whether the pod has its device, and an agent that has these `known` addresses its own."""
    if pod.namespace not in netns.names() or not addresses(pod):
        return False
    with Netlink(pod.namespace) as netlink:
        return INTERFACE in netlink.links() and set(addresses(pod)) <= set(known)


def read_result(pod: LabPod) -> Mapping[str, Any] | None:
    """What the plugin answered when the pod was plugged in, None when it is not."""
    try:
        result = json.loads(pod.result.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def remembered(node: LabNode) -> list[LabPod]:
    """The node's pods that a container runtime would know of, by what the plugin answered."""
    found = [LabPod(node, n) for n in range(1, MOST_PODS + 1)]
    return [pod for pod in found if pod.result.exists()]


def addresses(pod: LabPod) -> tuple[Address, ...]:
    """The pod's addresses, IPv4 first; empty when it is not plugged in."""
    result = read_result(pod) or {}
    return tuple(ip_interface(row["address"]).ip for row in result.get("ips", ()))


def call_plugin(pod: LabPod, command: str) -> Mapping[str, Any]:
    """Execute the plugin for the pod; LabError carries what it said when it refused."""
    seconds = patient(PLUGIN_SECONDS)
    try:
        done = netns.run_in(
            pod.node.namespace,
            [str(plugin_path())],
            input=json.dumps(network_configuration(pod, command)),
            env=_environment(pod, command),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"CNI {command} of {pod.name} took over {seconds:g} s") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        words = (f"CNI {command} of {pod.name} failed: {_words(said)}", agents.epitaph(pod.node))
        raise LabError("\n".join(filter(None, words)))
    answer = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer if isinstance(answer, dict) else {}


def network_configuration(pod: LabPod, command: str) -> Mapping[str, Any]:
    """The network as an administrator would write it, and what the runtime adds for this pod."""
    previous = read_result(pod) if command in {"CHECK", "DEL"} else None
    return {
        "cniVersion": CNI_VERSION,
        "name": NETWORK,
        "type": PLUGIN,
        "socket": str(pod.node.socket),
        "capabilities": {"labels": True},
        "runtimeConfig": {"labels": pod.labels},
        **({"prevResult": previous} if previous else {}),
    }


def plugin_path() -> Path:
    """The plugin: in the installed package, or beside it in a checkout."""
    package = Path(pellicle.__file__).parent
    candidates = (package / "_cni" / PLUGIN, package.parents[1] / "cni" / PLUGIN)
    for path in candidates:
        if os.access(path, os.X_OK):
            return path
    raise LabError(f"the CNI plugin is missing: looked for {' and '.join(map(str, candidates))}")


def _environment(pod: LabPod, command: str) -> dict[str, str]:
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": POD_NAMESPACE,
        "K8S_POD_NAME": pod.cluster_name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.namespace,
    }
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod.namespace,
        "CNI_NETNS": str(netns.path_of(pod.namespace)),
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": str(plugin_path().parent),
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
    }


def _words(said: str) -> str:
    """The message of a CNI error, or whatever was said instead."""
    try:
        row = json.loads(said)
        return f"{row['msg']} {row.get('details', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return said or "it said nothing"
