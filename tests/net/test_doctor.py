# SPDX-License-Identifier: Apache-2.0
"""`pellicle doctor` on this machine, seen from a namespace with neighbours of all kinds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pellicle.kernel import netns
from pellicle.kernel.xfrm import probe_device, probe_esp
from tests.net.conftest import _footprint

HERE = f"pellicle-t{os.getpid()}-doctor"
TUNNEL = "tmpl src 192.0.2.1 dst 192.0.2.9 proto esp mode tunnel"
SET_UP = (
    "link add eth7 address 02:00:00:00:00:07 type veth peer name other",
    "addr add 192.0.2.1/24 dev eth7",
    "link set eth7 up",
    "link set other up",
    "route add default via 192.0.2.254",
    f"xfrm policy add dst 10.9.0.0/16 dir out {TUNNEL}",
    "rule add pref 0 fwmark 0x600/0x600 lookup 77",
)


@pytest.fixture
def here() -> Iterator[None]:
    assert os.geteuid() == 0, "network namespaces are made: run as root"
    try:
        netns.create(HERE)
        for words in SET_UP:
            netns.run_in(HERE, ["ip", *words.split()], check=True)
        yield
    finally:
        netns.delete(HERE)


def doctor(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pellicle", "doctor", *words]
    return netns.run_in(HERE, command, capture_output=True, text=True)


def told(*words: str) -> dict[str, Any]:
    done = doctor("--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def findings(*words: str) -> dict[str, dict[str, str]]:
    return {row["about"]: row for row in told(*words)["findings"]}


@pytest.mark.usefixtures("here")
def test_it_sees_what_is_there() -> None:
    found = findings()
    assert found["BPF programs"]["mark"] == found["attaching"]["mark"] == "well"
    assert found["uplink"]["says"] == "eth7: 192.0.2.1, MTU 1500"
    assert found["policies of others"]["says"] == "out 0.0.0.0/0 → 10.9.0.0/16 (192.0.2.9)"
    assert "0: from all fwmark 0x600/0x600 lookup 77" in found["rules of others"]["says"]
    assert found["forwarding"]["says"].startswith("off: net/ipv4/ip_forward")
    assert findings("--uplink", "nowhere0")["uplink"]["mark"] == "wary"


@pytest.mark.usefixtures("here")
def test_the_engine_is_what_the_kernel_can() -> None:
    lacking = probe_esp("rfc4106(gcm(aes))", 288) or probe_device()
    assert told()["engine"] == ("xfrm" if lacking is None else "bpf")


@pytest.mark.usefixtures("here")
def test_it_leaves_everything_as_it_is() -> None:
    def seen() -> tuple[object, ...]:
        words = ("link", "rule", "xfrm policy", "xfrm state", "route show table all")
        shown = [netns.run_in(HERE, ["ip", *each.split()], capture_output=True).stdout
                 for each in words]  # fmt: skip
        return _footprint(), shown, set(netns.names())

    before = seen()
    assert doctor().returncode == 0
    assert seen() == before


@pytest.mark.usefixtures("here")
def test_a_person_reads_marks_and_advice() -> None:
    page = doctor().stdout
    assert page.startswith("● this machine  can encrypt with the engine ")
    assert re.search(r"^  ✓  BPF programs +they load$", page, re.MULTILINE)
    assert re.search(r"^  !  policies of others +out 0\.0\.0\.0/0", page, re.MULTILINE)
    assert "give them an if_id" in page
