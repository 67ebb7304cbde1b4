"""Records a dataset could not take: shown page by page, replayed exactly once, dropped."""

from __future__ import annotations

import json

import pytest

from featurelib.client import Config, ThymeClient
from featurelib.definitions import Commit, ConnectorDef, DatasetDef, FieldDef, SourceDef
from featurelib.errors import StoreUnavailable
from featurelib.settings import IngestSettings
from featurelib.stores.dead_letters import DeadLetter
from featurelib.stores.intake import Intake, lateness_of
from featurelib.stores.log import Identity, Log, Mark

GOOD = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 1.5, "at": "2026-03-01T09:00:00Z"}
PARTITIONS = 2


def ride(number: int, **changed) -> dict:
    return {**GOOD, "ride": f"r{number}", **changed}


@pytest.fixture
async def door(platform, client):
    """A writer's client of a platform with the rides committed."""
    await platform.commit_rides(client)
    platform.create_logs()
    return client


async def send(client, *events: dict) -> dict:
    answer = await client.post("/api/v1/log", json={"dataset": "Ride", "events": list(events)})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(client, **filters) -> list[dict]:
    answer = await client.get("/api/v1/dead-letters", params={"dataset": "Ride", **filters})
    assert answer.status_code == 200, answer.text
    return answer.json()["dead_letters"]


async def ask(client, what: str, **chosen) -> dict:
    answer = await client.post(f"/api/v1/dead-letters/{what}", json={"dataset": "Ride", **chosen})
    assert answer.status_code == 200, answer.text
    return answer.json()


def rides_held(log: Log) -> list[str]:
    tables = [log.read("Ride@1", part, 0, 10_000) for part in range(PARTITIONS)]
    return sorted(name for table in tables if table is not None for name in table["ride"].to_pylist())


async def make_optional(platform, client) -> None:
    """Commit again with ``fare`` optional, as somebody would who looked at the dead letters."""
    ride_def = platform.registry.definitions().dataset("Ride")
    fields = [f.model_copy(update={"optional": True}) if f.name == "fare" else f for f in ride_def.fields]
    changed = ride_def.model_copy(update={"fields": tuple(fields)})
    await commit(client, datasets=(changed,))


async def test_a_dead_letter_shows_the_record_as_it_came_and_why(platform, door):
    await send(door, ride(1), ride(2, fare="much", extra=[None, {"a": 1}]))
    (letter,) = await listed(door)
    assert letter["record"] == ride(2, fare="much", extra=[None, {"a": 1}])
    assert (letter["reason"], letter["field"]) == ("wrong_type", "fare")
    assert "'much'" in letter["message"]
    assert (letter["origin"], letter["place"], letter["at"]) == ("POST /api/v1/log", "", "2026-03-01T12:00:00Z")


async def test_a_value_json_has_no_number_for_is_shown_as_text(door):
    await door.post("/api/v1/log", content=b'{"dataset":"Ride","events":[{"ride":NaN,"x":"\\ud800"}]}')
    (letter,) = await listed(door)
    assert letter["record"] == {"ride": "nan", "x": "\\ud800"}


@pytest.mark.parametrize("levels", [90, 300, 900])
async def test_a_record_nested_deeper_than_json_is_written_is_a_letter_that_can_be_shown(door, levels):
    deep = "[" * levels + "]" * levels
    body = json.dumps({"dataset": "Ride", "events": [ride(1, fare="deep"), ride(2, fare="much")]})
    sent = await door.post("/api/v1/log", content=body.replace('"deep"', deep))
    assert (sent.status_code, sent.json()["rejected"]) == (200, 2)
    letters = {letter["record"]["ride"]: letter for letter in await listed(door)}
    assert letters["r2"]["record"] == ride(2, fare="much")
    assert letters["r1"]["reason"] == "wrong_type"
    assert ("nested more than" in json.dumps(letters["r1"]["record"])) is (levels > 100)
    assert (await ask(door, "replay", all=True))["failed"] == 2


async def test_pages_hold_every_letter_once_newest_first(platform, door):
    log = platform.log
    intake = Intake(log, *at_the_door(platform))
    for number in range(1, 24):
        malformed = DeadLetter({"text": f"line {number}"}, "malformed", "", "no record", number)
        intake.take([], Identity("a.csv", Mark(number), _numbers(0)), [malformed], "")
    assert {stored.partition for stored in log.dead.newest("Ride@1", PARTITIONS)} == {0, 1}
    seen, cursor = [], ""
    while cursor is not None:
        answer = await door.get("/api/v1/dead-letters", params={"dataset": "Ride", "limit": 5, "cursor": cursor})
        page = answer.json()
        seen += [letter["place"] for letter in page["dead_letters"]]
        cursor = page["cursor"]
    assert sorted(seen, key=int) == [str(number) for number in range(1, 24)]
    stamps = [letter["id"].partition(":")[2].split("-")[0] for letter in await listed(door, limit=100)]
    assert stamps == sorted(stamps, reverse=True)


