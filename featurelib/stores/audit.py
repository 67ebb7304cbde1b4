"""The audit of reads: one record per call that read features, of what was asked, never of what was answered.

Written behind the response in batches; it shares the registry's database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import select

from featurelib.clock import Instant
from featurelib.definitions import Record
from featurelib.stores import schema
from featurelib.stores.database import Database, insert_new, newest, record_of

QueryKind = Literal["online", "batch", "offline", "lookup"]


class QueryRun(Record):
    """One read (decision 25).

    ``id`` is a UUID; ``featureset`` holds the dataset for look-ups; ``requested_timestamp`` is ``None`` when the
    rows asked for differ in theirs; ``hit_count`` counts rows with every requested feature non-null. The last
    three make a replay possible: the request's JSON, the commit that was served, and the applied positions.
    """

    id: str
    kind: QueryKind
    featureset: str
    entity_ids: tuple[str, ...] = ()
    entity_count: int = 0
    requested_timestamp: Instant | None = None
    hit_count: int = 0
    latency_ms: int = 0
    api_key_fingerprint: str | None = None
    correlation_id: str | None = None
    error: str | None = None
    created_at: Instant
    inputs: dict[str, Any] | None = None
    definition: str | None = None
    positions: dict[str, Any] | None = None


_Runs = list[QueryRun]


class Audit:
    """Query runs in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``Audit(registry.database)``."""
        self._database = database

    def record(self, runs: Sequence[QueryRun]) -> None:
        """Store the runs in one insert, all or none. A batch that is sent again adds nothing twice."""
        if runs:
            with self._database.write() as connection:
                insert_new(connection, schema.query_runs, [run.model_dump() for run in runs])

    def get(self, run_id: str) -> QueryRun | None:
        """The run of that id, if it is recorded."""
        query = select(schema.query_runs).where(schema.query_runs.c.id == run_id)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else record_of(QueryRun, row)

    def list(self, limit: int = 100, featureset: str | None = None) -> _Runs:
        """The latest runs, newest first, at most 1000; of one featureset when it is named.

        Without ``inputs`` and ``positions``: only a replay needs them, and they may be large.

        Raises:
            InvalidRequest: ``limit`` is not positive.
        """
        listed = (column for column in schema.query_runs.c if column.name not in {"inputs", "positions"})
        query = newest(schema.query_runs, limit).with_only_columns(*listed)
        if featureset is not None:
            query = query.where(schema.query_runs.c.featureset == featureset)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(QueryRun, row) for row in rows]
