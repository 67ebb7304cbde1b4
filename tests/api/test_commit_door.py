"""Commits as JSON and protobuf, and plans: what a commit would do, break and take."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from featurelib.compile import compile_module
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.stock_protobuf import message
from serve_apps.committing import CommitService

FIXTURES = Path(__file__).parent.parent / "fixtures" / "thyme_commit"
PROTOBUF = {"Content-Type": "application/protobuf"}
MOST_DEFAULT_THREADS = 32
"""Of the executor that asyncio makes for itself, on any machine."""
DOORS = ["/api/v1/commit", "/", "/api/v1/plan", "/api/v1/commit?dry_run=true"]


@pytest.fixture(autouse=True)
def _drivers(monkeypatch):
    """What the fixture's sources need counts as installed: the door is tested here, not the drivers."""
    monkeypatch.setattr("featurelib.connectors._is_installed", lambda _: True)


@pytest.fixture
def as_protobuf():
    return (FIXTURES / "flights_features.pb").read_bytes()


@pytest.fixture
def as_json():
    return (FIXTURES / "flights_features.json").read_bytes()


def rides(**changes):
    commit = compile_module(Path(__file__).parent / "rides.py")
    return commit.model_copy(update=changes)


def shorter(commit, retention_us):
    datasets = tuple(
        each.model_copy(update={"retention_us": retention_us}) if each.name == "Ride" else each
        for each in commit.datasets
    )
    return commit.model_copy(update={"datasets": datasets})


async def send(client, path, commit):
    return await client.post(path, content=commit.model_dump_json())


@pytest.mark.parametrize("media_type", ["application/protobuf", "application/x-protobuf", "Application/Protobuf; v=1"])
async def test_a_protobuf_body_and_the_json_body_of_one_module_are_one_commit(client, as_json, as_protobuf, media_type):
    first = await client.post("/api/v1/commit", content=as_protobuf, headers={"Content-Type": media_type})
    assert first.status_code == 200, first.text
    assert first.json()["no_op"] is False
    assert (first.json()["datasets"], first.json()["sources"]) == (4, 3)
    second = await client.post("/api/v1/commit", content=as_json)
    assert (second.json()["commit_id"], second.json()["no_op"]) == (first.json()["commit_id"], True)
    read = await client.get("/features?featureset=CarrierFeatures&entity_id=UA")
    assert read.json()["features"]["expected_minutes"] == 60.0


async def test_a_json_commit_is_the_same_as_the_protobuf_one_that_follows_it(client, as_json, as_protobuf):
    first = (await client.post("/", content=as_json)).json()
    second = (await client.post("/", content=as_protobuf, headers=PROTOBUF)).json()
    assert (second["commit_id"], second["no_op"]) == (first["commit_id"], True)


