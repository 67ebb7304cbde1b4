"""A request sent again under its key adds nothing; drift of what is sent is told once."""

from __future__ import annotations

import json

import pytest

from featurelib.client import Config, ThymeClient
from featurelib.definitions import Commit
from featurelib.errors import LogFull, MaybeTaken, StoreUnavailable
from featurelib.stores.log import Log
from tests.api.test_dead_letters import make_optional
from tests.support.shares import lose_the_second_share

PARTITIONS = 2


def ride(number: int, **changed) -> dict:
    return {"ride": f"r{number}", "rider": 7, "city": "Oslo", "fare": 1.5, "at": "2026-03-01T09:00:00Z", **changed}


@pytest.fixture
async def door(platform, client):
    await platform.commit_rides(client)
    return client


async def send(client, events: list[dict], key: str | None = "k1"):
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/api/v1/log", json={"dataset": "Ride", "events": events}, headers=headers)


def held(log: Log) -> list[str]:
    tables = [log.read("Ride@1", part, 0, 10_000) for part in range(PARTITIONS)]
    return sorted(name for table in tables if table is not None for name in table["ride"].to_pylist())


async def test_the_same_key_again_adds_nothing_and_counts_duplicates(platform, door):
    events = [ride(1), ride(2), ride(2), ride(3, fare="x")]
    first = (await send(door, events)).json()
    again = (await send(door, events)).json()
    assert first.keys() == again.keys()
    assert (first["events_sent"], first["duplicates"], first["rejected"]) == (3, 0, 1)
    assert (again["events_sent"], again["duplicates"], again["rejected"]) == (0, 3, 1)
    assert held(platform.log) == ["r1", "r2", "r2"]  # two records of one request are two
    assert len(platform.log.dead.newest("Ride@1", PARTITIONS)) == 1
    assert len((await door.get("/api/v1/events?event_type=dead_letter")).json()) == 1


async def test_without_a_key_the_same_events_count_twice(platform, door):
    for _ in range(2):
        await send(door, [ride(1)], key=None)
    assert held(platform.log) == ["r1", "r1"]


async def test_another_body_under_the_same_key_is_409_and_nothing_is_taken(platform, door):
    await send(door, [ride(1)])
    answer = await send(door, [ride(2)])
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_conflict")
    assert held(platform.log) == ["r1"]


async def test_a_key_belongs_to_its_dataset(door):
    await send(door, [ride(1)])
    city = {"city": "Oslo", "country": "NO", "opened": 0, "at": "2026-03-01T09:00:00Z"}
    answer = await door.post(
        "/api/v1/log", json={"dataset": "City", "events": [city]}, headers={"Idempotency-Key": "k1"}
    )
    assert answer.json()["events_sent"] == 1


@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 256, "ü".encode(), b"\x7f"])
async def test_a_key_of_another_form_is_400(platform, door, key):
    body = json.dumps({"dataset": "Ride", "events": [ride(1)]})
    answer = await door.post("/api/v1/log", content=body, headers=[(b"Idempotency-Key", key)])
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["detail"]
    assert platform.log.partitions("Ride@1") == 0 or held(platform.log) == []


@pytest.mark.parametrize("key", ["!", "~" * 255])
async def test_a_key_has_1_to_255_visible_characters(door, key):
    assert (await send(door, [ride(1)], key)).status_code == 200


async def test_the_second_attempt_completes_what_the_first_left_between_partitions(platform, door, monkeypatch):
    events = [ride(number) for number in range(8)] + [ride(9, fare="x")]
    lose_the_second_share(monkeypatch)
    answer = await send(door, events)
    assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (
        503,
        "store_unavailable",
        "1",
    )
    monkeypatch.undo()
    assert 0 < len(held(platform.log)) < 8
    again = (await send(door, events)).json()
    assert again["events_sent"] + again["duplicates"] == 8
    assert held(platform.log) == [f"r{number}" for number in range(8)]
    assert len(platform.log.dead.newest("Ride@1", PARTITIONS)) == 1


async def test_what_was_taken_in_part_is_refused_after_its_columns_changed(platform, door, monkeypatch):
    events = [ride(number, fare=None if number % 2 else 1.0) for number in range(12)]
    lose_the_second_share(monkeypatch)
    assert (await send(door, events)).status_code == 503
    monkeypatch.undo()
    await make_optional(platform, door)  # letters of then would be records now
    before = held(platform.log)
    again = await send(door, events)
    assert (again.status_code, again.json()["error"]) == (409, "idempotency_conflict")
    assert held(platform.log) == before != []


