"""Backfills that were asked for, and what became of each: the state machine that service, supervisor and job share.

requested   nobody has begun
running     its Ray job builds the next generation of the state; the one before is served
switching   all is built, and the generation that is served is being changed: past the point of no return
cancelling  it shall end; the generation before stays
complete, cancelled, failed: over
rolling_back the generation before is about to be served again
rolled_back that one is served

The generation served before is kept up to date until ``kept_until``: a complete backfill can be rolled back.
Every move names the states it may start from, in one statement: of two that race, one wins.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, select, update

from featurelib.clock import Clock, Instant, format_instant
from featurelib.definitions import Record
from featurelib.errors import Conflict, NotFound
from featurelib.stores import schema
from featurelib.stores.database import Database, newest, record_of
from featurelib.stores.event_log import insert_event
from featurelib.stores.registry import NewEvent

BackfillState = Literal[
    "requested", "running", "switching", "cancelling", "cancelled", "complete", "failed", "rolling_back", "rolled_back"
]

OPEN: tuple[BackfillState, ...] = ("requested", "running", "switching", "cancelling", "rolling_back")
"""States of a request that is not over."""

BUILDING: tuple[BackfillState, ...] = ("requested", "running")
"""States in which a request can still be cancelled."""

SWITCHING: tuple[BackfillState, ...] = ("switching",)
"""States in which it can only be finished."""

_REQUESTED: tuple[BackfillState, ...] = ("requested",)
_ENDABLE: tuple[BackfillState, ...] = (*BUILDING, "cancelling")
_KEEPING: tuple[BackfillState, ...] = ("complete", "rolled_back")
_ROLLING: tuple[BackfillState, ...] = ("rolling_back",)
_RUNNING: tuple[BackfillState, ...] = ("running",)
_COMPLETE: tuple[BackfillState, ...] = ("complete",)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class BackfillRequest(Record):
    """One backfill.

    Attributes:
        id: a UUID.
        pipeline: ref of the pipeline whose state is built anew.
        since: only records dated at or after it, of those accepted before the build began.
        until: only records dated at or before it, likewise.
        state: how far it is.
        detail: why, where that needs words.
        submission_id: of its Ray job.
        generation: which generation of the state it builds.
        rows: folded so far.
        rows_expected: how many it will be, as far as is known; exact once every partition has read its history.
        requested_by: fingerprint of the key it was asked with; none: the platform itself.
        correlation_id: of the request.
        attempt: which Ray job of it, from 1 on; the next goes on where one that died stopped.
        cut: per input partition of the pipeline the offset below which history is folded, the same in all attempts.
        previous: the generation that was served before it was complete.
        kept_until: until when that one, or after a rollback this one, is kept up to date; none: it is not.
    """

    id: str
    pipeline: str
    since: Instant | None = None
    until: Instant | None = None
    state: BackfillState = "requested"
    detail: str = ""
    submission_id: str | None = None
    generation: int | None = None
    rows: int = 0
    rows_expected: int | None = None
    requested_by: str | None = None
    correlation_id: str | None = None
    created_at: Instant = 0
    updated_at: Instant = 0
    attempt: int = 1
    cut: tuple[int, ...] | None = None
    previous: int | None = None
    kept_until: Instant | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is not over."""
        return self.state in OPEN


class Asked(NamedTuple):
    """Who asks for a backfill: fingerprint of the key, and the correlation id of the request."""

    by: str | None = None
    correlation_id: str | None = None


_Requests = list[BackfillRequest]


