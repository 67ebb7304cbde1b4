"""The registry's contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import stat
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from featurelib.aggregates import Count, LastK, Sum
from featurelib.clock import SECOND, Instant
from featurelib.definitions import (
    AggregateStep,
    Commit,
    ConnectorDef,
    DatasetDef,
    Definition,
    Definitions,
    ExtractorDef,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    FilterStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    SourceDef,
    canonical_bytes,
    digest,
)
from featurelib.errors import CorruptState, DefinitionError, InvalidRequest, Problem, StoreUnavailable
from featurelib.expr import col
from featurelib.metadata import Metadata
from featurelib.plan import Changes, CommitReceipt, plan
from featurelib.secrets import SecretRef
from featurelib.stores import migrations, schema
from featurelib.stores.audit import Audit, QueryRun
from featurelib.stores.registry import (
    BackfillRecord,
    DatasetStatus,
    JobRecord,
    NewEvent,
    PartitionStatus,
    Registry,
    SourceStatus,
    WorkerStatus,
)
from tests.support.clocks import MovedClock

START: Instant = 1_700_000_000 * SECOND
# Forked from a process of its own that has loaded all this once: a spawned one takes a second for it each time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class SteppingClock:
    """Every reading is a microsecond after the one before."""

    def __init__(self, start: Instant = START) -> None:
        self.time = start

    def now(self) -> Instant:
        self.time += 1
        return self.time


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    """An empty, migrated registry."""
    opened = Registry(database_url, SteppingClock())
    opened.migrate()
    yield opened
    opened.close()


class SmallPlan(NamedTuple):
    """As much of a plan as the registry reads."""

    commit_id: str
    no_op: bool
    changes: Changes


def decide(current: Definitions, commit: Commit) -> SmallPlan:
    """Compare by digest; refuse nothing."""
    known = {_name(definition): digest(definition) for definition in current.all}
    added: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    for definition in commit.all:
        name = _name(definition)
        place = added if name not in known else unchanged if known[name] == digest(definition) else updated
        place.append(name)
    changes = Changes(added=tuple(added), updated=tuple(updated), unchanged=tuple(unchanged))
    return SmallPlan(digest(commit), not added and not updated, changes)


def _name(definition: Definition) -> str:
    name = definition.dataset if isinstance(definition, SourceDef) else definition.name
    return f"{definition.kind}:{name}@{getattr(definition, 'version', 1)}"


def dataset(name: str, version: int = 1, *, owner: str | None = None, extra: tuple[FieldDef, ...] = ()) -> DatasetDef:
    fields = (
        FieldDef(name="key", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="amount", type="float", optional=True),
        *extra,
    )
    return DatasetDef(name=name, version=version, fields=fields, index=True, metadata=Metadata(owner=owner))


def pipeline(name: str = "by_key", version: int = 1) -> PipelineDef:
    aggregates = (
        NamedAggregate(output="n", aggregate=Count(window="1h")),
        NamedAggregate(
            output="total", aggregate=Sum(of="amount", window="7d", where=col("amount") > 0.5, default=None)
        ),
        NamedAggregate(output="latest", aggregate=LastK(of="amount", k=3, dedup=True, default=0)),
    )
    steps = (FilterStep(predicate=(col("amount") * 2 > 1).node), AggregateStep(keys=("key",), aggregates=aggregates))
    return PipelineDef(name=name, version=version, input_datasets=("Orders",), output_dataset="Spend", steps=steps)


def featureset(*, line: int = 12) -> FeaturesetDef:
    code = PyCode(
        entry_point="ratio", source="def ratio(cls, ts, n):\n    return n / 2\n", file="features.py", line=line
    )
    return FeaturesetDef(
        name="Shopper",
        features=(FeatureDef(name="key", type="str", id=1), FeatureDef(name="half", type="float", default=0.5)),
        extractors=(ExtractorDef(name="ratio", inputs=("Other.n",), outputs=("half",), code=code),),
        online_clock="event",
    )


def source(password: str = "hunter2-literal") -> SourceDef:
    config: dict[str, Any] = {
        "host": "db.example",
        "port": 5432,
        "password": SecretRef(kind="literal", value=password),
        "token": SecretRef(kind="env", value="ORDERS_TOKEN"),
    }
    return SourceDef(
        dataset="Orders", connector=ConnectorDef(type="postgres", config=config), cursor="at", every_us=SECOND
    )


def whole(*, line: int = 12, message: str = "first") -> Commit:
    return Commit(
        datasets=(dataset("Orders"), dataset("Spend")),
        pipelines=(pipeline(),),
        featuresets=(featureset(line=line),),
        sources=(source(),),
        message=message,
    )


def one(name: str) -> Commit:
    return Commit(datasets=(dataset(name),))


@contextmanager
def statements() -> Iterator[list[str]]:
    """Every SQL statement that any engine of this process sends meanwhile."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


