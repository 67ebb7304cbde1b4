"""The supervisor over real workers: leases, other numbers of workers, and what another supervisor left behind.

One platform with a short lease serves the module: rides are ingested from files meanwhile, and every count is exact.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from cluster import local
from cluster.processes import Owned, is_live, wait_until
from cluster.state import read_state
from featurelib.errors import ThymeError
from tests.support.towns import DEADLINE_S, Town, running_town

# Waits end as soon as what they wait for is there: their bounds are for what never comes, however full the machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

LEASE_S = 4.0


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    home = tmp_path_factory.mktemp("home")
    with running_town(home, THYME_PIPELINE__LEASE_MS=str(int(LEASE_S * 1_000))) as made:
        made.settles()
        yield made


@contextmanager
def ingesting(town: Town, by: str = "") -> Iterator[None]:
    """Rides arrive, and ``by`` or every pipeline folds them, while the block runs and after it."""
    before = town.rows
    feeding = threading.Thread(target=town.drive, args=(20, 2_000))
    feeding.start()
    assert wait_until(lambda: folded(town, by) > before, DEADLINE_S, every_s=0.1)
    yield
    feeding.join()


def folded(town: Town, by: str) -> int:
    if not by:
        return town.folded()
    rows = job(town, by).get("rows")
    return rows if isinstance(rows, int) else 0


def job(town: Town, name: str) -> dict[str, object]:
    try:
        return next(each for each in town.client.jobs() if each["name"] == name)
    except ThymeError:
        return {"state": "unknown", "partition_count": 0, "workers": []}


def workers(town: Town, pipeline: str) -> list[psutil.Process]:
    """The processes of a pipeline's workers, once the job tells as many as it should have and all of them live."""
    found: list[psutil.Process] = []

    def all_live() -> bool:
        told = pids(town, pipeline)
        found[:] = [process for process in town.platform.processes("ray::PipelineWorker") if process.pid in told]
        return 0 < len(found) == job(town, f"{pipeline}_job")["partition_count"]

    assert wait_until(all_live, DEADLINE_S, every_s=0.2), job(town, f"{pipeline}_job")
    return found


def runs_with(town: Town, pipeline: str, count: int) -> bool:
    """Whether so many workers run, and no process of another one is left."""
    shown = job(town, f"{pipeline}_job")
    return (shown["state"], shown["partition_count"]) == ("running", count) and total(town) == wanted_processes(town)


def total(town: Town) -> int:
    return len(town.platform.processes("ray::PipelineWorker"))


def wanted_processes(town: Town) -> int:
    return sum(each["partition_count"] for each in town.client.jobs())


def test_replicas_and_workers_are_sessions_of_their_own_and_only_workers_are_nice(town: Town) -> None:
    # Linux shares a processor between sessions first: in one with the workers, whose niceness is the session's, reads
    # waited for hundreds of milliseconds on a full machine.
    folding, serving = (town.platform.processes(title) for title in ("ray::PipelineWorker", "ray::ServeReplica"))
    assert folding
    assert serving
    assert all(os.getsid(process.pid) == process.pid for process in [*folding, *serving])
    ours = os.nice(0)
    assert {process.nice() for process in folding} == {min(19, ours + town.platform.settings.pipeline.niceness)}
    assert {process.nice() for process in serving} == {ours}


def test_a_worker_stopped_for_longer_than_its_lease_is_replaced_and_its_process_is_gone(town: Town) -> None:
    # Another test may have given it another number of workers.
    count = len(workers(town, "by_rider"))
    with ingesting(town):
        stopped = workers(town, "by_rider")[0]
        stopped.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: not is_live(stopped), DEADLINE_S, every_s=0.1)
    town.settles()
    assert wait_until(lambda: runs_with(town, "by_rider", count), DEADLINE_S, every_s=0.2)
    failed = town.client.events(event_type="job_failed")
    assert any("gave no answer for" in event["message"] for event in failed), failed


def test_workers_become_four_and_two_again_in_the_middle_of_a_stream(town: Town) -> None:
    before = {event["id"] for event in failures(town)}
    with ingesting(town):
        for count in (4, 2):
            town.platform.thyme("jobs", "scale", "by_city", str(count))
            assert wait_until(lambda count=count: runs_with(town, "by_city", count), DEADLINE_S, every_s=0.2), (
                job(town, "by_city_job"),
                total(town),
            )
    town.settles()
    # A worker that a full machine keeps from its lease is replaced: that is no failure of the change.
    assert [
        event
        for event in failures(town)
        if "by_city" in event["subject"] and event["id"] not in before and "gave no answer for" not in event["message"]
    ] == []


