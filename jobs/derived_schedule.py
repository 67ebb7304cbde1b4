"""Has the tables of derived datasets kept up: a Ray job every so often, one at a time, and told of when it fails.

A job of its own, since it may hold the history of a table in memory and take long: neither live workers nor the
archive copy wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import structlog

from cluster.launcher import Job, Launcher
from featurelib.clock import SystemClock
from featurelib.errors import ThymeError
from featurelib.settings import Settings
from featurelib.stores.registry import NewEvent, Registry

_log = structlog.get_logger(__name__)
_COMMAND = "python -m jobs.derived --keep-up"
_PREFIX = "thyme-derived-"
_ROUND_S = 5.0
# A platform that has just come up has sources to catch up with.
_FIRST_AFTER_S = 300.0
_MESSAGE = 500


class DerivedSchedule:
    """Submits the job when it is due.

    Args:
        registry: where a failure is told of.
        launcher: what runs the job.
        every_s: how often; 0: never.
        now: seconds that only go on.
    """

    def __init__(self, registry: Registry, launcher: Launcher, every_s: int, now: Callable[[], float]) -> None:
        self._registry = registry
        self._launcher = launcher
        self._every_s = every_s
        self._now = now
        self._due = now() + min(_FIRST_AFTER_S, every_s)
        self._followed: str | None = None

    def step(self) -> bool:
        """Follow the job that runs, or submit one that is due; whether one was submitted.

        Raises:
            ClusterError: Ray does not answer; it stays due.
            StoreUnavailable: a failure cannot be told of yet.
        """
        if not self._every_s or self._is_running() or self._now() < self._due:
            return False
        # Another supervisor may have begun one: two at once would write the same tables.
        running = [job for job in self._launcher.jobs() if job.running and job.submission_id.startswith(_PREFIX)]
        if running:
            self._followed = running[0].submission_id
            return False
        self._followed = self._launcher.submit(_COMMAND, f"{_PREFIX}{time.time_ns() // 1_000_000}")
        self._due = self._now() + self._every_s
        return True

    def _is_running(self) -> bool:
        job = self._launcher.job(self._followed) if self._followed else None
        if job is not None and job.running:
            return True
        if job is not None and job.status == "FAILED":
            self._registry.record_event(_failure(job))
        self._followed = None
        return False


def keep_derived_tables(settings: Settings, stopping: threading.Event) -> None:
    """Have the job run until told to stop."""
    registry = Registry(settings.registry_url, SystemClock())
    with closing(registry), Launcher.of(settings) as launcher:
        schedule = DerivedSchedule(registry, launcher, settings.archive.derived_every_s, time.monotonic)
        while not stopping.wait(_ROUND_S):
            try:
                schedule.step()
            except ThymeError as error:
                _log.warning("derived_tables_not_kept_up", detail=str(error)[:_MESSAGE])


def _failure(job: Job) -> NewEvent:
    # The end of a job's output may hold anything: it is in Ray's log of the job, and not in the feed.
    return NewEvent(
        event_type="derived_tables_failed",
        severity="warn",
        source="derived-tables",
        subject="derived tables",
        message=f"some were not brought up to date; `ray job logs {job.submission_id}` says which and why",
        detail={"submission_id": job.submission_id},
    )
