"""The registry: what is committed, what happened, who may call, and display copies of what runs.

Definitions are kept as the JSON of their frozen records beside the digest of their canonical bytes, one
row per (kind, name, version), and are read back through those records. A version counter moves in the
transaction of every commit and key change, so that readers poll one number. Calls block: an event loop
runs them in a thread. Nothing here is on the hot path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection, Row, func, select, update

from featurelib.clock import Clock, Instant
from featurelib.definitions import (
    FORMAT,
    Commit,
    DatasetDef,
    Definition,
    Definitions,
    FeatureServiceDef,
    FeaturesetDef,
    PipelineDef,
    Record,
    SourceDef,
    digest,
)
from featurelib.errors import CorruptState, InvalidRequest, StoreUnavailable
from featurelib.plan import Changes, CommitReceipt
from featurelib.stores import keys, metadata_edits, schema
from featurelib.stores.database import Database, newest, record_of, upsert, upsert_all
from featurelib.stores.event_log import insert_event
from featurelib.stores.keys import ROLES, KeyRecord, NewKey, Role
from featurelib.stores.standings import Standing, standings

Severity = Literal["info", "warn", "error"]
JobType = Literal["pipeline", "backfill"]

MOST_WORKERS = 64
"""Most workers of a pipeline: one per key group (engine/keys.py)."""

_SEVERITIES: dict[str, Severity] = {"info": "info", "warn": "warn", "warning": "warn", "error": "error"}
# Each round lost means that another commit or key change got through; nobody makes so many in a row by hand.
_MOST_DECISIONS = 20

DefinitionModel = type[DatasetDef] | type[PipelineDef] | type[FeaturesetDef] | type[SourceDef] | type[FeatureServiceDef]
_MODELS: dict[str, DefinitionModel] = {
    "dataset": DatasetDef,
    "pipeline": PipelineDef,
    "featureset": FeaturesetDef,
    "source": SourceDef,
    "feature_service": FeatureServiceDef,
}
_D = TypeVar("_D", bound=Definition)


class Plan(Protocol):
    """What the registry needs to know of a commit's plan."""

    @property
    def no_op(self) -> bool:
        """Whether the commit changes nothing."""
        ...

    @property
    def commit_id(self) -> str:
        """Digest of the commit's content."""
        ...

    @property
    def changes(self) -> Changes:
        """What it changes."""
        ...


class CommitRecord(Record):
    """One commit that changed something. ``version`` is the registry's version it led to."""

    commit_id: str
    version: int
    status: Literal["applied"] = "applied"
    message: str
    committed_by: str | None
    created_at: Instant
    receipt: CommitReceipt


class NewEvent(Record):
    """An entry for the platform's feed. ``subject`` is the thing it is about; ``detail`` holds JSON values only."""

    event_type: str
    severity: Severity = "info"
    source: str
    subject: str
    message: str
    detail: dict[str, Any] | None = None


class EventRecord(NewEvent):
    """An entry of the platform's feed."""

    id: str
    created_at: Instant


class WorkerStatus(Record):
    """One worker of a job, as it last answered; ``step_s``: how long the step under way has taken."""

    partition: int
    state: str
    detail: str = ""
    failures: int = 0
    host: str = ""
    pid: int = 0
    step_s: float = 0.0


class JobRecord(Record):
    """Display copy of a job. ``pipeline`` is a ref; ``applied_us`` the newest event time applied.

    ``rows_in`` records of its inputs are applied, ``rows`` were folded from them; ``rows_late`` records of its inputs
    came too late, ``rows_failed`` could not be taken by a function of the pipeline. ``lag`` records are not applied
    yet, the oldest of them accepted at ``waiting_since_us``.

    ``updated_at`` of this and the following records is set when they are put.
    """

    pipeline: str
    job_type: JobType = "pipeline"
    partition_count: int
    state: str
    detail: str = ""
    applied_us: Instant | None = None
    rows: int = 0
    lag: int = 0
    updated_at: Instant = 0
    rows_in: int = 0
    rows_late: int = 0
    rows_failed: int = 0
    waiting_since_us: Instant | None = None
    workers: tuple[WorkerStatus, ...] | None = None


