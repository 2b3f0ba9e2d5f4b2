# SPDX-License-Identifier: Apache-2.0
"""The program as a whole: help that teaches, quick starts, right exit codes, settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pellicle.cli import main
from pellicle.cli.options import speaks_json
from pellicle.cli.trouble import Exit, Program
from pellicle.kernel import Unsupported
from pellicle.settings import SETTINGS

from . import recorded
from .conftest import Agent, Pellicle


def commands(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from commands(each, (*words, name))


ALL = dict(commands(main))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_teaches_by_example(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    assert "pellicle " in result.output.split("\n", 2)[2], "an example is missing"
    if words:
        assert "Example" in result.output
    short = ALL[words].get_short_help_str(60)
    assert short
    assert not short.endswith("..."), "the first sentence is too long for a list of commands"


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_fit_eighty_columns(words: tuple[str, ...]) -> None:
    output = CliRunner().invoke(main, [*words, "--help"], terminal_width=80).output
    wide = [line for line in output.splitlines() if len(line) > 100]
    assert not wide


def test_every_command_that_shows_something_has_json() -> None:
    silent = {
        "completion", "lab down", "lab exec", "lab sniff", "lab log", "lab add-node",
        "lab remove-node", "lab add-pod", "lab delete-pod", "lab start-agent", "lab kill-agent",
        "lab restart-agent", "lab reboot", "monitor",
    }  # fmt: skip
    for words, command in ALL.items():
        if isinstance(command, click.Group) or " ".join(words) in silent:
            continue
        names = {name for each in command.params for name in each.opts}
        assert "--json" in names, words


def test_help_and_completion_load_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from pellicle.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "heavy = {'rich', 'msgspec', 'yaml', 'asyncio', 'pyroute2', 'structlog', 'cffi',\n"
        "         'cryptography', 'prometheus_client', 'pellicle.lab', 'pellicle.agent'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    # click.testing itself brings asyncio's neighbours; none of ours may come.
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "words",
    [
        ("bogus",),
        ("status", "--bogus"),
        ("map", "dump"),
        ("flows", "--last", "0"),
        ("flows", "--last", "many"),
        ("lab", "exec", "n1"),
        ("completion", "tcsh"),
        ("agent", "--attach", "xdp"),
        ("agent", "--config", "/nowhere.yaml"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_no_missing_agent(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 64
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_calls_back(shell: str, pellicle: Pellicle) -> None:
    result = pellicle("completion", shell)
    assert result.exit_code == 0
    assert "_PELLICLE_COMPLETE" in result.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=True)


def test_bash_completes_maps_and_commands() -> None:
    environment = os.environ | {
        "_PELLICLE_COMPLETE": "bash_complete",
        "COMP_WORDS": "pellicle map dump sa_",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pellicle"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["plain,sa_in", "plain,sa_out"]


def test_version_says_what_runs_where(pellicle: Pellicle) -> None:
    assert pellicle("version").stdout.startswith("pellicle 0.")
    told = json.loads(pellicle("version", "--json").stdout)
    assert told["kernel"] == os.uname().release
    assert set(told) == {"version", "python", "kernel", "machine"}


def test_every_setting_is_an_option_of_the_agent_and_is_shown_by_print_config(
    pellicle: Pellicle,
) -> None:
    help_text = pellicle("agent", "--help").output
    told = json.loads(pellicle("agent", "--print-config", "--json").stdout)
    assert list(told) == [setting.name for setting in SETTINGS]
    for setting in SETTINGS:
        assert f"{setting.flag} " in help_text


def test_flags_come_before_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("uplink: eth1\nlog_level: debug\nflow_interval: 2s\n")
    words = ["agent", "--config", str(file), "--uplink", "eth3", "--print-config", "--json"]
    environment = {"PELLICLE_UPLINK": "eth2", "PELLICLE_LOG_LEVEL": "error"}
    told = json.loads(CliRunner().invoke(main, words, env=environment).stdout)
    assert told["uplink"] == {"value": "eth3", "origin": "--uplink"}
    assert told["log_level"] == {"value": "error", "origin": "PELLICLE_LOG_LEVEL"}
    assert told["flow_interval"] == {"value": "2s", "origin": str(file)}
    assert told["attach"] == {"value": "auto", "origin": "default"}


def test_lists_may_be_repeated_or_separated_and_switches_negated() -> None:
    networks = ["--cluster-cidrs", "10.244.0.0/16", "--cluster-cidrs", "fd00:244::/32,10.8.0.0/16"]
    words = ["agent", *networks, "--no-enable-encrypt-l3", "--print-config", "--json"]
    told = json.loads(CliRunner().invoke(main, words).stdout)
    assert told["cluster_cidrs"]["value"] == "10.244.0.0/16, fd00:244::/32, 10.8.0.0/16"
    assert told["enable_encrypt_l3"] == {"value": "false", "origin": "--enable-encrypt-l3"}


def test_all_that_is_wrong_with_the_settings_is_said_at_once() -> None:
    words = ["agent", "--uplink", "a/b", "--route-table", "main", "--enable-encrypt-l3"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 64
    assert "uplink (from --uplink)" in result.stderr
    assert "route_table (from --route-table)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [("lab", "up"), ("lab", "down"), ("lab", "status", "--json"), ("demo",), ("lab", "sniff")],
    ids=" ".join,
)
def test_the_lab_without_root_says_so(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "Run it as root." in result.output


def test_the_doctor_without_root_says_what_it_could_not_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "✓  kernel" in result.stdout
    assert "✗  root" in result.stdout
    assert "Run it as root." in result.stdout
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert told["engine"] is None
    assert {row["about"]: row["mark"] for row in told["findings"]}["root"] == "wrong"


def test_a_flush_without_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(main, ["encrypt", "flush", "--yes"])
    assert result.exit_code == 1
    assert "Run it as root." in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("lab", "up", "--nodes", "0"), "a lab has 1 to"),
        (("lab", "up", "--engine", "n9=bpf"), "'n9' is not a node"),
        (("lab", "up", "--set", "drain"), "a setting is NAME=VALUE"),
        (("lab", "up", "--nodes", "many"), "not a valid integer"),
        (("lab", "log", "web"), "web"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_what_cannot_be_a_lab_is_refused_before_anything_is_made(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 64
    assert says in result.stderr


def test_a_reader_that_goes_away_ends_it_quietly(agent: Agent) -> None:
    agent.played = {"flows": recorded.FLOWS * 2000}
    ask = f"{sys.executable} -m pellicle flows --json --socket {agent.path} | head -n 1"
    done = subprocess.run(["sh", "-c", ask], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == recorded.FLOWS[0]
    assert done.stderr == ""


def test_the_reference_knows_every_command() -> None:
    reference = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for words, command in ALL.items():
        if not isinstance(command, click.Group):
            assert " ".join(words) in reference, f"docs/cli.md does not mention {' '.join(words)}"


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["words", "JSON"])
def test_what_the_system_lacks_is_a_sentence(words: list[str]) -> None:
    @click.command()
    @speaks_json
    def lacking(*, as_json: bool) -> None:
        raise Unsupported("loading BPF programs", "libbpf.so.1 (Debian: package libbpf1)")

    result = CliRunner().invoke(Program(commands={"lacking": lacking}), ["lacking", *words])
    assert result.exit_code == Exit.DEGRADED
    assert "it needs libbpf.so.1 (Debian: package libbpf1)." in result.output
    assert "Traceback" not in result.output
    assert result.output.startswith('{"error"' if words else "pellicle: loading BPF programs")
