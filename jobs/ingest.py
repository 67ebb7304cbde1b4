"""Ingest: a source is polled, its records go through the dataset's door into the log.

The log is the only memory. Each partition's append moves its records, dead letters and source position together;
a poll begins at the lowest position any partition has, so after a crash between two partitions' appends the
records are read again, and each partition skips what it holds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from featurelib.clock import SECOND, Clock, Duration, Instant, SystemClock
from featurelib.connectors import Malformed, Mark, SourceBatch, connect
from featurelib.definitions import DatasetDef, ExpectationDef, SourceDef, ref
from featurelib.errors import LogFull, SourceError, StoreUnavailable
from featurelib.settings import IngestSettings, Settings
from featurelib.sources import STREAMING
from featurelib.stores.budget import Budget
from featurelib.stores.dead_letters import DeadLetter
from featurelib.stores.encryption import key_source
from featurelib.stores.intake import Intake, Taken, lateness_of
from featurelib.stores.intake_events import drift_event, dropped_event
from featurelib.stores.log import Head, Identity, Log
from featurelib.stores.registry import NewEvent, Registry, Severity
from featurelib.stores.secret_values import SecretReader
from featurelib.stores.shapes import Shapes
from featurelib.stores.source_secrets import SourceSecrets

_log = structlog.get_logger(__name__)
_PAUSE_AFTER_FAILURE_US = SECOND

Report = Callable[[NewEvent], None]


class StepReport(NamedTuple):
    """What one step did. ``caught_up``: the source had no more when it was asked."""

    rows: int
    accepted: int
    duplicates: int
    late: int
    dead: int
    caught_up: bool
    cursor: str


class SourceIngest:
    """Feeds one dataset from one source, a batch per step."""

    def __init__(
        self,
        source: SourceDef,
        dataset: DatasetDef,
        partitions: int,
        log: Log,
        *,
        report: Report,
        settings: IngestSettings,
        clock: Clock,
    ) -> None:
        self._dataset = dataset
        self._partitions = partitions
        self._log = log
        self._settings = settings
        self._clock = clock
        self._source = connect(source, settings.batch_rows, clock)
        self._intake = Intake(
            log,
            dataset,
            partitions,
            lateness_of(source, settings),
            source.cdc,
            shapes=Shapes(log, clock),
            dead_kept=settings.dead_letters_kept,
        )
        self._ordered_cursor = bool(source.cursor)
        self._batches: Iterator[SourceBatch] | None = None
        self._untaken: SourceBatch | None = None
        self._cursor = ""
        self._tally = _Tally(dataset, settings.dead_letters_kept, report)

    def step(self) -> StepReport:
        """Take one batch.

        Raises:
            SourceError: the source failed; a later step polls it again from the log's position.
            LogFull: the log has no room; the source is not read on, and a later step offers it the same batch again.
            StoreUnavailable: the log does not answer; a later step polls the source again from the log's position.
        """
        try:
            batch = self._untaken or next(self._open(), None)
            if batch is None:
                self._close()
                return StepReport(0, 0, 0, 0, 0, caught_up=True, cursor=self._cursor)
            self._cursor = self._newer(batch.cursor)
            self._untaken = batch
            letters = [malformed_letter(bad) for bad in batch.malformed]
            taken = self._intake.take(batch.records, identity_of(batch), letters, self._cursor)
            self._untaken = None
        except LogFull:
            raise
        except (SourceError, StoreUnavailable):
            self._close()
            raise
        self._tally.add(taken)
        for notice in batch.notices:
            self._tally.say(notice)
        rows = len(batch.records) + len(batch.malformed)
        return StepReport(rows, taken.accepted, taken.duplicates, taken.late, taken.dead, False, self._cursor)

    def reconnect(self, source: SourceDef) -> None:
        """Go on with the same source under other settings, from the log's position.

        Raises:
            SourceError: there is something wrong with them; what was stays.
        """
        fresh = connect(source, self._settings.batch_rows, self._clock)
        self._batches = self._untaken = None
        self._source.close()
        self._source = fresh

    def close(self) -> None:
        """Give the source's connections back."""
        self._source.close()

    def _open(self) -> Iterator[SourceBatch]:
        if self._batches is None:
            heads = self._log.heads(ref(self._dataset), self._partitions)
            self._cursor = max((head.cursor for head in heads), key=_cursor_order)
            self._batches = iter(self._source.poll(resume_position(heads)))
        return self._batches

    def _close(self) -> None:
        self._batches = self._untaken = None
        self._tally.publish()

    def _newer(self, cursor: str) -> str:
        if not self._ordered_cursor:
            return cursor or self._cursor
        return max(self._cursor, cursor, key=_cursor_order)


