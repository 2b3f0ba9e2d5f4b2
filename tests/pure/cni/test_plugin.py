# SPDX-License-Identifier: Apache-2.0
"""The plugin hands over what it is given, and prints what comes back; quickly."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pure.cni.runtime import ENVIRONMENT, PLUGIN, RESULT, Agent, call, network


def test_add_hands_everything_to_the_agent_and_prints_its_result(agent: Agent) -> None:
    config = network(agent.path, labels={"app": "web"})
    done = call("ADD", config)
    assert (done.exit, done.document) == (0, RESULT)
    assert agent.lines == [
        {
            "call": "cni",
            "command": "ADD",
            "container_id": "c0ffee",
            "ifname": "eth0",
            "netns": "/proc/self/ns/net",
            "args": {
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": "default",
                "K8S_POD_NAME": "p1",
            },
            "config": config,
        }
    ]
    assert agent.namespaces == [Path("/proc/self/ns/net").stat().st_ino]


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_what_needs_no_answer_prints_none(agent: Agent, command: str) -> None:
    config = network(agent.path, prevResult=RESULT, **{"cni.dev/valid-attachments": []})
    done = call(command, config)
    assert (done.exit, done.out, done.err) == (0, "", "")
    assert agent.lines[0]["command"] == command
    assert agent.lines[0]["config"] == config
    assert len(agent.namespaces) == (command == "CHECK")


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_all_versions_can_add_check_and_delete(agent: Agent, version: str) -> None:
    for command in ("ADD", "CHECK", "DEL"):
        assert call(command, network(agent.path, cniVersion=version)).exit == 0


@pytest.mark.parametrize(
    ("asked", "answered"),
    [(b'{"cniVersion": "1.0.0"}', "1.0.0"), (b'{"cniVersion": "0.1.0"}', "0.1.0"), (b"", "1.1.0")],
)
def test_version_needs_no_agent_and_no_environment(asked: bytes, answered: str) -> None:
    done = call("VERSION", asked, dict.fromkeys(ENVIRONMENT))
    assert done.exit == 0
    assert done.document == {
        "cniVersion": answered,
        "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"],
    }


def test_del_needs_neither_namespace_nor_a_namespace_that_is_there(agent: Agent) -> None:
    for netns in (None, "", "/run/netns/gone"):
        assert call("DEL", network(agent.path), {"CNI_NETNS": netns}).exit == 0
    assert agent.namespaces == []


def test_gc_and_status_need_nothing_but_a_command(agent: Agent) -> None:
    for command in ("GC", "STATUS"):
        done = call(command, network(agent.path), dict.fromkeys(ENVIRONMENT))
        assert done.exit == 0


def test_a_list_of_many_attachments_passes_whole(agent: Agent) -> None:
    rows = [{"containerID": f"{n:064x}", "ifname": "eth0"} for n in range(5000)]
    done = call("GC", network(agent.path, **{"cni.dev/valid-attachments": rows}))
    assert (done.exit, done.out) == (0, "")
    assert agent.lines[0]["config"]["cni.dev/valid-attachments"] == rows


def test_it_is_quick(agent: Agent) -> None:
    config = network(agent.path)
    times = sorted(call("ADD", config).seconds for _ in range(15))
    bare = []
    for _ in range(15):
        started = time.perf_counter()
        subprocess.run(["/usr/bin/python3", "-IS", "-c", ""], check=True)
        bare.append(time.perf_counter() - started)
    median, floor = times[7], sorted(bare)[7]
    print(
        f"\nADD with an agent that answers at once: median {median * 1e3:.0f} ms, best"
        f" {times[0] * 1e3:.0f} ms; of that a bare python3 {floor * 1e3:.0f} ms"
    )
    assert times[0] < 1.0


def test_it_is_one_file_of_the_standard_library_for_old_pythons() -> None:
    text = PLUGIN.read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")
    assert PLUGIN.stat().st_mode & 0o111 == 0o111
    tree = ast.parse(text, feature_version=(3, 7))
    names = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
    assert len(names) <= 10
