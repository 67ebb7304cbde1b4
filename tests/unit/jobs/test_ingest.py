"""A source's records reach the log once each, whatever fails on the way. Real files, real Valkey."""

import csv
from pathlib import Path

import pytest

from featurelib.clock import SystemClock, parse_instant
from featurelib.connectors import Mark
from featurelib.definitions import ConnectorDef, DatasetDef, ExpectationDef, FieldDef, SourceDef, ref
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.errors import SourceError, StoreUnavailable
from featurelib.settings import IngestSettings, Settings
from featurelib.stores.intake import Intake, lateness_of
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from jobs.ingest import SourceIngest, SourceTask
from tests.support.clocks import MovedClock
from tests.support.fed import FailsAfter

NOW = parse_instant("2026-05-01")

PARTITIONS = 3
TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="fare", type="float", optional=True),
        FieldDef(name="n", type="int"),
    ),
    expectations=(ExpectationDef(type="column_values_between", column="fare", min_value=0),),
)
START = parse_instant("2026-04-01T00:00:00Z") // 1_000_000


@pytest.fixture
def log(empty_redis_url):
    log = Log(empty_redis_url, MovedClock(NOW))
    yield log
    log.close()


def source(path: Path, **options) -> SourceDef:
    return SourceDef(dataset="Trip", connector=ConnectorDef(type="files", config={"path": str(path)}), **options)


def ingest(path: Path, log: Log, *, batch_rows: int = 10, report=lambda _: None, **options) -> SourceIngest:
    settings = IngestSettings(batch_rows=batch_rows)
    return SourceIngest(
        source(path, **options), TRIP, PARTITIONS, log, report=report, settings=settings, clock=SystemClock()
    )


def write(path: Path, rows: list[list]) -> None:
    with path.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows([["rider", "at", "fare", "n"], *rows])


def trips(count: int, first: int = 0) -> list[list]:
    return [[f"rider{i % 7}", START + i, i / 2, i] for i in range(first, first + count)]


def finish(job: SourceIngest) -> list:
    steps = [job.step()]
    while not steps[-1].caught_up:
        steps.append(job.step())
    return steps


def held(log: Log) -> dict[int, list[dict]]:
    found = {}
    for part in range(PARTITIONS):
        table = log.read(ref(TRIP), part, 0, 1_000_000)
        found[part] = table.to_pylist() if table is not None else []
    return found


def numbers(log: Log) -> list[int]:
    return sorted(row["n"] for rows in held(log).values() for row in rows)


def dead(log: Log) -> list[tuple[str, int]]:
    letters = log.dead.newest(ref(TRIP), PARTITIONS)
    return sorted((stored.letter.reason, stored.letter.sequence) for stored in letters)


def test_every_record_is_in_the_partition_of_its_key_once(tmp_path, log):
    write(tmp_path / "a.csv", trips(95))
    steps = finish(ingest(tmp_path, log))
    assert sum(step.accepted for step in steps) == 95
    assert numbers(log) == list(range(95))
    for part, rows in held(log).items():
        assert {owner_of_group(key_group(row["rider"]), PARTITIONS) for row in rows} <= {part}
        assert [row["__offset"] for row in rows] == list(range(len(rows)))


def test_a_second_run_adds_nothing_and_reads_nothing(tmp_path, log):
    write(tmp_path / "a.csv", trips(95))
    finish(ingest(tmp_path, log))
    (step,) = finish(ingest(tmp_path, log))
    assert (step.rows, step.caught_up) == (0, True)
    assert numbers(log) == list(range(95))


def test_new_files_and_appended_lines_follow(tmp_path, log):
    write(tmp_path / "a.csv", trips(5))
    job = ingest(tmp_path, log)
    finish(job)
    write(tmp_path / "b.csv", trips(5, first=5))
    with (tmp_path / "a.csv").open("a") as opened:
        opened.write(f"rider1,{START},1,10\n")
    finish(job)
    assert numbers(log) == list(range(11))