class PartitionStatus(Record):
    """Where a log partition of a dataset ends: records, newest event time, and when the last one was accepted."""

    partition: int
    rows_out: int
    newest_us: Instant | None = None
    accepted_us: Instant | None = None


class DatasetStatus(Record):
    """Display copy of how fresh a dataset with a log is, with or without a source. ``dataset`` is a ref.

    ``rows_out`` records are in the log, ``rows_late`` of them too late to be aggregated; ``rows_dead`` became dead
    letters. ``lag`` records are not applied yet by the slowest pipeline that reads it, the oldest of them accepted at
    ``waiting_since_us``; ``archive_lag`` records are not in the archive yet.
    """

    dataset: str
    rows_out: int = 0
    rows_late: int = 0
    rows_dead: int = 0
    newest_us: Instant | None = None
    accepted_us: Instant | None = None
    waiting_since_us: Instant | None = None
    lag: int = 0
    archive_lag: int | None = None
    partitions: tuple[PartitionStatus, ...] = ()
    updated_at: Instant = 0


class SourceStatus(Record):
    """Display copy of a source's progress; the cursor that counts is the log's."""

    dataset: str
    cursor_value: str | None = None
    rows_in: int = 0
    rows_dead: int = 0
    rows_late: int = 0
    last_error: str | None = None
    updated_at: Instant = 0


class BackfillRecord(Record):
    """Display copy of a backfill's progress."""

    job_name: str
    source_dataset: str
    status: str
    records_ingested: int = 0
    updated_at: Instant = 0


class Identity(NamedTuple):
    """What names a stored definition; featuresets and sources have version 1."""

    kind: str
    name: str
    version: int = 1


