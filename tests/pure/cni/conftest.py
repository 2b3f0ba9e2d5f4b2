# SPDX-License-Identifier: Apache-2.0
"""An agent's socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pure.cni.runtime import RESULT, Agent, says


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
