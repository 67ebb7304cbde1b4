"""Offline reads too large for a replica: read in parts by the job's own code, sent in the order asked."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import httpx2
import pyarrow as pa
import pytest

from cluster.launcher import Job
from featurelib.clock import DAY, MINUTE, format_instant
from featurelib.errors import StoreUnavailable
from featurelib.settings import ServingSettings, Settings
from featurelib.stores import spine_files
from featurelib.stores.questions import Question
from featurelib.stores.spine_files import SpineFolder
from jobs.training_set import Part, PartitionReader, part_of, training_set
from serve_apps import large_reads
from serve_apps.large_reads import LargeReads
from tests.api.conftest import NOON, Platform
from tests.api.test_offline import ARROW, START, take_trips
from tests.support.clocks import MovedClock

IN_A_REPLICA = 10


class JobsHere:
    """Runs what would be a Ray job at once, part by part in this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.ended: dict[str, Job] = {}
        self.dies = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, entrypoint: str, submission_id: str, *, metadata: dict[str, str]) -> str:
        name = entrypoint.removeprefix("python -m jobs.training_set --folder ")
        assert metadata["correlation_id"]
        if not self.dies:
            training_set(self._settings, name, self._run)
        status = "FAILED" if self.dies else "SUCCEEDED"
        self.ended[submission_id] = Job(
            submission_id=submission_id, status=status, entrypoint=entrypoint, message="its node died"
        )
        return submission_id

    def job(self, submission_id: str) -> Job:
        return self.ended[submission_id]

    def _run(self, name: str, partitions: int) -> list[Part]:
        reader = PartitionReader(SpineFolder(self._settings.offline_url, name), self._settings)
        parts = [part_of(reader, partition) for partition in range(partitions)]
        reader.close()
        return parts


