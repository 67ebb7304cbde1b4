"""How an entry comes into the platform's feed: in the order in which its transaction commits.

A follower asks for what comes after the last entry it has seen, so a number given out earlier must never become
visible later. SQLite has one writer at a time; on PostgreSQL whoever adds an entry waits here for the transactions
that have added one and are not over yet.
"""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, text

from featurelib.clock import Instant
from featurelib.definitions import Record
from featurelib.stores import schema

# Any constant will do, as long as every process of every version uses the same one ("event" in ASCII).
_ADVISORY_LOCK = 0x6576656E74


def insert_event(connection: Connection, event: Record, now: Instant) -> None:
    """Add an entry, made of a ``NewEvent``, in the transaction of the connection."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    connection.execute(schema.events.insert(), {**event.model_dump(), "id": str(uuid.uuid4()), "created_at": now})
