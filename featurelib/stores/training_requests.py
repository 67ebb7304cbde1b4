"""Training sets that were asked for over HTTP: the state machine that service, supervisor and job share.

requested   nobody has begun
running     its Ray job makes it
cancelling  it shall end
complete, cancelled, failed: over

Every move names the states it may start from, in one statement: of two that race, one wins. So a training set that was
cancelled is never complete afterwards, whatever its job still does.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from featurelib.clock import Clock, Instant
from featurelib.definitions import Record
from featurelib.engine.asof import Knowledge
from featurelib.errors import Conflict, NotFound, QuotaExceeded
from featurelib.stores import schema
from featurelib.stores.database import Database, newest, record_of
from featurelib.stores.event_log import insert_event
from featurelib.stores.registry import NewEvent

TrainingState = Literal["requested", "running", "cancelling", "cancelled", "complete", "failed"]

OPEN: tuple[TrainingState, ...] = ("requested", "running", "cancelling")
"""States of one that is not over."""
TRAINING_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What an id looks like."""

_REQUESTED: tuple[TrainingState, ...] = ("requested",)
_RUNNING: tuple[TrainingState, ...] = ("running",)
_WANTED: tuple[TrainingState, ...] = ("requested", "running")
_CANCELLING: tuple[TrainingState, ...] = ("cancelling",)
_OVER: tuple[TrainingState, ...] = ("cancelled", "complete", "failed")


class TrainingQuestion(NamedTuple):
    """What is asked for.

    Attributes:
        featureset: its name.
        spine: path or URL of the rows to ask for; ``None``: they were uploaded.
        entity_column: the column of ids; ``None``: the one so named.
        timestamp_column: the column of instants.
        knowledge: ``as_served`` counts of each row only what had been accepted by its instant.
        like_id: the training set that it is made like, of the same rows, records and definitions.
    """

    featureset: str
    spine: str | None = None
    entity_column: str | None = None
    timestamp_column: str = "timestamp"
    knowledge: Knowledge = "latest"
    like_id: str | None = None


class TrainingSet(Record):
    """One training set: what :class:`TrainingQuestion` says of it, and how far it is.

    Attributes:
        id: a UUID.
        state: how far it is.
        error: stable code of what it failed with.
        detail: why, where that needs words.
        submission_id: of its Ray job.
        attempt: which Ray job of it, from 1 on; the next goes on where one that died stopped.
        rows: of its spine; ``None``: not counted yet.
        parts: into how many parts the spine was split; ``None``: not yet.
        parts_done: how many of them were read.
        requested_by: fingerprint of the key it was asked with.
        correlation_id: of the request.
    """

    id: str
    featureset: str
    spine: str | None = None
    entity_column: str | None = None
    timestamp_column: str
    knowledge: Knowledge
    like_id: str | None = None
    state: TrainingState = "requested"
    error: str | None = None
    detail: str = ""
    submission_id: str | None = None
    attempt: int = 1
    rows: int | None = None
    parts: int | None = None
    parts_done: int = 0
    requested_by: str | None = None
    correlation_id: str | None = None
    created_at: Instant = 0
    updated_at: Instant = 0

    @property
    def is_open(self) -> bool:
        """Whether it is not over."""
        return self.state in OPEN


class AskedBy(NamedTuple):
    """Who asks: fingerprint of the key, and the correlation id of the request."""

    key: str | None = None
    correlation_id: str | None = None


def new_training_id() -> str:
    """The id of a training set that is yet to be asked for."""
    return str(uuid.uuid4())


_TrainingSets = list[TrainingSet]


