"""The audit of reads: one record per call that read features, of what was asked, never of what was answered.

Written behind the response in batches; it shares the registry's database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Row, Text, delete, func, select, tuple_, type_coerce, update

from featurelib.clock import Instant
from featurelib.definitions import Record
from featurelib.errors import InvalidRequest
from featurelib.stores import schema
from featurelib.stores.database import MOST_ROWS, Database, insert_new, newest, record_of

QueryKind = Literal["online", "batch", "offline", "lookup"]


class QueryRun(Record):
    """One read (decision 25).

    ``id`` is a UUID; ``featureset`` holds the dataset for look-ups; ``requested_timestamp`` is ``None`` when the
    rows asked for differ in theirs; ``hit_count`` counts rows with every requested feature non-null. The rest makes
    a replay possible: the request's JSON, the commit and the registry version that were served, the instant R, the
    applied positions, and keyed digests of what was answered.
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
    digests: str | None = None
    read_at: Instant | None = None
    registry_version: int | None = None

    @property
    def is_erased(self) -> bool:
        """Whether it named an entity that has been erased since."""
        return any(each.startswith(PSEUDONYM) for each in self.entity_ids)


class RunFilter(NamedTuple):
    """Which runs are wanted; what is ``None`` does not restrict. Both instants are included."""

    featureset: str | None = None
    kind: QueryKind | None = None
    key: str | None = None
    """Fingerprint of the API key."""
    failed: bool | None = None
    since: Instant | None = None
    until: Instant | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """It in SQL."""
        runs = schema.query_runs.c
        exact = {runs.featureset: self.featureset, runs.kind: self.kind, runs.api_key_fingerprint: self.key}
        found: list[ColumnElement[bool]] = [column == value for column, value in exact.items() if value is not None]
        if self.failed is not None:
            found.append(runs.error.is_not(None) if self.failed else runs.error.is_(None))
        if self.since is not None:
            found.append(runs.created_at >= self.since)
        if self.until is not None:
            found.append(runs.created_at <= self.until)
        return found


class RunPage(NamedTuple):
    """Some runs, newest first, each with its first ids; ``next_cursor`` asks for those after them, if there may be."""

    runs: tuple[QueryRun, ...]
    next_cursor: str | None


IDS_LISTED = 10
"""Ids of a run that a listing shows; ``entity_count`` says how many there are."""

_Runs = list[QueryRun]
_FOR_REPLAY = frozenset({"inputs", "positions", "digests"})
# Ten ids of a thousand characters; longer ones, or such as JSON escapes, make a listing show fewer.
_LISTED_CHARACTERS = 10_240
_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,18}")
_RUNS_PER_LOOK = 500
_RUNS_PER_DELETE = 2_000
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
        self.record_members([run.model_dump() for run in runs])

    def record_members(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Like :meth:`record`, of the members of runs: making a record of each costs more than storing it."""
        if runs:
            with self._database.write() as connection:
                insert_new(connection, schema.query_runs, runs)

    def forget_before(self, instant: Instant) -> int:
        """Delete the runs recorded before an instant; returns how many. They cannot be replayed any more."""
        runs, forgotten = schema.query_runs, 0
        oldest = select(runs.c.sequence).where(runs.c.created_at < instant).order_by(runs.c.created_at)
        query = delete(runs).where(runs.c.sequence.in_(oldest.limit(_RUNS_PER_DELETE)))
        while True:
            # In parts: whoever records runs waits for the write lock meanwhile.
            with self._database.write() as connection:
                gone = connection.execute(query).rowcount
            forgotten += gone
            if gone < _RUNS_PER_DELETE:
                return forgotten

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
        """The latest runs, newest first, at most 1000; of one featureset when it is named. See :meth:`page`."""
        return list(self.page(RunFilter(featureset=featureset), limit).runs)

    def page(self, wanted: RunFilter, limit: int = 100, cursor: str | None = None) -> RunPage:
        """Some of the runs that a filter leaves, newest first, at most 1000.

        They come without ``inputs``, ``positions`` and ``digests``, which only a replay needs, and with their first
        ids only: a thousand runs of ten thousand ids would be a hundred megabytes.

        Args:
            wanted: the filter; the same for every page.
            limit: most runs of the page.
            cursor: of the page before.

        Raises:
            InvalidRequest: ``limit`` is not positive, or the cursor is none.
        """
        runs = schema.query_runs
        query = newest(runs, limit).with_only_columns(*_listed_columns()).where(*wanted.conditions())
        if cursor is not None:
            query = query.where(tuple_(runs.c.created_at, runs.c.sequence) < tuple_(*_place(cursor)))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        last = f"{rows[-1].created_at}-{rows[-1].sequence}" if len(rows) == min(limit, MOST_ROWS) else None
        return RunPage(tuple(_listed(row) for row in rows), last)


def _listed_columns() -> list[ColumnElement[Any]]:
    runs = schema.query_runs
    whole = [column for column in runs.c if column.name not in {*_FOR_REPLAY, "entity_ids"}]
    return [*whole, func.substr(type_coerce(runs.c.entity_ids, Text), 1, _LISTED_CHARACTERS).label("first_ids")]


def _listed(row: Row[Any]) -> QueryRun:
    return record_of(QueryRun, row).model_copy(update={"entity_ids": tuple(_first_ids(row.first_ids))})


def _first_ids(text: str) -> Iterator[str]:
    """The first elements of a JSON list of texts that may be cut off anywhere."""
    decode, start = json.JSONDecoder().raw_decode, 1
    for _ in range(IDS_LISTED):
        try:
            value, end = decode(text, start)
        except ValueError:
            return
        yield value
        start = end + 1


def _place(cursor: str) -> tuple[int, int]:
    if not _CURSOR.fullmatch(cursor):
        raise InvalidRequest(f"cursor: {cursor[:60]!r} is not one that a page of query runs gave")
    created_at, _, sequence = cursor.partition("-")
    return int(created_at), int(sequence)


def _erased(row: Any, pseudonyms: Mapping[str, str]) -> dict[str, Any]:
    """New values of a run that names one of the entities; none for another."""
    ids = [_pseudonym(each, pseudonyms) for each in row.entity_ids]
    if ids == list(row.entity_ids):
        return {}
    # A message begins with its code; what follows may quote the id, as may the caller's own correlation id.
    error = row.error and row.error.partition(":")[0]
    quoted = row.correlation_id is not None and any(key in row.correlation_id for key in pseudonyms)
    kept = None if quoted else row.correlation_id
    cleared = dict.fromkeys(("inputs", "positions", "digests"))
    return {**cleared, "entity_ids": ids, "error": error, "correlation_id": kept}


def _pseudonym(entity_id: str, pseudonyms: Mapping[str, str]) -> str:
    """What stands for an id: also where the entity is one part of a composite key (decision 16)."""
    parts = [part.replace("\\:", ":").replace("\\\\", "\\") for part in _PARTS.findall(entity_id)]
    found = next((pseudonyms[name] for name in (entity_id, *parts) if name in pseudonyms), None)
    return entity_id if found is None else found
