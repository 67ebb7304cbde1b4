"""The audit of reads: what is recorded, listed and replayed."""

from __future__ import annotations

import contextlib

import pytest

from featurelib.clock import HOUR
from featurelib.errors import StoreUnavailable


async def recorded(platform, client, run_id: str) -> dict:
    await platform.services.writer.flush()
    answer = await client.get(f"/query-runs/{run_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_read_is_recorded_without_its_values(rides, platform):
    answer = await rides.get(
        "/features", params={"featureset": "Rider", "entity_id": "7"}, headers={"X-Correlation-ID": "mine"}
    )
    run = await recorded(platform, rides, answer.headers["x-query-run-id"])
    assert run.pop("latency_ms") >= 0
    definition = run.pop("definition")
    assert definition == platform.registry.latest_commit().commit_id
    assert run == {
        "id": answer.headers["x-query-run-id"],
        "featureset": "Rider",
        "entity_ids": ["7"],
        "requested_timestamp": None,
        "kind": "online",
        "row_count": 1,
        "hit_count": 1,
        "api_key_fingerprint": platform.keys["writer"][0].fingerprint,
        "correlation_id": "mine",
        "error": None,
        "created_at": "2026-03-01T12:00:00Z",
        "read_at": "2026-03-01T12:00:00Z",
        "registry_version": platform.registry.version(),
    }


QUESTIONS = {
    "online": ("GET", "/features?featureset=Rider&entity_id=7", None),
    "offline": ("GET", "/features?featureset=Rider&entity_id=7&timestamp=2026-03-01T10:30", None),
    "lookup": ("GET", "/features?entity_type=City&entity_id=Oslo", None),
    "batch": ("POST", "/features/batch", {"featureset": "Rider", "entity_ids": ["7", "99"]}),
}


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_a_replay_gives_the_same_answer_and_makes_no_run(rides, platform, kind):
    method, path, body = QUESTIONS[kind]
    first = await rides.request(method, path, json=body)
    run = await recorded(platform, rides, first.headers["x-query-run-id"])
    replayed = (await rides.post(f"/query-runs/{run['id']}/replay")).json()
    assert set(replayed.pop("features").values()) == {"same"}
    assert replayed == {"kind": kind, "result": first.json(), "knowledge": "latest"}
    await platform.services.writer.flush()
    assert len((await rides.get("/query-runs")).json()["runs"]) == 1


async def test_a_replay_uses_the_request_inputs_and_todays_state(rides, platform):
    body = {"featureset": "Rider", "entity_id": 7, "inputs": {"fee": 1.0}}
    first = await rides.post("/features", json=body)
    run = await recorded(platform, rides, first.headers["x-query-run-id"])
    platform.clock.advance(22 * HOUR)
    features = (await rides.post(f"/query-runs/{run['id']}/replay")).json()["result"]["features"]
    assert (features["trips"], features["each"]) == (1, 6.0)


async def test_hits_are_rows_with_every_feature(rides, platform):
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": ["7", "99", "8"]})
    run = await recorded(platform, rides, answer.headers["x-query-run-id"])
    assert (run["row_count"], run["hit_count"], run["entity_ids"]) == (3, 2, ["7", "99", "8"])


async def test_a_failed_read_is_recorded_with_its_error(rides, platform):
    await rides.get("/features?featureset=Fragile&entity_id=99")
    await platform.services.writer.flush()
    (run,) = (await rides.get("/query-runs?featureset=Fragile")).json()["runs"]
    assert run["error"].startswith("user_code_error: ")
    assert run["hit_count"] == 0


async def test_runs_are_listed_newest_first_and_by_featureset(rides, platform):
    for featureset in ("Rider", "RiderReplayed", "Rider"):
        await rides.get(f"/features?featureset={featureset}&entity_id=7")
        platform.clock.advance(HOUR)
    await platform.services.writer.flush()
    runs = (await rides.get("/query-runs")).json()["runs"]
    assert [run["featureset"] for run in runs] == ["Rider", "RiderReplayed", "Rider"]
    assert runs[0]["created_at"] > runs[1]["created_at"]
    assert len((await rides.get("/query-runs?featureset=Rider&limit=1")).json()["runs"]) == 1


@pytest.mark.parametrize("path", ["/query-runs/nothing", "/query-runs/%00", "/query-runs/%ED%A0%80"])
async def test_an_unknown_run_is_404(client, path):
    assert (await client.get(path)).json()["error"] == "not_found"
    assert (await client.post(f"{path}/replay")).status_code == 404


async def test_a_failed_insert_fails_no_query_and_loses_no_run(rides, platform, monkeypatch):
    audit = platform.services.audit
    real = audit.record_members
    failures = 0

    def away(runs):
        nonlocal failures
        failures += 1
        if failures == 1:
            message = "the registry does not answer"
            raise StoreUnavailable(message)
        real(runs)

    monkeypatch.setattr(audit, "record_members", away)
    answer = await rides.get("/features?featureset=Rider&entity_id=7")
    assert answer.status_code == 200
    while not (recorded := audit.list()):
        with contextlib.suppress(StoreUnavailable):
            await platform.services.writer.flush()
    assert [run.id for run in recorded] == [answer.headers["x-query-run-id"]]
    assert failures == 2


async def test_a_full_queue_drops_runs_counts_them_and_answers(rides, platform, monkeypatch):
    monkeypatch.setattr("serve_apps.audit._MOST_WAITING", 0)
    assert (await rides.get("/features?featureset=Rider&entity_id=7")).status_code == 200
    assert "thyme_query_runs_dropped_total 1.0" in (await rides.get("/metrics")).text


async def test_runs_still_queued_at_shutdown_are_written(settings, clock):
    from tests.api.conftest import Platform

    platform = Platform(settings, clock)
    async with platform.application.running(), platform.client() as client:
        answer = await client.get("/features?entity_type=City&entity_id=Oslo")
    from featurelib.stores.audit import Audit

    run = Audit(platform.registry.database).get(answer.headers["x-query-run-id"])
    platform.log.close()
    platform.registry.close()
    assert run is not None
    assert run.kind == "lookup"


async def test_a_refused_batch_is_recorded_by_its_count_and_its_first_ids(rides, platform):
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": list(range(10_001))})
    assert answer.status_code == 400
    await platform.services.writer.flush()
    (listed,) = platform.services.audit.list()
    assert listed.entity_ids == tuple(map(str, range(10)))
    run = platform.services.audit.get(listed.id)
    assert (run.entity_count, run.entity_ids, run.inputs) == (10_001, tuple(map(str, range(100))), None)


async def test_a_listing_shows_the_first_ids_and_a_run_all_of_them_stored_once(rides, platform):
    ids = [str(number) for number in range(500)]
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": ids})
    run = await recorded(platform, rides, answer.headers["x-query-run-id"])
    assert run["entity_ids"] == ids
    assert platform.services.audit.get(run["id"]).inputs["entity_ids"] is None
    (listed,) = (await rides.get("/query-runs")).json()["runs"]
    assert (listed["entity_ids"], listed["row_count"]) == (ids[:10], 500)


async def test_the_queue_of_runs_is_bounded_by_bytes(platform, monkeypatch):
    monkeypatch.setattr("serve_apps.audit._MOST_WAITING_BYTES", 5_000)
    waiting = len(platform.services.writer._waiting)
    platform.services.writer.put(None, 10_000)
    assert len(platform.services.writer._waiting) == waiting


async def test_a_sum_that_fits_no_column_is_an_error_and_one_event(rides, platform):
    rows = [
        {"ride": f"r{n}", "rider": 8, "city": "Oslo", "fare": 1.7e308, "at": "2026-03-01T11:00:00Z"} for n in range(2)
    ]
    assert (await rides.post("/api/v1/log", json={"dataset": "Ride", "events": rows})).status_code == 200
    platform.fold()
    for _ in range(2):
        answer = await rides.get("/features", params={"featureset": "Rider", "entity_id": "8"})
        assert answer.json()["error"] == "overflow"
    await platform.services.writer.flush()
    (event,) = (await rides.get("/api/v1/events?event_type=value_overflow")).json()
    assert (event["severity"], event["subject"], event["detail"]["entity_id"]) == ("error", "Rider", "8")


async def test_runs_are_filtered_and_paged(rides, platform):
    await rides.get("/features?featureset=Rider&entity_id=7")
    platform.clock.advance(HOUR)
    await rides.get("/features?featureset=Fragile&entity_id=99")
    platform.clock.advance(HOUR)
    await rides.get("/features?entity_type=City&entity_id=Oslo")
    await platform.services.writer.flush()
    own = platform.keys["writer"][0].fingerprint
    asked = {
        "kind=lookup": ["City"],
        "error=true": ["Fragile"],
        "error=false": ["City", "Rider"],
        "since=2026-03-01T13:00": ["City", "Fragile"],
        "until=2026-03-01T13:00:00Z": ["Fragile", "Rider"],
        f"key={own}&kind=online": ["Fragile", "Rider"],
        "key=ffffffff": [],
    }
    found = {query: (await rides.get(f"/query-runs?{query}")).json()["runs"] for query in asked}
    assert {query: [run["featureset"] for run in runs] for query, runs in found.items()} == asked
    first = (await rides.get("/query-runs?limit=2")).json()
    rest = (await rides.get(f"/query-runs?limit=2&cursor={first['next_cursor']}")).json()
    assert [run["featureset"] for run in (*first["runs"], *rest["runs"])] == ["City", "Fragile", "Rider"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize("query", ["since=soon", "until=-", "cursor=x", "kind=some", "error=maybe", "limit=0"])
async def test_a_filter_that_is_none_is_refused(client, query):
    answer = await client.get(f"/query-runs?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_monitors_may_ask_with_head(client, path):
    assert (await client.head(path)).status_code == 200
