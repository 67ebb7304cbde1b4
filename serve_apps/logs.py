"""Structured logs: one JSON object a line on standard error, where Ray keeps them per replica."""

from __future__ import annotations

import sys

import structlog


def configure_logs() -> None:
    """Write JSON lines. Never a renderer that prints local variables: those hold keys and feature values."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
