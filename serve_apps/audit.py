"""Query runs written behind the answer: a bounded queue, and batches inserted in a thread.

A full queue or a failing database costs audit records, counted as dropped, and never a query.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

import structlog

from featurelib.errors import StoreUnavailable, ThymeError, ValueOverflow
from featurelib.stores.audit import QueryRun
from featurelib.stores.registry import NewEvent
from serve_apps.current import passed
from serve_apps.metrics import Metrics

# Five seconds of 10,000 answers a second: longer than a SQLite checkpoint, shorter than memory cares for (~1 kB each).
_MOST_WAITING = 50_000
_MOST_WAITING_BYTES = 64 * 2**20
_RUN_BYTES = 1_000
# One insert of 500 rows holds SQLite's write lock for a few milliseconds.
_BATCH = 500
_FLUSH_SECONDS = 0.05
_RETRY_SECONDS = 0.5
# How the error of a run begins whose result fits no column (decision 11).
_OVERFLOW = f"{ValueOverflow.code}:"

_log = structlog.get_logger("thyme.serve")


class RunStore(Protocol):
    """Where runs are kept."""

    def record(self, runs: Sequence[QueryRun]) -> None:
        """Store the runs, all or none; a batch sent again adds nothing twice."""
        ...


class Feed(Protocol):
    """The part of the registry that people's attention goes through."""

    def record_event(self, event: NewEvent) -> None:
        """Add an entry to the platform's feed."""
        ...


class AuditWriter:
    """Takes runs from the request path and writes them in the background. Lives on one event loop."""

    def __init__(self, store: RunStore, metrics: Metrics, feed: Feed) -> None:
        self._store = store
        self._metrics = metrics
        self._feed = feed
        self._overflowed: set[str] = set()
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self._flushing = asyncio.Lock()

    def put(self, run: dict[str, Any], size: int = 0) -> None:
        """Queue a run, as the members of a :class:`QueryRun`; never blocks and never fails.

        Args:
            run: the members.
            size: about how many bytes its ids and inputs have.
        """
        size += _RUN_BYTES
        if len(self._waiting) >= _MOST_WAITING or self._bytes + size > _MOST_WAITING_BYTES:
            self._metrics.runs_dropped.inc()
        else:
            self._waiting.append((run, size))
            self._bytes += size

    async def write(self, stopping: asyncio.Event) -> None:
        """Write what is queued until ``stopping``."""
        failing = False
        while not await passed(stopping, _RETRY_SECONDS if failing else _FLUSH_SECONDS):
            try:
                await self.flush()
            except ThymeError as error:
                if not failing:
                    _log.warning("query_runs_waiting", error=str(error), waiting=len(self._waiting))
                failing = True
            else:
                failing = False

    async def flush(self) -> None:
        """Write everything queued so far.

        Raises:
            StoreUnavailable: what was not written stays queued.
        """
        async with self._flushing:
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH))
                await asyncio.to_thread(self._record, [run for run, _ in batch])
                # Runs leave the queue after they are stored: a failed insert is tried again, and adds nothing twice.
                for _, size in batch:
                    self._waiting.popleft()
                    self._bytes -= size
                self._metrics.runs_recorded.inc(len(batch))

    def _record(self, batch: Sequence[dict[str, Any]]) -> None:
        # Records are built here, in the thread, since validating one would cost each answer some microseconds.
        self._store.record([QueryRun(**run) for run in batch])
        for run in batch:
            if str(run["error"] or "").startswith(_OVERFLOW) and run["featureset"] not in self._overflowed:
                self._overflowed.add(run["featureset"])
                self._tell_overflow(run)

    def _tell_overflow(self, run: dict[str, Any]) -> None:
        # Once per featureset and replica: every read of the entity fails alike until its window moves on.
        entity = next(iter(run["entity_ids"]), "")
        event = NewEvent(
            event_type="value_overflow",
            severity="error",
            source="query-server",
            subject=run["featureset"],
            message=f"a read of {entity!r} failed with {run['error']}",
            detail={"entity_id": entity, "query_run": run["id"]},
        )
        try:
            self._feed.record_event(event)
        except StoreUnavailable as error:
            _log.warning("event_lost", event_type=event.event_type, subject=event.subject, error=str(error))

    async def close(self) -> None:
        """Write the rest; what cannot be written now is counted as dropped."""
        try:
            await self.flush()
        except ThymeError as error:
            _log.warning("query_runs_lost", error=str(error), lost=len(self._waiting))
            self._metrics.runs_dropped.inc(len(self._waiting))