def _numbers(count: int):
    import numpy as np

    return np.arange(count, dtype=np.int64)


def at_the_door(platform):
    dataset = platform.registry.definitions().dataset("Ride")
    return dataset, PARTITIONS, lateness_of(None, IngestSettings())


async def test_letters_are_filtered_by_reason(door):
    await send(door, ride(1, fare="much"), ride(2, rider=None), ride(3, fare="more"))
    assert [letter["record"]["ride"] for letter in await listed(door, reason="wrong_type")] == ["r3", "r1"]
    assert await listed(door, reason="nothing") == []


async def test_a_letter_that_fits_now_is_accepted_once_and_is_a_letter_no_more(platform, door):
    await send(door, ride(1), ride(2, fare=None), ride(3, fare=None), ride(4, rider="x"))
    await make_optional(platform, door)
    done = await ask(door, "replay", all=True)
    assert done == {"accepted": 2, "duplicates": 0, "late": 0, "failed": 1, "missing": 0}
    assert rides_held(platform.log) == ["r1", "r2", "r3"]
    assert [letter["record"]["ride"] for letter in await listed(door)] == ["r4"]
    assert (await ask(door, "replay", all=True))["accepted"] == 0
    assert rides_held(platform.log) == ["r1", "r2", "r3"]
    events = (await door.get("/api/v1/events?event_type=dead_letters_replayed")).json()
    assert "2 dead letters were replayed, 1 failed again" in {event["message"] for event in events}


async def test_letters_of_a_request_with_a_key_are_replayed_and_the_request_sent_again_is_refused(platform, door):
    body = {"dataset": "Ride", "events": [ride(number, fare=None) for number in range(8)]}
    headers = {"Idempotency-Key": "monday"}
    assert (await door.post("/api/v1/log", json=body, headers=headers)).json()["rejected"] == 8
    assert (await door.post("/api/v1/log", json=body, headers=headers)).status_code == 200
    assert len(await listed(door)) == 8
    await make_optional(platform, door)
    assert (await ask(door, "replay", all=True))["accepted"] == 8
    assert rides_held(platform.log) == [f"r{number}" for number in range(8)]
    again = await door.post("/api/v1/log", json=body, headers=headers)
    assert (again.status_code, again.json()["error"]) == (409, "idempotency_conflict")
    assert "columns of Ride have changed" in again.json()["detail"]
    assert rides_held(platform.log) == [f"r{number}" for number in range(8)]


async def test_a_crash_between_the_append_and_the_removal_repeats_nothing(platform, door, monkeypatch):
    await send(door, ride(2, fare=None), ride(3, fare=None))
    await make_optional(platform, door)

    def lost(*_: object) -> int:
        message = "lost"
        raise StoreUnavailable(message)

    monkeypatch.setattr(platform.services.stores.log.dead, "delete", lost)
    refused = await door.post("/api/v1/dead-letters/replay", json={"dataset": "Ride", "all": True})
    assert refused.status_code == 503
    assert rides_held(platform.log) == ["r2", "r3"]
    assert len(await listed(door)) == 2
    monkeypatch.undo()
    assert (await ask(door, "replay", all=True))["duplicates"] == 2
    assert rides_held(platform.log) == ["r2", "r3"]
    assert await listed(door) == []


async def test_a_crash_between_the_appends_of_a_replay_repeats_nothing(platform, door, monkeypatch):
    await send(door, *(ride(number, fare=None) for number in range(8)))
    await make_optional(platform, door)
    append, left = Log.append, [1]

    def failing(*args, **kwargs):
        if not left.pop():
            message = "lost"
            raise StoreUnavailable(message)
        left.append(0)
        return append(*args, **kwargs)

    monkeypatch.setattr(Log, "append", failing)
    assert (await door.post("/api/v1/dead-letters/replay", json={"dataset": "Ride", "all": True})).status_code == 503
    monkeypatch.undo()
    assert 0 < len(rides_held(platform.log)) < 8
    await ask(door, "replay", all=True)
    assert rides_held(platform.log) == [f"r{number}" for number in range(8)]


