# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin as a container runtime sees it: a real process, a real socket to an agent."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "cni" / "pellicle-cni"
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


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    path = tmp_path / "agent.sock"
    made = Agent(path, says({"ok": RESULT}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(128)
        thread = threading.Thread(target=made.serve, args=(listener,))
        thread.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert not thread.is_alive()


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


# What goes well.


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


# What is refused before the agent is asked.


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


# What the agent refuses, and agents in trouble.


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [2, 3, 5, 7, 11, 50, 100, 101])
def test_the_agents_errors_pass_through(agent: Agent, command: str, code: int) -> None:
    agent.answer = says({"error": {"code": code, "message": "no", "hint": "do this"}})
    assert call(command, network(agent.path)).error(code) == "no | do this"


def expected(command: str) -> int:
    """Try again later; for STATUS there is a code of its own."""
    return 50 if command == "STATUS" else 11


@pytest.mark.parametrize("command", COMMANDS)
def test_no_agent(tmp_path: Path, command: str) -> None:
    words = call(command, network(tmp_path / "none")).error(expected(command))
    assert "agent is not running on this node" in words
    assert "systemctl status pellicle" in words
    assert '"socket"' in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_stopped(tmp_path: Path, command: str) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    words = call(command, network(path)).error(expected(command))
    assert "agent has stopped: nobody listens" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_goes_away_while_it_answers(agent: Agent, command: str) -> None:
    agent.answer = lambda connection: connection.sendall(b'{"ok"')
    words = call(command, network(agent.path)).error(expected(command))
    assert "went away before it answered" in words


@pytest.mark.parametrize("command", COMMANDS)
def test_agent_hangs(agent: Agent, command: str) -> None:
    enough = threading.Event()
    agent.answer = lambda _: (enough.wait(10), None)[1]
    done = call(command, network(agent.path, timeout=0.3))
    enough.set()
    assert "did not answer within 0.3 s" in done.error(expected(command))
    assert 0.3 <= done.seconds < 5


def test_an_agent_that_sends_a_byte_now_and_then_does_not_prolong_the_time(agent: Agent) -> None:
    def dribble(connection: socket.socket) -> None:
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    agent.answer = dribble
    done = call("ADD", network(agent.path, timeout=0.4))
    assert "did not answer within 0.4 s" in done.error(11)
    assert done.seconds < 3


def test_a_full_queue_is_waited_for_and_not_taken_for_a_dead_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        busy = call("ADD", network(path, timeout=0.3))
        assert "did not answer within 0.3 s" in busy.error(11)
        made = Agent(path, says({"ok": RESULT}))
        waiting = threading.Timer(0.3, lambda: (listener.accept()[0].close(), made.serve(listener)))
        waiting.start()
        done = call("ADD", network(path))
        listener.shutdown(socket.SHUT_RDWR)
        waiting.join(10)
    assert (done.exit, done.document) == (0, RESULT)


GARBAGE = (
    b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"ok": 1}\n', b'{"error": "no"}\n', b"\xff\xfe\n",
    b'{"error": {"code": "7"}}\n', b"[" * 90_000 + b"\n", b"x" * ((1 << 20) + 2),
)  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda raw: repr(raw[:24]))
def test_an_answer_that_is_none_is_named(agent: Agent, garbage: bytes) -> None:
    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it need not read all of it
            connection.sendall(garbage)

    agent.answer = send
    words = call("ADD", network(agent.path)).error(6)
    assert "the agent's answer cannot be read" in words
    assert "of the same version?" in words


def test_without_root_it_says_so(agent: Agent) -> None:
    agent.path.chmod(0)
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        plugin = Path(shutil.copy(PLUGIN, place))
        user = 65534 if os.getuid() == 0 else None
        done = call("ADD", network(agent.path), plugin=plugin, user=user)
    assert "does not run as root" in done.error(11)


# What it costs.


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
