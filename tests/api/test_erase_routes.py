"""Erasing over HTTP: what is taken on, refused, and told; replay of what is gone."""

from __future__ import annotations

import pytest

from featurelib.definitions import ref
from featurelib.stores.append_file import AppendFile
from featurelib.stores.archive import Archive
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.intake import Intake
from featurelib.stores.log import Lateness
from featurelib.stores.online import OnlineStore
from jobs.erase import Eraser
from jobs.maintain import ArchiveCopy
from jobs.wanted import log_datasets


def finish(platform) -> None:
    """What workers and the archive's task would do."""
    url = platform.settings.online.redis_url.get_secret_value()
    platform.fold()
    archive, fence, file, store = (
        Archive(platform.settings.archive_url),
        FsyncFence(url),
        AppendFile(url),
        OnlineStore(url),
    )
    datasets = log_datasets(platform.registry.definitions())
    copier = ArchiveCopy(datasets, platform.log, archive, fence=fence, clock=platform.clock, batch_rows=1_000)
    eraser = Eraser(platform.registry, platform.log, store, archive, file, clock=platform.clock)
    while not copier.step().caught_up:
        pass
    while eraser._erasures.open():
        eraser.step()
    for each in (fence, file, store):
        each.close()


async def test_an_entity_is_gone_from_reads_then_from_everywhere(rides, platform):
    first = await rides.get("/features", params={"entity_type": "Ride", "entity_id": "r1"})
    assert first.json()["features"]["fare"] == 10.0
    asked = await rides.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["r1", "r1", "unheard-of"]})
    assert asked.status_code == 200, asked.text
    answer = asked.json()
    assert (answer["entities_erased"], answer["state"]) == (2, "accepted")
    then = {"entity_type": "Ride", "entity_id": "r1", "timestamp": "2026-03-01T12:00:00Z"}
    assert (await rides.get("/features", params=then)).json()["features"] is None
    finish(platform)
    assert (await rides.get("/features", params={"entity_type": "Ride", "entity_id": "r1"})).json()["features"] is None
    rider = (await rides.get("/features", params={"entity_type": "RiderStats", "entity_id": "7"})).json()["features"]
    assert (rider["trips"], rider["spent"]) == (1, 5.0)
    receipt = (await rides.get(f"/api/v1/erasures/{answer['erasure_id']}")).json()
    assert receipt["state"] == "complete"
    assert "r1" not in receipt["digests"]
    assert [each["id"] for each in (await rides.get("/api/v1/erasures")).json()] == [answer["erasure_id"]]
    events = (await rides.get("/api/v1/events", params={"event_type": "erase"})).json()
    assert [event["message"] for event in events] == [
        "2 entities of Ride are erased",
        "2 entities of Ride are being erased",
    ]


async def test_a_replay_of_an_erased_run_is_gone(rides, platform):
    erased, kept = [
        (await rides.get("/features", params={"entity_type": "Ride", "entity_id": ride})).headers["x-query-run-id"]
        for ride in ("r1", "r2")
    ]
    await platform.services.writer.flush()
    await rides.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["r1"]})
    finish(platform)
    gone = await rides.post(f"/query-runs/{erased}/replay")
    assert (gone.status_code, gone.json()["error"]) == (410, "erased")
    assert (await rides.post(f"/query-runs/{kept}/replay")).status_code == 200
    run = (await rides.get(f"/query-runs/{erased}")).json()
    assert run["entity_ids"][0].startswith("erased:")


async def test_records_of_a_blocked_entity_are_refused_and_counted(rides, platform):
    await rides.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["r1"], "block": True})
    event = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1.0, "at": "2026-03-01T11:30:00Z"}
    sent = await rides.post("/api/v1/log", json={"dataset": "Ride", "events": [event, event | {"ride": "r9"}]})
    assert (sent.json()["events_sent"], sent.json()["erased"], sent.json()["rejected"]) == (1, 1, 0)


async def test_a_block_holds_for_later_versions_of_the_dataset_too(rides, platform):
    await rides.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["r1"], "block": True})
    later = platform.registry.definitions().dataset("Ride").model_copy(update={"version": 2})
    assert platform.log.create(ref(later), 3) == 3
    event = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1.0, "at": "2026-03-01T11:30:00Z"}
    taken = Intake(platform.log, later, 3, Lateness(None, 0)).accept([event, event | {"ride": "r9"}])
    assert (taken.accepted, taken.erased) == (1, 1)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"dataset": "Nothing", "entity_ids": ["r1"]}, 404, "'Nothing' is not committed"),
        ({"dataset": "RiderStats", "entity_ids": ["7"]}, 400, "made by a pipeline; erase from 'Ride'"),
        ({"dataset": "Ride", "entity_ids": []}, 400, "entity_ids"),
        ({"dataset": "Ride", "entity_ids": [{"ride": "r1"}]}, 400, "entity_ids"),
        ({"dataset": "Ride", "entity_ids": [True]}, 400, "entity_ids"),
        ({"dataset": "Ride", "entity_ids": [1.0]}, 400, "entity_ids"),
        ({"dataset": "Ride", "entity_ids": ["r1"], "hard": True}, 400, "hard"),
    ],
)
async def test_a_request_that_cannot_be_met_is_refused_and_erases_nothing(rides, platform, body, status, words):
    answer = await rides.post("/api/v1/erase", json=body)
    assert answer.status_code == status
    assert words in answer.text
    ride = platform.registry.definitions().dataset("Ride")
    assert platform.log.tombstones(ref(ride), 2) == []


async def test_erasing_needs_the_role_of_a_writer(rides, platform):
    async with platform.client("reader") as reader:
        answer = await reader.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["r1"]})
    assert answer.status_code == 403
    assert (await rides.get("/api/v1/erasures/none-such")).status_code == 404