@pytest.mark.parametrize(
    ("accept", "is_protobuf"),
    [
        ("application/protobuf", True),
        ("application/json;q=0.5, application/x-protobuf", True),
        ("application/json, application/protobuf;q=0.9", False),
        ("application/protobuf;q=0", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_a_receipt_is_protobuf_for_whoever_prefers_that(client, as_protobuf, accept, is_protobuf):
    answer = await client.post("/api/v1/commit", content=as_protobuf, headers={**PROTOBUF, "Accept": accept})
    assert answer.status_code == 200
    if not is_protobuf:
        assert answer.json()["topics_created"][0] == "CarrierStats_topic"
        return
    assert answer.headers["content-type"] == "application/protobuf"
    response = message("CommitResponse")
    response.ParseFromString(answer.content)
    assert (response.datasets_count, response.pipelines_count, response.featuresets_count) == (4, 1, 2)
    assert next(iter(response.topics_created)) == "CarrierStats_topic"
    assert len(response.commit_id) == 32


@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\x0a", PROTOBUF),
        (b'{"datasets": []}', PROTOBUF),
        (b"\xff" * 40, PROTOBUF),
        (b"\x12\x05hello", PROTOBUF),
        (b"", {}),
        (b"[]", {}),
        (b"\xff", {}),
        (b'{"datasets": {}}', {}),
        (b'{"datasets": [{"name": "D", "version": NaN, "fields": []}]}', {}),
        (b'{"format": 1, "datasets": [1e999]}', {}),
        (b'{"format": 7}', {}),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, {}),
        (b'{"format": 1, "message": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", {}),
        (b'{"n": ' + b"9" * 5_000 + b"}", {}),
    ],
    ids=[
        "cut",
        "json as protobuf",
        "noise",
        "noise inside",
        "empty",
        "list",
        "not utf-8",
        "no list",
        "no number",
        "infinite",
        "future format",
        "deep",
        "deep inside",
        "long number",
    ],
)
async def test_a_body_that_cannot_be_read_is_400_and_never_asks_for_json(client, platform, path, body, headers):
    answer = await client.post(path, content=body, headers=headers)
    assert answer.status_code == 400, answer.text[:300]
    assert answer.json()["error"] in {"invalid_request", "invalid_definition"}
    assert "Unsupported operator" not in answer.text
    assert platform.registry.commits() == []


async def test_an_operator_that_is_not_offered_asks_the_stock_client_for_json(client):
    request = message("CommitRequest")
    pipeline = request.pipelines.add(name="p", version=1, output_dataset="Out", input_datasets=["In"])
    pipeline.operators.add(id="group_by").group_by.keys.append("k")
    answer = await client.post("/api/v1/commit", content=request.SerializeToString(), headers=PROTOBUF)
    assert answer.status_code == 400
    assert "Unsupported operator: `group_by`" in answer.text


async def test_a_number_that_json_cannot_store_never_reaches_the_registry(client, platform, as_json):
    body = json.loads(as_json)
    body["datasets"][0]["expectations"][0]["mostly"] = float("nan")
    answer = await client.post("/api/v1/commit", content=json.dumps(body))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert "body.datasets[0].expectations[0].mostly" in answer.json()["detail"]
    assert platform.registry.definitions().all == ()


@pytest.mark.parametrize("path", ["/api/v1/plan", "/api/v1/commit?dry_run=true", "/api/v1/commit/api/v1/plan"])
async def test_a_plan_says_what_the_commit_then_does_and_stores_nothing(client, platform, path):
    planned = await send(client, path, rides())
    assert planned.status_code == 200, planned.text
    plan = planned.json()
    assert (plan["accepted"], plan["no_op"], plan["compared_with"], plan["breaks"]) == (True, False, None, [])
    assert {"step": "create_log", "dataset": "Ride@1"} in plan["steps"]
    assert platform.registry.definitions().all == ()
    assert platform.registry.events(event_type="commit") == []
    done = (await send(client, "/api/v1/commit", rides())).json()
    assert (plan["commit_id"], plan["changes"]) == (done["commit_id"], done["changes"])
    again = (await send(client, path, rides())).json()
    assert (again["no_op"], again["steps"], again["compared_with"]) == (True, [], done["commit_id"])


async def test_a_plan_of_a_protobuf_body_is_that_of_the_json_body(client, as_json, as_protobuf):
    ours = await client.post("/api/v1/plan", content=as_protobuf, headers=PROTOBUF)
    assert ours.json() == (await client.post("/api/v1/plan", content=as_json)).json()
    assert len(ours.json()["changes"]["added"]) == 10


async def test_a_plan_predicts_the_state_of_the_pipelines_it_brings_and_of_no_other(client):
    plan = (await send(client, "/api/v1/plan?keys=100&events_per_key=50&over=7d&distinct=5", rides())).json()
    assert plan["assumed"] == {"keys": 100, "events_per_key": 50, "over": "7d", "distinct": 5}
    assert [each["pipeline"] for each in plan["pipelines"]] == ["by_rider@1", "Ride_index@1", "City_index@1"]
    assert plan["total_bytes"] == sum(each["total_bytes"] for each in plan["pipelines"]) > 0
    await send(client, "/api/v1/commit", rides())
    one = rides()
    cities = tuple(each for each in one.datasets if each.name == "City")
    part = one.model_copy(update={"datasets": cities, "pipelines": (), "featuresets": ()})
    assert [each["pipeline"] for each in (await send(client, "/api/v1/plan", part)).json()["pipelines"]] == [
        "City_index@1"
    ]


@pytest.mark.parametrize("query", ["keys=0", "events_per_key=100001", "over=1mo", "over=99999d", "distinct=x"])
async def test_a_prediction_of_something_else_is_refused(client, query):
    assert (await send(client, f"/api/v1/plan?{query}", rides())).status_code == 400


async def test_a_plan_lists_what_breaks_and_is_200_where_the_commit_is_409(client, platform):
    await send(client, "/api/v1/commit", rides())
    commit = json.loads(rides().model_dump_json())
    commit["datasets"] = [each for each in commit["datasets"] if each["name"] == "Ride"]
    commit["datasets"][0]["fields"] = [f for f in commit["datasets"][0]["fields"] if f["name"] != "city"]
    commit["datasets"][0]["fields"][2]["type"] = "int"
    body = {"format": 1, "datasets": commit["datasets"]}
    # `by_rider` needs the column, which is a mistake, not a break; without it nothing stands in the way of the answer.
    refused = await client.post("/api/v1/plan", json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_definition")
    city = next(each for each in json.loads(rides().model_dump_json())["datasets"] if each["name"] == "City")
    city["fields"] = [field for field in city["fields"] if field["name"] != "country"]
    body = {"format": 1, "datasets": [city], "locations": {"dataset:City": {"file": "rides.py", "line": 7}}}
    plan = await client.post("/api/v1/plan", json=body)
    assert plan.status_code == 200, plan.text
    assert plan.json()["accepted"] is False
    (broken,) = plan.json()["breaks"]
    assert (broken["code"], broken["subject"], broken["file"], broken["line"]) == (
        "field_removed",
        "City.country",
        "rides.py",
        7,
    )
    committed = await client.post("/api/v1/commit", json=body)
    assert (committed.status_code, committed.json()["error"]) == (409, "breaking_change")
    assert [each["code"] for each in committed.json()["details"]] == ["field_removed"]
    assert len(platform.registry.commits()) == 1


async def test_a_shorter_retention_needs_to_be_allowed(client, platform):
    month, week = 30 * 86_400_000_000, 7 * 86_400_000_000
    assert (await send(client, "/api/v1/commit", shorter(rides(), month))).status_code == 200
    refused = await send(client, "/api/v1/commit", shorter(rides(), week))
    assert (refused.status_code, refused.json()["details"][0]["code"]) == (409, "retention_narrowed")
    assert "allow_retention_narrowing" in refused.json()["details"][0]["hint"]
    allowed = shorter(rides(allow_retention_narrowing=True), week)
    plan = (await send(client, "/api/v1/plan", allowed)).json()
    assert (plan["accepted"], plan["breaks"]) == (True, [])
    assert any("retention of Ride@1 becomes shorter" in warning for warning in plan["warnings"])
    assert (await send(client, "/api/v1/commit", allowed)).status_code == 200
    assert platform.registry.definitions().dataset("Ride").retention_us == week


async def test_what_may_narrow_a_retention_may_break_nothing_else(client):
    await send(client, "/api/v1/commit", rides())
    commit = rides(allow_retention_narrowing=True)
    ride = next(each for each in commit.datasets if each.name == "City")
    rest = tuple(field for field in ride.fields if field.name != "country")
    part = commit.model_copy(
        update={"datasets": (ride.model_copy(update={"fields": rest}),), "pipelines": (), "featuresets": ()}
    )
    assert (await send(client, "/api/v1/commit", part)).status_code == 409


async def test_a_commit_that_refuses_backfills_passes_where_there_is_no_history(client):
    assert (await send(client, "/api/v1/plan", rides(backfill=False))).json()["accepted"] is True
    done = await send(client, "/api/v1/commit", rides(backfill=False))
    assert (done.status_code, done.json()["jobs_created"]) == (200, 1)
    again = await send(client, "/api/v1/commit", rides())
    assert (again.json()["commit_id"], again.json()["no_op"]) == (done.json()["commit_id"], True)


async def test_a_commit_that_refuses_backfills_is_refused_where_it_would_start_one(client, platform):
    plain = rides(pipelines=(), featuresets=())
    plain = plain.model_copy(
        update={"datasets": tuple(d.model_copy(update={"index": False}) for d in plain.datasets[:2])}
    )
    assert (await send(client, "/api/v1/commit", plain)).status_code == 200
    event = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1, "at": "2026-03-01T09:00:00Z"}
    assert (await client.post("/api/v1/log", json={"dataset": "Ride", "events": [event]})).json()["events_sent"] == 1
    refused = await send(client, "/api/v1/commit", rides(backfill=False))
    assert (refused.status_code, refused.json()["error"]) == (409, "breaking_change")
    problems = {each["subject"]: each for each in refused.json()["details"]}
    assert {each["code"] for each in problems.values()} == {"backfill_refused"}
    assert problems.keys() == {"by_rider@1", "the index of Ride@1"}
    assert "Ride@1" in problems["by_rider@1"]["message"]
    plan = (await send(client, "/api/v1/plan", rides(backfill=False))).json()
    assert (plan["accepted"], {each["subject"] for each in plan["breaks"]}) == (False, problems.keys())
    assert len(platform.registry.commits()) == 1
    assert (await send(client, "/api/v1/commit", rides())).status_code == 200


async def test_a_plan_warns_of_what_is_allowed_and_seldom_meant(client, as_json):
    body = json.loads(as_json)
    body["sources"][0]["config"]["password"] = {"kind": "literal", "value": "hunter2"}
    body["sources"][1]["config"]["sasl_password"] = {"kind": "arn", "value": "arn:aws:x"}
    body["datasets"][1]["metadata"]["deprecated"] = True
    answer = await client.post("/api/v1/plan", json=body)
    warnings = "\n".join(answer.json()["warnings"])
    assert "the source of Departure carries its password in the definition" in warnings
    assert "the source of Departure has host=127.0.0.1" in warnings
    assert "the source of Weather names a secret store for sasl_password" in warnings
    assert "by_carrier@1 reads Weather, which is deprecated" in warnings
    assert "hunter2" not in answer.text


async def test_a_plan_does_not_warn_of_a_mark_that_the_commit_takes_back(client, as_json):
    body = json.loads(as_json)
    body["datasets"][1]["metadata"]["deprecated"] = True
    assert (await client.post("/api/v1/commit", json=body)).status_code == 200
    warned = (await client.post("/api/v1/plan", json=body)).json()["warnings"]
    back = (await client.post("/api/v1/plan", content=as_json)).json()["warnings"]
    assert [any("which is deprecated" in each for each in told) for told in (warned, back)] == [True, False]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:hun@ter2@localhost:9000", "http://***@localhost:9000"),
        ("localhost:9092", "localhost:9092"),
        ("http://[::1", None),
    ],
)
async def test_a_plan_warns_of_an_own_address_without_its_credentials(client, address, shown):
    connector = ConnectorDef(type="files", config={"path": "rides/*.csv", "endpoint_url": address})
    source = SourceDef(dataset="Ride", connector=connector, cursor="at")
    answer = await send(client, "/api/v1/plan", rides(sources=(source,)))
    assert answer.status_code == 200, answer.text
    told = [each for each in answer.json()["warnings"] if "endpoint_url" in each]
    assert [each.split("endpoint_url=")[1].split(",")[0] for each in told] == ([] if shown is None else [shown])
    assert "ter2" not in answer.text