async def test_a_letter_that_fails_again_stays_the_same_letter_with_its_new_reason(platform, door):
    await send(door, ride(1, fare=None, rider="x"))
    (before,) = await listed(door)
    assert before["field"] == "rider"
    ride_def = platform.registry.definitions().dataset("Ride")
    fields = [f.model_copy(update={"minimum": 5}) if f.name == "rider" else f for f in ride_def.fields]
    assert (await ask(door, "replay", ids=[before["id"]]))["failed"] == 1
    (after,) = await listed(door)
    assert after == before
    # Another definition finds another fault first.
    changed = ride_def.model_copy(update={"fields": (*fields[:1], fields[3], *fields[1:3], fields[4])})
    Intake(platform.log, changed, PARTITIONS, lateness_of(None, IngestSettings())).replay(
        platform.log.dead.newest("Ride@1", PARTITIONS)
    )
    (again,) = await listed(door)
    assert (again["id"], again["reason"], again["field"]) == (before["id"], "missing_field", "fare")
    assert again["record"] == before["record"]
    assert len(await listed(door, reason="missing_field")) == 1
    assert await listed(door, reason="wrong_type") == []


async def test_malformed_text_that_is_json_is_replayed_and_the_rest_stays(platform, door):
    intake = Intake(platform.log, *at_the_door(platform))
    texts = [json.dumps(ride(5)), "half a line", "[1]", json.dumps(ride(6, fare="x"))]
    letters = [DeadLetter({"text": text}, "malformed", "", "?", n) for n, text in enumerate(texts, 1)]
    intake.take([], Identity("a.jsonl", Mark(4), _numbers(0)), letters, "")
    done = await ask(door, "replay", all=True)
    assert (done["accepted"], done["failed"]) == (1, 3)
    assert rides_held(platform.log) == ["r5"]
    reasons = {letter["record"]["text"]: letter["reason"] for letter in await listed(door)}
    assert reasons == {"half a line": "malformed", "[1]": "malformed", texts[3]: "wrong_type"}


def country_def(*, optional: bool) -> DatasetDef:
    fields = (
        FieldDef(name="code", type="str", key=True),
        FieldDef(name="name", type="str", optional=optional),
        FieldDef(name="at", type="datetime", timestamp=True),
    )
    return DatasetDef(name="Country", fields=fields)


async def test_changes_are_replayed_as_changes(platform, client):
    source = SourceDef(
        dataset="Country", connector=ConnectorDef(type="files", config={"path": "/none"}), cdc="debezium"
    )
    await commit(client, datasets=(country_def(optional=False),), sources=(source,))
    row = {"code": "NO", "name": None, "at": "2026-03-01T09:00:00Z"}
    changes = [{"op": "c", "after": row}, {"op": "d", "before": {"name": "Norge"}, "ts_ms": 1_772_000_000_000}]
    sent = await client.post("/api/v1/log", json={"dataset": "Country", "events": changes})
    assert sent.json()["rejected"] == 2
    letters = (await client.get("/api/v1/dead-letters?dataset=Country")).json()["dead_letters"]
    assert [letter["record"] for letter in letters] == changes[::-1]
    await commit(client, datasets=(country_def(optional=True),))
    done = await client.post("/api/v1/dead-letters/replay", json={"dataset": "Country", "all": True})
    assert (done.json()["accepted"], done.json()["failed"]) == (1, 1)
    tables = [platform.log.read("Country@1", part, 0, 10) for part in range(PARTITIONS)]
    (stored,) = [row for table in tables if table is not None for row in table.to_pylist()]
    assert (stored["code"], stored["__deleted"]) == ("NO", False)


async def commit(client, **definitions) -> None:
    answer = await client.post("/api/v1/commit", content=Commit(**definitions).model_dump_json())
    assert answer.status_code == 200, answer.text


async def test_letters_are_dropped_by_id_or_by_reason_and_the_rest_stays(door):
    await send(door, ride(1, fare="x"), ride(2, rider=None), ride(3, fare="y"))
    third, second, first = await listed(door)
    assert (await ask(door, "drop", ids=[first["id"], "0:1-1"]))["dropped"] == 1
    assert (await ask(door, "drop", all=True, reason="missing_field"))["dropped"] == 1
    assert second["reason"] == "missing_field"
    assert [letter["id"] for letter in await listed(door)] == [third["id"]]
    assert (await ask(door, "replay", ids=[first["id"]]))["missing"] == 1


