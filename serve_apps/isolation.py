"""Where this replica runs extractors, how long each may take, and what becomes of one that cannot be stopped.

Inline, an extractor that passes its hard limit has taken the thread that answers requests. It is quarantined with an
event, which every replica reads before it compiles, and this replica reports itself ill, so that Serve puts another in
its place. In child processes the child is killed and nothing else happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

import structlog

from featurelib.engine import confinement
from featurelib.engine.extractor import Inline, Runner
from featurelib.engine.processes import Processes
from featurelib.engine.user_code import Guard, Limits, UserFunction
from featurelib.errors import ClusterError, StoreUnavailable
from featurelib.settings import ServingSettings
from featurelib.stores.registry import EventRecord, NewEvent

QUARANTINED = "extractor_quarantined"
_MOST_QUARANTINED = 1_000
_log = structlog.get_logger("thyme.serve")


class Feed(Protocol):
    """The part of the registry this needs."""

    def record_event(self, event: NewEvent) -> None:
        """Add an entry to the platform's feed."""
        ...

    def events(self, *, limit: int = 100, event_type: str | None = None) -> list[EventRecord]:
        """The latest entries of a type."""
        ...


class Isolation:
    """How a replica runs extractors; close it in the end.

    Args:
        settings: the mode and the limits.
        feed: keeps the quarantine.
        hidden: directories that extractors in child processes may not read.

    Attributes:
        runner: given to whoever compiles a featureset.
        threads: where runs that block are waited for; ``None`` where none does.
    """

    def __init__(self, settings: ServingSettings, feed: Feed, hidden: Sequence[str] = ()) -> None:
        limits = Limits(settings.extractor_soft_limit_ms / 1_000, settings.extractor_hard_limit_ms / 1_000)
        self.runner: Runner
        self.threads: Executor | None = None
        self._feed = feed
        self._given_up: dict[str, str] = {}
        self._stuck: str | None = None
        self._guard = Guard(limits, self._quarantine)
        self._processes: Processes | None = None
        if settings.extractor_isolation == "inline":
            self.runner = Inline(self._guard, self._given_up)
        else:
            if not confinement.version():
                _log.warning("extractors_unconfined", why="the kernel has no Landlock: they may read this user's files")
            self.runner = self._processes = Processes(limits, settings.extractor_processes, hidden)
            self.threads = ThreadPoolExecutor(settings.extractor_processes, thread_name_prefix="extractors")

    def refresh(self) -> None:
        """Read which extractors are quarantined; one that was changed or got another version is a different one.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        for event in self._feed.events(limit=_MOST_QUARANTINED, event_type=QUARANTINED):
            if event.detail:
                self._given_up[event.detail["identity"]] = event.detail["why"]

    @property
    def is_stuck(self) -> bool:
        """Whether an extractor could not be stopped."""
        return self._stuck is not None

    def check(self) -> None:
        """Raise when an extractor could not be stopped: the replica must be replaced.

        Raises:
            ClusterError: names the extractor.
        """
        if self._stuck is not None:
            raise ClusterError(self._stuck)

    def close(self) -> None:
        """End the watching thread, or the child processes."""
        self._guard.close()
        if self._processes is not None:
            self._processes.close()
        if self.threads is not None:
            self.threads.shutdown()

    def _quarantine(self, function: UserFunction) -> None:
        why = function.given_up or ""
        self._stuck = f"{function.location} in {function.label}: {why}"
        self._given_up[function.identity] = why
        _log.error(QUARANTINED, function=function.label, location=function.location, why=why)
        event = NewEvent(
            event_type="extractor_quarantined",
            severity="error",
            source="query-server",
            subject=function.label,
            message=self._stuck,
            detail={"identity": function.identity, "location": function.location, "why": why},
        )
        try:
            self._feed.record_event(event)
        except StoreUnavailable as error:
            # The replica is replaced all the same; the next one meets the extractor as if for the first time.
            _log.warning("event_lost", event_type=QUARANTINED, subject=function.label, error=str(error))
