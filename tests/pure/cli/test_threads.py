# SPDX-License-Identifier: Apache-2.0
"""Several nodes are asked at once: `pellicle lab rotate`."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading
import msgspec
from pellicle.ui.answers import read

learning, over = threading.Event(), threading.Event()

def kind():
    learning.set()
    over.wait(0.5)
    return int

class Inner(msgspec.Struct, frozen=True):
    number: "kind()"

class Outer(msgspec.Struct):
    inner: Inner

first = threading.Thread(target=read, args=[{"inner": {"number": 1}}, Outer])
first.start()
learning.wait()
assert read({"inner": {"number": 2}}, Outer).inner.number == 2
over.set()
first.join()
"""


def test_an_answer_is_read_while_another_thread_still_learns_its_shape() -> None:
    """msgspec falls over (0.22, SIGSEGV) if it is asked for what it has learned half."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