class Registry:
    """The registry in one SQL database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        """Open nothing yet; the first call connects.

        Raises:
            ValueError: the URL is neither a SQLite file nor PostgreSQL.
            MissingDriver: PostgreSQL without psycopg.
        """
        self.database = Database(url)
        self._clock = clock
        self._known: tuple[int, Definitions] | None = None

    def migrate(self) -> None:
        """Bring the tables to this version of the code; safe to repeat, and for processes that start together.

        Raises:
            CorruptState: a newer version of the platform wrote this database.
        """
        self.database.migrate()

    def close(self) -> None:
        """Close the idle connections."""
        self.database.close()

    def version(self) -> int:
        """A number that moves with every commit and key change. One SELECT of one row."""
        with self.database.read() as connection:
            return _version(connection)

    def definitions(self) -> Definitions:
        """Every definition there is, all versions, ordered by name and version; parsed once per registry version.

        Raises:
            CorruptState: a row cannot be read by this version of the code.
        """
        with self.database.read() as connection:
            # Read before the rows: should a commit come between, the newer rows are parsed once more.
            version = _version(connection)
            known = self._known
            if known is None or known[0] != version:
                known = self._known = (version, _parsed(_stored(connection).values()))
            return known[1]

    def definitions_at(self, version: int) -> Definitions:
        """Every definition as it stood at an earlier registry version.

        Raises:
            CorruptState: a row cannot be read by this version of the code.
        """
        revisions, commits = schema.definition_revisions, schema.commits
        query = (
            select(revisions)
            .join(commits, commits.c.sequence == revisions.c.commit_sequence)
            .where(commits.c.version <= version)
            .order_by(revisions.c.name, revisions.c.version, revisions.c.revision)
        )
        with self.database.read() as connection:
            newest = {Identity(row.kind, row.name, row.version): row for row in connection.execute(query)}
        return _parsed(newest.values())

    def commit(
        self, commit: Commit, decide: Callable[[Definitions, Commit], Plan], committed_by: str | None
    ) -> CommitReceipt:
        """Store a commit whole or not at all; what it leaves out stays.

        ``decide`` sees what is stored; what it raises passes through and nothing is stored. It may take long, for it
        runs user code, so it is called before the write lock is taken, and again when the registry moved meanwhile:
        what is stored always follows from the plan of the state it is stored on. A plan that is a no-op moves no
        version and makes no event.

        Raises:
            StoreUnavailable: other commits kept coming in between.
        """
        for _ in range(_MOST_DECISIONS):
            # The version is read first: what lands in between makes it differ under the lock.
            version = self.version()
            current = self.definitions()
            plan = decide(current, commit)
            receipt = _receipt(current, commit, plan)
            with self.database.exclusive() as connection:
                if _version(connection) == version:
                    self._finish(connection, commit, plan, receipt, committed_by)
                    # A plan that changes nothing may still say where code stands now.
                    self._known = None
                    return receipt
        raise StoreUnavailable(f"the registry changed {_MOST_DECISIONS} times while this commit was checked")

    def commits(self, limit: int = 100) -> list[CommitRecord]:
        """The latest commits that changed something, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(newest(schema.commits, limit)).all()
        return [record_of(CommitRecord, row) for row in rows]

    def latest_commit(self) -> CommitRecord | None:
        """The newest commit, if there is one."""
        return next(iter(self.commits(limit=1)), None)

    def record_event(self, event: NewEvent) -> None:
        """Add an entry to the platform's feed."""
        with self.database.write() as connection:
            self._insert_event(connection, event)

    def erase_from_events(self, pseudonyms: Mapping[str, str]) -> int:
        """Put pseudonyms in the place of entities that events quote; how many did. Done again it changes nothing."""
        table, quoted = schema.events, {repr(key): repr(name) for key, name in pseudonyms.items()}
        changed = 0
        with self.database.write() as connection:
            for row in connection.execute(select(table.c.sequence, table.c.message, table.c.detail)).all():
                said = {"message": row.message, "detail": row.detail}
                told = {name: _retold(value, pseudonyms, quoted) for name, value in said.items()}
                if told != said:
                    connection.execute(update(table).where(table.c.sequence == row.sequence).values(told))
                    changed += 1
        return changed

    def events(
        self,
        *,
        limit: int = 100,
        severity: str | None = None,
        event_type: str | None = None,
        subject: str | None = None,
    ) -> list[EventRecord]:
        """The latest events, newest first, at most 1000; filters are exact and combine.

        Raises:
            InvalidRequest: an unknown severity (``warning`` is ``warn``), or a limit that is not positive.
        """
        wanted = {"severity": severity_named(severity), "event_type": event_type, "subject": subject}
        query = newest(schema.events, limit)
        for column, value in wanted.items():
            query = query if value is None else query.where(schema.events.c[column] == value)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        return [record_of(EventRecord, row) for row in rows]

    def create_key(
        self,
        role: Role,
        label: str,
        *,
        expires_at: Instant | None = None,
        rate_limit: int | None = None,
        created_by: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """Make a key. The second member is its secret, which is shown this once and cannot be had again.

        Args:
            role: what it may do.
            label: whose it is, or what for.
            expires_at: when it ends; left out, never.
            rate_limit: requests per second; left out, the platform's default.
            created_by: fingerprint of the key that asked.

        Raises:
            InvalidRequest: no such role, the end is not in the future, or the limit is out of range.
        """
        if role not in ROLES:
            raise InvalidRequest(f"role: {role!r} is not one of {', '.join(ROLES)}")
        asked = NewKey(role=role, label=label, expires_at=expires_at, rate_limit=rate_limit)
        with self.database.exclusive() as connection:
            now = self._clock.now()
            key, secret = keys.insert(connection, keys.checked(asked, now), now)
            moved(connection)
            message = f"{role} key {label!r} created"
            self._insert_event(connection, _key_event("api_key_created", key.fingerprint, message, created_by))
        return key, secret

    def keys(self) -> list[KeyRecord]:
        """Every key ever made, oldest first, expired and revoked ones included."""
        with self.database.read() as connection:
            return keys.every(connection)

    def standings(self) -> dict[str, Standing]:
        """By a principal's id, what it may do, the roles of its groups included."""
        with self.database.read() as connection:
            return standings(connection)

    def revoke_key(self, fingerprint: str, revoked_by: str | None = None) -> bool:
        """Make a key invalid from now on; ``False`` when there is no such key, or it was revoked before.

        Raises:
            Conflict: it is the last valid admin key.
        """
        with self.database.exclusive() as connection:
            revoked = keys.revoke(connection, fingerprint, self._clock.now())
            if revoked:
                moved(connection)
                message = f"key {fingerprint} revoked"
                self._insert_event(connection, _key_event("api_key_revoked", fingerprint, message, revoked_by))
        return revoked

    def jobs(self) -> list[JobRecord]:
        """Display copies of all jobs."""
        with self.database.read() as connection:
            rows = connection.execute(select(schema.jobs).order_by(*schema.jobs.primary_key)).all()
        return [record_of(JobRecord, row) for row in rows]

    def source_statuses(self) -> list[SourceStatus]:
        """Display copies of all sources' progress."""
        with self.database.read() as connection:
            rows = connection.execute(select(schema.source_statuses).order_by(schema.source_statuses.c.dataset)).all()
        return [record_of(SourceStatus, row) for row in rows]

    def put_statuses(
        self, jobs: Iterable[JobRecord], sources: Iterable[SourceStatus], datasets: Iterable[DatasetStatus]
    ) -> None:
        """Store many display copies in one transaction, in place of those before."""
        rows = (
            *((schema.jobs, job) for job in jobs),
            *((schema.source_statuses, source) for source in sources),
            *((schema.dataset_statuses, dataset) for dataset in datasets),
        )
        with self.database.write() as connection:
            for table, record in rows:
                upsert(connection, table, self._stamped(record))

    def dataset_statuses(self) -> list[DatasetStatus]:
        """Display copies of how fresh the datasets are."""
        table = schema.dataset_statuses
        with self.database.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.dataset)).all()
        return [record_of(DatasetStatus, row) for row in rows]

    def scale(self, pipeline: str, partition_count: int) -> None:
        """Say how many workers a pipeline shall have, from now on; moves the registry's version unless it was so.

        Args:
            pipeline: its ref.
            partition_count: 1 to 64, the number of key groups.

        Raises:
            InvalidRequest: the count is not in that range.
        """
        if not 1 <= partition_count <= MOST_WORKERS:
            raise InvalidRequest(f"partition_count: {partition_count} is not between 1 and {MOST_WORKERS}")
        table = schema.pipeline_partitions
        with self.database.exclusive() as connection:
            before = connection.scalar(select(table.c.partition_count).where(table.c.pipeline == pipeline))
            if before == partition_count:
                return
            row = {"pipeline": pipeline, "partition_count": partition_count, "updated_at": self._clock.now()}
            upsert(connection, table, row)
            moved(connection)
            self._insert_event(connection, _scale_event(pipeline, partition_count))

    def partition_counts(self) -> dict[str, int]:
        """By pipeline ref, how many workers it shall have; one that was never scaled is not in it."""
        table = schema.pipeline_partitions
        with self.database.read() as connection:
            rows = connection.execute(select(table.c.pipeline, table.c.partition_count)).all()
        return {row.pipeline: row.partition_count for row in rows}

    def put_backfill(self, backfill: BackfillRecord) -> None:
        """Store the display copy of a backfill's progress, in place of the one before."""
        with self.database.write() as connection:
            upsert(connection, schema.backfills, self._stamped(backfill))

    def backfills(self) -> list[BackfillRecord]:
        """Display copies of all backfills' progress."""
        with self.database.read() as connection:
            rows = connection.execute(select(schema.backfills).order_by(*schema.backfills.primary_key)).all()
        return [record_of(BackfillRecord, row) for row in rows]

    def _stamped(self, record: Record) -> dict[str, Any]:
        return {**record.model_dump(), "updated_at": self._clock.now()}

    def _insert_event(self, connection: Connection, event: NewEvent) -> None:
        insert_event(connection, event, self._clock.now())

    def _finish(
        self,
        connection: Connection,
        commit: Commit,
        plan: Plan,
        receipt: CommitReceipt,
        committed_by: str | None,
    ) -> None:
        stored = _stored(connection)
        if plan.no_op:
            _refresh_positions(connection, stored, commit)
        else:
            self._apply(connection, stored, commit, receipt, committed_by)

    def _apply(
        self,
        connection: Connection,
        stored: Mapping[Identity, Row[Any]],
        commit: Commit,
        receipt: CommitReceipt,
        committed_by: str | None,
    ) -> None:
        now = self._clock.now()
        row = {
            "commit_id": receipt.commit_id,
            "version": moved(connection),
            "message": commit.message,
            "committed_by": committed_by,
            "receipt": receipt.model_dump(mode="json"),
            "created_at": now,
        }
        insert = schema.commits.insert().returning(schema.commits.c.sequence)
        sequence: int = connection.execute(insert, row).scalar_one()
        _store(connection, [_row(each, stored.get(identity_of(each)), sequence, now) for each in commit.all], stored)
        metadata_edits.forget_overtaken(connection)
        _refresh_positions(connection, stored, commit)
        self._insert_event(connection, _commit_event(commit, receipt, committed_by))