# Migrations


def shape(connection: sa.Connection) -> dict[str, Any]:
    """Everything the database says about its tables."""
    inspector = sa.inspect(connection)
    return {
        table: _table_shape(inspector, table) for table in inspector.get_table_names() if table != "alembic_version"
    }


def _table_shape(inspector: sa.Inspector, table: str) -> dict[str, Any]:
    return {
        "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(table)],
        "primary key": inspector.get_pk_constraint(table),
        "foreign keys": _by_name(inspector.get_foreign_keys(table)),
        "unique": _by_name(inspector.get_unique_constraints(table)),
        "checks": _by_name(inspector.get_check_constraints(table)),
        "indexes": _by_name(inspector.get_indexes(table)),
    }


def _by_name(found: Sequence[Any]) -> list[Any]:
    return sorted(found, key=lambda constraint: str(constraint["name"]))


def test_migrations_from_empty_build_exactly_the_declared_schema(registry: Registry) -> None:
    with registry.database.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        migrated = shape(connection)
        schema.metadata.drop_all(connection)
        assert shape(connection) == {}
        schema.metadata.create_all(connection)
        assert shape(connection) == migrated
    assert set(migrated) == set(schema.metadata.tables)


def test_migrations_write_the_same_sql_as_the_declared_schema(sqlite_url: str) -> None:
    registry = Registry(sqlite_url, SteppingClock())
    registry.migrate()
    stored = sa.text("SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version' AND sql IS NOT NULL")

    def words(connection: sa.Connection) -> dict[str, list[str]]:
        return {name: sorted(sql.replace(",", " ").split()) for name, sql in connection.execute(stored).all()}

    with registry.database.write() as connection:
        migrated = {name: sql for name, sql in words(connection).items() if not name.startswith("sqlite_auto")}
        connection.execute(sa.text("DROP TABLE alembic_version"))
        schema.metadata.drop_all(connection)
        schema.metadata.create_all(connection)
        assert words(connection) == migrated
    registry.close()


def test_migrations_are_numbered_without_gaps_or_branches() -> None:
    folder = Path(migrations.__file__).parent / "versions"
    files = sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")
    numbers = [f"{number:04}" for number in range(1, len(files) + 1)]
    assert [name[1:5] for name in files] == numbers
    assert all(name[0] == "v" and name[5] == "_" for name in files)
    assert migrations.revisions() == numbers


def test_migrating_again_changes_nothing(registry: Registry) -> None:
    receipt = registry.commit(whole(), decide, "ann")
    registry.migrate()
    latest = registry.latest_commit()
    assert latest is not None
    assert latest.receipt == receipt
    assert registry.version() == 1


def test_definitions_are_read_anew_only_when_the_registry_has_moved(registry: Registry) -> None:
    registry.commit(whole(), decide, "ann")
    known = registry.definitions()
    assert registry.definitions() is known
    registry.commit(one("Zone"), decide, "ann")
    assert [each.name for each in registry.definitions().datasets] == ["Orders", "Spend", "Zone"]


def test_migrating_does_not_depend_on_the_working_directory(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = Registry(database_url, SteppingClock())
    registry.migrate()
    assert registry.version() == 0
    registry.close()


def test_a_registry_of_a_newer_platform_is_refused_and_left_as_it_is(registry: Registry) -> None:
    with registry.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CorruptState, match="newer version"):
        registry.migrate()
    with registry.database.read() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"


def _migrate_together(url: str, start: Barrier, done: Queue[str]) -> None:
    registry = Registry(url, SteppingClock())
    start.wait()
    try:
        registry.migrate()
        done.put(f"version {registry.version()}")
    except Exception as error:  # noqa: BLE001  # reported to the parent, which asserts on it
        done.put(repr(error))


def test_processes_that_migrate_together_all_succeed(database_url: str) -> None:
    start, done = FORKS.Barrier(3), FORKS.Queue()
    _run_processes([FORKS.Process(target=_migrate_together, args=(database_url, start, done)) for _ in range(3)])
    assert [done.get(timeout=60) for _ in range(3)] == ["version 0"] * 3


def test_threads_that_migrate_together_all_succeed(database_url: str) -> None:
    registries = [Registry(database_url, SteppingClock()) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Registry.migrate, registries))
    assert [registry.version() for registry in registries] == [0] * 4
    for registry in registries:
        registry.close()


