# SPDX-License-Identifier: Apache-2.0
"""For all tests: what they must not depend on."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

ENGINES = {
    "auto": "auto",
    "bpf": "bpf",
    "xfrm": "xfrm",
    "mixed": "xfrm,n1=bpf",
}
"""What `--engine` may be, and how a lab is told."""

# An example of Hypothesis may take its time on a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Shells start background jobs with Ctrl-C ignored, which all that they start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pellicle")
    group.addoption(
        "--engine",
        choices=ENGINES,
        default="bpf",
        help="what encrypts in the labs of tests/net (mixed: bpf on n1, xfrm on all others)",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"pellicle: engine {config.getoption('engine')}"


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> str:
    """Of labs that no test says otherwise of, in the words of `pellicle lab up --engine`."""
    return ENGINES[pytestconfig.getoption("engine")]