class TrainingRequests:
    """Training sets in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database does not
    answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``TrainingRequests(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def request(
        self, training_id: str, question: TrainingQuestion, rows: int | None, asked: AskedBy, most: int | None = None
    ) -> TrainingSet:
        """Ask for a training set of so many rows; ``None``: its job counts them.

        Raises:
            QuotaExceeded: there are ``most`` already.
        """
        now = self._clock.now()
        made = TrainingSet(
            id=training_id,
            **question._asdict(),
            rows=rows,
            requested_by=asked.key,
            correlation_id=asked.correlation_id,
            created_at=now,
            updated_at=now,
        )
        # Of requests that come at once, no two count before either is there.
        with self._database.exclusive() as connection:
            if most is not None:
                _check_count(connection, most)
            connection.execute(schema.training_sets.insert(), made.model_dump())
            insert_event(
                connection, _event("training_set_requested", made, "asked for" if rows is None else f"{rows} rows"), now
            )
        return made

    def check_count(self, most: int) -> None:
        """Refuse another one before it is sent.

        Raises:
            QuotaExceeded: there are ``most`` already.
        """
        with self._database.read() as connection:
            _check_count(connection, most)

    def get(self, training_id: str) -> TrainingSet:
        """The training set of that id.

        Raises:
            NotFound: there is none.
        """
        table = schema.training_sets
        # No other text is an id, and there are some that PostgreSQL does not compare.
        if TRAINING_ID.fullmatch(training_id):
            with self._database.read() as connection:
                row = connection.execute(select(table).where(table.c.id == training_id)).first()
            if row is not None:
                return record_of(TrainingSet, row)
        raise NotFound(f"no training set {training_id[:64]!r}")

    def latest(self, limit: int = 100, featureset: str | None = None) -> _TrainingSets:
        """The latest, newest first; of one featureset when it is named."""
        query = newest(schema.training_sets, limit)
        if featureset is not None:
            query = query.where(schema.training_sets.c.featureset == featureset)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(TrainingSet, row) for row in rows]

    def open(self) -> _TrainingSets:
        """Those that are not over, oldest first."""
        table = schema.training_sets
        query = select(table).where(table.c.state.in_(OPEN)).order_by(table.c.sequence)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(TrainingSet, row) for row in rows]

    def over_before(self, instant: Instant) -> _TrainingSets:
        """Those that were over before an instant, oldest first."""
        table = schema.training_sets
        query = select(table).where(table.c.state.in_(_OVER), table.c.updated_at < instant)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.c.sequence).limit(100)).all()
        return [record_of(TrainingSet, row) for row in rows]

    def submitted(self, made: TrainingSet, submission_id: str) -> bool:
        """Note the Ray job of one; whether it is still wanted."""
        event = _event("training_set_started", made, f"Ray job {submission_id}")
        return self._move(
            made.id, _REQUESTED, {"state": "running", "submission_id": submission_id, "detail": ""}, event
        )

    def advance(self, training_id: str, parts_done: int, parts: int, rows: int) -> bool:
        """Note how far its job is, and how many rows its spine has; whether it is still wanted."""
        return self._move(training_id, _WANTED, {"parts_done": parts_done, "parts": parts, "rows": rows})

    def stumbled(self, training_id: str, why: str) -> bool:
        """Note what its job fails with, for whoever decides whether another one goes on."""
        return self._move(training_id, _WANTED, {"detail": why})

    def retried(self, made: TrainingSet, why: str) -> bool:
        """Have another job go on with what one that died has left; whether it is still wanted."""
        event = _event("training_set_resumed", made, f"attempt {made.attempt + 1}: {why}")
        event = event.model_copy(update={"severity": "warn"})
        return self._move(made.id, _RUNNING, {"attempt": made.attempt + 1, "detail": why}, event)

    def completed(self, made: TrainingSet, rows: int) -> bool:
        """Note that it is there whole, and tell of it unless that was done; false: nobody wants it any more."""
        values = {"state": "complete", "detail": "", "rows": rows}
        return self._move(made.id, _WANTED, values, _event("training_set_completed", made, f"{rows} rows"))

    def failed(self, made: TrainingSet, code: str, why: str) -> bool:
        """Note that it failed, and tell of it, unless it is over or is being cancelled."""
        event = _event("training_set_failed", made, why).model_copy(update={"severity": "warn"})
        return self._move(made.id, _WANTED, {"state": "failed", "error": code, "detail": why}, event)

    def cancel(self, training_id: str, by: str | None = None) -> TrainingSet:
        """Have one end; one that is ending or was cancelled stays so. ``by``: fingerprint of the key that asks.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is over.
        """
        said = "cancelled" if by is None else f"cancelled with the key {by}"
        self._move(training_id, _WANTED, {"state": "cancelling", "detail": said})
        found = self.get(training_id)
        if found.state not in ("cancelling", "cancelled"):
            raise Conflict(f"training set {training_id} is {found.state}: it can no longer be cancelled")
        return found

    def cancelled(self, made: TrainingSet) -> bool:
        """Note that nothing of it runs any more, and tell of it unless it was over."""
        event = _event("training_set_cancelled", made, made.detail or "cancelled")
        return self._move(made.id, _CANCELLING, {"state": "cancelled"}, event)

    def forget(self, training_id: str) -> None:
        """Delete one that is over.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not over.
        """
        table = schema.training_sets
        with self._database.write() as connection:
            over = delete(table).where(table.c.id == training_id, table.c.state.in_(_OVER))
            gone = connection.execute(over).rowcount
        if not gone:
            state = self.get(training_id).state
            raise Conflict(f"training set {training_id} is {state}: cancel it, or wait until it is over")

    def _move(
        self,
        training_id: str,
        states: Collection[TrainingState],
        values: Mapping[str, Any],
        event: NewEvent | None = None,
    ) -> bool:
        with self._database.write() as connection:
            moved = self._update(connection, training_id, states, values)
            if moved and event is not None:
                insert_event(connection, event, self._clock.now())
        return moved

    def _update(
        self, connection: Connection, training_id: str, states: Collection[TrainingState], values: Mapping[str, Any]
    ) -> bool:
        table = schema.training_sets
        same = update(table).where(table.c.id == training_id, table.c.state.in_(states))
        return connection.execute(same.values(**values, updated_at=self._clock.now())).rowcount == 1


def _check_count(connection: Connection, most: int) -> None:
    count = connection.execute(select(func.count()).select_from(schema.training_sets)).scalar_one()
    if count >= most:
        raise QuotaExceeded(
            f"{count} training sets are kept, and training.most_kept is {most}: delete some, or wait until "
            "training.keep_days has them deleted"
        )


def _event(event_type: str, made: TrainingSet, message: str) -> NewEvent:
    return NewEvent(
        event_type=event_type,
        source="definition-service" if event_type == "training_set_requested" else "training-set",
        subject=made.featureset,
        message=message,
        detail={"training_set_id": made.id, "requested_by": made.requested_by},
    )
