"""The audit of reads: one record per call that read features, of what was asked, never of what was answered.

Written behind the response in batches; it shares the registry's database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import delete, select, update

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

    @property
    def is_erased(self) -> bool:
        """Whether it named an entity that has been erased since."""
        return any(each.startswith(PSEUDONYM) for each in self.entity_ids)


_Runs = list[QueryRun]
_RUNS_PER_LOOK = 500
_PARTS = re.compile(r"(?:[^:\\]|\\.)+")
PSEUDONYM = "erased:"
"""How an entity id begins that stands for an erased entity."""


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

    def forget_before(self, instant: Instant) -> int:
        """Delete the runs recorded before an instant; returns how many. They cannot be replayed any more."""
        query = delete(schema.query_runs).where(schema.query_runs.c.created_at < instant)
        with self._database.write() as connection:
            return connection.execute(query).rowcount

    def erase(self, featuresets: Sequence[str], pseudonyms: Mapping[str, str]) -> int:
        """Put pseudonyms in the place of entities in the runs of some featuresets; how many runs named one of them.

        What was asked goes with them: such a run cannot be replayed. Done again it changes nothing.

        Args:
            featuresets: names; of look-ups, the dataset's.
            pseudonyms: per key text, what stands in its place.
        """
        runs, named, after = schema.query_runs, 0, 0
        while True:
            query = select(runs.c.sequence, runs.c.entity_ids, runs.c.error, runs.c.correlation_id).where(
                runs.c.sequence > after, runs.c.featureset.in_(featuresets)
            )
            with self._database.read() as connection:
                found = connection.execute(query.order_by(runs.c.sequence).limit(_RUNS_PER_LOOK)).all()
            changed = [(row.sequence, values) for row in found if (values := _erased(row, pseudonyms))]
            if changed:
                with self._database.write() as connection:
                    for sequence, values in changed:
                        connection.execute(update(runs).where(runs.c.sequence == sequence).values(values))
            named += len(changed)
            if len(found) < _RUNS_PER_LOOK:
                return named
            after = found[-1].sequence

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


def _erased(row: Any, pseudonyms: Mapping[str, str]) -> dict[str, Any]:
    """New values of a run that names one of the entities; none for another."""
    ids = [_pseudonym(each, pseudonyms) for each in row.entity_ids]
    if ids == list(row.entity_ids):
        return {}
    # A message begins with its code; what follows may quote the id, as may the caller's own correlation id.
    error = row.error and row.error.partition(":")[0]
    quoted = row.correlation_id is not None and any(key in row.correlation_id for key in pseudonyms)
    kept = None if quoted else row.correlation_id
    return {"entity_ids": ids, "inputs": None, "positions": None, "error": error, "correlation_id": kept}


def _pseudonym(entity_id: str, pseudonyms: Mapping[str, str]) -> str:
    """What stands for an id: also where the entity is one part of a composite key (decision 16)."""
    parts = [part.replace("\\:", ":").replace("\\\\", "\\") for part in _PARTS.findall(entity_id)]
    found = next((pseudonyms[name] for name in (entity_id, *parts) if name in pseudonyms), None)
    return entity_id if found is None else found
