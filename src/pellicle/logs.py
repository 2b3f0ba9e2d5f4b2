# SPDX-License-Identifier: Apache-2.0
"""How the agent's log lines look: text for people, JSON for programs, to stderr."""

from __future__ import annotations

import logging
import sys

import structlog

from pellicle.config import LogFormat, LogLevel


def configure(level: LogLevel, form: LogFormat) -> None:
    """Once, before the first line."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if form is LogFormat.TEXT:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
