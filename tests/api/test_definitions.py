"""Commits and what the definition service shows of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from featurelib.compile import compile_module
from featurelib.definitions import Commit, ConnectorDef, SourceDef
from featurelib.errors import MaybeTaken, StoreUnavailable
from featurelib.secrets import SecretRef
from featurelib.stores.registry import SourceStatus

FIXTURES = Path(__file__).parent.parent / "fixtures" / "thyme_commit"


def rides_commit() -> Commit:
    return compile_module(Path(__file__).parent / "rides.py")


async def test_a_commit_says_what_it_did_and_repeats_as_a_no_op(platform, client):
    first = (await platform.commit_rides(client)).json()
    assert first["no_op"] is False
    assert (first["datasets"], first["pipelines"], first["featuresets"], first["sources"]) == (3, 1, 4, 0)
    assert set(first["topics_created"]) == {"City_topic", "RiderStats_topic", "Ride_topic"}
    assert set(first["changes"]) == {"added", "updated", "unchanged"}
    again = (await platform.commit_rides(client)).json()
    assert (again["no_op"], again["commit_id"]) == (True, first["commit_id"])


@pytest.mark.parametrize("path", ["/", "/api/v1/commit"])
async def test_the_root_is_an_alias_of_commit(client, path):
    answer = await client.post(path, content=rides_commit().model_dump_json())
    assert answer.status_code == 200


async def test_a_base_url_that_holds_the_commit_path_still_reads(client):
    answer = await client.get("/api/v1/commit/api/v1/featuresets")
    assert (answer.status_code, answer.json()) == (200, [])


async def test_a_commit_is_served_as_soon_as_it_is_acknowledged(platform, client):
    assert (await client.get("/features?featureset=Rider&entity_id=7")).status_code == 404
    await platform.commit_rides(client)
    assert (await client.get("/features?featureset=Rider&entity_id=7")).status_code == 200


async def test_a_commit_reaches_other_replicas_by_polling(platform, client, settings, clock):
    from tests.api.conftest import Platform

    other = Platform(settings, clock)
    async with other.application.running(), other.client() as elsewhere:
        await platform.commit_rides(client)
        async with asyncio.timeout(5):
            while (await elsewhere.get("/features?featureset=Rider&entity_id=7")).status_code != 200:
                await asyncio.to_thread(other.registry.version)
    other.log.close()
    other.registry.close()


async def test_every_mistake_of_a_commit_is_listed_and_nothing_is_committed(client, platform):
    commit = json.loads(rides_commit().model_dump_json())
    commit["featuresets"][0]["features"][1]["lookup"]["field"] = "tripz"
    commit["pipelines"][0]["steps"][-1]["aggregates"][1]["aggregate"]["of"] = "fair"
    quote = next(featureset for featureset in commit["featuresets"] if featureset["name"] == "Quote")
    quote["extractors"][0]["inputs"] = ["distanz", "tip"]
    answer = await client.post("/api/v1/commit", json=commit)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_definition")
    messages = " ".join(problem["message"] for problem in answer.json()["details"])
    assert all(name in messages for name in ("tripz", "fair", "distanz"))
    assert platform.registry.definitions().all == ()
    assert (await client.get("/api/v1/events?event_type=commit")).json() == []


def stock_commit() -> dict:
    """What the stock SDK posts, less the one operator and the outside systems this platform does not have yet."""
    body = json.loads((FIXTURES / "flights_features.json").read_text())
    specs = body["pipelines"][0]["operators"][-1]["aggregate"]["specs"]
    body["pipelines"][0]["operators"][-1]["aggregate"]["specs"] = [s for s in specs if s["type"] != "approx_percentile"]
    stats = next(dataset for dataset in body["datasets"] if dataset["name"] == "CarrierStats")
    stats["fields"] = [field for field in stats["fields"] if field["name"] != "delay_rank_7d"]
    return {**body, "sources": []}


async def test_the_stock_sdks_json_body_is_committed_and_served(client):
    answer = await client.post("/api/v1/commit", json=stock_commit())
    assert answer.status_code == 200, answer.text
    read = await client.get("/features?featureset=CarrierFeatures&entity_id=UA")
    assert read.json()["features"] == {
        "carrier": "UA",
        "departures_24h": 0,
        "avg_delay_24h": None,
        "late_departures_24h": 0,
        "scheduled_minutes": 60.0,
        "late_share_24h": 0.0,
        "expected_minutes": 60.0,
    }
    risk = await client.get("/features?featureset=CarrierRisk&carrier=UA")
    assert risk.json()["features"] == {"carrier": "UA", "risky": False}


async def test_a_source_nobody_can_read_is_refused_by_name(client):
    body = json.loads((FIXTURES / "flights_features.json").read_text())
    sources = [{**each, "connector_type": "carrier_pigeon"} for each in body["sources"]]
    answer = await client.post("/api/v1/commit", json={**stock_commit(), "sources": sources})
    assert answer.status_code == 400
    assert {problem["code"] for problem in answer.json()["details"]} == {"unsupported_connector"}
    assert "OPS_PASSWORD" not in answer.text


async def test_a_source_whose_driver_is_missing_is_refused_with_what_to_install(client, monkeypatch):
    body = json.loads((FIXTURES / "flights_features.json").read_text())
    commit = {**stock_commit(), "sources": body["sources"]}
    monkeypatch.setattr("featurelib.connectors._is_installed", lambda name: name not in {"psycopg", "confluent_kafka"})
    answer = await client.post("/api/v1/commit", json=commit)
    assert answer.status_code == 400
    problems = {problem["subject"]: problem for problem in answer.json()["details"]}
    assert {problem["code"] for problem in problems.values()} == {"missing_driver"}
    assert sorted(problems) == ["Departure", "Weather"]
    assert "pip install 'thyme-on-ray[kafka]'" in problems["Weather"]["message"]
    assert "OPS_PASSWORD" not in answer.text
    assert (await client.get("/api/v1/sources")).json() == []

    monkeypatch.undo()
    assert (await client.post("/api/v1/commit", json=commit)).status_code == 200
    monkeypatch.setattr("featurelib.connectors._is_installed", lambda _: False)
    again = await client.post("/api/v1/commit", json=commit)
    assert again.json()["no_op"] is True  # what is committed stays so


async def test_a_malformed_commit_lists_its_misfits(client):
    answer = await client.post("/api/v1/commit", json={"format": 1, "datasets": [{"name": "9"}], "pipelines": 5})
    assert answer.status_code == 400
    assert len(answer.json()["details"]) >= 2


async def test_a_breaking_change_is_409_and_lists_the_break(platform, client):
    await platform.commit_rides(client)
    commit = json.loads(rides_commit().model_dump_json())
    commit["pipelines"][0]["steps"][-1]["aggregates"][0]["aggregate"]["window"] = {
        "kind": "continuous",
        "size_us": 3_600_000_000,
    }
    answer = await client.post("/api/v1/commit", json=commit)
    assert (answer.status_code, answer.json()["error"]) == (409, "breaking_change")
    assert answer.json()["details"]


async def test_an_extractor_that_does_not_load_is_refused_with_its_line(client, platform):
    commit = json.loads(rides_commit().model_dump_json())
    featureset = next(f for f in commit["featuresets"] if f["name"] == "Fragile")
    featureset["extractors"][0]["code"]["source"] = "import no_such_module\ndef invert(cls, ts, trips): return 1"
    answer = await client.post("/api/v1/commit", json=commit)
    assert answer.status_code == 400
    assert "no_such_module" in answer.text
    assert platform.registry.definitions().all == ()


async def test_featuresets_show_lookups_and_code(rides):
    records = {record["name"]: record for record in (await rides.get("/api/v1/featuresets")).json()}
    spec = records["Rider"]["spec"]
    extractors = {extractor["name"]: extractor for extractor in spec["extractors"]}
    assert extractors["_thyme_lookup_trips"]["kind"] == "LOOKUP"
    assert extractors["_thyme_lookup_trips"]["lookup_info"] == {
        "dataset_name": "RiderStats",
        "field_name": "trips",
        "default": 0,
    }
    assert "def each_trip" in extractors["each_trip"]["pycode"]["source_code"]
    assert [feature["name"] for feature in spec["features"]][:2] == ["rider", "trips"]


async def test_jobs_show_flat_operators_and_the_index_of_raw_datasets(rides):
    jobs = {job["name"]: job for job in (await rides.get("/api/v1/jobs")).json()}
    assert set(jobs) == {"by_rider_job", "Ride_index_job", "City_index_job"}
    spec = jobs["by_rider_job"]["spec"]
    assert (spec["input_topic"], spec["output_topic"], spec["partition_count"]) == ("Ride_topic", "RiderStats_topic", 2)
    assert {
        "aggregate": {"agg_type": "count", "field": "", "window": "1d", "output_field": "trips", "keys": ["rider"]}
    } in (spec["pipeline_spec"]["operators"])


async def test_status_shows_everything_at_a_glance(rides):
    status = (await rides.get("/api/v1/status")).json()
    assert {dataset["name"] for dataset in status["datasets"]} == {"Ride", "City", "RiderStats"}
    assert status["pipelines"] == [
        {"name": "by_rider", "version": 1, "input_datasets": ["Ride"], "output_dataset": "RiderStats"}
    ]
    assert {f["name"]: f["feature_count"] for f in status["featuresets"]}["Rider"] == 8
    assert status["latest_commit"]["status"] == "applied"
    assert "commit" in {event["event_type"] for event in status["recent_events"]}
    assert status["backfills"] == []


async def test_datasets_pipelines_and_commits_are_listed(rides):
    datasets = {record["name"]: record for record in (await rides.get("/api/v1/datasets")).json()}
    assert datasets["Ride"]["schema"]["fare"] == "float"
    assert (datasets["Ride"]["primary_keys"], datasets["Ride"]["time_field"]) == (["ride"], "at")
    assert (await rides.get("/api/v1/pipelines")).json()[0]["output_dataset"] == "RiderStats"
    (commit,) = (await rides.get("/api/v1/commits")).json()
    assert commit["committed_by"] is not None


async def test_events_are_filtered(rides):
    commits = (await rides.get("/api/v1/events?event_type=commit")).json()
    assert [event["event_type"] for event in commits] == ["commit"]
    assert (await rides.get("/api/v1/events?severity=warning")).json() == []
    assert (await rides.get("/api/v1/events?subject=nobody")).json() == []


async def test_a_source_hides_its_secrets(platform, client):
    secrets = {
        "password": SecretRef(kind="literal", value="hunter2"),
        "token": "plain-token",
        "url": "https://user:hunter3@host/x",
        "endpoint_url": "https://user:hunter3@hunter3@host/x?key=hunter3",
        "key": SecretRef(kind="env", value="RIDES_KEY"),
        "path": "rides/*.csv",
    }
    source = SourceDef(dataset="Ride", connector=ConnectorDef(type="files", config=secrets), cursor="at")
    commit = rides_commit().model_copy(update={"sources": (source,)})
    answer = await client.post("/api/v1/commit", content=commit.model_dump_json())
    platform.registry.put_statuses([], [SourceStatus(dataset="Ride", cursor_value="2026", rows_in=3)], [])
    assert answer.status_code == 200, answer.text
    (shown,) = (await client.get("/api/v1/sources")).json()
    assert shown["config"] == {
        "password": {"kind": "literal", "value": "***"},
        "token": "***",
        "url": "***",
        "endpoint_url": "https://***@host/x?***",
        "key": {"kind": "env", "value": "RIDES_KEY"},
        "path": "rides/*.csv",
    }
    assert (shown["cursor_value"], shown["rows_in"], shown["connector_type"]) == ("2026", 3, "files")
    for path in ("/api/v1/sources", "/api/v1/status", "/api/v1/events", "/api/v1/jobs", "/api/v1/commits"):
        text = (await client.get(path)).text
        assert not {secret for secret in ("hunter2", "hunter3", "plain-token") if secret in text}


async def test_a_wrong_record_goes_to_the_dead_letters_and_the_rest_continues(platform, client):
    await platform.commit_rides(client)
    platform.create_logs()
    good = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1, "at": "2026-03-01T09:00:00Z"}
    events = [good, {**good, "fare": "much"}, {"ride": "r3"}, {**good, "ride": "r2"}]
    answer = (await client.post("/api/v1/log", json={"dataset": "Ride", "events": events})).json()
    assert (answer["events_sent"], answer["rejected"], answer["late"]) == (2, 2, 0)
    assert [problem["row"] for problem in answer["problems"]] == [1, 2]
    assert answer["problems"][0]["field"] == "fare"
    letters = platform.log.dead.newest("Ride@1", 2)
    assert len(letters) == 2
    (event,) = (await client.get("/api/v1/events?event_type=dead_letter")).json()
    assert (event["subject"], event["severity"]) == ("Ride", "warn")


async def test_records_may_come_before_a_worker_made_the_log(platform, client):
    await platform.commit_rides(client)
    event = {"city": "Oslo", "country": "NO", "opened": 0, "at": "2026-03-01T09:00:00Z"}
    answer = await client.post("/api/v1/log", json={"dataset": "City", "events": [event]})
    assert answer.json()["events_sent"] == 1
    assert platform.log.partitions("City@1") == 2


async def test_a_commit_that_is_stored_is_acknowledged_though_it_cannot_be_served_yet(platform, client, monkeypatch):
    async def away(*_: object) -> None:
        message = "the online store does not answer"
        raise StoreUnavailable(message)

    monkeypatch.setattr(platform.services.stores.online, "refresh", away)
    answer = await platform.commit_rides(client)
    assert (answer.status_code, answer.json()["no_op"]) == (200, False)
    assert len(platform.registry.commits()) == 1


async def test_no_key_waits_while_a_commit_runs_user_code(platform, client, tmp_path):
    started, release = tmp_path / "started", tmp_path / "release"
    source = (
        "import pathlib, time\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        f"while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.005)\n"
        "def invert(cls, ts, trips): return 1"
    )
    commit = json.loads(rides_commit().model_dump_json())
    fragile = next(f for f in commit["featuresets"] if f["name"] == "Fragile")
    fragile["extractors"][0]["code"]["source"] = source
    sent = asyncio.create_task(client.post("/api/v1/commit", json=commit))
    async with asyncio.timeout(20):
        while not started.exists():  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(0.005)
        fingerprint = platform.keys["reader"][0].fingerprint
        assert await asyncio.to_thread(platform.registry.revoke_key, fingerprint)
        assert not sent.done()
        release.touch()
        assert (await sent).status_code == 200


@pytest.mark.parametrize(
    "config",
    [
        {"password": {"kind": "literl", "value": "hunter2"}},
        {"password": {"kind": "literal", "value": "hunter2", "extra": 1}},
        {"password": ["hunter2"]},
        ["hunter2"],
        "hunter2",
    ],
)
async def test_a_refused_source_shows_no_setting(client, config):
    own = {"kind": "source", "dataset": "D", "connector": {"type": "postgres", "config": config}}
    stock = {"dataset": "D", "connector_type": "postgres", "config": config}
    bodies = (
        {"format": 1, "sources": [own]},
        {"format": 1, "sources": own},
        {"format": 1, "surces": [own]},
        {"format": 1, "sources": [{**own, "dataset": None}]},
        {"format": 1, "sources": [{"connector": own["connector"]}]},
        {"sources": [stock]},
    )
    for body in bodies:
        answer = await client.post("/api/v1/commit", json=body)
        assert answer.status_code == 400
        assert "hunter2" not in answer.text


@pytest.mark.parametrize("count", [10_000, 10_001])
async def test_a_request_takes_ten_thousand_records_and_no_more(platform, client, count):
    await platform.commit_rides(client)
    answer = await client.post(
        "/api/v1/log", content=b'{"dataset":"Ride","events":[' + b",".join([b"{}"] * count) + b"]}"
    )
    if count == 10_000:
        assert (answer.status_code, answer.json()["rejected"]) == (200, count)
    else:
        assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
        assert "10000" in answer.json()["detail"]
        assert platform.log.dead.newest("Ride@1", 2) == []


async def test_a_poisonous_record_is_a_dead_letter_beside_good_ones(platform, client):
    await platform.commit_rides(client)
    good = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1, "at": "2026-03-01T09:00:00Z"}
    events = [good, {**good, "ride": "\ud800"}, {**good, "fare": [{"x": "\udfff"}]}, {**good, "ride": "r2"}]
    body = json.dumps({"dataset": "Ride", "events": events})
    body = body.replace("}]}", '}, {"ride": "r3", "rider": ' + "9" * 5_000 + "}]}") if body.endswith("}]}") else body
    answer = await client.post("/api/v1/log", content=body)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["events_sent"], answer.json()["rejected"]) == (2, 3)
    assert len(platform.log.dead.newest("Ride@1", 2)) == 3


async def test_a_log_that_fails_in_the_middle_invites_no_second_sending(platform, client, monkeypatch):
    await platform.commit_rides(client)
    platform.create_logs()

    def away(*_: object, **__: object) -> None:
        message = "the log does not answer"
        raise MaybeTaken(message)

    monkeypatch.setattr(platform.services.stores.log, "append_shares", away)
    answer = await client.post("/api/v1/log", json={"dataset": "Ride", "events": [{}]})
    assert (answer.status_code, answer.json()["error"]) == (503, "maybe_taken")
    assert "may have been taken" in answer.json()["detail"]
    assert "retry-after" not in answer.headers


async def test_records_that_were_taken_are_acknowledged_though_no_event_can_be_written(platform, client, monkeypatch):
    await platform.commit_rides(client)

    def away(*_: object) -> None:
        message = "the registry does not answer"
        raise StoreUnavailable(message)

    monkeypatch.setattr(platform.services.stores.registry, "record_event", away)
    answer = await client.post("/api/v1/log", json={"dataset": "Ride", "events": [{}]})
    assert (answer.status_code, answer.json()["rejected"]) == (200, 1)
