"""Whatever is sent: the right status, the one error body, and a service that goes on."""

from __future__ import annotations

import json

import pytest

from featurelib.engine.read_plan import KeyForm
from featurelib.errors import InvalidRequest

BODY = {"error", "detail", "message", "details", "correlation_id"}


def check(answer, status: int, code: str, *named: str) -> None:
    assert answer.status_code == status, f"{answer.request.url!s:.200}: {answer.text}"
    body = answer.json()
    assert set(body) == BODY
    assert body["error"] == code
    assert body["detail"] == body["message"]
    assert body["correlation_id"] == answer.headers["x-correlation-id"]
    for name in named:
        assert name in body["detail"]
    assert "Traceback" not in answer.text


WRONG_READS = [
    ("featureset=Nothing&entity_id=7", 404, "not_found", "Nothing"),
    ("featureset=Nothing&whatever=7", 404, "not_found", "Nothing"),
    ("featureset=../../etc/passwd&entity_id=7", 404, "not_found", "passwd"),
    ("featureset=Rider", 400, "invalid_request", "rider"),
    ("featureset=Rider&entity_id=", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=abc", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=7.0", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=9223372036854775808", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=" + "9" * 5000, 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=7&rider=8", 400, "invalid_request", "rider"),
    ("featureset=Rider&entity_id=7&entity_id=8", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=7&timestmp=2026-01-01", 400, "invalid_request", "timestmp"),
    ("featureset=Rider&entity_id=7&entity_type=driver", 400, "invalid_request", "entity_type"),
    ("featureset=Rider&entity_id=7&timestamp=yesterday", 400, "invalid_timestamp", "timestamp"),
    ("featureset=Rider&entity_id=7&timestamp=", 400, "invalid_timestamp", "timestamp"),
    ("featureset=Rider&entity_id=7&ts=2026-13-01", 400, "invalid_timestamp", "ts"),
    ("featureset=Rider&entity_id=7&ts=1772361000000", 400, "invalid_timestamp", "ts"),
    ("featureset=Rider&entity_id=7&ts=nan", 400, "invalid_timestamp", "ts"),
    ("featureset=Rider&entity_id=7&ts=1&timestamp=1", 400, "invalid_request", "ts"),
    ("entity_id=7", 400, "invalid_request", "featureset"),
    ("entity_type=City&entity_id=a%00b", 400, "invalid_request", "entity_id"),
    ("entity_type=City&entity_id=%ff", 400, "invalid_request", "UTF-8"),
    ("entity_type=City&entity_id=" + "x" * 2000, 400, "invalid_request", "entity_id"),
    ("entity_type=RiderStats&entity_id=[%22\\ud800%22]", 400, "invalid_request", "entity_id"),
    ("featureset=Rider&entity_id=7&ts=1_772_361_000", 400, "invalid_timestamp", "1_772_361_000"),
    ("featureset=Rider&entity_id=7&ts=%D9%A1", 400, "invalid_timestamp", "ts"),
    ("featureset=Rider&entity_id=7&ts=9e99", 400, "invalid_timestamp", "'9e99'"),
    ("entity_type=City", 400, "invalid_request", "entity_id"),
    ("&".join(f"a{i}=1" for i in range(40)), 400, "invalid_request", "parameters"),
    ("featureset=Quote&entity_id=7", 400, "invalid_request", "inputs.distance"),
]


async def test_a_wrong_read_is_refused_by_name(rides):
    for query, status, code, named in WRONG_READS:
        check(await rides.get(f"/features?{query}"), status, code, named)


WRONG_BODIES = [
    (b"", "body"),
    (b"{", "body"),
    (b"[]", "body"),
    (b'{"featureset": "Quote"}', "entity_id"),
    (b'{"featureset": 5, "entity_id": "7"}', "featureset"),
    (b'{"featureset": "Quote", "entity_id": null}', "entity_id"),
    (b'{"featureset": "Quote", "entity_id": true}', "entity_id"),
    (b'{"featureset": "Quote", "entity_id": ["7"]}', "entity_id"),
    (b'{"featureset": "Quote", "entity_id": 7.5, "inputs": {"distance": 1}}', "entity_id"),
    (b'{"featureset": "Quote", "entity_id": "\\u0000", "inputs": {"distance": 1}}', "entity_id"),
    (b'{"featureset": "Quote", "entity_id": "\xff"}', "body"),
    (b'{"featureset": "Quote", "entity_id": "7", "extra": 1}', "extra"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": []}', "inputs"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": "far"}}', "inputs.distance"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": true}}', "inputs.distance"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": null}}', "inputs.distance"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": NaN}}', "body"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": 1, "tip": 1.5}}', "inputs.tip"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": 1, "tip": 1' + b"0" * 30 + b"}}", "inputs.tip"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": {"distance": 1, "price": 1}}', "inputs.price"),
    (b'{"featureset": "Quote", "entity_id": "7", "inputs": ' + b'{"distance":' * 3000, "body"),
    (b"[" * 60_000, "body"),
]


async def test_a_wrong_body_is_refused_by_name(rides):
    for body, named in WRONG_BODIES:
        check(await rides.post("/features", content=body), 400, "invalid_request", named)


