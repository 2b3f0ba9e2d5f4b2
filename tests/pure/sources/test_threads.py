# SPDX-License-Identifier: Apache-2.0
"""What several threads of an agent read, msgspec has learned before there are any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from contextlib import suppress
from pathlib import Path
import msgspec
from pellicle.audit import Interval
from pellicle.sources import shapes, trail
from pellicle.values import FieldError
from pellicle.wire import chain

def learns(read):
    called = set()
    sys.setprofile(lambda frame, *_: called.add(frame.f_code.co_name))
    try:
        with suppress(FieldError):
            read()
    finally:
        sys.setprofile(None)
    return "get_class_annotations" in called

class Fresh(msgspec.Struct):
    name: str = ""

assert learns(lambda: msgspec.convert({}, Fresh)), "this is how it is seen"
kinds = shapes.NodeShape, shapes.EndpointShape, shapes.IdentityShape, shapes.EncryptionPolicyShape
for kind in kinds:
    assert not learns(lambda: shapes.shape({}, kind)), kind
assert not learns(lambda: chain.parsed(b"{}\\n"))
assert not learns(lambda: list(trail.Trail(Path(sys.argv[1])).rows()))
assert not learns(lambda: Interval.of(chain.Record(1, "", "", "interval")))
"""


def test_nothing_is_learned_by_whoever_reads_first(tmp_path: Path) -> None:
    """Two that learn the same at once fall over in msgspec: the agent was gone without a word."""
    path = tmp_path / "keys.jsonl"
    path.write_text("{}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
