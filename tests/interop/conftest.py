# SPDX-License-Identifier: Apache-2.0
"""What every judge needs: a kernel with ESP, and a lab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from pellicle import lab
from pellicle.kernel.xfrm import probe_device, probe_esp
from pellicle.lab import agents
from pellicle.lab.sniffer import Sniffer
from tests.interop.byhand import CASES, N1, N2, Case, Pair, stand
from tests.net.conftest import lab_place, make_lab
from tests.net.engines import kernel_drops
from tests.net.parcels import SECRET

__all__ = ["lab_place", "make_lab"]

ALGORITHMS = {"rfc7539esp(chacha20,poly1305)": 288, "rfc4106(gcm(aes))": 288}


@pytest.fixture(scope="session", autouse=True)
def kernel_with_esp() -> None:
    """Also where only BPF encrypts: the kernel's IPsec is the judge."""
    for version in (4, 6):
        for algorithm, bits in ALGORITHMS.items():
            error = probe_esp(algorithm, bits, version)
            assert error is None, f"this needs a kernel with ESP, `make vm` boots one: {error}"
    error = probe_device()
    assert error is None, f"this needs a kernel with xfrm interfaces, `make vm` boots one: {error}"


@pytest.fixture(scope="session", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, lab_place: None) -> Iterator[Pair]:
    """A node with Pellicle, and one without that has its keys. One lab for all tests of a case."""
    case: Case = request.param
    lab.down()
    yield stand(case)
    lab.down()


@pytest.fixture
def all_is_understood(pair: Pair) -> Iterator[None]:
    """Neither end has dropped anything, and the wire has carried nothing of the pods' but ESP."""
    before = troubles()
    with Sniffer(markers=[SECRET], nonces=True) as wire:
        yield
        wire.settle()
        assert (wire.lost(), wire.leaks(), wire.marks()) == (0, (), {})
        # Over IPv6 the other kernel segments as it encrypts, and does use nonces twice
        # (docs/engines.md): that is its own affair.
        own = {sa.source for sa in pair.sent.values()}
        assert [reuse for reuse in wire.reuses() if reuse.source in own] == []
    assert troubles() == before


def troubles() -> Mapping[str, int]:
    """What was dropped at either end, and why."""
    dropped = {
        f"n1 {row['reason']}": int(row["packets"])
        for row in agents.status(N1)["counts"]
        if row["reason"].startswith("DROP_")
    }
    for node in (N1, N2):
        dropped |= {f"{node.name} {name}": n for name, n in kernel_drops(node).items()}
    return dropped
