# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: what it must not leave behind, when it ends, and why there is none."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal

import structlog

from pellicle import logs
from pellicle.agent import Agent
from pellicle.config import Config
from pellicle.kernel import Unsupported, libc
from pellicle.keys.secret import SecretError
from pellicle.sources import systemd, uplink
from pellicle.sources.secrets import SecretFileError
from pellicle.sources.workload import NoGrpc
from pellicle.tables import GARBAGE

REFUSALS = (uplink.NoUplink, SecretFileError, SecretError, NoGrpc, Unsupported, OSError)
"""What keeps an agent from starting, in words for the operator."""

log = structlog.get_logger()


class CannotStart(Exception):  # noqa: N818  it is an answer for the operator
    """Why there is no agent, in words; nothing was changed that encrypts less than before."""


async def run(config: Config) -> None:
    """Be this node's agent until SIGTERM or SIGINT; `CannotStart` says why not."""
    libc.forbid_core_dumps()
    faulthandler.enable()  # what no core dump tells: where native code fell over
    gc.set_threshold(*GARBAGE)
    logs.configure(config.log_level, config.log_format)
    try:
        agent = Agent(config)
    except REFUSALS as error:
        raise CannotStart(str(error)) from error
    work = asyncio.ensure_future(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        systemd.notify(os.environ, "STOPPING=1")
        log.info("stopped; the datapath goes on")
