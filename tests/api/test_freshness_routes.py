"""Jobs, datasets and metrics say how fresh they are; the number of a job's workers can be changed."""

from __future__ import annotations

import pytest

from featurelib.clock import HOUR, SECOND, format_instant
from featurelib.definitions import Definitions
from featurelib.stores.registry import DatasetStatus, JobRecord, PartitionStatus, WorkerStatus
from serve_apps.control import job_named
from serve_apps.freshness import Rules, age_s, dataset_freshness, is_idle
from tests.api.conftest import NOON

MINUTE = 60 * SECOND
JOB = JobRecord(
    pipeline="by_rider@1",
    partition_count=2,
    state="degraded",
    applied_us=NOON - 90 * SECOND,
    rows=7,
    lag=3,
    rows_in=9,
    rows_late=1,
    rows_failed=1,
    waiting_since_us=NOON - 5 * SECOND,
    workers=(WorkerStatus(partition=0, state="running", pid=11), WorkerStatus(partition=1, state="retrying", pid=12)),
)
RIDES = DatasetStatus(
    dataset="Ride@1",
    rows_out=12,
    rows_late=1,
    rows_dead=2,
    newest_us=NOON - 90 * SECOND,
    accepted_us=NOON - SECOND,
    lag=3,
    archive_lag=4,
    partitions=(
        PartitionStatus(partition=0, rows_out=12, newest_us=NOON - 90 * SECOND, accepted_us=NOON - SECOND),
        PartitionStatus(partition=1, rows_out=0),
    ),
)


@pytest.fixture
def shown(platform, rides):
    """The rides' client, with figures as a supervisor writes them."""
    platform.registry.put_statuses([JOB], [], [RIDES])
    return rides


async def test_a_job_tells_both_lags_its_rows_and_its_workers(shown):
    jobs = {job["name"]: job for job in (await shown.get("/api/v1/jobs")).json()}
    job = jobs["by_rider_job"]
    assert job["freshness"] == {
        "event_time_lag_s": 90.0,
        "records_behind": 3,
        "waiting_s": 5.0,
        "rows_in": 9,
        "rows_out": 7,
        "rows_late": 1,
        "rows_failed": 1,
    }
    assert [(worker["state"], worker["pid"]) for worker in job["workers"]] == [("running", 11), ("retrying", 12)]
    assert (job["rows"], job["lag"], job["state"], job["partition_count"]) == (7, 3, "degraded", 2)
    assert set(job["spec"]) == {
        *("name", "partition_count", "input_topic", "output_topic", "replaylog_topic", "pipeline_spec"),
    }


async def test_a_job_that_nobody_has_heard_of_yet_has_no_lag_to_tell(shown):
    jobs = {job["name"]: job for job in (await shown.get("/api/v1/jobs")).json()}
    assert (jobs["Ride_index_job"]["state"], jobs["Ride_index_job"]["workers"]) == ("pending", [])
    assert jobs["Ride_index_job"]["freshness"]["event_time_lag_s"] is None


async def test_the_status_tells_of_every_dataset_with_a_log_with_or_without_a_source(shown):
    status = {each["name"]: each["freshness"] for each in (await shown.get("/api/v1/status")).json()["datasets"]}
    assert status["RiderStats"] is None
    ride = status["Ride"]
    assert (ride["rows_in"], ride["rows_out"], ride["rows_late"], ride["rows_dead"]) == (14, 12, 1, 2)
    assert (ride["event_time_lag_s"], ride["records_behind"], ride["archive_records_behind"]) == (90.0, 3, 4)
    assert [(part["partition"], part["idle"]) for part in ride["partitions"]] == [(0, False), (1, True)]


def test_the_watermark_of_a_partition_is_its_newest_event_less_the_lateness_allowed() -> None:
    fresh = dataset_freshness(RIDES, Rules(HOUR, MINUTE), NOON)
    assert [part["watermark"] for part in fresh["partitions"]] == [format_instant(NOON - 90 * SECOND - HOUR), None]
    nothing_is_late = dataset_freshness(RIDES, Rules(None, MINUTE), NOON)
    assert [part["watermark"] for part in nothing_is_late["partitions"]] == [None, None]


def test_a_partition_is_idle_when_it_accepted_nothing_for_longer_than_the_setting() -> None:
    partition = PartitionStatus(partition=0, rows_out=1, accepted_us=NOON)
    assert not is_idle(partition, Rules(None, MINUTE), NOON + MINUTE)
    assert is_idle(partition, Rules(None, MINUTE), NOON + MINUTE + 1)


def test_what_is_dated_ahead_has_no_negative_age() -> None:
    assert (age_s(NOON + HOUR, NOON), age_s(None, NOON)) == (0.0, None)