async def test_many_slow_plans_do_not_keep_a_replica_from_its_own_work(platform, client, monkeypatch):
    """User code may take seconds: meanwhile revoked keys must be noticed and health be answered."""
    entered, going, planned = threading.Semaphore(0), threading.Event(), CommitService.plan

    def slow(*arguments):
        entered.release()
        assert going.wait(30)
        return planned(*arguments)

    monkeypatch.setattr(CommitService, "plan", slow)
    plans = [asyncio.create_task(send(client, "/api/v1/plan", rides())) for _ in range(MOST_DEFAULT_THREADS)]
    try:
        async with asyncio.timeout(10):
            for _ in plans:
                await anyio.to_thread.run_sync(entered.acquire, True, 5, limiter=anyio.CapacityLimiter(1))
            await platform.services.current.refresh()
            assert (await client.get("/health")).status_code == 200
    finally:
        going.set()
    assert {answer.status_code for answer in await asyncio.gather(*plans)} == {200}


@pytest.mark.parametrize("door", DOORS)
async def test_a_version_beyond_what_databases_keep_is_refused(client, as_json, door):
    own = json.loads(rides().model_dump_json())
    for body in (own, json.loads(as_json)):
        body["datasets"][0]["version"] = 2**31
        refused = await client.post(door, json=body)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_definition"), refused.text
        assert "2147483647" in refused.json()["detail"]