class BackfillRequests:
    """Requests in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``BackfillRequests(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def request(
        self,
        pipeline: str,
        *,
        since: Instant | None = None,
        until: Instant | None = None,
        asked: Asked = Asked(),  # noqa: B008  # a value
        detail: str = "",
        request_id: str | None = None,
    ) -> BackfillRequest:
        """Ask for a backfill of a pipeline, a ref.

        Raises:
            Conflict: one of the pipeline is not over yet.
        """
        now = self._clock.now()
        request = BackfillRequest(
            id=request_id or str(uuid.uuid4()),
            pipeline=pipeline,
            since=since,
            until=until,
            detail=detail,
            requested_by=asked.by,
            correlation_id=asked.correlation_id,
            created_at=now,
            updated_at=now,
        )
        table = schema.backfill_requests
        with self._database.exclusive() as connection:
            under_way = select(table.c.id).where(table.c.pipeline == pipeline, table.c.state.in_(OPEN))
            other = connection.scalar(under_way)
            if other is not None:
                raise Conflict(f"backfill {other} of {pipeline} is not over; cancel it, or wait until it is")
            connection.execute(table.insert(), request.model_dump(exclude={"cut"}))
            insert_event(connection, _event("backfill_requested", request, detail or _span(request)), now)
        return request

    def find(self, request_id: str) -> BackfillRequest | None:
        """The request of that id, if there is one."""
        table = schema.backfill_requests
        # No other text is an id, and there are some that PostgreSQL does not compare.
        if not _UUID.fullmatch(request_id):
            return None
        with self._database.read() as connection:
            row = connection.execute(select(table).where(table.c.id == request_id)).first()
        return None if row is None else record_of(BackfillRequest, row)

    def get(self, request_id: str) -> BackfillRequest:
        """The request of that id.

        Raises:
            NotFound: there is none.
        """
        found = self.find(request_id)
        if found is None:
            raise NotFound(f"no backfill {request_id[:64]!r}")
        return found

    def latest(self, limit: int = 100, pipeline: str | None = None) -> _Requests:
        """The latest requests, newest first; of one pipeline when it is named."""
        query = newest(schema.backfill_requests, limit)
        if pipeline is not None:
            query = query.where(schema.backfill_requests.c.pipeline == pipeline)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(BackfillRequest, row) for row in rows]

    def open(self) -> _Requests:
        """Requests that are not over, oldest first."""
        table = schema.backfill_requests
        query = select(table).where(table.c.state.in_(OPEN)).order_by(table.c.sequence)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(BackfillRequest, row) for row in rows]

    def cancel(self, request_id: str, by: str | None = None) -> BackfillRequest:
        """Have a backfill end; one that is ending or was cancelled stays so. ``by``: fingerprint of the key that asks.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is over, or its state is being switched to.
        """
        said = "cancelled" if by is None else f"cancelled with the key {by}"
        self._move(request_id, BUILDING, {"state": "cancelling", "detail": said})
        found = self.get(request_id)
        if found.state not in ("cancelling", "cancelled"):
            raise Conflict(f"backfill {request_id} is {found.state}: it can no longer be cancelled")
        return found

    def submitted(self, request: BackfillRequest, submission_id: str) -> bool:
        """Note the Ray job of a request; whether it is still wanted."""
        event = _event("backfill_started", request, f"{_span(request)}; Ray job {submission_id}")
        # What it waited for is over.
        values = {"state": "running", "submission_id": submission_id, "detail": ""}
        return self._move(request.id, _REQUESTED, values, event)

    def began(
        self, request_id: str, generation: int, rows_expected: int, *, rows: int = 0, cut: Sequence[int] | None = None
    ) -> bool:
        """Note that the job begins, maybe once more; whether it is still wanted.

        Args:
            request_id: of the request.
            generation: what it builds.
            rows_expected: how many rows it will fold, as far as is known.
            rows: folded by an attempt before.
            cut: per input partition, below what history is folded.
        """
        values: dict[str, Any] = {"generation": generation, "rows": rows, "rows_expected": rows_expected}
        if cut is not None:
            values["cut"] = list(cut)
        return self._move(request_id, BUILDING, values)

    def retried(self, request: BackfillRequest, why: str) -> bool:
        """Have another job go on with what one that died has left; whether it is still wanted."""
        event = _event("backfill_resumed", request, f"attempt {request.attempt + 1}: {why}")
        event = event.model_copy(update={"severity": "warn"})
        return self._move(request.id, _RUNNING, {"attempt": request.attempt + 1, "detail": why}, event)

    def built(self, request_id: str) -> bool:
        """Note that all is built, so that the switch will be made whoever dies; whether it is still wanted."""
        return self._move(request_id, BUILDING, {"state": "switching"})

    def completed(
        self, request: BackfillRequest, message: str, previous: int | None = None, kept_until: Instant | None = None
    ) -> bool:
        """Note that the new generation is served, and tell of it unless that was done.

        Args:
            request: the request.
            message: what people are told.
            previous: the generation that was served before.
            kept_until: until when that one is kept up to date; ``None``: it is not.
        """
        event = _event("backfill_completed", request, message)
        values = {"state": "complete", "detail": message, "previous": previous, "kept_until": kept_until}
        return self._move(request.id, SWITCHING, values, event)

    def roll_back(self, request_id: str, by: str | None = None) -> BackfillRequest:
        """Have the generation before a complete backfill served again. ``by``: fingerprint of the key that asks.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not complete, or the generation before is not kept any more.
        """
        said = "to be rolled back" if by is None else f"to be rolled back with the key {by}"
        found = self.get(request_id)
        if found.state == "complete" and (found.kept_until is None or found.kept_until <= self._clock.now()):
            raise Conflict(
                f"the generation before backfill {request_id} is not kept any more: ask for another backfill"
            )
        self._move(request_id, _COMPLETE, {"state": "rolling_back", "detail": said})
        found = self.get(request_id)
        if found.state not in ("rolling_back", "rolled_back"):
            raise Conflict(f"backfill {request_id} is {found.state}: only a complete one can be rolled back")
        return found

    def rolled_back(self, request: BackfillRequest, message: str) -> bool:
        """Note that the generation before is served again, and tell of it unless that was done."""
        event = _event("backfill_rolled_back", request, message).model_copy(update={"severity": "warn"})
        return self._move(request.id, _ROLLING, {"state": "rolled_back", "detail": message}, event)

    def not_rolled_back(self, request: BackfillRequest, why: str) -> bool:
        """Note that it is served on."""
        return self._move(request.id, _ROLLING, {"state": "complete", "detail": why})

    def drop_kept(self, request_id: str) -> BackfillRequest:
        """Have the generation that is not served dropped now; one that is gone stays so.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not over, or is being rolled back.
        """
        now = self._clock.now()
        found = self.get(request_id)
        if found.state not in _KEEPING:
            raise Conflict(f"backfill {request_id} is {found.state}: nothing is kept beside what it serves")
        if found.kept_until is not None and found.kept_until > now:
            self.keep_until(found, now)
        return self.get(request_id)

    def keep_until(self, request: BackfillRequest, until: Instant | None) -> bool:
        """Say until when the generation that is not served is kept up to date; ``None``: it is gone."""
        return self._move(request.id, _KEEPING, {"kept_until": until})

    def keeping(self, pipeline: str | None = None) -> _Requests:
        """Requests one of whose generations is kept though it is not served, oldest first; of one pipeline if named."""
        table = schema.backfill_requests
        query = select(table).where(table.c.kept_until.is_not(None)).order_by(table.c.sequence)
        if pipeline is not None:
            query = query.where(table.c.pipeline == pipeline)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(BackfillRequest, row) for row in rows]

    def cancelled(self, request: BackfillRequest, why: str) -> bool:
        """Note that nothing of it runs any more, and tell of it unless it was over."""
        event = _event("backfill_cancelled", request, why)
        return self._move(request.id, _ENDABLE, {"state": "cancelled", "detail": why}, event)

    def failed(self, request: BackfillRequest, why: str, states: Collection[BackfillState] = BUILDING) -> bool:
        """Note that it failed, and tell of it, unless it is in none of ``states`` any more."""
        event = _event("backfill_failed", request, why).model_copy(update={"severity": "error"})
        return self._move(request.id, states, {"state": "failed", "detail": why}, event)

    def waits(self, request: BackfillRequest, why: str) -> bool:
        """Note what a request waits for before it begins, or is rolled back."""
        return request.detail != why and self._move(request.id, (*_REQUESTED, *_ROLLING), {"detail": why})

    def stumbled(self, request_id: str, why: str) -> bool:
        """Note what its job fails with, for whoever decides whether another one goes on."""
        return self._move(request_id, _RUNNING, {"detail": why})

    def advance(self, request_id: str, rows: int, more_expected: int = 0) -> None:
        """Count rows that were folded, and rows that are expected beyond those known of."""
        table = schema.backfill_requests
        more = {"rows": table.c.rows + rows, "rows_expected": table.c.rows_expected + more_expected}
        with self._database.write() as connection:
            self._update(connection, request_id, OPEN, more)

    def _move(
        self,
        request_id: str,
        states: Collection[BackfillState],
        values: Mapping[str, Any],
        event: NewEvent | None = None,
    ) -> bool:
        with self._database.write() as connection:
            moved = self._update(connection, request_id, states, values)
            if moved and event is not None:
                insert_event(connection, event, self._clock.now())
        return moved

    def _update(
        self, connection: Connection, request_id: str, states: Collection[BackfillState], values: Mapping[str, Any]
    ) -> bool:
        table = schema.backfill_requests
        same = update(table).where(table.c.id == request_id, table.c.state.in_(states))
        return connection.execute(same.values(**values, updated_at=self._clock.now())).rowcount == 1


def _span(request: BackfillRequest) -> str:
    ends = {"since": request.since, "until": request.until}
    parts = [f"{name} {format_instant(at)}" for name, at in ends.items() if at is not None]
    return f"records dated {' '.join(parts)}" if parts else "all records"


def _event(event_type: str, request: BackfillRequest, message: str) -> NewEvent:
    return NewEvent(
        event_type=event_type,
        source="definition-service" if event_type == "backfill_requested" else "backfill",
        subject=request.pipeline,
        message=message,
        detail={"backfill_id": request.id, "requested_by": request.requested_by},
    )
