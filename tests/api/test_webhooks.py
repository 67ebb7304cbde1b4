"""Webhooks: pushed records, signed or with a key, durable before the answer, once per delivery."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import datetime

import pytest

from featurelib import Secret, WebhookSource, dataset, field, source
from featurelib.definitions import Commit, ConnectorDef, DatasetDef, FieldDef, SourceDef
from featurelib.errors import DeclarationValueError
from featurelib.secrets import SecretRef
from featurelib.stores.log import Log
from tests.support.shares import lose_the_second_share

ORDER = DatasetDef(
    name="Order",
    fields=(
        FieldDef(name="id", type="str", key=True),
        FieldDef(name="total", type="float"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
SECRET = "whsec_1f7a"
PATH = "/api/v1/webhooks/Order"
PARTITIONS = 2


def order(number: int, **changed) -> dict:
    return {"id": f"o{number}", "total": 2.5, "at": "2026-03-01T09:00:00Z", **changed}


def signed(body: bytes, secret: str = SECRET, scheme: str = "sha256=") -> dict[str, str]:
    return {"X-Signature-256": scheme + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


async def declare(client, **config) -> None:
    connector = ConnectorDef(type="webhook", config={"signature_header": "X-Signature-256", "path": "", **config})
    commit = Commit(datasets=(ORDER,), sources=(SourceDef(dataset="Order", connector=connector),))
    answer = await client.post("/api/v1/commit", content=commit.model_dump_json())
    assert answer.status_code == 200, answer.text


def held(log: Log) -> list[str]:
    tables = [log.read("Order@1", part, 0, 10_000) for part in range(PARTITIONS)]
    return sorted(name for table in tables if table is not None for name in table["id"].to_pylist())


@pytest.fixture
async def hook(platform, client, monkeypatch):
    """A stranger's client of a platform whose webhook has a secret."""
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    await declare(client, secret=SecretRef(kind="env", value="ORDERS_SECRET"))
    async with platform.client(None) as stranger:
        yield stranger


async def test_a_secret_that_the_platform_keeps_itself_holds_from_the_moment_it_is_put(platform):
    body = json.dumps([order(1)]).encode()
    path = "/api/v1/secrets-service/scopes/hooks"
    async with platform.client("admin") as admin, platform.client(None) as stranger:
        await admin.post(path)
        await declare(admin, secret=SecretRef(kind="scope", value="hooks/orders"))
        assert (await stranger.post(PATH, content=body, headers=signed(body))).status_code == 503
        for secret in (SECRET, "whsec_another"):
            await admin.put(f"{path}/keys/orders", json={"value": secret})
            assert (await stranger.post(PATH, content=body, headers=signed(body, secret))).status_code == 200
        assert (await stranger.post(PATH, content=body, headers=signed(body))).status_code == 401


async def test_who_may_not_read_a_secret_may_not_have_a_source_use_it(platform, client):
    connector = ConnectorDef(type="webhook", config={"secret": SecretRef(kind="scope", value="hooks/orders")})
    commit = Commit(datasets=(ORDER,), sources=(SourceDef(dataset="Order", connector=connector),))
    body = commit.model_dump_json()
    for path in ("/api/v1/commit", "/api/v1/plan", "/api/v1/commit?dry_run=true"):
        refused = await client.post(path, content=body)
        assert (refused.status_code, refused.json()["error"]) == (403, "forbidden"), path
        assert "hooks/orders" in refused.json()["detail"]
    async with platform.client("admin") as admin:
        assert (await admin.post("/api/v1/commit", content=body)).status_code == 200
        (shown,) = (await admin.get("/api/v1/sources")).json()
    assert "hooks/orders" in json.dumps(shown), "an operator needs to know where it is kept"
    # What is there already may be sent again by anybody who may commit.
    assert (await client.post("/api/v1/commit", content=body)).json()["no_op"] is True


