"""The platform's feed in the order in which it grew, for those who follow it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select

from featurelib.stores import schema
from featurelib.stores.database import MOST_ROWS, Database, record_of
from featurelib.stores.registry import EventRecord


class FeedEntry(NamedTuple):
    """An entry and its place: of two entries the one that became visible later has the higher one."""

    sequence: int
    event: EventRecord


class Place(NamedTuple):
    """A place in the feed, and the id of the entry there; ``None`` before the first."""

    sequence: int
    event_id: str | None


class Feed:
    """Reads the feed forward.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``Feed(registry.database)``."""
        self._database = database

    def head(self) -> Place:
        """The place of the newest entry."""
        table = schema.events
        newest = select(table.c.sequence, table.c.id).order_by(table.c.sequence.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(newest).first()
        return Place(row.sequence, row.id) if row is not None else Place(0, None)

    def place_of(self, event_id: str) -> int | None:
        """The place of the entry with that id, a UUID."""
        query = select(schema.events.c.sequence).where(schema.events.c.id == event_id)
        with self._database.read() as connection:
            return connection.scalar(query)

    def after(self, sequence: int, limit: int = MOST_ROWS) -> list[FeedEntry]:
        """The first entries after a place, oldest first."""
        table = schema.events
        query = select(table).where(table.c.sequence > sequence).order_by(table.c.sequence).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [FeedEntry(row.sequence, record_of(EventRecord, row)) for row in rows]