async def test_metrics_tell_of_jobs_and_datasets_by_name(shown):
    text = (await shown.get("/metrics")).text
    for line in (
        "thyme_freshness_known 1.0",
        "thyme_freshness_age_seconds 0.0",
        'thyme_pipeline_event_time_lag_seconds{pipeline="by_rider@1"} 90.0',
        'thyme_pipeline_records_behind{pipeline="by_rider@1"} 3.0',
        'thyme_pipeline_waiting_seconds{pipeline="by_rider@1"} 5.0',
        'thyme_pipeline_rows_total{outcome="out",pipeline="by_rider@1"} 7.0',
        'thyme_pipeline_workers{pipeline="by_rider@1",state="retrying"} 1.0',
        'thyme_dataset_event_time_lag_seconds{dataset="Ride@1"} 90.0',
        'thyme_dataset_waiting_seconds{dataset="Ride@1"} 0.0',
        'thyme_dataset_rows_total{dataset="Ride@1",outcome="dead"} 2.0',
        'thyme_dataset_archive_records_behind{dataset="Ride@1"} 4.0',
        'thyme_dataset_idle_partitions{dataset="Ride@1"} 1.0',
    ):
        assert line in text.splitlines(), line


async def test_ages_grow_while_nothing_is_written_down(shown, clock):
    clock.advance(30 * SECOND)
    text = (await shown.get("/metrics")).text
    assert "thyme_freshness_age_seconds 30.0" in text
    assert 'thyme_pipeline_event_time_lag_seconds{pipeline="by_rider@1"} 120.0' in text


async def test_a_replica_tells_its_own_metrics_while_the_registry_is_away(shown, platform):
    (platform.settings.data_dir / "registry.db").rename(platform.settings.data_dir / "elsewhere.db")
    platform.services.stores.registry.close()
    answer = await shown.get("/metrics")
    assert answer.status_code == 200
    assert "thyme_freshness_known 0.0" in answer.text
    assert "thyme_pipeline" not in answer.text
    assert "thyme_http_requests_total" in answer.text
    (platform.settings.data_dir / "elsewhere.db").rename(platform.settings.data_dir / "registry.db")


@pytest.mark.parametrize("name", ["by_rider", "by_rider_job", "by_rider@1", "by_rider_job@1"])
async def test_a_job_is_given_another_number_of_workers(rides, platform, name):
    answer = await rides.patch(f"/api/v1/jobs/{name}", json={"partition_count": 5})
    assert (answer.status_code, answer.json()["name"]) == (200, "by_rider_job")
    assert platform.registry.partition_counts() == {"by_rider@1": 5}


async def test_a_pipeline_whose_own_name_ends_like_a_jobs_is_found_by_it(rides, platform):
    by_rider = platform.registry.definitions().pipelines[0]
    renamed = by_rider.model_copy(update={"name": "nightly_job"})
    definitions = Definitions(datasets=platform.registry.definitions().datasets, pipelines=(by_rider, renamed))
    assert job_named("nightly_job", definitions) is job_named("nightly_job_job@1", definitions) is renamed
    assert job_named("by_rider_job", definitions) is by_rider


@pytest.mark.parametrize("count", [0, 65, "many", True, None])
async def test_a_number_of_workers_out_of_range_is_refused(rides, platform, count):
    answer = await rides.patch("/api/v1/jobs/by_rider", json={"partition_count": count})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert "partition_count" in answer.text
    assert platform.registry.partition_counts() == {}


async def test_an_unknown_job_cannot_be_scaled_and_nothing_else_of_a_job_be_changed(rides):
    assert (await rides.patch("/api/v1/jobs/nobody", json={"partition_count": 2})).status_code == 404
    more = {"partition_count": 2, "state": "stopped"}
    assert (await rides.patch("/api/v1/jobs/by_rider", json=more)).status_code == 400


async def test_a_reader_may_not_scale(platform, rides):
    async with platform.client("reader") as reader:
        assert (await reader.patch("/api/v1/jobs/by_rider", json={"partition_count": 2})).status_code == 403


async def test_an_event_clock_that_nothing_has_moved_is_named_as_the_clock_that_was_read(platform, client):
    await platform.commit_rides(client)
    platform.create_logs()
    platform.fold()  # workers are there, and no record is
    answer = (await client.get("/features?featureset=RiderReplayed&entity_id=7")).json()
    assert answer["metadata"] == {"timestamp": format_instant(NOON), "clock": "wall"}
    assert answer["features"]["trips"] in (0, None)


async def test_a_log_partition_without_records_does_not_hold_the_event_clock_back(platform, client):
    await platform.commit_rides(client)
    platform.create_logs()
    for hour, ride in ((9, "r1"), (11, "r1")):
        event = {"ride": ride, "rider": 7, "city": "Oslo", "fare": 1.0, "at": f"2026-03-01T{hour:02}:00:00Z"}
        await client.post("/api/v1/log", json={"dataset": "Ride", "events": [event]})
    platform.fold()
    heads = platform.log.heads("Ride@1", 2)
    assert sorted(head.next_offset for head in heads) == [0, 2]
    answer = (await client.get("/features?featureset=RiderReplayed&entity_id=7")).json()
    assert answer["metadata"] == {"timestamp": "2026-03-01T11:00:00Z", "clock": "event"}
