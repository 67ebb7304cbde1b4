"""What is shown of jobs, sources and datasets, from workers' answers, over a real log and registry. No Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.processes import Owned
from featurelib.clock import SystemClock
from featurelib.definitions import ref
from featurelib.engine.records import TIME
from featurelib.settings import Settings
from featurelib.stores.log import Log
from featurelib.stores.registry import DatasetStatus, JobRecord, Registry, SourceStatus
from jobs.board import Board
from jobs.driver import Answer, Report, State
from jobs.freshness import Progress
from jobs.holds import Held
from jobs.reconcile import family
from jobs.wanted import log_datasets, wanted_tasks
from tests.support.worlds import NEVER_LATE, T0
from tests.unit.jobs.test_wanted import DEFINITIONS

WANTED = wanted_tasks(DEFINITIONS, lambda _: 2, lambda _: (1,))


class Scene:
    """A board over real stores, with the hands of its clock in the test's."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.settings = Settings(data_dir=folder, online={"redis_url": redis_url})
        self.registry = Registry(self.settings.registry_url, SystemClock())
        self.registry.migrate()
        self.log = Log(redis_url, SystemClock())
        for dataset in log_datasets(DEFINITIONS):
            self.log.create(ref(dataset), 2)
        self.now = 0.0
        self.board = self.new_board()

    def new_board(self) -> Board:
        return Board(self.settings, self.registry, self.log, seconds=lambda: self.now)

    def rides(self, partition: int, count: int) -> None:
        table = pa.table({"rider": ["r"] * count, TIME: pa.array([T0] * count, pa.int64())})
        self.log.append("Ride@1", partition, table, lateness=NEVER_LATE)

    def publish(self, answers: dict[str, Answer], *, after_s: float = 2.0) -> None:
        self.now += after_s
        self.board.publish(DEFINITIONS, WANTED, answers)

    def job(self) -> JobRecord:
        return next(job for job in self.registry.jobs() if job.pipeline == "by_rider@1")

    def dataset(self) -> DatasetStatus:
        return next(each for each in self.registry.dataset_statuses() if each.dataset == "Ride@1")

    def source(self) -> SourceStatus:
        (found,) = self.registry.source_statuses()
        return found


@pytest.fixture
def scene(tmp_path: Path, empty_redis_url: str) -> Iterator[Scene]:
    made = Scene(tmp_path, empty_redis_url)
    yield made
    made.log.close()
    made.registry.close()


def answer(name: str, state: State = "running", *, pid: int = 1, step_s: float = 0.0, **facts: Any) -> Answer:
    return Answer(
        Report(WANTED[name].digest, state, "why" if state != "running" else "", 0, facts, step_s),
        "host",
        Owned(pid=pid, created=float(pid)),
    )


def worker(partition: int, applied: dict[int, int], *, pid: int | None = None, **more: Any) -> dict[str, Answer]:
    """The answer of a worker of the pipeline that has applied so much of each partition of the rides."""
    name = f"by_rider:{partition}"
    facts = {"rows": sum(applied.values()), "newest_us": T0, "failed": 0, "applied": {"Ride@1": applied}} | more
    return {name: answer(name, pid=10 + partition if pid is None else pid, **facts)}