def _run_processes(processes: list[Any]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


# Definitions and commits


def test_what_is_committed_comes_back_equal_in_value_and_in_bytes(registry: Registry) -> None:
    commit = whole()
    registry.commit(commit, decide, "ann")
    stored = registry.definitions()
    assert stored.all == commit.all
    assert [canonical_bytes(found) for found in stored.all] == [canonical_bytes(sent) for sent in commit.all]


def test_the_users_file_and_line_come_back_with_the_code(registry: Registry) -> None:
    registry.commit(whole(line=40), decide, None)
    code = registry.definitions().featuresets[0].extractors[0].code
    assert (code.file, code.line) == ("features.py", 40)


def test_the_receipt_counts_what_came_and_what_is_new(registry: Registry) -> None:
    receipt = registry.commit(whole(), decide, "ann")
    assert receipt == CommitReceipt(
        commit_id=digest(whole()),
        no_op=False,
        datasets=2,
        pipelines=1,
        featuresets=1,
        sources=1,
        jobs_created=1,
        topics_created=("Orders_topic", "Spend_topic"),
        changes=Changes(
            added=(
                "dataset:Orders@1",
                "dataset:Spend@1",
                "pipeline:by_key@1",
                "featureset:Shopper@1",
                "source:Orders@1",
            )
        ),
    )


def test_the_same_content_again_is_a_no_op_with_the_same_id(registry: Registry) -> None:
    first = registry.commit(whole(message="first"), decide, "ann")
    again = registry.commit(whole(message="other words"), decide, "bob")
    assert again.commit_id == first.commit_id
    assert (again.no_op, again.jobs_created, again.topics_created) == (True, 0, ())
    assert (again.datasets, len(again.changes.unchanged)) == (2, 5)
    assert registry.version() == 1
    assert len(registry.commits()) == 1
    assert len(registry.events(event_type="commit")) == 1


def test_a_no_op_still_learns_where_code_stands_now(registry: Registry) -> None:
    registry.commit(whole(line=12), decide, None)
    moved = registry.commit(whole(line=99), decide, None)
    assert moved.no_op
    assert registry.definitions().featuresets[0].extractors[0].code.line == 99
    assert registry.version() == 1


def test_the_real_planner_decides_as_well(registry: Registry) -> None:
    judge = partial(plan, connectors={"postgres"})
    commit = Commit(datasets=(dataset("Orders"),), sources=(source(),))
    first, again = (registry.commit(commit, judge, "ann") for _ in range(2))
    assert first.changes == Changes(added=("dataset:Orders@1", "source:Orders"))
    assert (again.commit_id, again.no_op) == (first.commit_id, True)
    rekeyed = dataset("Orders").model_copy(update={"fields": dataset("Orders").fields[1:]})
    with pytest.raises(DefinitionError):
        registry.commit(Commit(datasets=(rekeyed,)), judge, "ann")
    assert registry.definitions().all == commit.all
    assert registry.version() == 1


def test_what_a_commit_leaves_out_stays(registry: Registry) -> None:
    registry.commit(whole(), decide, None)
    registry.commit(one("Refunds"), decide, None)
    stored = registry.definitions()
    assert [found.name for found in stored.datasets] == ["Orders", "Refunds", "Spend"]
    assert stored.pipelines == (pipeline(),)
    assert stored.sources == (source(),)


def test_changed_content_of_a_version_replaces_it(registry: Registry) -> None:
    registry.commit(one("Orders"), decide, None)
    wider = dataset("Orders", extra=(FieldDef(name="city", type="str", optional=True),))
    receipt = registry.commit(Commit(datasets=(wider,)), decide, None)
    assert receipt.changes == Changes(updated=("dataset:Orders@1",))
    assert registry.definitions().datasets == (wider,)
    assert registry.version() == 2


def test_a_new_version_stands_beside_the_old_one(registry: Registry) -> None:
    registry.commit(Commit(datasets=(dataset("Orders"),), pipelines=(pipeline(),)), decide, None)
    newer = Commit(datasets=(dataset("Orders", 2),), pipelines=(pipeline(version=2),))
    receipt = registry.commit(newer, decide, None)
    stored = registry.definitions()
    assert [found.version for found in stored.datasets] == [1, 2]
    assert [found.version for found in stored.pipelines] == [1, 2]
    assert receipt.jobs_created == 1


def test_content_that_returns_is_committed_again_under_its_id(registry: Registry) -> None:
    first = registry.commit(Commit(datasets=(dataset("Orders", owner="ann"),)), decide, None)
    registry.commit(Commit(datasets=(dataset("Orders", owner="bob"),)), decide, None)
    third = registry.commit(Commit(datasets=(dataset("Orders", owner="ann"),)), decide, None)
    assert (third.commit_id, third.no_op) == (first.commit_id, False)
    assert [record.version for record in registry.commits()] == [3, 2, 1]
    assert registry.definitions().datasets[0].metadata.owner == "ann"


def test_decide_sees_what_is_stored_and_what_came(registry: Registry) -> None:
    registry.commit(one("Orders"), decide, None)
    seen: list[tuple[Definitions, Commit]] = []

    def note(current: Definitions, commit: Commit) -> SmallPlan:
        seen.append((current, commit))
        return decide(current, commit)

    registry.commit(one("Refunds"), note, None)
    assert seen == [(Definitions(datasets=(dataset("Orders"),)), one("Refunds"))]


def test_a_refused_commit_stores_nothing(registry: Registry) -> None:
    registry.commit(one("Orders"), decide, None)

    def refuse(_current: Definitions, _commit: Commit) -> SmallPlan:
        raise DefinitionError([Problem("unknown_dataset", "Spend", "there is no such dataset")])

    with pytest.raises(DefinitionError):
        registry.commit(whole(), refuse, None)
    assert registry.definitions().all == (dataset("Orders"),)
    assert registry.version() == 1
    assert len(registry.events()) == 1


def test_a_commit_that_cannot_be_stored_whole_is_not_stored_at_all(registry: Registry) -> None:
    with registry.database.write() as connection:
        connection.execute(sa.text("DROP TABLE events"))
    with pytest.raises(StoreUnavailable):
        registry.commit(whole(), decide, None)
    assert registry.definitions().all == ()
    assert registry.version() == 0
    assert registry.commits() == []


def test_commits_are_listed_newest_first_with_who_and_why(registry: Registry) -> None:
    registry.commit(one("Orders"), decide, "ann")
    registry.commit(one("Refunds").model_copy(update={"message": "refunds too"}), decide, None)
    newest, oldest = registry.commits()
    assert (newest.message, newest.committed_by, newest.version, newest.status) == ("refunds too", None, 2, "applied")
    assert (oldest.message, oldest.committed_by, oldest.version) == ("", "ann", 1)
    assert newest.created_at > oldest.created_at > START
    assert registry.commits(limit=1) == [newest]
    assert registry.latest_commit() == newest


def test_an_empty_registry_has_no_latest_commit(registry: Registry) -> None:
    assert registry.latest_commit() is None
    assert registry.definitions() == Definitions()


def test_a_commit_makes_one_event_about_itself(registry: Registry) -> None:
    receipt = registry.commit(whole(), decide, "ann")
    (event,) = registry.events()
    assert (event.event_type, event.severity, event.source) == ("commit", "info", "definition-service")
    assert event.subject == receipt.commit_id
    assert event.message == "first: 5 added, 0 updated, 0 unchanged"
    assert event.detail is not None
    assert event.detail["committed_by"] == "ann"


def test_a_stored_definition_that_does_not_parse_is_named_without_its_content(registry: Registry) -> None:
    registry.commit(whole(), decide, None)
    with registry.database.write() as connection:
        body = schema.definitions.c.body
        broken = sa.update(schema.definitions).where(schema.definitions.c.kind == "source")
        connection.execute(broken.values(body=sa.func.replace(body, '"cursor":"at"', '"cursor":["hunter2-literal"]')))
    with pytest.raises(CorruptState, match="stored source Orders@1 does not parse at cursor") as caught:
        registry.definitions()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_stored_definition_of_a_newer_format_is_refused(registry: Registry) -> None:
    registry.commit(one("Orders"), decide, None)
    with registry.database.write() as connection:
        connection.execute(sa.update(schema.definitions).values(format=99))
    with pytest.raises(CorruptState, match="Orders@1 has format 99"):
        registry.definitions()


# Secrets


def test_a_literal_secret_is_stored_for_the_connector_alone(registry: Registry) -> None:
    registry.commit(whole(), decide, "ann")
    stored = registry.definitions()
    password = stored.sources[0].connector.config["password"]
    assert isinstance(password, SecretRef)
    assert password.value.get_secret_value() == "hunter2-literal"
    shown = repr([stored, registry, registry.commits(), registry.events(), registry.latest_commit()])
    assert "hunter2" not in shown
    assert "hunter2" not in str([record.model_dump() for record in (*registry.commits(), *registry.events())])


def test_an_sql_error_shows_no_parameters(registry: Registry) -> None:
    with registry.database.write() as connection:
        connection.execute(sa.text("DROP TABLE events"))
    with pytest.raises(StoreUnavailable) as caught:
        registry.commit(whole(), decide, None)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


# Version


def test_the_version_is_one_select(registry: Registry) -> None:
    registry.version()
    with statements() as seen:
        registry.version()
    assert [statement for statement in seen if statement != "BEGIN"] == [
        "SELECT registry_version.version \nFROM registry_version"
    ]


def test_the_version_moves_with_commits_and_keys_and_nothing_else(registry: Registry) -> None:
    versions = [registry.version()]
    registry.commit(one("Orders"), decide, None)
    versions.append(registry.version())
    key, _ = registry.create_key("reader", "dashboard")
    versions.append(registry.version())
    registry.revoke_key(key.fingerprint)
    versions.append(registry.version())
    registry.record_event(NewEvent(event_type="job_started", source="supervisor", subject="p@1", message="started"))
    registry.put_statuses([JobRecord(pipeline="p@1", partition_count=2, state="running")], [], [])
    registry.put_statuses([], [SourceStatus(dataset="Orders")], [])
    registry.put_backfill(BackfillRecord(job_name="b", source_dataset="Orders", status="running"))
    registry.revoke_key(key.fingerprint)
    versions.append(registry.version())
    assert versions == [0, 1, 2, 3, 3]


# Races


def test_a_commit_that_is_overtaken_decides_again_on_what_is_stored_then(database_url: str) -> None:
    first, second = Registry(database_url, SteppingClock()), Registry(database_url, SteppingClock())
    first.migrate()
    seen: list[Definitions] = []

    def overtaken(current: Definitions, commit: Commit) -> SmallPlan:
        seen.append(current)
        if len(seen) == 1:
            # No lock is held while a commit is decided: another one, and a revocation, get through.
            second.commit(one("Orders"), decide, None)
        return decide(current, commit)

    first.commit(one("Refunds"), overtaken, None)
    assert seen == [Definitions(), Definitions(datasets=(dataset("Orders"),))]
    assert first.version() == 2
    assert {each.name for each in first.definitions().datasets} == {"Orders", "Refunds"}
    first.close()
    second.close()


def test_a_commit_that_is_always_overtaken_is_refused_and_may_be_retried(registry: Registry) -> None:
    def overtaken(current: Definitions, commit: Commit) -> SmallPlan:
        registry.create_key("reader", "another")
        return decide(current, commit)

    with pytest.raises(StoreUnavailable, match="changed"):
        registry.commit(one("Orders"), overtaken, None)
    assert registry.definitions() == Definitions()


_COMMITS_EACH = 8


def _commit_together(url: str, name: str, start: Barrier, done: Queue[int]) -> None:
    registry = Registry(url, SteppingClock())
    start.wait()
    for number in range(_COMMITS_EACH):
        shared = registry.commit(one(f"Shared{number}"), decide, name)
        registry.commit(one(f"{name}{number}"), decide, name)
        done.put(0 if shared.no_op else 1)


def test_commits_of_racing_processes_are_serialised(registry: Registry, database_url: str) -> None:
    start, done = FORKS.Barrier(2), FORKS.Queue()
    names = ("Left", "Right")
    _run_processes([FORKS.Process(target=_commit_together, args=(database_url, n, start, done)) for n in names])
    firsts = sum(done.get(timeout=60) for _ in range(2 * _COMMITS_EACH))
    assert firsts == _COMMITS_EACH
    assert registry.version() == 3 * _COMMITS_EACH
    versions = [record.version for record in registry.commits()]
    assert sorted(versions) == list(range(1, 3 * _COMMITS_EACH + 1))
    assert len(registry.events(event_type="commit")) == 3 * _COMMITS_EACH
    expected = {f"{prefix}{number}" for prefix in (*names, "Shared") for number in range(_COMMITS_EACH)}
    assert {found.name for found in registry.definitions().datasets} == expected


def _die_inside(url: str) -> None:
    def die(_current: Definitions, _commit: Commit) -> SmallPlan:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Registry(url, SteppingClock()).commit(one("Orders"), die, None)


def test_a_process_killed_in_the_middle_of_a_commit_leaves_nothing_behind(
    registry: Registry, database_url: str
) -> None:
    process = FORKS.Process(target=_die_inside, args=(database_url,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert registry.definitions() == Definitions()
    assert not registry.commit(one("Orders"), decide, None).no_op
    assert registry.version() == 1


def test_racing_writers_of_everything_else_lose_nothing(registry: Registry) -> None:
    def write(number: int) -> None:
        registry.record_event(NewEvent(event_type="x", source="test", subject=str(number), message="m"))
        registry.put_statuses(
            [JobRecord(pipeline=f"p{number % 3}@1", partition_count=1, state="running", rows=number)], [], []
        )
        registry.create_key("reader", f"key {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert sorted(int(event.subject) for event in registry.events(event_type="x")) == list(range(40))
    assert len(registry.keys()) == registry.version() == 40
    assert len(registry.jobs()) == 3


# Events


def event(subject: str, **members: Any) -> NewEvent:
    defaults = {"event_type": "source_error", "source": "ingest", "message": "no answer"}
    return NewEvent(subject=subject, **{**defaults, **members})


def test_events_come_newest_first(registry: Registry) -> None:
    for number in range(5):
        registry.record_event(event(f"s{number}"))
    assert [found.subject for found in registry.events(limit=3)] == ["s4", "s3", "s2"]


def test_events_of_one_instant_keep_their_order(database_url: str) -> None:
    registry = Registry(database_url, MovedClock(START))
    registry.migrate()
    for number in range(5):
        registry.record_event(event(f"s{number}"))
    assert [found.subject for found in registry.events()] == ["s4", "s3", "s2", "s1", "s0"]
    registry.close()


def test_an_event_comes_back_whole(registry: Registry) -> None:
    detail = {"rows": 3, "share": 0.25, "names": ["a", None], "nested": {"ok": True}}
    registry.record_event(event("Orders", severity="error", detail=detail))
    (found,) = registry.events()
    assert (
        found.model_dump(exclude={"id", "created_at"}) == event("Orders", severity="error", detail=detail).model_dump()
    )
    assert found.created_at == START + 1
    assert len(found.id) == 36


def test_event_filters_are_exact_and_combine(registry: Registry) -> None:
    registry.record_event(event("Orders", severity="warn"))
    registry.record_event(event("Orders", severity="error"))
    registry.record_event(event("Orders2", severity="warn", event_type="late_records"))
    assert [found.severity for found in registry.events(subject="Orders")] == ["error", "warn"]
    assert [found.subject for found in registry.events(severity="warning")] == ["Orders2", "Orders"]
    assert registry.events(severity="warning") == registry.events(severity="warn")
    assert [found.subject for found in registry.events(severity="warn", event_type="late_records")] == ["Orders2"]
    assert registry.events(severity="error", event_type="late_records") == []


def test_events_default_to_a_hundred_and_stop_at_a_thousand(registry: Registry) -> None:
    with registry.database.write() as connection:
        row = event("s").model_dump() | {"created_at": START}
        connection.execute(schema.events.insert(), [row | {"id": str(number)} for number in range(1_001)])
    assert len(registry.events()) == 100
    assert len(registry.events(limit=5_000)) == 1_000


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_is_not_positive_is_refused(registry: Registry, limit: int) -> None:
    with pytest.raises(InvalidRequest, match=f"limit: {limit}"):
        registry.events(limit=limit)


def test_an_unknown_severity_is_refused_with_the_known_ones(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="info, warn, warning, error"):
        registry.events(severity="fatal")


def test_text_that_one_database_would_refuse_is_stored_by_both(registry: Registry) -> None:
    registry.record_event(
        event("a\x00b", message="half \ud800 pair", detail={"text": "\x00\ud800", "number": math.inf})
    )
    (found,) = registry.events()
    assert (found.subject, found.message) == ("a\ufffdb", "half ? pair")
    assert found.detail == {"text": "\x00\ud800", "number": math.inf}


# Keys


def test_a_key_is_shown_once_and_stored_as_its_hash(registry: Registry) -> None:
    key, secret = registry.create_key("admin", "first")
    assert secret.startswith("tk_")
    assert len(secret) == 3 + 43  # 256 bits in base 64
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert key.fingerprint == key.sha256[:8]
    assert registry.keys() == [key]
    with registry.database.read() as connection:
        stored = [str(row) for table in (schema.api_keys, schema.events) for row in connection.execute(table.select())]
    assert secret not in "".join(stored)
    assert key.sha256 not in repr(key)


def test_keys_differ(registry: Registry) -> None:
    secrets = {registry.create_key("reader", "same label")[1] for _ in range(20)}
    keys = registry.keys()
    assert len(secrets) == len({key.fingerprint for key in keys}) == 20


def test_a_revoked_key_is_invalid_from_then_on(registry: Registry) -> None:
    key, _ = registry.create_key("writer", "ci")
    assert key.valid_at(START + 100)
    assert registry.revoke_key(key.fingerprint)
    (revoked,) = registry.keys()
    assert revoked.revoked_at is not None
    assert not revoked.valid_at(START + 100)


def test_revoking_twice_or_something_unknown_says_so(registry: Registry) -> None:
    key, _ = registry.create_key("writer", "ci")
    assert registry.revoke_key(key.fingerprint)
    assert not registry.revoke_key(key.fingerprint)
    assert not registry.revoke_key("00000000")


def test_an_expiring_key_is_invalid_at_its_end(registry: Registry) -> None:
    key, _ = registry.create_key("reader", "trial", expires_at=START + SECOND)
    assert registry.keys() == [key]
    assert key.valid_at(START + SECOND - 1)
    assert not key.valid_at(START + SECOND)


def test_roles_include_the_lower_ones(registry: Registry) -> None:
    allowed = {}
    for role in ("reader", "writer", "admin"):
        key, _ = registry.create_key(role, role)
        allowed[role] = [needed for needed in ("reader", "writer", "admin") if key.allows(needed)]
    assert allowed == {
        "reader": ["reader"],
        "writer": ["reader", "writer"],
        "admin": ["reader", "writer", "admin"],
    }


def test_an_unknown_role_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidRequest, match="reader, writer, admin"):
        registry.create_key("root", "x")  # type: ignore[arg-type]
    assert registry.keys() == []


def test_key_changes_are_events(registry: Registry) -> None:
    key, secret = registry.create_key("writer", "ci")
    registry.revoke_key(key.fingerprint)
    revoked, created = registry.events(subject=key.fingerprint)
    assert (created.event_type, revoked.event_type) == ("api_key_created", "api_key_revoked")
    assert secret not in repr((created, revoked))


# Display copies


def test_a_job_is_replaced_by_its_newer_copy(registry: Registry) -> None:
    registry.put_statuses([JobRecord(pipeline="by_key@1", partition_count=2, state="starting")], [], [])
    running = JobRecord(pipeline="by_key@1", partition_count=2, state="running", applied_us=START, rows=2**40)
    registry.put_statuses([running], [], [])
    registry.put_statuses(
        [JobRecord(pipeline="by_key@1", job_type="backfill", partition_count=4, state="done", detail="all")], [], []
    )
    backfill, live = registry.jobs()
    assert live == running.model_copy(update={"updated_at": START + 2})
    assert (backfill.job_type, backfill.detail, backfill.applied_us) == ("backfill", "all", None)


def test_many_copies_are_put_at_once_with_their_workers_and_partitions(registry: Registry) -> None:
    worker = WorkerStatus(partition=0, state="stalled", detail="slow", host="h", pid=7, step_s=61.5)
    job = JobRecord(pipeline="p@1", partition_count=1, state="stalled", waiting_since_us=START, workers=(worker,))
    part = PartitionStatus(partition=0, rows_out=3, newest_us=START, accepted_us=START)
    dataset = DatasetStatus(dataset="D@1", rows_out=3, newest_us=START, lag=2, partitions=(part,))
    registry.put_statuses([job], [SourceStatus(dataset="D")], [dataset])
    assert [each.model_copy(update={"updated_at": 0}) for each in registry.jobs()] == [job]
    assert [each.model_copy(update={"updated_at": 0}) for each in registry.dataset_statuses()] == [dataset]
    assert [each.dataset for each in registry.source_statuses()] == ["D"]
    registry.put_statuses([], [], [dataset.model_copy(update={"lag": 0})])
    assert [each.lag for each in registry.dataset_statuses()] == [0]


def test_scaling_a_pipeline_moves_the_version_and_tells_of_it_once(registry: Registry) -> None:
    assert registry.partition_counts() == {}
    before = registry.version()
    registry.scale("p@1", 4)
    registry.scale("p@1", 2)
    registry.scale("q@1", 64)
    registry.scale("p@1", 2)  # it is so already
    assert registry.partition_counts() == {"p@1": 2, "q@1": 64}
    assert registry.version() == before + 3
    assert [event.subject for event in registry.events(event_type="job_rescaled")] == ["q@1", "p@1", "p@1"]


@pytest.mark.parametrize("count", [0, -1, 65])
def test_a_pipeline_cannot_have_no_workers_or_more_than_key_groups(registry: Registry, count: int) -> None:
    with pytest.raises(InvalidRequest, match="not between 1 and 64"):
        registry.scale("p@1", count)
    assert registry.partition_counts() == {}


def test_a_source_status_is_replaced_by_its_newer_copy(registry: Registry) -> None:
    registry.put_statuses([], [SourceStatus(dataset="Orders", last_error="refused")], [])
    registry.put_statuses(
        [], [SourceStatus(dataset="Orders", cursor_value="17", rows_in=5, rows_dead=1, rows_late=2)], []
    )
    registry.put_statuses([], [SourceStatus(dataset="Airports")], [])
    airports, orders = registry.source_statuses()
    assert airports.dataset == "Airports"
    assert (orders.cursor_value, orders.rows_in, orders.rows_dead, orders.rows_late) == ("17", 5, 1, 2)
    assert (orders.last_error, orders.updated_at) == (None, START + 2)


def test_a_backfill_is_replaced_by_its_newer_copy(registry: Registry) -> None:
    registry.put_backfill(BackfillRecord(job_name="b1", source_dataset="Orders", status="running"))
    registry.put_backfill(BackfillRecord(job_name="b1", source_dataset="Orders", status="done", records_ingested=9))
    (found,) = registry.backfills()
    assert found == BackfillRecord(
        job_name="b1", source_dataset="Orders", status="done", records_ingested=9, updated_at=START + 2
    )


# Failures and opening

CALLS: dict[str, Callable[[Registry], object]] = {
    "migrate": lambda registry: registry.migrate(),
    "version": lambda registry: registry.version(),
    "definitions": lambda registry: registry.definitions(),
    "commit": lambda registry: registry.commit(whole(), decide, None),
    "commits": lambda registry: registry.commits(),
    "latest_commit": lambda registry: registry.latest_commit(),
    "record_event": lambda registry: registry.record_event(event("s")),
    "events": lambda registry: registry.events(),
    "create_key": lambda registry: registry.create_key("admin", "x"),
    "keys": lambda registry: registry.keys(),
    "revoke_key": lambda registry: registry.revoke_key("00000000"),
    "jobs": lambda registry: registry.jobs(),
    "source_statuses": lambda registry: registry.source_statuses(),
    "put_backfill": lambda registry: registry.put_backfill(
        BackfillRecord(job_name="b", source_dataset="d", status="x")
    ),
    "backfills": lambda registry: registry.backfills(),
    "put_statuses": lambda registry: registry.put_statuses([], [], [DatasetStatus(dataset="d@1")]),
    "dataset_statuses": lambda registry: registry.dataset_statuses(),
    "scale": lambda registry: registry.scale("p@1", 1),
    "partition_counts": lambda registry: registry.partition_counts(),
    "audit.record": lambda registry: Audit(registry.database).record(
        [QueryRun(id="r", kind="online", featureset="f", created_at=START)]
    ),
    "audit.get": lambda registry: Audit(registry.database).get("r"),
    "audit.list": lambda registry: Audit(registry.database).list(),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_unreachable_server_is_a_retryable_error_without_the_password(call: str) -> None:
    registry = Registry("postgresql://ann:s3cr%40t@127.0.0.1:1/thyme?password=als0-s3cr", SteppingClock())
    with pytest.raises(StoreUnavailable) as caught:
        CALLS[call](registry)
    assert caught.value.retryable
    shown = "".join(traceback.format_exception(caught.value)) + repr(registry.database)
    assert "s3cr" not in shown
    assert "127.0.0.1:1/thyme" in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_cannot_be_opened_is_a_retryable_error(call: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    registry = Registry(f"sqlite:///{tmp_path / 'taken' / 'registry.db'}", SteppingClock())
    with pytest.raises(StoreUnavailable) as caught:
        CALLS[call](registry)
    assert caught.value.retryable


@pytest.mark.parametrize("call", [name for name in CALLS if name != "migrate"])
def test_a_registry_without_tables_is_a_retryable_error(call: str, database_url: str) -> None:
    registry = Registry(database_url, SteppingClock())
    with pytest.raises(StoreUnavailable):
        CALLS[call](registry)
    registry.close()


def test_reading_before_the_first_start_leaves_no_file(sqlite_url: str) -> None:
    with pytest.raises(StoreUnavailable):
        Registry(sqlite_url, SteppingClock()).version()
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_a_file_that_is_no_database_is_corrupt_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"something else entirely " * 100)
    with pytest.raises(CorruptState, match=r"registry\.db"):
        Registry(f"sqlite:///{path}", SteppingClock()).migrate()
    assert path.read_bytes().startswith(b"something else")


def test_the_sqlite_file_is_for_its_owner_alone(sqlite_url: str) -> None:
    registry = Registry(sqlite_url, SteppingClock())
    registry.migrate()
    registry.commit(whole(), decide, None)
    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes["registry.db"] == 0o600
    assert set(modes.values()) == {0o600}
    registry.close()


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1), ("busy_timeout", 30_000)]
)
def test_every_sqlite_connection_is_configured(sqlite_url: str, pragma: str, value: object) -> None:
    registry = Registry(sqlite_url, SteppingClock())
    registry.migrate()
    with registry.database.read() as connection:
        assert connection.execute(sa.text(f"PRAGMA {pragma}")).scalar_one() == value
    registry.close()


def test_a_path_with_special_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "100% mine?#" / "registry.db"
    registry = Registry(sa.URL.create("sqlite", database=str(path)).render_as_string(), SteppingClock())
    registry.migrate()
    assert path.exists()
    registry.close()


def test_connections_the_server_dropped_are_replaced_unnoticed(postgres_url: str) -> None:
    registry, other = Registry(postgres_url, SteppingClock()), Registry(postgres_url, SteppingClock())
    registry.migrate()
    with other.database.write() as connection:
        others = "FROM pg_stat_activity WHERE pid != pg_backend_pid() AND datname = current_database()"
        assert connection.execute(sa.text(f"SELECT pg_terminate_backend(pid) {others}")).all() != []
    assert registry.version() == 0
    registry.commit(one("Orders"), decide, None)
    registry.close()
    other.close()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_postgresql_url_is_taken(postgres_url: str, scheme: str) -> None:
    registry = Registry(postgres_url.replace("postgresql", scheme, 1), SteppingClock())
    registry.migrate()
    assert registry.version() == 0
    registry.close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://ann:s3cret@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "",
        "ann:s3cret@host",
        "postgresql+asyncpg://h/d",
    ],
)
def test_other_urls_are_refused_without_quoting_a_password(url: str) -> None:
    with pytest.raises(ValueError, match="registry") as caught:
        Registry(url, SteppingClock())
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