@pytest.mark.parametrize("appends", range(9))
def test_a_crash_between_the_appends_of_a_batch_neither_loses_nor_doubles(tmp_path, log, empty_redis_url, appends):
    rows = trips(30)
    rows[4][2] = rows[17][2] = "dear"
    write(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open("a") as opened:
        opened.write("half a line\n")
    crashing = FailsAfter(empty_redis_url, appends, MovedClock(NOW))
    with pytest.raises(StoreUnavailable):
        finish(ingest(tmp_path, crashing))
    crashing.close()
    finish(ingest(tmp_path, log, batch_rows=7))
    assert numbers(log) == [i for i in range(30) if i not in (4, 17)]
    assert dead(log) == [("malformed", 32), ("wrong_type", 6), ("wrong_type", 19)]


def test_the_same_job_goes_on_after_the_store_was_away(tmp_path, log, empty_redis_url):
    write(tmp_path / "a.csv", trips(30))
    away = FailsAfter(empty_redis_url, 4, MovedClock(NOW))
    job = ingest(tmp_path, away)
    with pytest.raises(StoreUnavailable):
        finish(job)
    away._left = 1_000
    finish(job)
    away.close()
    assert numbers(log) == list(range(30))


def test_a_killed_server_loses_nothing_it_acknowledged(tmp_path, redis_server):
    write(tmp_path / "a.csv", trips(40))
    log = Log(redis_server.url, MovedClock(NOW))
    job = ingest(tmp_path, log)
    job.step()
    job.step()
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        finish(job)
    redis_server.start()
    finish(job)
    assert numbers(log) == list(range(40))
    log.close()


def test_a_partition_without_records_moves_on_too(tmp_path, log):
    write(tmp_path / "a.csv", [["only", START + i, 1, i] for i in range(50)])
    finish(ingest(tmp_path, log))
    heads = log.heads(ref(TRIP), PARTITIONS)
    assert [head.marks for head in heads] == [{"a.csv": Mark(51)}] * PARTITIONS
    assert sorted(head.next_offset for head in heads) == [0, 0, 50]


def test_rejected_and_malformed_records_become_dead_letters_and_the_rest_continues(tmp_path, log):
    (tmp_path / "a.csv").write_text(f"rider,at,fare,n\nx,{START},1,1\n,{START},1,2\ny\nz,soon,1,4\nx,{START},2,5\n")
    finish(ingest(tmp_path, log))
    assert numbers(log) == [1, 5]
    assert dead(log) == [("invalid_timestamp", 5), ("malformed", 4), ("missing_field", 3)]
    letters = {stored.letter.sequence: stored.letter for stored in log.dead.newest(ref(TRIP), PARTITIONS)}
    assert letters[5].record == {"rider": "z", "at": "soon", "fare": "1", "n": "4"}
    assert letters[5].field == "at"
    assert letters[4].message == "line 4: expected 4 columns, found 1"


def test_late_records_are_marked_kept_and_counted(tmp_path, log):
    write(tmp_path / "a.csv", [["x", START + 100, 1, 0], ["x", START, 1, 1], ["x", START + 95, 1, 2]])
    (step, _) = finish(ingest(tmp_path, log, max_lateness_us=10_000_000))
    assert step.late == 1
    assert {row["n"]: row["__late"] for rows in held(log).values() for row in rows} == {0: False, 1: True, 2: False}


def test_a_poll_reports_what_happened_once_per_kind(tmp_path, log):
    rows = trips(30)
    rows[3][2], rows[12][2], rows[20][2] = -1, -2, "dear"
    write(tmp_path / "a.csv", rows)
    events = []
    finish(ingest(tmp_path, log, report=events.append))
    assert [(event.event_type, event.severity) for event in events] == [
        ("source_ingestion", "info"),
        ("dead_letter", "warn"),
        ("expectation_violation", "warn"),
    ]
    assert events[0].detail == {"accepted": 29}
    assert "fare: 'dear'" in events[1].message
    assert (events[2].detail["failed"], events[2].detail["total"]) == (3, 30)


def test_the_cursor_shown_never_goes_back_and_drops_nothing(tmp_path, log):
    write(tmp_path / "a.csv", trips(20, first=100))
    write(tmp_path / "b.csv", trips(5, first=9))
    steps = finish(ingest(tmp_path, log, cursor="n"))
    assert [step.cursor for step in steps] == ["109", "119", "119", "119"]
    assert len(numbers(log)) == 25
    (again,) = finish(ingest(tmp_path, log, cursor="n"))
    assert again.cursor == "119"


def test_a_source_that_fails_is_polled_again_from_where_the_log_stands(tmp_path, log):
    job = ingest(tmp_path / "later", log)
    with pytest.raises(SourceError):
        job.step()
    (tmp_path / "later").mkdir()
    write(tmp_path / "later" / "a.csv", trips(3))
    finish(job)
    assert numbers(log) == [0, 1, 2]


def test_events_sent_by_hand_are_appended_or_refused_one_by_one(log):
    intake = Intake(log, TRIP, PARTITIONS, lateness_of(None, IngestSettings()))
    good = {"rider": "x", "at": "2026-04-01T10:30", "fare": 1, "n": 1, "extra": 5}
    taken = intake.accept([good, {**good, "n": "many"}, {**good, "n": 2}, {"rider": ""}])
    assert (taken.accepted, taken.dead) == (2, 2)
    assert [(r.row, r.reason, r.field) for r in taken.rejected] == [(1, "wrong_type", "n"), (3, "empty_key", "rider")]
    assert numbers(log) == [1, 2]
    assert len(log.dead.newest(ref(TRIP), PARTITIONS)) == 2


def test_a_source_task_shows_totals_and_says_once_what_its_source_failed_with(tmp_path, empty_redis_url):
    settings = Settings(
        data_dir=tmp_path, online={"redis_url": empty_redis_url}, pipeline={"partition_count": PARTITIONS}
    )
    Registry(settings.registry_url, SystemClock()).migrate()
    task = SourceTask(source(tmp_path / "in"), TRIP, settings)
    task.start()
    assert [task.step(), task.step()] == [False, False]
    assert "does not exist" in task.facts()["error"]
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", [*trips(4), ["x", "never", 1, 1]])
    while task.step():
        pass
    facts = task.facts()
    task.close()
    assert {name: facts[name] for name in ("accepted", "dead", "late", "cursor", "caught_up", "error")} == {
        "accepted": 4, "dead": 1, "late": 0, "cursor": "a.csv:6", "caught_up": True, "error": "",
    }  # fmt: skip
    registry = Registry(settings.registry_url, SystemClock())
    kinds = [event.event_type for event in registry.events()]
    registry.close()
    assert sorted(kinds) == ["dead_letter", "source_error", "source_ingestion"]
