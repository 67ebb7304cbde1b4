"""Orders to jobs and requests for backfills over HTTP."""

from __future__ import annotations

import json

import pytest

from featurelib.clock import HOUR, MINUTE, format_instant
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.registry import JobRecord
from serve_apps.routes.backfills import BackfillPrice, BackfillView
from serve_apps.routes.jobs import JobView
from tests.api.conftest import NOON

JOB = "/api/v1/jobs/by_rider"
BACKFILLS = "/api/v1/backfills"


@pytest.fixture
async def committed(platform, client):
    """A writer's client of a platform with the rides committed."""
    assert (await platform.commit_rides(client)).status_code == 200
    return client


async def test_every_job_is_shown_as_documented(committed):
    jobs = (await committed.get("/api/v1/jobs")).json()
    assert {job["name"] for job in jobs} >= {"by_rider_job"}
    for job in jobs:
        assert JobView.model_validate(job, extra="forbid").model_dump() == job
        one = await committed.get(f"/api/v1/jobs/{job['name']}")
        assert one.json() == job


async def test_a_paused_job_says_so_at_once_and_its_state_when_its_workers_have_ended(platform, committed):
    paused = await committed.post(f"{JOB}/pause")
    assert (paused.status_code, paused.json()["paused"], paused.json()["state"]) == (200, True, "pending")
    assert (await committed.post(f"{JOB}_job/pause")).json()["paused"] is True
    platform.registry.put_statuses([JobRecord(pipeline="by_rider@1", partition_count=2, state="paused")], [], [])
    status = (await committed.get("/api/v1/status")).json()
    shown = next(job for job in status["jobs"] if job["name"] == "by_rider_job")
    assert (shown["state"], shown["paused"]) == ("paused", True)
    assert (await committed.post(f"{JOB}/resume")).json()["paused"] is False
    events = (await committed.get("/api/v1/events?subject=by_rider@1")).json()
    assert [event["event_type"] for event in events] == ["job_resumed", "job_paused"]
    assert events[0]["detail"] == {"requested_by": platform.keys["writer"][0].fingerprint}


async def test_a_restart_is_told_and_refused_while_the_job_is_paused(committed):
    assert (await committed.post(f"{JOB}/restart")).status_code == 200
    await committed.post(f"{JOB}/pause")
    refused = await committed.post(f"{JOB}/restart")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert "resume it" in refused.json()["detail"]
    events = (await committed.get("/api/v1/events?event_type=job_restart_requested")).json()
    assert [event["subject"] for event in events] == ["by_rider@1"]


async def test_a_job_that_is_not_there_is_not_found(committed):
    for path in ("", "/pause", "/resume", "/restart"):
        send = committed.get if not path else committed.post
        for name in ("nothing", "by_rider@7", "%00", "..%2F..", "'; drop table jobs"):
            answer = await send(f"/api/v1/jobs/{name}{path}")
            assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), (name, path)


async def test_orders_need_a_writer(platform, committed):
    orders = [
        ("POST", f"{JOB}/pause", None),
        ("POST", f"{JOB}/resume", None),
        ("POST", f"{JOB}/restart", None),
        ("PATCH", JOB, {"partition_count": 2}),
        ("POST", BACKFILLS, {"pipeline": "by_rider"}),
        ("POST", f"{BACKFILLS}?dry_run=true", {"pipeline": "by_rider"}),
        ("POST", f"{BACKFILLS}/5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11/cancel", None),
        ("POST", f"{BACKFILLS}/5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11/rollback", None),
        ("POST", f"{BACKFILLS}/5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11/drop", None),
    ]
    async with platform.client("reader") as reader:
        for method, path, body in orders:
            answer = await reader.request(method, path, json=body)
            assert (answer.status_code, answer.json()["error"]) == (403, "forbidden"), path