async def test_a_reader_sees_letters_but_may_neither_replay_nor_drop_them(platform, door):
    async with platform.client("reader") as reader:
        assert await listed(reader) == []
        for what in ("replay", "drop"):
            answer = await reader.post(f"/api/v1/dead-letters/{what}", json={"dataset": "Ride", "all": True})
            assert answer.status_code == 403


@pytest.mark.parametrize(
    ("chosen", "found"),
    [({}, "ids"), ({"ids": ["x"]}, "'x'"), ({"ids": ["0:1-1"], "all": True}, "ids"), ({"every": True}, "every")],
)
async def test_a_wrong_choice_of_letters_is_400_and_changes_nothing(door, chosen, found):
    await send(door, ride(1, fare="x"))
    for what in ("replay", "drop"):
        answer = await door.post(f"/api/v1/dead-letters/{what}", json={"dataset": "Ride", **chosen})
        assert answer.status_code == 400
        assert found in answer.text
    assert len(await listed(door)) == 1


async def test_an_unknown_dataset_or_cursor_is_said(door):
    assert (await door.get("/api/v1/dead-letters?dataset=Nothing")).status_code == 404
    assert (await door.get("/api/v1/dead-letters?dataset=Ride&cursor=x")).status_code == 400
    assert (await door.get("/api/v1/dead-letters?dataset=RiderStats")).status_code == 400


async def test_the_oldest_letters_beyond_the_bound_are_dropped_counted_and_told_of(platform, client):
    platform.services.settings.ingest.__dict__["dead_letters_kept"] = 3
    await platform.commit_rides(client)
    for number in range(5):
        await send(client, ride(number, fare="x"))
    assert [letter["record"]["ride"] for letter in await listed(client)] == ["r4", "r3", "r2"]
    events = (await client.get("/api/v1/events?event_type=dead_letters_dropped")).json()
    assert [(event["severity"], event["detail"]["dropped"]) for event in events] == [("warn", 1)] * 2
    heads = platform.log.heads("Ride@1", PARTITIONS)
    assert sum(head.dead_dropped for head in heads) == 2
    assert sum(head.records_dead for head in heads) == 5
    platform.services.settings.ingest.__dict__["dead_letters_kept"] = 10_000


async def test_the_reason_of_a_dropped_letter_is_forgotten(platform, client):
    await platform.commit_rides(client)
    platform.create_logs()
    intake = Intake(platform.log, *at_the_door(platform), dead_kept=2)
    intake.accept([ride(1, fare="x"), ride(2, fare="y")])
    intake.replay(platform.log.dead.newest("Ride@1", PARTITIONS))
    intake.accept([ride(3, fare="x"), ride(4, fare="y")])
    intake.replay(platform.log.dead.newest("Ride@1", PARTITIONS))
    letters = platform.log.dead.newest("Ride@1", PARTITIONS)
    assert [stored.letter.record["ride"] for stored in letters] == ["r4", "r3"]
    assert sum(platform.log._redis.hlen(f"{{Ride@1:{part}}}:verdicts") for part in range(PARTITIONS)) == 2


def test_the_command_line_lists_replays_and_drops(monkeypatch, capsys):
    from typer.testing import CliRunner

    from featurelib.cli import app

    calls = []
    letter = {"id": "0:1-0", "at": "2026", "reason": "wrong_type", "field": "fare", "record": {"fare": "x"}}
    monkeypatch.setattr(Config, "load", classmethod(lambda cls: cls()))
    monkeypatch.setattr(ThymeClient, "dead_letters", lambda self, *a, **k: calls.append((a, k)) or [letter])
    replayed = {"accepted": 2, "failed": 1}
    monkeypatch.setattr(ThymeClient, "replay_dead_letters", lambda self, *a, **k: calls.append((a, k)) or replayed)
    monkeypatch.setattr(ThymeClient, "drop_dead_letters", lambda self, *a, **k: calls.append((a, k)) or 3)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["dead-letters", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(run("list", "rides:Ride", "--reason", "wrong_type", "--json")) == [letter]
    assert "0:1-0" in run("list", "Ride")
    assert run("replay", "Ride", "--all").strip() == "2 accepted, 1 failed"
    assert run("drop", "Ride", "0:1-0").strip() == "3 dropped"
    assert calls[0] == (("Ride",), {"reason": "wrong_type", "limit": 50})
    assert calls[2:] == [(("Ride", None), {"reason": ""}), (("Ride", ["0:1-0"]), {"reason": ""})]
    assert CliRunner().invoke(app, ["dead-letters", "drop", "Ride"]).exit_code == 2
