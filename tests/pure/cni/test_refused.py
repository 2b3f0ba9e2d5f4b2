# SPDX-License-Identifier: Apache-2.0
"""What the plugin refuses before it asks the agent, each with the code that CNI has for it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pure.cni.runtime import ENVIRONMENT, PLUGIN, RESULT, Agent, call, network


@dataclass(frozen=True)
class Refused:
    says: str
    code: int
    words: str
    command: str | None = "ADD"
    environment: Mapping[str, str | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes | None = None


REFUSED = (
    Refused("no command", 4, "CNI_COMMAND is not set", None),
    Refused("unknown command", 4, "CNI_COMMAND is 'UPDATE'", "UPDATE"),
    Refused("no container", 4, "ADD needs CNI_CONTAINERID", environment={"CNI_CONTAINERID": None}),
    Refused("ADD, empty netns", 4, "ADD needs CNI_NETNS", environment={"CNI_NETNS": ""}),
    Refused(
        "CHECK, nothing",
        4,
        "CHECK needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
        "CHECK",
        dict.fromkeys(ENVIRONMENT),
    ),
    Refused("DEL, no name", 4, "DEL needs CNI_IFNAME", "DEL", {"CNI_IFNAME": None}),
    Refused("bad container", 4, "CNI_CONTAINERID '../x'", environment={"CNI_CONTAINERID": "../x"}),
    Refused("long device", 4, "CNI_IFNAME", environment={"CNI_IFNAME": "a" * 16}),
    Refused("device ..", 4, "CNI_IFNAME '..'", environment={"CNI_IFNAME": ".."}),
    Refused("device with /", 4, "CNI_IFNAME 'a/b'", environment={"CNI_IFNAME": "a/b"}),
    Refused("args", 4, "CNI_ARGS: 'nonsense'", environment={"CNI_ARGS": "A=1;nonsense"}),
    Refused(
        "netns gone",
        3,
        "CNI_NETNS /run/netns/gone cannot be opened: No such file",
        environment={"CNI_NETNS": "/run/netns/gone"},
    ),
    Refused("netns gone, CHECK", 3, "No such file", "CHECK", {"CNI_NETNS": "/run/netns/gone"}),
    Refused("netns unusable", 5, "Too many levels", environment={"CNI_NETNS": "LOOP"}),
    Refused("not JSON", 6, "is not JSON", raw=b"{"),
    Refused("nothing", 6, "is not JSON", raw=b""),
    Refused("not UTF-8", 6, "is not JSON", raw=b'{"\xff": 1}'),
    Refused("nested too deep", 6, "is not JSON", raw=b"[" * 100_000),
    Refused("no object", 6, "is not a JSON object", raw=b"[1]"),
    Refused("too long", 6, "longer than", raw=b" " * ((1 << 20) + 1)),
    Refused("no version", 1, "cniVersion is missing", config={"cniVersion": None}),
    Refused("old version", 1, "cniVersion '0.3.1'", config={"cniVersion": "0.3.1"}),
    Refused("DEL, new version", 1, "cniVersion '2.0.0'", "DEL", config={"cniVersion": "2.0.0"}),
    Refused("strange version", 1, "cniVersion [1]", config={"cniVersion": [1]}),
    Refused("GC in 1.0.0", 1, "cniVersion 1.0.0 has no GC", "GC", config={"cniVersion": "1.0.0"}),
    Refused("STATUS in 0.4.0", 1, "has no STATUS", "STATUS", config={"cniVersion": "0.4.0"}),
    Refused("no name", 7, '"name" None', config={"name": None}),
    Refused("bad name", 7, '"name" \'a b\'', config={"name": "a b"}),
    Refused("relative socket", 7, "not an absolute path", config={"socket": "agent.sock"}),
    Refused("socket of no kind", 7, "not an absolute path", config={"socket": 7}),
    Refused("long socket", 7, "longer than 107 bytes", config={"socket": "/" + "a" * 107}),
    Refused("no time", 7, '"timeout" 0', config={"timeout": 0}),
    Refused("too much time", 7, '"timeout" 601', config={"timeout": 601}),
    Refused("time of no kind", 7, '"timeout" True', config={"timeout": True}),
    Refused("chained", 2, "prevResult", config={"prevResult": RESULT}),
    Refused("ipMasq", 2, "ipMasq true", config={"ipMasq": True}),
    Refused("ipam", 2, 'ipam {"type": "host-local"}', config={"ipam": {"type": "host-local"}}),
    Refused("misspelt key", 2, 'lables {"a": "b"}', config={"lables": {"a": "b"}}),
)  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.says)
def test_refused(agent: Agent, tmp_path: Path, case: Refused) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    environment = {
        name: str(loop) if value == "LOOP" else value for name, value in case.environment.items()
    }
    config = {**network(agent.path), **case.config}
    done = call(case.command, config if case.raw is None else case.raw, environment)
    assert case.words in done.error(case.code)
    assert agent.lines == []


def test_an_error_speaks_the_version_of_the_network(agent: Agent) -> None:
    done = call("ADD", network(agent.path, cniVersion="0.4.0", ipam={}))
    done.error(2)
    assert done.document["cniVersion"] == "0.4.0"


def test_a_runtime_that_keeps_standard_input_open_is_not_waited_for_without_end() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b'{"cniVersion"')
        environment = {**ENVIRONMENT, "CNI_COMMAND": "STATUS"}
        done = subprocess.run(
            [PLUGIN], stdin=reader, env=environment, capture_output=True, timeout=30, check=False
        )
    finally:
        os.close(reader)
        os.close(writer)
    row = json.loads(done.stdout)
    assert (done.returncode, row["code"]) == (1, 6)
    assert "standard input within 10 s" in row["msg"]