async def test_a_backfill_is_taken_listed_and_cancelled(platform, committed):
    since = format_instant(NOON - HOUR)
    taken = await committed.post(
        BACKFILLS, json={"pipeline": "by_rider", "since": since}, headers={"X-Correlation-ID": "mine-1"}
    )
    asked = taken.json()
    assert taken.status_code == 202
    assert BackfillView.model_validate(asked, extra="forbid").model_dump() == asked
    assert (asked["pipeline"], asked["since"], asked["until"], asked["state"]) == (
        "by_rider@1",
        since,
        None,
        "requested",
    )
    assert (asked["requested_by"], asked["correlation_id"]) == (platform.keys["writer"][0].fingerprint, "mine-1")
    assert (await committed.get(BACKFILLS)).json() == [asked]
    assert (await committed.get(BACKFILLS, params={"pipeline": "by_rider_job"})).json() == [asked]
    one = f"{BACKFILLS}/{asked['id']}"
    assert (await committed.get(one)).json() == asked
    for _ in range(2):
        ended = await committed.post(f"{one}/cancel")
        assert (ended.status_code, ended.json()["state"]) == (200, "cancelling")
        assert ended.json()["detail"] == f"cancelled with the key {platform.keys['writer'][0].fingerprint}"


async def test_a_second_backfill_of_a_pipeline_waits_for_the_first_to_be_over(platform, committed):
    first = (await committed.post(BACKFILLS, json={"pipeline": "by_rider"})).json()
    refused = await committed.post(BACKFILLS, json={"pipeline": "by_rider@1"})
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert first["id"] in refused.json()["detail"]
    requests = BackfillRequests(platform.registry.database, platform.clock)
    requests.failed(requests.get(first["id"]), "no room")
    over = await committed.post(f"{BACKFILLS}/{first['id']}/cancel")
    assert (over.status_code, over.json()["error"]) == (409, "conflict")
    assert (await committed.post(BACKFILLS, json={"pipeline": "by_rider"})).status_code == 202


async def test_a_wrong_request_names_what_is_wrong(committed):
    later = "2026-03-01T12:00:01Z"
    wrong = [
        ({}, "pipeline"),
        ({"pipeline": ""}, "pipeline"),
        ({"pipeline": 5}, "pipeline"),
        ({"pipeline": "by_rider", "since": later}, "since"),
        ({"pipeline": "by_rider", "until": later}, "until"),
        ({"pipeline": "by_rider", "since": "2026-02-02", "until": "2026-02-01"}, "since"),
        ({"pipeline": "by_rider", "since": "yesterday"}, "since"),
        ({"pipeline": "by_rider", "since": True}, "since"),
        ({"pipeline": "by_rider", "until": 10**40}, "until"),
        ({"pipeline": "by_rider", "until": []}, "until"),
        ({"pipeline": "by_rider", "unitl": 5}, "unitl"),
        ("{", "body"),
        ('{"pipeline": "by_rider", "since": NaN}', "since"),
        ('{"pipeline": "\\ud800"}', "pipeline"),
    ]
    for body, field in wrong:
        answer = await committed.post(BACKFILLS, content=body if isinstance(body, str) else json.dumps(body))
        assert answer.status_code in {400, 404}, (body, answer.text)
        assert field in answer.json()["detail"] or answer.status_code == 404, (body, answer.text)
    assert (await committed.get(BACKFILLS)).json() == []


async def test_every_form_of_an_instant_is_taken(committed):
    body = '{"pipeline": "by_rider", "since": 1700000000.5, "until": "2026-03-01 11:00"}'
    asked = (await committed.post(BACKFILLS, content=body)).json()
    assert (asked["since"], asked["until"]) == ("2023-11-14T22:13:20.500000Z", "2026-03-01T11:00:00Z")


