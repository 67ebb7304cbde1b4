"""What a source's door tells, and how it waits: drift, dead letters, a full log, the pace of polls."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from featurelib.clock import SECOND, SystemClock
from featurelib.connectors import Mark
from featurelib.definitions import ConnectorDef, DatasetDef, ExpectationDef, FieldDef, SourceDef, ref
from featurelib.errors import LogFull
from featurelib.settings import IngestSettings, Settings
from featurelib.stores.dead_letters import DeadLetter
from featurelib.stores.intake import Intake, lateness_of
from featurelib.stores.log import Identity, Log
from featurelib.stores.registry import Registry
from jobs.ingest import Pace, SourceIngest, SourceTask
from tests.support.clocks import MovedClock

PARTITIONS = 2
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


@pytest.fixture
def log(empty_redis_url):
    log = Log(empty_redis_url, SystemClock())
    yield log
    log.close()


def source(path: Path) -> SourceDef:
    return SourceDef(dataset="Trip", connector=ConnectorDef(type="files", config={"path": str(path)}))


def ingest(path: Path, log: Log, events: list, **settings) -> SourceIngest:
    rules = IngestSettings(batch_rows=10, **settings)
    return SourceIngest(source(path), TRIP, PARTITIONS, log, report=events.append, settings=rules, clock=SystemClock())


def finish(job: SourceIngest) -> None:
    while not job.step().caught_up:
        pass


def write(path: Path, header: str, rows: range, line: str) -> None:
    path.write_text(header + "\n" + "".join(line.format(i=i) + "\n" for i in rows))


def numbers(log: Log) -> list[int]:
    tables = [log.read(ref(TRIP), part, 0, 100_000) for part in range(PARTITIONS)]
    return sorted(n for table in tables if table is not None for n in table["n"].to_pylist())


def kinds(events: list) -> list[str]:
    return [event.event_type for event in events]


def test_a_column_that_vanishes_from_a_file_is_told_of_once(tmp_path, log):
    events: list = []
    write(tmp_path / "a.csv", "rider,at,fare,n", range(25), "r{i},1770000000,1,{i}")
    job = ingest(tmp_path, log, events)
    finish(job)
    assert "schema_drift" not in kinds(events)
    write(tmp_path / "b.csv", "rider,at,n,tip", range(25, 60), "r{i},1770000000,{i},5")
    finish(job)
    (drift,) = [event for event in events if event.event_type == "schema_drift"]
    assert drift.detail == {"new": {"tip": "text"}, "missing": ["fare"], "retyped": {}}
    assert numbers(log) == list(range(60))


def test_dead_letters_that_are_dropped_for_room_are_told_of_once_a_poll(tmp_path, log):
    events: list = []
    write(tmp_path / "a.csv", "rider,at,fare,n", range(30), "r{i},never,1,{i}")
    finish(ingest(tmp_path, log, events, dead_letters_kept=2))
    assert len(log.dead.newest(ref(TRIP), PARTITIONS)) == 2 * PARTITIONS
    (dropped,) = [event for event in events if event.event_type == "dead_letters_dropped"]
    assert dropped.detail == {"dropped": 26, "kept": 2}
    (dead,) = [event for event in events if event.event_type == "dead_letter"]
    assert dead.detail == {"dead": 30}


class Full:
    """A log that has no room until it is given some; the appends it takes are counted."""

    def __init__(self, monkeypatch, appends: int) -> None:
        self._left = appends
        append = Log.append

        def limited(log: Log, *args, **kwargs):
            if self._left == 0:
                message = "the log is full"
                raise LogFull(message)
            self._left -= 1
            return append(log, *args, **kwargs)

        monkeypatch.setattr(Log, "append", limited)

    def make_room(self) -> None:
        self._left = 1_000


@pytest.mark.parametrize("appends", range(5))
def test_a_source_is_not_read_on_while_the_log_is_full_and_nothing_is_lost_or_double(
    tmp_path, log, monkeypatch, appends
):
    events: list = []
    write(tmp_path / "a.csv", "rider,at,fare,n", range(30), "r{i},1770000000,-1,{i}")
    full = Full(monkeypatch, appends)
    job = ingest(tmp_path, log, events)
    polls = []
    poll = job._source.poll
    monkeypatch.setattr(job._source, "poll", lambda position: polls.append(position) or poll(position))
    with pytest.raises(LogFull):
        finish(job)
    for _ in range(3):
        with pytest.raises(LogFull):
            job.step()
    full.make_room()
    finish(job)
    assert numbers(log) == list(range(30))
    assert len(polls) == 1  # what was read and not taken was kept
    (violation,) = [event for event in events if event.event_type == "expectation_violation"]
    assert (violation.detail["failed"], violation.detail["total"]) == (30, 30)


def test_a_task_whose_log_is_full_waits_and_says_so_once(tmp_path, empty_redis_url, monkeypatch):
    settings = Settings(data_dir=tmp_path, online={"redis_url": empty_redis_url})
    registry = Registry(settings.registry_url, SystemClock())
    registry.migrate()
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", "rider,at,fare,n", range(5), "r{i},1770000000,1,{i}")
    task = SourceTask(source(tmp_path / "in"), TRIP, settings)
    task.start()
    full = Full(monkeypatch, 0)
    assert [task.step(), task.step(), task.step()] == [False] * 3
    assert "full" in task.facts()["error"]
    full.make_room()
    assert task.step() is True
    assert task.facts()["error"] == ""
    assert task.step() is False
    task.close()
    told = [event.event_type for event in registry.events()]
    registry.close()
    assert told.count("source_waiting") == 1


@pytest.mark.parametrize("kind", ["numbered", "named"])
def test_what_is_given_again_is_judged_once(log, kind):
    intake = Intake(log, TRIP, PARTITIONS, lateness_of(None, IngestSettings()))
    rows = [{"rider": f"r{i}", "at": 1_770_000_000, "fare": -1, "n": i if i % 5 else "x"} for i in range(10)]
    names = [f"{i:03}" for i in range(20)]

    def identity(count: int) -> Identity:
        if kind == "named":
            return Identity("t", Mark(0, names[count - 1]), None, names[:count])
        return Identity("t", Mark(count), np.arange(1, count + 1, dtype=np.int64))

    first = intake.take(rows, identity(10), [], "")
    assert (first.accepted, first.dead, first.violations[0].failed) == (8, 2, 10)
    more = [*rows, {"rider": "r10", "at": 1_770_000_000, "fare": 5, "n": 10}]
    again = intake.take(more, identity(11), [], "")
    assert (again.accepted, again.duplicates) == (1, 8)
    if kind == "named":
        assert (again.dead, again.violations) == (0, [])
    assert len(log.dead.newest(ref(TRIP), PARTITIONS)) == 2


@pytest.mark.parametrize("first", ["replayed", "given again"])
def test_a_named_letter_that_fits_now_is_accepted_once_be_it_replayed_or_given_again_first(log, first):
    rows = [{"rider": f"r{i}", "at": 1_770_000_000, "fare": 1, "n": i} for i in range(10)]
    names = [f"{i:03}" for i in range(10)]
    fares_are_flags = TRIP.model_copy(
        update={"fields": tuple(f.model_copy(update={"type": "bool"}) if f.name == "fare" else f for f in TRIP.fields)}
    )
    rules = lateness_of(None, IngestSettings())
    log.create(ref(TRIP), PARTITIONS)
    Intake(log, fares_are_flags, PARTITIONS, rules).take(rows, Identity("t", Mark(0, "a"), None, names), [], "")
    assert numbers(log) == []
    door = Intake(log, TRIP, PARTITIONS, rules)

    def replay() -> None:
        done = door.replay(log.dead.newest(ref(TRIP), PARTITIONS))
        assert (done.accepted, done.duplicates) == (10, 0)

    def give_again() -> None:
        taken = door.take(rows, Identity("t", Mark(0, "b"), None, names), [], "")
        assert (taken.accepted, taken.duplicates) == (0, 10)

    for step in (replay, give_again) if first == "replayed" else (give_again, replay):
        step()
    assert numbers(log) == list(range(10))


def test_a_letter_read_again_after_a_crash_is_one_letter(log):
    intake = Intake(log, TRIP, PARTITIONS, lateness_of(None, IngestSettings()))
    letters = [DeadLetter({"text": "x"}, "malformed", "", "no record", n) for n in range(1, 5)]
    for _ in range(2):
        intake.take([], Identity("t", Mark(4), np.zeros(0, dtype=np.int64)), letters, "")
    stored = log.dead.newest(ref(TRIP), PARTITIONS)
    assert sorted(each.letter.sequence for each in stored) == [1, 2, 3, 4]
    assert {each.letter.origin for each in stored} == {"t"}


def test_polls_begin_at_a_fixed_pace_and_a_long_one_is_followed_at_once():
    clock = MovedClock()
    pace = Pace(10 * SECOND, clock)
    pace.begin()
    clock.time += 4 * SECOND
    pace.begin()  # the same poll goes on
    assert pace.left_us() == 6 * SECOND
    clock.time += 6 * SECOND
    pace.begin()
    clock.time += 25 * SECOND
    assert pace.left_us() == 0


def test_a_clock_that_jumps_makes_no_pause_longer_than_the_pace():
    clock = MovedClock()
    pace = Pace(10 * SECOND, clock)
    pace.begin()
    clock.time -= 3_600 * SECOND
    assert pace.left_us() == 10 * SECOND
    pace.begin()
    clock.time += 3_600 * SECOND
    assert pace.left_us() == 0


def test_a_source_that_waits_for_records_is_polled_at_once_unless_it_failed():
    pace = Pace(0, MovedClock())
    pace.begin()
    assert pace.left_us() == 0
    pace.begin()
    assert pace.left_us(at_least_us=SECOND) == SECOND


def test_a_task_that_is_stopped_does_not_wait_for_its_pace(tmp_path, empty_redis_url):
    settings = Settings(
        data_dir=tmp_path, online={"redis_url": empty_redis_url}, ingest={"default_every_ms": 3_600_000}
    )
    Registry(settings.registry_url, SystemClock()).migrate()
    task = SourceTask(source(tmp_path / "in"), TRIP, settings)
    task.start()
    task.step()
    stopping = threading.Event()
    stopping.set()
    task.wait(stopping)
    task.close()