def failures(town: Town) -> list[dict[str, Any]]:
    return town.client.events(event_type="job_failed")


def test_a_paused_pipeline_stands_still_and_counts_what_it_missed_once(town: Town) -> None:
    town.settles()
    town.platform.thyme("jobs", "pause", "by_city")
    assert wait_until(lambda: job(town, "by_city_job")["state"] == "paused", DEADLINE_S, every_s=0.2), job(
        town, "by_city_job"
    )
    assert not [each for each in town.platform.processes("ray::PipelineWorker") if each.pid in pids(town, "by_city")]
    before = town.counts()
    town.drive(3, 500)
    assert wait_until(lambda: behind(town, "by_city_job") == 1_500, DEADLINE_S, every_s=0.2), job(town, "by_city_job")
    assert wait_until(lambda: behind(town, "by_rider_job") == 0, DEADLINE_S, every_s=0.2)
    assert town.counts() == before
    with ingesting(town, "by_rider_job"):
        town.platform.thyme("jobs", "restart", "by_rider")
        town.platform.thyme("jobs", "resume", "by_city")
    town.settles()
    assert wait_until(lambda: job(town, "by_city_job")["state"] == "running", DEADLINE_S, every_s=0.2)
    types = [event["event_type"] for event in town.client.events(subject="by_city@1")]
    assert {"job_paused", "job_resumed"} <= set(types)


def pids(town: Town, pipeline: str) -> set[object]:
    found = job(town, f"{pipeline}_job")["workers"]
    assert isinstance(found, list)
    return {worker["pid"] for worker in found if worker["pid"]}


def behind(town: Town, name: str) -> object:
    fresh = job(town, name).get("freshness")
    return fresh["records_behind"] if isinstance(fresh, dict) else None


def test_what_a_supervisor_left_behind_is_ended_by_the_next_one(town: Town) -> None:
    assert len(workers(town, "by_city")) > 1
    assert town.platform.kill("jobs.supervisor", "node")
    town.client.scale_job("by_city", 1)
    with ingesting(town):
        assert wait_until(lambda: runs_with(town, "by_city", 1), DEADLINE_S, every_s=0.2), (
            job(town, "by_city_job"),
            total(town),
        )
    town.settles()


def test_after_rays_own_store_and_head_are_lost_what_runs_is_what_is_wanted(town: Town) -> None:
    before = head_of(town)
    with ingesting(town):
        assert town.platform.kill("", "gcs-store")
        assert wait_until(lambda: head_of(town) != before and is_ready(town), DEADLINE_S, every_s=0.2)
        town.client.scale_job("by_rider", 3)
        assert wait_until(lambda: runs_with(town, "by_rider", 3), DEADLINE_S, every_s=0.2), job(town, "by_rider_job")
    town.settles()


def head_of(town: Town) -> Owned | None:
    """The process of the Ray head, as the watcher knows it."""
    state = read_state(town.platform.layout.state_file)
    return state.parts["head"].process if state else None


def is_ready(town: Town) -> bool:
    return local.status(town.platform.settings).ready


def test_freshness_is_told_for_jobs_and_datasets(town: Town) -> None:
    town.settles()
    told = {"behind": 0, "waiting": None, "job": town.rows, "dataset": town.rows, "partitions": town.rows}
    # What is shown is written down a moment after it is so.
    assert wait_until(lambda: shown_freshness(town) == told, DEADLINE_S, every_s=0.2), shown_freshness(town)
    assert [each["name"] for each in json.loads(town.platform.thyme("jobs", "--json"))] == [
        "by_city_job",
        "by_rider_job",
    ]


def shown_freshness(town: Town) -> dict[str, object]:
    fresh = job(town, "by_rider_job")["freshness"]
    ride = next(each["freshness"] for each in town.client.status()["datasets"] if each["name"] == "Ride")
    assert isinstance(fresh, dict)
    return {
        "behind": fresh["records_behind"],
        "waiting": fresh["waiting_s"],
        "job": fresh["rows_out"],
        "dataset": ride["rows_out"],
        "partitions": sum(part["rows_out"] for part in ride["partitions"]),
    }