def identity_of(definition: Definition) -> Identity:
    """What names a definition in the registry."""
    match definition:
        case DatasetDef() | PipelineDef():
            return Identity(definition.kind, definition.name, definition.version)
        case FeaturesetDef():
            return Identity(definition.kind, definition.name)
        case SourceDef():
            return Identity(definition.kind, definition.dataset)
        case FeatureServiceDef():
            return Identity(definition.kind, definition.qualified_name, definition.version)


def _stored(connection: Connection) -> dict[Identity, Row[Any]]:
    table = schema.definitions
    rows = connection.execute(select(table).order_by(table.c.name, table.c.version)).all()
    return {Identity(row.kind, row.name, row.version): row for row in rows}


def _parsed(rows: Iterable[Row[Any]]) -> Definitions:
    definitions = [definition_of(row) for row in rows]

    def those(model: type[_D]) -> tuple[_D, ...]:
        return tuple(definition for definition in definitions if isinstance(definition, model))

    return Definitions(
        datasets=those(DatasetDef),
        pipelines=those(PipelineDef),
        featuresets=those(FeaturesetDef),
        sources=those(SourceDef),
        feature_services=those(FeatureServiceDef),
    )


def definition_of(row: Row[Any]) -> Definition:
    """The definition that a row of ``definitions`` or ``definition_revisions`` holds.

    Raises:
        CorruptState: it cannot be read by this version of the code.
    """
    what = f"stored {row.kind} {row.name}@{row.version}"
    if row.format > FORMAT:
        raise CorruptState(f"{what} has format {row.format}; this version of the platform reads up to {FORMAT}")
    try:
        return _MODELS[row.kind].model_validate_json(row.body)
    except ValidationError as error:
        # Its own text would quote the input, which may hold a secret that the user wrote inline.
        places = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False))
        raise CorruptState(f"{what} does not parse at {places or 'its start'}") from None