async def test_a_backfill_that_is_not_there_is_not_found(committed):
    assert (await committed.post(BACKFILLS, json={"pipeline": "by_bus"})).status_code == 404
    assert (await committed.get(BACKFILLS, params={"pipeline": "by_bus"})).status_code == 404
    for name in ("nothing", "%00", "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11", "%F0%9F%98%80" * 9):
        assert (await committed.get(f"{BACKFILLS}/{name}")).status_code == 404
        for order in ("cancel", "rollback", "drop"):
            assert (await committed.post(f"{BACKFILLS}/{name}/{order}")).status_code == 404


async def test_a_dry_run_prices_a_backfill_and_begins_nothing(platform, committed):
    rides = [
        {"ride": f"r{n}", "rider": n, "city": "x", "fare": n, "at": format_instant(NOON - (40 - n) * MINUTE)}
        for n in range(40)
    ]
    assert (await committed.post("/api/v1/log", json={"dataset": "Ride", "events": rides})).status_code == 200
    answer = await committed.post(f"{BACKFILLS}?dry_run=true", json={"pipeline": "by_rider"})
    price = answer.json()
    assert answer.status_code == 200
    assert BackfillPrice.model_validate(price, extra="forbid").model_dump() == price
    assert (price["pipeline"], price["rows"], price["keys"], price["rough"]) == ("by_rider@1", 40, 40, False)
    assert price["state_bytes"] > 0
    later = format_instant(NOON - 10 * MINUTE)
    some = await committed.post(f"{BACKFILLS}?dry_run=1", json={"pipeline": "by_rider", "since": later})
    assert some.json()["rows"] == 10
    assert (await committed.get(BACKFILLS)).json() == []
    ahead = await committed.post(f"{BACKFILLS}?dry_run=1", json={"pipeline": "by_rider", "to": "2026-03-01T12:00:01Z"})
    assert (ahead.status_code, ahead.json()["error"]) == (400, "invalid_request")


async def test_the_end_of_the_span_may_be_called_to(committed):
    body = {"pipeline": "by_rider", "to": "2026-03-01T11:00:00Z"}
    assert (await committed.post(BACKFILLS, json=body)).json()["until"] == "2026-03-01T11:00:00Z"


async def test_a_complete_backfill_is_rolled_back_while_the_state_before_is_kept(platform, committed):
    requests = BackfillRequests(platform.registry.database, platform.clock)
    asked = (await committed.post(BACKFILLS, json={"pipeline": "by_rider"})).json()
    one = f"{BACKFILLS}/{asked['id']}"
    early = await committed.post(f"{one}/rollback")
    assert (early.status_code, early.json()["error"]) == (409, "conflict")
    assert "only a complete one" in early.json()["detail"]
    assert (await committed.post(f"{one}/drop")).status_code == 409
    requests.built(asked["id"])
    requests.completed(requests.get(asked["id"]), "9 rows rebuilt", 1, platform.clock.now() + HOUR)
    shown = (await committed.get(one)).json()
    assert (shown["state"], shown["previous"], shown["kept_until"]) == ("complete", 1, format_instant(NOON + HOUR))
    for _ in range(2):
        rolling = await committed.post(f"{one}/rollback")
        assert (rolling.status_code, rolling.json()["state"]) == (200, "rolling_back")
    assert (await committed.post(BACKFILLS, json={"pipeline": "by_rider"})).status_code == 409
    requests.rolled_back(requests.get(asked["id"]), "generation 1 is served again")
    dropped = (await committed.post(f"{one}/drop")).json()
    assert (dropped["state"], dropped["kept_until"]) == ("rolled_back", format_instant(platform.clock.now()))


async def test_what_is_not_kept_any_more_cannot_be_gone_back_to(platform, committed):
    requests = BackfillRequests(platform.registry.database, platform.clock)
    asked = (await committed.post(BACKFILLS, json={"pipeline": "by_rider"})).json()
    requests.built(asked["id"])
    requests.completed(requests.get(asked["id"]), "9 rows rebuilt")
    refused = await committed.post(f"{BACKFILLS}/{asked['id']}/rollback")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert "is not kept any more" in refused.json()["detail"]
