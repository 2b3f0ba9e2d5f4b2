# SPDX-License-Identifier: Apache-2.0
"""For all tests: what they must not depend on."""

from __future__ import annotations

import argparse
import os
import signal

import pytest
from hypothesis import settings

from pellicle.lab import LabError
from pellicle.lab.patience import VARIABLE, read
from tests import pace

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
    group.addoption(
        "--patience",
        type=_factor,
        metavar="N",
        help=f"wait N times as long, on a machine that is slow (default: ${VARIABLE}, or 1)",
    )
    group.addoption(
        "--brief",
        action="store_true",
        help="samples of sizes, shorter transfers, thinner loads: for a machine that is slow",
    )

    group.addoption(
        "--rotate-for",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long keys change every few seconds under load, in tests/net/test_rotation.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    if (factor := config.getoption("patience")) is not None:
        os.environ[VARIABLE] = f"{factor:g}"  # for the programs that tests start as well
    pace.be_brief(config.getoption("brief"))


def pytest_report_header(config: pytest.Config) -> str:
    engine, patience = config.getoption("engine"), pace.patient(1)
    brief = ", brief: samples of sizes, short transfers, thin loads" * pace.is_brief()
    return f"pellicle: engine {engine}, patience {patience:g}{brief}"


def _factor(text: str) -> float:
    try:
        return read(text)
    except LabError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> str:
    """Of labs that no test says otherwise of, in the words of `pellicle lab up --engine`."""
    return ENGINES[pytestconfig.getoption("engine")]