@pytest.fixture
async def small(settings: Settings, clock: MovedClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    """A platform whose replica reads ten rows by itself, with trips."""
    serving = ServingSettings(**{**settings.serving.model_dump(), "offline_rows": IN_A_REPLICA})
    platform = Platform(settings.model_copy(update={"serving": serving}), clock)
    async with platform.application.running() as services, platform.client() as client:
        platform.services = services
        await take_trips(platform, client)
        yield platform
    platform.log.close()
    platform.registry.close()


@pytest.fixture
def jobs(small: Platform, monkeypatch: pytest.MonkeyPatch) -> JobsHere:
    here = JobsHere(small.settings)
    monkeypatch.setattr(large_reads.Launcher, "of", lambda _: here)
    return here


def queries(count: int) -> list[dict[str, Any]]:
    chosen = random.Random(3)
    return [
        {
            "entity_id": chosen.choice([chosen.randrange(8), str(chosen.randrange(8))]),
            "timestamp": format_instant(START + chosen.randrange(900) * MINUTE),
            **({"inputs": {"price": chosen.randrange(5)}} if chosen.random() < 0.3 else {}),
        }
        for _ in range(count)
    ]


async def asked(client: httpx2.AsyncClient, rows: list[dict[str, Any]], **headers: str) -> httpx2.Response:
    return await client.post("/features/offline", json={"featureset": "Rider", "queries": rows}, headers=headers)


def folders(platform: Platform) -> list[Path]:
    root = Path(platform.settings.offline_url)
    return list(root.iterdir()) if root.exists() else []


async def test_a_large_read_equals_small_ones_row_by_row_in_the_order_asked(small, jobs, monkeypatch):
    monkeypatch.setattr(spine_files, "_ROWS_AT_ONCE", 7)
    rows = queries(43)
    async with small.client("reader") as client:
        large = await asked(client, rows)
        parts = [
            (await asked(client, rows[start : start + IN_A_REPLICA])).json() for start in range(0, 43, IN_A_REPLICA)
        ]
        table = pa.ipc.open_stream((await asked(client, rows, accept=ARROW)).content).read_all()
        expected = pa.concat_tables(
            [
                pa.ipc.open_stream(
                    (await asked(client, rows[start : start + IN_A_REPLICA], accept=ARROW)).content
                ).read_all()
                for start in range(0, 43, IN_A_REPLICA)
            ]
        )
    assert len(jobs.ended) == 2
    assert large.json()["results"] == [row for part in parts for row in part["results"]]
    assert table.schema == expected.schema
    assert table.to_pylist() == expected.to_pylist()
    assert folders(small) == []


async def test_a_large_read_is_recorded_with_its_rows_and_hits(small, jobs):
    async with small.client("reader") as client:
        answer = await asked(client, queries(12))
        await small.services.writer.flush()
        run = (await client.get(f"/query-runs/{answer.headers['x-query-run-id']}")).json()
    hits = sum(None not in row["features"].values() for row in answer.json()["results"])
    assert (run["kind"], run["row_count"], run["hit_count"], run["error"]) == ("offline", 12, hits, None)


async def test_what_fails_in_a_large_read_fails_as_in_a_small_one(small, jobs):
    rows = [{"entity_id": 7, "timestamp": format_instant(NOON)}] * 11
    async with small.client("reader") as client:
        failed = await client.post("/features/offline", json={"featureset": "Failing", "queries": rows})
        wrong = await asked(client, [*queries(10), {"entity_id": "x", "timestamp": 0}])
        jobs.dies = True
        died = await asked(client, queries(11))
    assert (failed.status_code, failed.json()["error"]) == (500, "user_code_error")
    assert "trips.py:" in failed.json()["detail"]
    assert (wrong.status_code, "queries[10].entity_id" in wrong.json()["detail"]) == (400, True)
    assert (died.status_code, died.json()["error"], "its node died" in died.json()["detail"]) == (
        500,
        "cluster_error",
        True,
    )
    assert folders(small) == []


async def test_rows_that_could_not_all_be_handed_over_leave_nothing_behind(small, jobs, monkeypatch):
    monkeypatch.setattr(spine_files, "_ORDER", "absent/order.json")
    async with small.client("reader") as client:
        failed = await asked(client, queries(11))
    assert (failed.status_code, failed.json()["error"], jobs.ended) == (503, "store_unavailable", {})
    assert folders(small) == []


async def test_a_caller_who_leaves_half_way_leaves_no_rows_behind(small, jobs):
    services = small.services
    reads = LargeReads(small.settings, small.clock, services.stores.history, services.threads)
    ids = tuple(str(number % 8) for number in range(20))
    question = Question("offline", "Rider", ids, instants=(NOON,) * 20)
    rows = await reads.read(question, services.current.snapshot, "correlation")
    assert len(folders(small)) == 1
    parts = reads.send(rows, arrow=True)
    await anext(parts)
    await parts.aclose()
    assert folders(small) == []


@pytest.mark.parametrize("end", ["?endpoint_override=127.0.0.1:1&scheme=http&nothing=1", " "])
def test_what_an_address_holds_is_not_told_when_it_cannot_be_opened(end):
    with pytest.raises(StoreUnavailable) as failed:
        SpineFolder.create(f"s3://AKIAEXAMPLE:hush@bucket/x{end}", NOON)
    assert "serving.offline_url" in str(failed.value)
    assert not {"AKIAEXAMPLE", "hush"} & set(re.findall(r"\w+", str(failed.value)))


def test_a_folder_whose_maker_died_is_removed_by_the_next(tmp_path):
    old = SpineFolder.create(str(tmp_path), NOON)
    young = SpineFolder.create(str(tmp_path), NOON + DAY)
    assert {each.name for each in tmp_path.iterdir()} == {old.name, young.name}
    newest = SpineFolder.create(str(tmp_path), NOON + DAY + 1)
    assert {each.name for each in tmp_path.iterdir()} == {young.name, newest.name}
