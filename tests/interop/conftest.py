# SPDX-License-Identifier: Apache-2.0
"""What every judge needs: a kernel with ESP, and a lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellicle import lab
from pellicle.kernel.xfrm import probe_device, probe_esp
from tests.interop.byhand import CASES, Case, Pair, stand
from tests.net.conftest import lab_place, make_lab

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