async def test_a_wrong_timestamp_in_a_body_is_named(rides):
    body = {"featureset": "Quote", "entity_id": 7, "timestamp": "soon", "inputs": {"distance": 1}}
    check(await rides.post("/features", json=body), 400, "invalid_timestamp", "timestamp")


@pytest.mark.parametrize(
    ("ids", "named"),
    [([None], "entity_ids"), (["7", "x"], "entity_ids[1]"), (list(range(10_001)), "at most"), ("7", "entity_ids")],
)
async def test_a_wrong_batch_is_refused_by_name(rides, ids, named):
    body = {"featureset": "Rider", "entity_ids": ids}
    check(await rides.post("/features/batch", json=body), 400, "invalid_request", named)


async def test_an_empty_batch_is_empty(rides):
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": []})
    assert (answer.status_code, answer.json()["values"]) == (200, [])


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/features/", "/query-runs/a/b"])
async def test_an_unknown_route_is_404(client, path):
    check(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/features", "POST"),
        ("GET", "/features/batch", "POST"),
        ("GET", "/api/v1/commit", "POST"),
        ("POST", "/health", "GET"),
    ],
)
async def test_a_wrong_method_is_405_and_says_which_are_right(client, method, path, allowed):
    answer = await client.request(method, path)
    check(answer, 405, "method_not_allowed")
    assert allowed in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/features", "/api/v1/commit", "/api/v1/log"])
async def test_an_oversized_body_is_413(client, path):
    check(await client.post(path, content=b"x" * 70_000), 413, "payload_too_large")


async def test_an_oversized_body_without_a_declared_length_is_413(client):
    async def endless():
        while True:
            yield b"x" * 10_000

    check(await client.post("/features", content=endless()), 413, "payload_too_large")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "body"),
        (b'{"events": []}', "dataset"),
        (b'{"dataset": "Ride", "events": {}}', "events"),
        (b'{"dataset": "Ride", "events": [1]}', "events.0"),
        (b'{"dataset": "RiderStats", "events": []}', "RiderStats"),
    ],
)
async def test_a_wrong_log_request_is_refused_by_name(rides, body, named):
    check(await rides.post("/api/v1/log", content=body), 400, "invalid_request", named)


async def test_records_for_an_unknown_dataset_are_404(rides):
    check(await rides.post("/api/v1/log", json={"dataset": "Nothing", "events": []}), 404, "not_found", "Nothing")


@pytest.mark.parametrize("query", ["limit=0", "limit=many", "limit=1001", "severity=fatal"])
async def test_a_wrong_listing_parameter_is_400(client, query):
    check(await client.get(f"/api/v1/events?{query}"), 400, "invalid_request", query.split("=")[0])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 60_000])
async def test_a_body_that_is_no_commit_is_400(client, body):
    check(await client.post("/api/v1/commit", content=body), 400, "invalid_request", "body")


async def test_a_failure_nobody_foresaw_is_a_500_that_tells_nothing(rides, platform, monkeypatch):
    async def broken(*_: object) -> None:
        message = "secret-in-a-message"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(platform.services.stores.online, "rows", broken)
    answer = await rides.get("/features?featureset=Rider&entity_id=7")
    check(answer, 500, "internal")
    assert "secret-in-a-message" not in answer.text


async def test_a_failure_nobody_foresaw_behind_fastapi_is_the_same_500(client, platform, monkeypatch):
    def broken() -> None:
        message = "secret-in-a-message"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(platform.services.stores.registry, "source_statuses", broken)
    answer = await client.get("/api/v1/sources")
    check(answer, 500, "internal")
    assert "secret-in-a-message" not in answer.text


async def test_redis_and_sql_metacharacters_are_only_text(rides):
    for text in ("a}b{c", "*", "'; DROP TABLE keys; --", "a\r\nDEL x", "\U0001f600"):
        answer = await rides.get("/features", params={"entity_type": "City", "entity_id": text})
        assert (answer.status_code, answer.json()["entity_id"], answer.json()["features"]) == (200, text, None)


@pytest.mark.parametrize("given", ["\ud800", ["a", "\udfff"]])
def test_an_id_that_no_utf8_spells_is_refused(given):
    with pytest.raises(InvalidRequest, match="entity_id"):
        KeyForm("str", 2 if isinstance(given, list) else 1).read(given)


async def test_an_error_of_user_code_may_hold_any_text(platform, client):
    from tests.api.test_definitions import rides_commit

    commit = json.loads(rides_commit().model_dump_json())
    fragile = next(f for f in commit["featuresets"] if f["name"] == "Fragile")
    fragile["extractors"][0]["code"]["source"] = "def invert(cls, ts, trips): raise ValueError('\\udcff\\x00')"
    assert (await client.post("/api/v1/commit", json=commit)).status_code == 200
    check(await client.get("/features?featureset=Fragile&entity_id=7"), 500, "user_code_error", "invert")
    await platform.services.writer.flush()
    (run,) = (await client.get("/query-runs?featureset=Fragile")).json()["runs"]
    assert run["error"].startswith("user_code_error: ")
    assert (await client.get("/health")).status_code == 200
