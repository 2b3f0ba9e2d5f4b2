# SPDX-License-Identifier: Apache-2.0
"""What the agent tells systemd (sd_notify(3)); without systemd, nothing happens."""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify(environment: Mapping[str, str], state: str) -> None:
    """Send `state`, for example "READY=1", to whoever started this process and asked for it."""
    path = environment.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.sendto(state.encode(), address)