@pytest.mark.parametrize("scheme", ["sha256=", ""])
async def test_a_signed_delivery_needs_no_key(platform, hook, scheme):
    body = json.dumps([order(1), order(2)]).encode()
    answer = await hook.post(PATH, content=body, headers=signed(body, scheme=scheme))
    assert (answer.status_code, answer.json()["events_sent"]) == (200, 2)
    assert held(platform.log) == ["o1", "o2"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Signature-256": ""},
        {"X-Signature-256": "sha256="},
        {"X-Signature-256": "sha256=" + "0" * 64},
        signed(b"[]"),
        signed(json.dumps([order(1)]).encode(), secret="other"),
        {"Authorization": "Bearer tk_wrong"},
    ],
)
async def test_a_delivery_that_is_not_signed_with_the_secret_is_401_and_nothing_is_taken(platform, hook, headers):
    answer = await hook.post(PATH, content=json.dumps([order(1)]).encode(), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated")
    assert SECRET not in answer.text
    assert held(platform.log) == []


async def test_a_writers_key_does_not_stand_in_for_the_signature(platform, hook, client):
    answer = await client.post(PATH, json=[order(1)])
    assert answer.status_code == 401


async def test_without_a_secret_a_writers_key_is_asked_for(platform, client):
    await declare(client, secret=SecretRef(kind="literal", value=""))
    assert (await client.post(PATH, json=order(1))).json()["events_sent"] == 1
    async with platform.client("reader") as reader, platform.client(None) as stranger:
        assert (await reader.post(PATH, json=order(2))).status_code == 403
        assert (await stranger.post(PATH, json=order(2))).status_code == 401
    assert held(platform.log) == ["o1"]


async def test_a_stranger_does_not_learn_which_webhooks_there_are(hook, client):
    other = "/api/v1/webhooks/Nothing"
    assert (await hook.post(other, json=[])).status_code == 401
    assert (await hook.get(PATH)).status_code == 405
    answer = await client.post(other, json=[])
    assert answer.status_code == 404
    assert "WebhookSource" in answer.json()["detail"]


async def test_a_secret_that_cannot_be_read_is_503_and_not_told(platform, hook, monkeypatch):
    monkeypatch.delenv("ORDERS_SECRET")
    answer = await hook.post(PATH, content=b"[]", headers=signed(b"[]"))
    assert answer.status_code == 503
    assert "ORDERS_SECRET" not in answer.text
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        ("", json.dumps(order(1)), "application/json"),
        ("", json.dumps([order(1)]), ""),
        ("", json.dumps(order(1)) + "\n\n", "application/x-ndjson"),
        ("data.items", json.dumps({"data": {"items": [order(1)]}}), "application/json"),
        ("data", json.dumps({"data": order(1)}), "application/json"),
        ("data", json.dumps({"data": order(1)}) + "\r\n", "application/jsonl"),
    ],
)
async def test_the_forms_of_a_body(platform, client, path, body, content_type):
    await declare(client, path=path)
    answer = await client.post(PATH, content=body.encode(), headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["events_sent"]) == (200, 1), answer.text
    assert held(platform.log) == ["o1"]


async def test_lines_need_no_content_type_and_a_bad_one_is_a_dead_letter(platform, client):
    await declare(client)
    lines = [json.dumps(order(1)), '{"id": ', json.dumps(order(2, total="x")), "5", json.dumps(order(3))]
    answer = (await client.post(PATH, content="\n".join(lines).encode())).json()
    assert (answer["events_sent"], answer["rejected"]) == (2, 3)
    assert [(problem["row"], problem["reason"]) for problem in answer["problems"]] == [
        (1, "malformed"),
        (2, "wrong_type"),
        (3, "malformed"),
    ]
    letters = (await client.get("/api/v1/dead-letters?dataset=Order")).json()["dead_letters"]
    assert {letter["origin"] for letter in letters} == {"POST " + PATH}
    assert {"text": '{"id":'} in [letter["record"] for letter in letters]