def _row(definition: Definition, before: Row[Any] | None, sequence: int, now: Instant) -> dict[str, Any]:
    """The row of ``definitions`` that holds a definition from now on."""
    return {
        **identity_of(definition)._asdict(),
        "format": FORMAT,
        "digest": digest(definition),
        "body": definition.model_dump_json(),
        "commit_sequence": sequence,
        "created_at": now if before is None else before.created_at,
        "updated_at": now,
    }


def _store(connection: Connection, rows: Sequence[dict[str, Any]], stored: Mapping[Identity, Row[Any]]) -> None:
    """Insert or replace the definitions whose meaning is not what is stored already.

    In three statements: three for each definition made a commit of 600 hold the write lock for 0.4 s.
    """
    changed = [row for row in rows if (before := stored.get(_named(row))) is None or before.digest != row["digest"]]
    if not changed:
        return
    upsert_all(connection, schema.definitions, changed)
    last = _last_revisions(connection)
    kept = schema.definition_revisions.c.keys()
    revisions = [
        {
            **{name: value for name, value in row.items() if name in kept},
            "revision": last.get(_named(row), 0) + 1,
            "created_at": row["updated_at"],
        }
        for row in changed
    ]
    connection.execute(schema.definition_revisions.insert(), revisions)


def _named(row: Mapping[str, Any]) -> Identity:
    return Identity(row["kind"], row["name"], row["version"])


