# SPDX-License-Identifier: Apache-2.0
"""What systemd hears, on a socket like its own; and the unit that is shipped."""

from __future__ import annotations

import configparser
import socket
from pathlib import Path

import pytest

from pellicle.sources.systemd import notify

UNIT = Path(__file__).parents[2] / "deploy" / "pellicle-agent.service"


@pytest.mark.parametrize("is_abstract", [False, True], ids=["path", "abstract"])
def test_the_state_arrives_where_the_environment_says(tmp_path: Path, is_abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if is_abstract else name)
        notify({"NOTIFY_SOCKET": f"@{name}" if is_abstract else name}, "READY=1")
        manager.setblocking(False)
        assert manager.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens() -> None:
    notify({}, "READY=1")


def test_the_unit_takes_no_mount_namespace_and_waits_for_ready() -> None:
    """In a mount namespace of its own the agent's pins in bpffs would be nobody else's."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert "--config /etc/pellicle/config.yaml" in service["ExecStart"]
    mounting = ("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "Temporary")
    assert not [key for key in service if key.startswith(mounting) or key == "DynamicUser"]
