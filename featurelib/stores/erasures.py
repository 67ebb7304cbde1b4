"""Receipts of erasures: who is erased is known here by digest alone, and how far it got by state.

accepted   tombstones are in the log: point-in-time reads leave the records out
applied    every pipeline has passed the tombstones: so do online reads
archived   archive, hot log, dead letters and query runs hold nothing of the entities any more
complete   nor does the online store's append-only file
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select, update

from featurelib.clock import Clock, Instant
from featurelib.definitions import Record
from featurelib.errors import NotFound
from featurelib.stores import schema
from featurelib.stores.database import Database, insert_new, newest, record_of

ErasureState = Literal["accepted", "applied", "archived", "complete"]


class ErasureRecord(Record):
    """One request to erase entities from a dataset.

    Attributes:
        id: a UUID.
        dataset: its name; every version's log has tombstones.
        entities: how many were named.
        digests: SHA-256 of the dataset's name, a NUL and the key text, one per entity.
        tombstones: per log partition, ``Name@version/partition``, the offset of the last one.
        block: whether records of the entities are refused from then on.
        state: how far it got.
        progress: what was removed so far, and what it waits for.
        requested_by: fingerprint of the key it was asked with.
    """

    id: str
    dataset: str
    entities: int
    digests: tuple[str, ...]
    tombstones: dict[str, int]
    block: bool = False
    state: ErasureState = "accepted"
    progress: dict[str, Any] = Field(default_factory=dict)
    requested_by: str | None = None
    created_at: Instant
    completed_at: Instant | None = None


_Records = list[ErasureRecord]


class Erasures:
    """Receipts in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``Erasures(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def accept(self, erasure: ErasureRecord) -> None:
        """Keep a receipt; of one that is there already, what it says of the request."""
        table, row = schema.erasures, erasure.model_dump()
        said = {name: row[name] for name in ("entities", "digests", "tombstones", "block", "requested_by")}
        with self._database.write() as connection:
            insert_new(connection, table, [row])
            connection.execute(update(table).where(table.c.id == erasure.id).values(said))

    def adopt(self, erasure: ErasureRecord) -> None:
        """Keep a receipt for tombstones without one; one that is there stays as it is."""
        with self._database.write() as connection:
            insert_new(connection, schema.erasures, [erasure.model_dump()])

    def move(self, erasure_id: str, state: ErasureState, progress: Mapping[str, Any]) -> None:
        """Note how far an erasure got."""
        table = schema.erasures
        values: dict[str, Any] = {"state": state, "progress": dict(progress)}
        if state == "complete":
            values["completed_at"] = self._clock.now()
        with self._database.write() as connection:
            connection.execute(update(table).where(table.c.id == erasure_id).values(values))

    def get(self, erasure_id: str) -> ErasureRecord:
        """The receipt of that id.

        Raises:
            NotFound: there is none.
        """
        query, row = select(schema.erasures).where(schema.erasures.c.id == erasure_id), None
        if "\0" not in erasure_id:  # PostgreSQL compares no text that holds one
            with self._database.read() as connection:
                row = connection.execute(query).first()
        if row is None:
            raise NotFound(f"no erasure {erasure_id[:64]!r}")
        return record_of(ErasureRecord, row)

    def list(self, limit: int = 100) -> _Records:
        """The latest receipts, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(newest(schema.erasures, limit)).all()
        return [record_of(ErasureRecord, row) for row in rows]

    def open(self) -> _Records:
        """Receipts that are not complete, oldest first."""
        table = schema.erasures
        query = select(table).where(table.c.state != "complete").order_by(table.c.sequence)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(ErasureRecord, row) for row in rows]