def test_a_job_and_its_dataset_are_shown_with_what_waits(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.rides(1, 3)
    archive = {"archive": answer("archive", lag={"Ride@1": 6})}
    scene.publish(worker(0, {0: 4}) | worker(1, {1: 3}) | archive)
    job, dataset = scene.job(), scene.dataset()
    assert (job.state, job.rows, job.rows_in, job.lag, job.partition_count) == ("running", 7, 7, 1, 2)
    assert job.waiting_since_us == scene.log.accepted_at([("Ride@1", 0, 4)])[0]
    assert (dataset.rows_out, dataset.lag, dataset.archive_lag) == (8, 1, 6)
    assert dataset.waiting_since_us == job.waiting_since_us
    assert [(each.partition, each.pid, each.state) for each in job.workers or ()] == [
        (0, 10, "running"),
        (1, 11, "running"),
    ]


def test_what_waits_grows_while_a_worker_is_away_and_the_rows_stay(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.publish(worker(0, {0: 5}) | worker(1, {1: 0}))
    scene.rides(0, 4)
    scene.publish(worker(1, {1: 0}))
    assert (scene.job().state, scene.job().rows, scene.job().lag) == ("starting", 5, 4)
    scene.publish(worker(0, {0: 9}) | worker(1, {1: 0}))
    assert (scene.job().state, scene.job().rows, scene.job().lag) == ("running", 9, 0)


def test_a_new_supervisor_keeps_the_numbers_until_the_workers_have_spoken(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.publish(worker(0, {0: 5}, failed=2) | worker(1, {1: 0}))
    scene.board = scene.new_board()
    scene.publish({})
    assert (scene.job().state, scene.job().rows, scene.job().rows_failed) == ("starting", 5, 2)


def test_rows_that_failed_are_counted_once_over_workers_and_supervisors(scene: Scene) -> None:
    both = worker(1, {1: 0})
    for failed in (0, 3, 3):
        scene.publish(worker(0, {0: 1}, failed=failed) | both)
    assert scene.job().rows_failed == 3
    scene.board = scene.new_board()
    for failed in (3, 4):
        scene.publish(worker(0, {0: 1}, failed=failed) | both)
    assert scene.job().rows_failed == 4
    scene.publish(worker(0, {0: 1}, failed=5, pid=99) | both)
    assert scene.job().rows_failed == 9


def test_a_worker_in_a_long_step_makes_the_job_stalled_at_once(scene: Scene) -> None:
    scene.publish(worker(0, {0: 0}) | worker(1, {1: 0}))
    slow = answer("by_rider:0", step_s=61.0, pid=10, rows=0, newest_us=None, failed=0, applied={})
    scene.publish({"by_rider:0": slow} | worker(1, {1: 0}), after_s=0.1)
    assert (scene.job().state, scene.job().detail) == ("stalled", "one step has taken 61 s")


def test_numbers_are_written_once_a_second_and_states_when_they_change(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.publish(worker(0, {0: 1}) | worker(1, {1: 0}))
    scene.publish(worker(0, {0: 5}) | worker(1, {1: 0}), after_s=0.5)
    assert scene.job().rows == 1
    scene.publish(worker(0, {0: 5}), after_s=0.1)
    assert (scene.job().state, scene.job().rows) == ("starting", 1)
    scene.publish(worker(0, {0: 5}) | worker(1, {1: 0}), after_s=0.1)
    assert (scene.job().state, scene.job().rows) == ("running", 5)


def test_a_source_shows_what_the_log_holds_and_what_it_failed_with(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.publish({"source:Ride": answer("source:Ride", "retrying")})
    assert (scene.source().rows_in, scene.source().last_error) == (5, "why")
    scene.publish({"source:Ride": answer("source:Ride", cursor="a.csv:6", error="")})
    assert (scene.source().cursor_value, scene.source().last_error) == ("a.csv:6", None)


def test_a_paused_pipeline_is_shown_as_that_with_what_waits_for_it(scene: Scene) -> None:
    scene.rides(0, 5)
    scene.publish(worker(0, {0: 4}) | worker(1, {1: 0}))
    scene.rides(0, 6)
    running = {name: spec for name, spec in WANTED.items() if family(name) != "by_rider"}
    stands = Progress({("Ride@1", 0): 5, ("Ride@1", 1): 0}, 5, T0)
    for state in ("pausing", "paused"):
        scene.board.publish(DEFINITIONS, running, {}, {"by_rider@1": Held(state, 2, stands)})
        assert (scene.job().state, scene.job().rows, scene.job().lag) == (state, 5, 6)
    assert [(each.partition, each.state) for each in scene.job().workers or ()] == [(0, "paused"), (1, "paused")]
    assert scene.dataset().lag == 6
    scene.publish(worker(0, {0: 11}) | worker(1, {1: 0}))
    assert (scene.job().state, scene.job().lag) == ("running", 0)