def _last_revisions(connection: Connection) -> dict[Identity, int]:
    revisions = schema.definition_revisions.c
    named = (revisions.kind, revisions.name, revisions.version)
    found = connection.execute(select(*named, func.max(revisions.revision)).group_by(*named))
    return {Identity(kind, name, version): last for kind, name, version, last in found}


def _refresh_positions(connection: Connection, stored: Mapping[Identity, Row[Any]], commit: Commit) -> None:
    """Keep up with code that moved within its file: an error shall name the line where the user finds it now."""
    table = schema.definitions
    for definition in commit.all:
        before, body = stored.get(identity_of(definition)), definition.model_dump_json()
        if before is not None and before.body != body and before.digest == digest(definition):
            kind, name, version = identity_of(definition)
            same = update(table).where(table.c.kind == kind, table.c.name == name, table.c.version == version)
            connection.execute(same.values(body=body))


def _receipt(current: Definitions, commit: Commit, plan: Plan) -> CommitReceipt:
    known = {identity_of(definition) for definition in current.all}
    topics = {f"{dataset.name}_topic" for dataset in commit.datasets if identity_of(dataset) not in known}
    return CommitReceipt(
        commit_id=plan.commit_id,
        no_op=plan.no_op,
        datasets=len(commit.datasets),
        pipelines=len(commit.pipelines),
        featuresets=len(commit.featuresets),
        sources=len(commit.sources),
        feature_services=len(commit.feature_services),
        jobs_created=len({identity_of(pipeline) for pipeline in commit.pipelines} - known),
        topics_created=tuple(sorted(topics)),
        changes=plan.changes,
    )


def _version(connection: Connection) -> int:
    version: int = connection.execute(select(schema.registry_version.c.version)).scalar_one()
    return version


def moved(connection: Connection) -> int:
    """Move the registry's version within a transaction, so that whoever polls it looks; the new one."""
    table = schema.registry_version
    higher = update(table).values(version=table.c.version + 1).returning(table.c.version)
    version: int = connection.execute(higher).scalar_one()
    return version


def _retold(value: Any, pseudonyms: Mapping[str, str], quoted: Mapping[str, str]) -> Any:
    """The same with other names: a text that is one, or has one in quotes."""
    if isinstance(value, dict):
        return {name: _retold(each, pseudonyms, quoted) for name, each in value.items()}
    if isinstance(value, list):
        return [_retold(each, pseudonyms, quoted) for each in value]
    if not isinstance(value, str):
        return value
    if value in pseudonyms:
        return pseudonyms[value]
    for key, name in quoted.items():
        value = value.replace(key, name)
    return value


def _commit_event(commit: Commit, receipt: CommitReceipt, committed_by: str | None) -> NewEvent:
    changes = receipt.changes
    counts = f"{len(changes.added)} added, {len(changes.updated)} updated, {len(changes.unchanged)} unchanged"
    return NewEvent(
        event_type="commit",
        source="definition-service",
        subject=receipt.commit_id,
        message=f"{commit.message}: {counts}" if commit.message else counts,
        detail={"committed_by": committed_by, **receipt.model_dump(mode="json")},
    )


def _scale_event(pipeline: str, partition_count: int) -> NewEvent:
    return NewEvent(
        event_type="job_rescaled",
        source="definition-service",
        subject=pipeline,
        message=f"{pipeline} shall have {partition_count} workers",
        detail={"partition_count": partition_count},
    )


def _key_event(event_type: str, fingerprint: str, message: str, by: str | None) -> NewEvent:
    return NewEvent(
        event_type=event_type,
        source="definition-service",
        subject=fingerprint,
        message=message,
        detail={"by": by},
    )


def severity_named(name: str | None) -> Severity | None:
    """The severity people mean; ``warning`` is ``warn``.

    Raises:
        InvalidRequest: there is none of that name.
    """
    if name is None:
        return None
    if name not in _SEVERITIES:
        raise InvalidRequest(f"severity: {name!r} is not one of {', '.join(_SEVERITIES)}")
    return _SEVERITIES[name]
