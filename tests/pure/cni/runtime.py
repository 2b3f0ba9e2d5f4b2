# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin as a container runtime starts it, and an agent that answers as it is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

PLUGIN = Path(__file__).parents[3] / "cni" / "pellicle-cni"
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a"}],
    "ips": [{"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 0}],
    "dns": {},
}


@dataclass
class Agent:
    """A listener that answers as it is told, and remembers what it was asked."""

    path: Path
    answer: Callable[[socket.socket], None]
    lines: list[dict[str, Any]] = field(default_factory=list)
    namespaces: list[int] = field(default_factory=list)
    """Inodes of what came along as a descriptor."""

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                line = b""
                while not line.endswith(b"\n"):
                    chunk, descriptors, _, _ = socket.recv_fds(connection, 65536, 4)
                    self.namespaces += [os.fstat(each).st_ino for each in descriptors]
                    for each in descriptors:
                        os.close(each)
                    if not chunk:
                        break
                    line += chunk
                self.lines.append(json.loads(line))
                self.answer(connection)


def says(row: object) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(json.dumps(row).encode() + b"\n")


@dataclass(frozen=True)
class Outcome:
    exit: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        assert not self.err, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def error(self, code: int) -> str:
        """Its words, after a look at everything that CNI wants of an error."""
        row = self.document
        assert (self.exit, row["code"]) == (1, code), row
        assert row["cniVersion"] in ("0.4.0", "1.0.0", "1.1.0")
        assert row.keys() <= {"cniVersion", "code", "msg", "details"}
        return f"{row['msg']} | {row.get('details', '')}"


ENVIRONMENT = {
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/proc/self/ns/net",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1",
    "CNI_PATH": "/opt/cni/bin",
}


def call(
    command: str | None,
    config: Mapping[str, Any] | bytes,
    environment: Mapping[str, str | None] = MappingProxyType({}),
    *,
    plugin: Path = PLUGIN,
    user: int | None = None,
) -> Outcome:
    changed = {**ENVIRONMENT, "CNI_COMMAND": command, **environment}
    present = {name: value for name, value in changed.items() if value is not None}
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    started = time.perf_counter()
    done = subprocess.run(
        [plugin], input=text, env=present, capture_output=True, timeout=30, check=False, user=user
    )
    seconds = time.perf_counter() - started
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(), seconds)


def network(path: Path, **more: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "pellicle",
        "type": "pellicle-cni",
        "socket": str(path),
        **more,
    }
