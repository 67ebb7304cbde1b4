"""What nobody should send, sent to every route: refused with the one error body, nothing leaked, nothing broken."""

import json
from urllib.parse import quote

import pytest

from serve_apps.api import build_api
from serve_apps.snowflake_wire import PREFIXES as SNOWFLAKE
from serve_apps.tecton_errors import PREFIXES as TECTON

ONE_BODY = {"error", "detail", "message", "details", "correlation_id"}
DOCUMENT = build_api().openapi()
OPERATIONS = [
    (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
WITH_BODY = sorted((method, path) for method, path, operation in OPERATIONS if "requestBody" in operation)
WITH_NAMES = sorted((method, path) for method, path, _ in OPERATIONS if "{" in path and method in {"GET", "DELETE"})
DEEP = 100_000
READ = {"featureset": "Rider", "entity_id": 7}

BODIES = {
    "nothing": b"",
    "half an object": b'{"featureset": "Rider", ',
    "a list": b"[]",
    "a number beyond every type": b"1" + b"0" * 4_000,
    "an integer of no 64 bits": b'{"dataset": "Ride", "events": [{"rider": 99999999999999999999}], "limit": 1e999}',
    "invalid UTF-8": b'{"featureset": "\xff\xfe"}',
    "half a surrogate pair": b'{"featureset": "\\ud800", "dataset": "\\ud800", "entity_id": "\\ud800"}',
    "NUL": b'{"featureset": "Ri\\u0000der", "dataset": "Ri\\u0000de", "entity_ids": ["\\u0000"]}',
    "deep nesting": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"inputs":' * 20_000 + b"1" + b"}" * 20_000,
    "members nobody knows": b'{"__proto__": {"admin": true}, "unknown": 1}',
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/passwd">]><x>&y;</x>',
}
TYPES = {"application/json", "text/plain", "application/protobuf", "multipart/form-data", "\x7fno type at all"}
NAMES = {
    "up the tree": "../../../../etc/passwd",
    "up the tree, escaped twice": "%2e%2e%2fetc%2fpasswd",
    "SQL": "x'; DROP TABLE commits; --",
    "Redis": "x}\r\nFLUSHALL\r\n{",
    "NUL": "x\0y",
    "long": "x" * 5_000,
    "a template": "{{7*7}}${7*7}",
}
# What a stack trace, a driver's message or a file's content would show.
LEAKS = ("Traceback", "site-packages", "sqlite", "psycopg", "redis.exceptions", "root:x:", '.py"')


def members_of(path):
    """The members of the error body on a path: the one, or that of the API it speaks."""
    if path.startswith(TECTON):
        return {"error", "message", "code"}
    return {"request_id", "error"} if path.startswith(SNOWFLAKE) else ONE_BODY


def is_refusal(answer):
    """Whether it is a refusal of the caller's, with its path's error body and nothing that leaks."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert set(answer.json()) == members_of(answer.request.url.path)
    assert not [leak for leak in LEAKS if leak in answer.text], answer.text[:500]
    return True


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_is_none_is_refused_by_every_route(rides, platform, body):
    before = (await rides.get("/features", params=READ)).json()["features"]
    async with platform.client("admin") as admin:
        for method, path in WITH_BODY:
            named = path.replace("{", "").replace("}", "")
            answer = await admin.request(method, named, content=body, headers={"Content-Type": "application/json"})
            # A route whose members may all be left out takes what has none of them.
            assert answer.is_success or is_refusal(answer), (method, path)
    assert (await rides.get("/features", params=READ)).json()["features"] == before


@pytest.mark.parametrize("content_type", sorted(TYPES))
async def test_a_body_of_another_type_is_refused_by_every_route(rides, platform, content_type):
    async with platform.client("admin") as admin:
        for method, path in WITH_BODY:
            named = path.replace("{", "").replace("}", "")
            headers = {"Content-Type": content_type.encode()}
            answer = await admin.request(method, named, content=b"\x00\x01\xfe--", headers=headers)
            assert is_refusal(answer), (method, path)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_a_name_that_is_none_is_refused_by_every_route(rides, platform, name):
    async with platform.client("admin") as admin:
        for method, path in WITH_NAMES:
            start, _, rest = path.partition("{")
            answer = await admin.request(method, start + quote(name, safe="") + rest.partition("}")[2].replace("{", ""))
            assert is_refusal(answer), (method, path)
    assert len((await rides.get("/api/v1/commits")).json()) == 1


async def test_a_hundred_megabytes_are_refused_before_they_are_held(rides):
    sent = 0

    async def megabytes():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"x" * 2**20

    for path in ("/features/batch", "/api/v1/log", "/api/v1/commit"):
        sent = 0
        answer = await rides.post(path, content=megabytes())
        assert answer.status_code == 413
        assert is_refusal(answer)
        assert sent <= 2  # of megabytes; the setting of these tests is 64 KiB


async def test_ten_thousand_entities_are_answered_and_one_more_is_refused(rides, settings):
    ids = list(range(10_000))
    assert len(json.dumps(ids)) < settings.serving.max_body_bytes
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": ids})
    assert len(answer.json()["values"]) == 10_000
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": [*ids, 10_000]})
    assert answer.status_code == 400
    assert "at most 10000" in answer.json()["detail"]