async def test_what_was_not_taken_is_taken_after_its_columns_changed(platform, door, monkeypatch):
    events = [ride(number, fare=None if number % 2 else 1.0) for number in range(12)]

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(Log, "append_shares", away)
    assert (await send(door, events)).status_code == 503
    monkeypatch.undo()
    await make_optional(platform, door)
    again = (await send(door, events)).json()
    assert (again["events_sent"], again["rejected"]) == (12, 0)
    assert (await send(door, events)).json()["duplicates"] == 12
    assert held(platform.log) == sorted(f"r{number}" for number in range(12))


async def test_without_a_key_an_attempt_that_died_on_the_way_must_not_be_repeated(door, monkeypatch):
    lose_the_second_share(monkeypatch)
    answer = await send(door, [ride(number) for number in range(8)], key=None)
    assert (answer.status_code, answer.json()["error"]) == (503, MaybeTaken.code)
    assert "retry-after" not in answer.headers
    assert "Idempotency-Key" in answer.json()["detail"]


async def test_a_full_log_takes_nothing_and_says_when_to_come_again(platform, door, monkeypatch):
    def full(self: Log) -> None:
        message = "the log is full"
        raise LogFull(message)

    monkeypatch.setattr(Log, "require_room", full)
    for key in (None, "k1"):
        answer = await send(door, [ride(1)], key)
        assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "log_full", "1")
    assert held(platform.log) == []
    monkeypatch.undo()
    assert (await send(door, [ride(1)])).json()["events_sent"] == 1


async def test_a_key_and_the_events_own_id_both_hold(platform, client):
    await platform.commit_rides(client)
    own = platform.registry.definitions().dataset("Ride").model_copy(update={"name": "Paid", "event_id": "ride"})
    await client.post("/api/v1/commit", content=Commit(datasets=(own,)).model_dump_json())
    for key, events in (("a", [ride(1), ride(2)]), ("a", [ride(1), ride(2)]), ("b", [ride(2), ride(3)])):
        body = {"dataset": "Paid", "events": events}
        answer = await client.post("/api/v1/log", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == 200
    assert (answer.json()["events_sent"], answer.json()["duplicates"]) == (1, 1)
    tables = [platform.log.read("Paid@1", part, 0, 10) for part in range(PARTITIONS)]
    assert sorted(n for table in tables if table is not None for n in table["ride"].to_pylist()) == ["r1", "r2", "r3"]


async def test_columns_that_change_are_told_of_once(door):
    for number in range(3):
        await send(door, [ride(number)], key=None)
    assert (await door.get("/api/v1/events?event_type=schema_drift")).json() == []
    for number in range(3):
        await send(door, [ride(number, tip=2, rider="9")], key=None)
    (event,) = (await door.get("/api/v1/events?event_type=schema_drift")).json()
    assert (event["severity"], event["subject"]) == ("warn", "Ride")
    assert event["detail"] == {
        "new": {"tip": "int"},
        "missing": [],
        "retyped": {"rider": {"before": "int", "now": "text"}},
    }
    assert "'9'" not in event["message"]
    await send(door, [{"ride": "r9"}], key=None)
    newest, _ = (await door.get("/api/v1/events?event_type=schema_drift")).json()
    assert sorted(newest["detail"]["missing"]) == ["at", "city", "fare", "rider"]


def test_the_client_sends_a_key_and_repeats_until_it_is_answered():
    import httpx2
    import stamina

    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.headers["Idempotency-Key"])
        if len(asked) == 1:
            message = "reset"
            raise httpx2.ReadError(message)
        if len(asked) == 2:
            return httpx2.Response(503, json={"error": "store_unavailable", "detail": "away"})
        return httpx2.Response(200, json={"events_sent": 1, "duplicates": 2})

    with stamina.set_testing(True, attempts=3), ThymeClient(Config(), transport=httpx2.MockTransport(answer)) as client:
        assert client.log("Ride", [ride(1), ride(2), ride(3)]) == 3
        assert len(asked) == 3
        assert len(set(asked)) == 1
        client.log("Ride", ride(4))
        client.log("Ride", ride(4), idempotency_key="mine")
    assert len(set(asked)) == 3
    assert asked[-1] == "mine"


def test_the_client_does_not_repeat_what_may_not_be_repeated(monkeypatch):
    import httpx2

    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(503, json={"error": "maybe_taken", "detail": "some"})

    with ThymeClient(Config(), transport=httpx2.MockTransport(answer)) as client, pytest.raises(MaybeTaken):
        client.log("Ride", [ride(1)])
    assert len(asked) == 1