async def test_a_delivery_without_the_path_is_a_dead_letter(platform, client):
    await declare(client, path="data.items")
    answer = await client.post(PATH, json={"zen": "ping"})
    assert (answer.status_code, answer.json()["rejected"]) == (200, 1)
    (letter,) = (await client.get("/api/v1/dead-letters?dataset=Order")).json()["dead_letters"]
    assert json.loads(letter["record"]["text"]) == {"zen": "ping"}
    assert "'data'" in letter["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a":1} x', b"[" * 60_000])
async def test_a_body_that_is_no_json_is_400_and_nothing_is_kept(platform, client, body):
    await declare(client)
    answer = await client.post(PATH, content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert (await client.get("/api/v1/dead-letters?dataset=Order")).json()["dead_letters"] == []


async def test_more_records_than_a_request_may_hold_are_413(client):
    await declare(client)
    answer = await client.post(PATH, content=b"[" + b",".join([b"{}"] * 10_001) + b"]")
    assert answer.status_code == 413
    answer = await client.post(PATH, content=b" " * 70_000)
    assert answer.status_code == 413


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-GitHub-Delivery"])
async def test_a_delivery_that_is_sent_again_counts_once(platform, hook, header):
    body = json.dumps([order(1), order(2, total="x"), order(3)]).encode()
    headers = {**signed(body), header: "72d3162e-cc78-11e3-81ab-4c9367dc0958"}
    first = (await hook.post(PATH, content=body, headers=headers)).json()
    again = (await hook.post(PATH, content=body, headers=headers)).json()
    assert (first["events_sent"], first["duplicates"], first["rejected"]) == (2, 0, 1)
    assert (again["events_sent"], again["duplicates"], again["rejected"]) == (0, 2, 1)
    assert held(platform.log) == ["o1", "o3"]
    assert len(platform.log.dead.newest("Order@1", PARTITIONS)) == 1
    other = json.dumps([order(4)]).encode()
    answer = await hook.post(PATH, content=other, headers={**signed(other), header: headers[header]})
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_conflict")


async def test_an_answer_of_success_is_given_only_when_the_log_holds_the_records(platform, hook, monkeypatch):
    body = json.dumps([order(number) for number in range(6)]).encode()
    lose_the_second_share(monkeypatch)
    headers = {**signed(body), "Idempotency-Key": "k"}
    answer = await hook.post(PATH, content=body, headers=headers)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    monkeypatch.setenv("ORDERS_SECRET", SECRET)
    answer = await hook.post(PATH, content=body, headers=headers)
    assert answer.json()["events_sent"] + answer.json()["duplicates"] == 6
    assert held(platform.log) == [f"o{number}" for number in range(6)]


async def test_a_webhook_is_a_source_like_others_and_hides_its_secret(platform, client):
    await declare(client, secret=SecretRef(kind="literal", value=SECRET))
    body = json.dumps([order(1), order(2, total="x")]).encode()
    await client.post(PATH, content=body, headers=signed(body))
    answer = await client.get("/api/v1/sources")
    (shown,) = answer.json()
    assert (shown["connector_type"], shown["rows_in"], shown["rows_dead"]) == ("webhook", 1, 1)
    assert shown["config"]["signature_header"] == "X-Signature-256"
    assert SECRET not in answer.text
    assert SECRET not in (await client.get("/api/v1/status")).text


def test_a_webhook_is_declared_without_a_cursor_or_a_pace():
    def declared(**options):
        @source(WebhookSource(secret=Secret(env="ORDERS_SECRET"), path="data.items"), **options)
        @dataset()
        class Order:
            id: str = field(key=True)
            at: datetime = field(timestamp=True)

    declared(cdc="upsert", max_lateness="1h")
    for wrong in ({"cursor": "at"}, {"every": "5s"}):
        with pytest.raises(DeclarationValueError, match="pushes its records"):
            declared(**wrong)
    with pytest.raises(DeclarationValueError, match="signature_header"):
        WebhookSource(signature_header="")
    assert SECRET not in repr(WebhookSource(secret=SECRET))
