# SPDX-License-Identifier: Apache-2.0
"""The routing overlay by Geneve, which the kernels that tests usually meet do not have.

Everything else of the overlay is in tests/net/test_overlay.py, by VXLAN.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pellicle import lab
from pellicle.lab import agents, check
from pellicle.lab.topology import LabNode

MakeLab = Callable[..., lab.LabState]


@pytest.mark.parametrize("outer", [6, 4], ids=["over IPv6", "over IPv4"])
@pytest.mark.parametrize("engines", ["xfrm", "bpf", "xfrm,n2=bpf"])
def test_every_path_is_encrypted_and_answered(make_lab: MakeLab, engines: str, outer: int) -> None:
    lab.down()
    settings = {"routing": "overlay", "overlay": "geneve", "outer_family": str(outer)}
    make_lab(2, 1, engine=engines, settings=settings)
    found = check.check()
    assert (found.problems, found.clear) == ((), 0)
    assert found.encrypted > found.messages
    assert agents.status(LabNode(1))["datapath"]["overlay"] == "geneve"


def test_it_works_in_the_clear(make_lab: MakeLab) -> None:
    settings = {"routing": "overlay", "overlay": "geneve"}
    make_lab(2, 1, encrypt=False, settings=settings)
    found = check.check()
    assert (found.problems, found.encrypted) == ((), 0)
    assert found.clear > found.messages
