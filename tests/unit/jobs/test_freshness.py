"""How far behind pipelines and datasets are, from workers' reports and a real log."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from featurelib.engine.records import TIME
from featurelib.stores.dead_letters import DeadLetter
from featurelib.stores.log import Lateness, Log
from featurelib.stores.registry import JobRecord, WorkerStatus
from jobs.freshness import (
    Backlog,
    Progress,
    backlogs,
    dataset_status,
    heads_of,
    job_record,
    progress_of,
    slowest,
    state_of,
    unknown_job,
)
from tests.support.clocks import MovedClock

RIDE = "Ride@1"
T0 = 1_700_000_000_000_000
STRICT = Lateness(max_lateness_us=10_000_000, max_clock_skew_us=0)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(T0)


@pytest.fixture
def log(empty_redis_url: str, clock: MovedClock) -> Iterator[Log]:
    made = Log(empty_redis_url, clock)
    made.create(RIDE, 2)
    yield made
    made.close()


def append(log: Log, partition: int, times: list[int], dead: int = 0) -> None:
    table = pa.table({"rider": ["r"] * len(times), TIME: pa.array(times, pa.int64())})
    letters = [DeadLetter({}, "wrong_type", "rider", "no", None)] * dead
    log.append(RIDE, partition, table, lateness=STRICT, dead=letters)


def fill(log: Log, clock: MovedClock, seconds: int, rows: int = 3) -> None:
    """Batches of ``rows`` records in partition 0, accepted a second apart."""
    for _ in range(seconds):
        append(log, 0, [clock.time] * rows)
        clock.time += 1_000_000


def facts(rows: int, newest: int | None, applied: dict[int, int]) -> dict[str, object]:
    return {"rows": rows, "newest_us": newest, "failed": 0, "applied": {RIDE: applied}}


def test_when_any_record_was_accepted_is_found_without_reading_it(log: Log, clock: MovedClock) -> None:
    fill(log, clock, 5)
    asked = [(RIDE, 0, offset) for offset in (0, 2, 3, 14, 15, 99)] + [(RIDE, 1, 0)]
    assert log.accepted_at(asked) == [T0, T0, T0 + 1_000_000, T0 + 4_000_000, None, None, None]
    assert log.accepted_at([]) == []


def test_the_next_record_stands_in_for_a_trimmed_one(log: Log, clock: MovedClock) -> None:
    fill(log, clock, 5)
    log.trim(RIDE, 0, 6)
    assert log.accepted_at([(RIDE, 0, 0), (RIDE, 0, 7)]) == [T0 + 2_000_000, T0 + 2_000_000]


def test_a_pipeline_is_as_far_as_its_slowest_worker() -> None:
    progress = progress_of([facts(5, T0, {0: 10, 1: 4}), facts(2, None, {0: 7, 1: 9})])
    assert progress == Progress({(RIDE, 0): 7, (RIDE, 1): 4}, 7, T0)


def test_workers_that_read_different_partitions_do_not_hold_one_another_back() -> None:
    assert progress_of([facts(5, T0, {0: 10}), facts(2, T0 + 1, {1: 3})]).applied == {(RIDE, 0): 10, (RIDE, 1): 3}


def test_the_backlog_counts_records_and_tells_since_when_the_oldest_waits(log: Log, clock: MovedClock) -> None:
    fill(log, clock, 5)
    heads = heads_of(log, [RIDE])
    stands = {"behind": {(RIDE, 0): 7, (RIDE, 1): 0}, "level": {(RIDE, 0): 15}, "ahead": {(RIDE, 0): 16}}
    assert backlogs(log, heads, stands) == {
        "behind": Backlog(8, T0 + 2_000_000),
        "level": Backlog(0, None),
        "ahead": Backlog(0, None),
    }


def test_a_job_shows_rows_of_every_outcome(log: Log, clock: MovedClock) -> None:
    append(log, 0, [T0, T0 - 60_000_000, T0])
    heads = heads_of(log, [RIDE])
    progress = Progress({(RIDE, 0): 3, (RIDE, 1): 0}, 1, T0)
    job = job_record("p@1", [WorkerStatus(partition=0, state="running")], progress, Backlog(0, None), heads, failed=1)
    assert (job.rows_in, job.rows, job.rows_late, job.rows_failed, job.lag) == (3, 1, 1, 1, 0)
    assert (job.state, job.applied_us, job.partition_count) == ("running", T0, 1)


def test_numbers_stay_while_a_worker_has_not_said_how_far_it_is() -> None:
    before = JobRecord(pipeline="p@1", partition_count=2, state="running", rows=7, rows_in=9, lag=1, applied_us=T0)
    workers = [WorkerStatus(partition=0, state="running"), WorkerStatus(partition=1, state="starting")]
    job = unknown_job("p@1", workers, before)
    assert (job.state, job.rows, job.rows_in, job.lag, job.applied_us) == ("starting", 7, 9, 1, T0)
    assert unknown_job("p@1", workers, None).rows == 0


@pytest.mark.parametrize(
    ("states", "word"),
    [
        (("running", "running"), "running"),
        (("running", "starting"), "starting"),
        (("running", "stalled"), "stalled"),
        (("running", "retrying"), "degraded"),
        (("retrying", "retrying"), "retrying"),
    ],
)
def test_one_word_stands_for_all_workers(states: tuple[str, ...], word: str) -> None:
    assert state_of([WorkerStatus(partition=n, state=state) for n, state in enumerate(states)]) == word


def test_a_dataset_shows_its_partitions_and_the_slowest_of_its_readers(log: Log, clock: MovedClock) -> None:
    append(log, 0, [T0, T0 - 60_000_000], dead=2)
    (heads,) = heads_of(log, [RIDE]).values()
    stand = slowest([{(RIDE, 0): 2}, {(RIDE, 0): 1}])
    backlog = backlogs(log, {RIDE: heads}, {RIDE: stand})[RIDE]
    status = dataset_status(RIDE, heads, backlog, archive_lag=2)
    assert (status.rows_out, status.rows_late, status.rows_dead, status.lag, status.archive_lag) == (2, 1, 2, 1, 2)
    assert (status.newest_us, status.accepted_us, status.waiting_since_us) == (T0, T0, T0)
    assert [(p.rows_out, p.newest_us, p.accepted_us) for p in status.partitions] == [(2, T0, T0), (0, None, None)]
