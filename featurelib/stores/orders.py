"""What people ordered of jobs: to stand still, to go on, to begin anew. The supervisor obeys."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import select

from featurelib.clock import Clock, Instant
from featurelib.definitions import Record
from featurelib.errors import Conflict
from featurelib.stores import schema
from featurelib.stores.database import Database, record_of, upsert
from featurelib.stores.event_log import insert_event
from featurelib.stores.registry import NewEvent


class JobOrder(Record):
    """What holds for the job of a pipeline, a ref. ``restarts``: how often its workers were to begin anew."""

    pipeline: str
    paused: bool = False
    restarts: int = 0
    updated_at: Instant = 0


class _Word(Record):
    """An event that says what was ordered."""

    event_type: str
    text: str


_PAUSED = _Word(event_type="job_paused", text="shall stand still; its state and position stay")
_RESUMED = _Word(event_type="job_resumed", text="shall go on from where it stands")
_RESTART = _Word(event_type="job_restart_requested", text="shall have new workers, which go on from where it stands")


class Orders:
    """Orders in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``Orders(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def all(self) -> dict[str, JobOrder]:
        """By pipeline ref; one that nobody ever ordered anything of is not in it."""
        with self._database.read() as connection:
            rows = connection.execute(select(schema.job_orders)).all()
        return {row.pipeline: record_of(JobOrder, row) for row in rows}

    def pause(self, pipeline: str, by: str | None) -> JobOrder:
        """Have a pipeline stand still; again it changes nothing. ``by``: fingerprint of the key that asks."""
        return self._change(pipeline, by, _PAUSED, lambda _: {"paused": True})

    def resume(self, pipeline: str, by: str | None) -> JobOrder:
        """Have a pipeline go on; again it changes nothing."""
        return self._change(pipeline, by, _RESUMED, lambda _: {"paused": False})

    def restart(self, pipeline: str, by: str | None) -> JobOrder:
        """Have every worker of a pipeline replaced, once per call.

        Raises:
            Conflict: it is paused.
        """
        return self._change(pipeline, by, _RESTART, _one_restart_more)

    def _change(
        self, pipeline: str, by: str | None, word: _Word, decide: Callable[[JobOrder], Mapping[str, object]]
    ) -> JobOrder:
        table, now = schema.job_orders, self._clock.now()
        with self._database.exclusive() as connection:
            row = connection.execute(select(table).where(table.c.pipeline == pipeline)).first()
            before = record_of(JobOrder, row) if row is not None else JobOrder(pipeline=pipeline)
            after = before.model_copy(update=dict(decide(before)))
            if after == before:
                return before
            after = after.model_copy(update={"updated_at": now})
            upsert(connection, table, after.model_dump())
            insert_event(connection, _event(pipeline, by, word), now)
        return after


def _one_restart_more(order: JobOrder) -> Mapping[str, object]:
    if order.paused:
        raise Conflict(f"the job of {order.pipeline} is paused: there is nothing to restart; resume it")
    return {"restarts": order.restarts + 1}


def _event(pipeline: str, by: str | None, word: _Word) -> NewEvent:
    return NewEvent(
        event_type=word.event_type,
        source="definition-service",
        subject=pipeline,
        message=f"{pipeline} {word.text}",
        detail={"requested_by": by},
    )