@pytest.mark.parametrize(("member", "value"), [("default", [{}]), ("window", 5), ("window", True), ("of", 5)])
async def test_an_aggregate_of_the_own_form_that_is_none_is_an_invalid_definition(client, member, value):
    body = json.loads(rides().model_dump_json())
    aggregate = body["pipelines"][0]["steps"][-1]["aggregates"][0]["aggregate"]
    aggregate[member] = value
    refused = await client.post("/api/v1/commit", json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_definition"), refused.text


@pytest.mark.parametrize("member", ["owner", "tags"])
async def test_half_a_surrogate_pair_in_a_stock_body_is_a_bad_request(client, as_json, member):
    body = json.loads(as_json)
    body["datasets"][0]["metadata"] = {"owner": "\ud800"} if member == "owner" else {"tags": {"\ud800": ""}}
    refused = await client.post("/api/v1/commit", content=json.dumps(body))
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request"), refused.text
    assert f"body.datasets[0].metadata.{member}" in refused.json()["detail"]


async def test_a_state_beyond_the_memory_of_the_store_is_a_warning(platform, client):
    plan = (await send(client, "/api/v1/plan?keys=1000000000000", rides())).json()
    assert not any("online.memory_mb" in warning for warning in plan["warnings"])
    online = platform.settings.online.model_copy(update={"memory_mb": 100})
    object.__setattr__(platform.services, "settings", platform.settings.model_copy(update={"online": online}))
    plan = (await send(client, "/api/v1/plan?keys=1000000000000", rides())).json()
    assert any("online.memory_mb=100" in warning for warning in plan["warnings"])


async def test_a_plan_lists_mistakes_as_the_commit_would(client):
    commit = json.loads(rides().model_dump_json())
    commit["featuresets"][0]["features"][1]["lookup"]["field"] = "tripz"
    answers = [await client.post(path, json=commit) for path in ("/api/v1/plan", "/api/v1/commit")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["details"] == answers[1].json()["details"]


async def test_a_plan_runs_user_code_and_so_needs_the_role_that_commits(platform):
    async with platform.client("reader") as reader:
        assert (await send(reader, "/api/v1/plan", rides())).status_code == 403