def identity_of(batch: SourceBatch) -> Identity:
    """Where a batch's records stand in their source, as the log keeps it."""
    named = bool(batch.names or batch.floor)
    return Identity(batch.stream, batch.through, None if named else batch.sequence, batch.names, batch.floor)


def malformed_letter(bad: Malformed) -> DeadLetter:
    """The dead letter of a piece of input that is not a record."""
    sequence = None if bad.name else bad.sequence
    return DeadLetter({"text": bad.text}, "malformed", "", bad.message, sequence, bad.name)


def resume_position(heads: Sequence[Head]) -> dict[str, Mark]:
    """Per stream the lowest mark over all partitions; a stream that a partition never heard of starts anew."""
    streams = set.intersection(*(set(head.marks) for head in heads))
    return {stream: min(head.marks[stream] for head in heads) for stream in streams}


def _cursor_order(cursor: str) -> tuple[bool, float, str]:
    """Numbers by value, all other text by itself; nothing comes first."""
    try:
        return True, float(cursor), ""
    except ValueError:
        return bool(cursor), float("inf") if cursor else 0.0, cursor


class _Tally:
    """Collects what people should hear of, one event per kind and poll rather than one per batch."""

    def __init__(self, dataset: DatasetDef, dead_kept: int, report: Report) -> None:
        self._dataset = dataset
        self._dead_kept = dead_kept
        self._report = report
        self._accepted = self._late = self._dead = self._dropped = 0
        self._example = ""
        self._violations: dict[ExpectationDef, tuple[int, int]] = {}

    def add(self, taken: Taken) -> None:
        self._accepted += taken.accepted
        self._late += taken.late
        self._dead += taken.dead
        self._dropped += taken.dropped
        if taken.drift:
            self._report(drift_event(self._dataset.name, "ingest", taken.drift))
        for rejected in taken.rejected[:1]:
            self._example = self._example or rejected.message
        for expectation, failed, total, _ in taken.violations:
            before_failed, before_total = self._violations.get(expectation, (0, 0))
            self._violations[expectation] = (before_failed + failed, before_total + total)

    def say(self, notice: str) -> None:
        """What the source itself says of its records, at once."""
        self._send("source_error", "warn", notice, {})

    def publish(self) -> None:
        if self._accepted:
            self._send("source_ingestion", "info", f"{self._accepted} records accepted", {"accepted": self._accepted})
        if self._late:
            self._send("late_records", "warn", f"{self._late} records came too late", {"late": self._late})
        if self._dead:
            example = f"; the first: {self._example}" if self._example else ""
            self._send("dead_letter", "warn", f"{self._dead} records rejected{example}", {"dead": self._dead})
        if self._dropped:
            self._report(dropped_event(self._dataset.name, "ingest", self._dropped, self._dead_kept))
        for expectation, (failed, total) in self._violations.items():
            rule = expectation.model_dump(mode="json", exclude_defaults=True)
            message = f"{expectation.column}: {failed} of {total} values fail {expectation.type}"
            self._send(
                "expectation_violation", "warn", message, {"expectation": rule, "failed": failed, "total": total}
            )
        self._clear()

    def _send(self, event_type: str, severity: Any, message: str, detail: dict[str, Any]) -> None:
        self._report(
            NewEvent(
                event_type=event_type,
                severity=severity,
                source="ingest",
                subject=self._dataset.name,
                message=message,
                detail=detail,
            )
        )

    def _clear(self) -> None:
        self._accepted = self._late = self._dead = self._dropped = 0
        self._example = ""
        self._violations = {}


class Pace:
    """When the next poll of a source begins: so long after the last one began, or at once if that has passed.

    Args:
        every_us: the pace; 0 for a source that waits for records itself.
        clock: the wall clock. One that jumps never makes a pause longer than the pace.
    """

    def __init__(self, every_us: Duration, clock: Clock) -> None:
        self._every_us = every_us
        self._clock = clock
        self._began: Instant | None = None

    def begin(self) -> None:
        """A step begins; it is a poll's first unless a poll goes on."""
        if self._began is None:
            self._began = self._clock.now()

    def left_us(self, at_least_us: Duration = 0) -> Duration:
        """The poll is over: how long to wait before the next."""
        began, self._began = self._began, None
        left = self._every_us - (self._clock.now() - began) if began is not None else self._every_us
        return max(min(left, self._every_us), at_least_us, 0)


class SourceTask:
    """A source as a task: polls for ever. A source that fails is asked again at its next turn."""

    def __init__(self, source: SourceDef, dataset: DatasetDef, settings: Settings) -> None:
        clock = SystemClock()
        self._dataset = dataset
        # A source that pushes waits for records itself.
        every_us = 0 if source.connector.type in STREAMING else settings.ingest.default_every_ms * 1_000
        self._pace = Pace(source.every_us or every_us, clock)
        self._log = Log(settings.online.redis_url.get_secret_value(), clock, Budget.of(settings.online))
        self._registry = Registry(settings.registry_url, clock)
        self._partitions = self._log.create(ref(dataset), settings.pipeline.partition_count)
        reader = SecretReader(self._registry.database, key_source(settings))
        self._secrets = SourceSecrets(source, reader, settings.secrets.refresh_s, clock)
        self._connected = self._secrets.look() or source
        self._ingest = SourceIngest(
            self._connected,
            dataset,
            self._partitions,
            self._log,
            report=self._record,
            settings=settings.ingest,
            clock=clock,
        )
        self._is_waiting = False
        self._facts: dict[str, Any] = {"caught_up": False, "error": ""}

    def start(self) -> None:
        """Read the totals so far."""
        self._facts |= self._totals()

    def step(self) -> bool:
        """Take one batch; False when the source has no more for now, failed, or the log has no room."""
        self._pace.begin()
        try:
            self._follow_secrets()
            done = self._ingest.step()
        except SourceError as error:
            self._failed(self._event("source_error", "error", str(error)))
            return False
        except LogFull as error:
            self._failed(self._event("source_waiting", "warn", f"the source is not read on: {error}"))
            self._is_waiting = True
            return False
        if self._is_waiting:
            self._facts["error"], self._is_waiting = "", False
        if done.caught_up:
            # Not the sum of the steps: after a crash a step counts again what was held already.
            self._facts |= {**self._totals(), "caught_up": True, "error": ""}
            return False
        for name in ("accepted", "dead", "late"):
            self._facts[name] += getattr(done, name)
        self._facts |= {"cursor": done.cursor, "caught_up": False}
        return True

    def wait(self, stopping: threading.Event) -> None:
        """Until the next poll is due."""
        # A source that failed, and a log that is full, are left alone for a while also where no pace says so.
        stopping.wait(self._pace.left_us(_PAUSE_AFTER_FAILURE_US if self._facts["error"] else 0) / SECOND)

    def facts(self) -> Mapping[str, Any]:
        """Totals of the dataset's log, the cursor, and what the source last failed with."""
        return dict(self._facts)

    def close(self) -> None:
        """Close connections."""
        self._ingest.close()
        self._log.close()
        self._registry.close()

    def _follow_secrets(self) -> None:
        """Read on with the secrets of now. A source that failed may have been refused because of them."""
        try:
            found = self._secrets.look(at_once=bool(self._facts["error"]))
        except StoreUnavailable as error:
            _log.warning("secrets_not_looked_at", dataset=self._dataset.name, detail=str(error))
            return
        if found is not None and found != self._connected:
            self._ingest.reconnect(found)
            self._connected = found
            _log.info("source_reconnected", dataset=self._dataset.name, why="a secret changed")

    def _totals(self) -> dict[str, Any]:
        heads = self._log.heads(ref(self._dataset), self._partitions)
        return {
            "accepted": sum(head.next_offset for head in heads),
            "dead": sum(head.records_dead for head in heads),
            "late": sum(head.records_late for head in heads),
            "cursor": max((head.cursor for head in heads), key=_cursor_order),
        }

    def _failed(self, event: NewEvent) -> None:
        # A source that stays broken fails at every poll: one event says so until the message changes.
        if event.message != self._facts["error"]:
            self._record(event)
        self._facts["error"] = event.message

    def _event(self, event_type: str, severity: Severity, message: str) -> NewEvent:
        name = self._dataset.name
        return NewEvent(event_type=event_type, severity=severity, source="ingest", subject=name, message=message)

    def _record(self, event: NewEvent) -> None:
        try:
            self._registry.record_event(event)
        except StoreUnavailable as error:
            _log.warning("event_not_recorded", event_type=event.event_type, detail=str(error))
