"""Replays: of what was read then, by the definitions it was read by; and what they say of each feature."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from featurelib.clock import HOUR, MINUTE, format_instant, parse_instant
from featurelib.compile import compile_module
from featurelib.stores.online_reader import SEALED

FLEET = Path(__file__).parent / "fleet.py"
TRIPS = [
    {"trip": "t1", "driver": "ann", "car": "c1", "fare": 10.1, "at": "2026-03-01T09:00:00Z"},
    {"trip": "t2", "driver": "ann", "car": "c2", "fare": 5.7, "at": "2026-03-01T11:00:00Z"},
    {"trip": "t3", "driver": "bob", "car": "c1", "fare": 4.3, "at": "2026-03-01T10:00:00Z"},
]
DRIVERS = [
    {"driver": "ann", "level": 1, "at": "2026-03-01T08:00:00Z"},
    {"driver": "bob", "level": 2, "at": "2026-03-01T08:00:00Z"},
]
# What comes later, much of it dated before what was read: by accident, by correction, and by a late right side.
MORE_TRIPS = [
    {"trip": "t4", "driver": "ann", "car": "c1", "fare": 100.5, "at": "2026-03-01T10:30:00Z"},
    {"trip": "t5", "driver": "eve", "car": "c1", "fare": 7.0, "at": "2026-03-01T11:59:00Z"},
    {"trip": "t6", "driver": "bob", "car": "c3", "fare": 3.0, "at": "2026-03-01T12:30:00Z"},
]
MORE_DRIVERS = [
    {"driver": "ann", "level": 7, "at": "2026-03-01T08:30:00Z"},
    {"driver": "bob", "level": 8, "at": "2026-03-01T11:30:00Z"},
    {"driver": "eve", "level": 9, "at": "2026-03-01T07:00:00Z"},
]
QUESTIONS = {
    "online": ("GET", "/features?featureset=Earning&entity_id=ann", None),
    "unknown entity": ("GET", "/features?featureset=Earning&entity_id=eve", None),
    "event clock": ("GET", "/features?featureset=Replaying&entity_id=ann", None),
    "join and graph": ("GET", "/features?featureset=CarState&entity_id=c1", None),
    "look-ups in extractors": ("GET", "/features?featureset=Compared&entity_id=ann", None),
    "batch": ("POST", "/features/batch", {"featureset": "CarState", "entity_ids": ["c1", "c3", "c2", "c1"]}),
    "batch with look-ups": ("POST", "/features/batch", {"featureset": "Compared", "entity_ids": ["bob", "eve", "ann"]}),
    "lookup": ("GET", "/features?entity_type=Car&entity_id=c1", None),
    "point in time": ("GET", "/features?featureset=Earning&entity_id=ann&timestamp=2026-03-01T11:30", None),
    "point in time as served": (
        "GET",
        "/features?featureset=CarState&entity_id=c1&timestamp=2026-03-01T12:00&knowledge=as_served",
        None,
    ),
    "lookup in time": ("GET", "/features?entity_type=Earned&entity_id=bob&timestamp=2026-03-01T12:00", None),
    "offline": (
        "POST",
        "/features/offline",
        {
            "featureset": "Compared",
            "queries": [
                {"entity_id": "ann", "timestamp": "2026-03-01T11:59:00Z"},
                {"entity_id": "bob", "timestamp": "2026-03-01T10:30:00Z"},
            ],
        },
    ),
}
CHANGED = {"online", "unknown entity", "event clock", "join and graph", "look-ups in extractors", "batch"}


ROUNDS = int(os.environ.get("REPLAY_ROUNDS", "5"))


def some_trip(chosen: random.Random, name: str) -> dict:
    """A trip of any time of the day so far, and sometimes of what is still to come."""
    at = parse_instant("2026-03-01T00:00:00Z") + chosen.randrange(13 * 60) * MINUTE
    people, cars = ("ann", "bob", "eve", "kim"), ("c1", "c2", "c3")
    row = {"trip": name, "driver": chosen.choice(people), "car": chosen.choice(cars), "at": format_instant(at)}
    return {**row, "fare": round(chosen.uniform(0, 50), 2)}


def some_driver(chosen: random.Random) -> dict:
    at = parse_instant("2026-03-01T06:00:00Z") + chosen.randrange(6 * 60) * MINUTE
    return {"driver": chosen.choice(("ann", "bob", "eve")), "level": chosen.randrange(99), "at": format_instant(at)}


@pytest.fixture
async def fleet(platform, client):
    """A writer's client of a platform with the first records folded."""
    await commit(client, FLEET.read_text(), platform.settings.data_dir)
    platform.create_logs()
    await send(client, "Driver", DRIVERS)
    platform.fold()
    await send(client, "Trip", TRIPS)
    platform.fold()
    return client


async def commit(client, source: str, folder: Path) -> None:
    path = folder / "committed_fleet.py"
    path.write_text(source)
    done = await client.post("/api/v1/commit", content=compile_module(path).model_dump_json())
    assert done.status_code == 200, done.text


async def send(client, dataset: str, events: list[dict]) -> None:
    done = await client.post("/api/v1/log", json={"dataset": dataset, "events": events})
    assert done.json()["events_sent"] == len(events), done.text


async def ask(client, question: str):
    method, path, body = QUESTIONS[question]
    answer = await client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def replayed(client, answer, knowledge: str) -> dict:
    done = await client.post(f"/query-runs/{answer.headers['x-query-run-id']}/replay?knowledge={knowledge}")
    assert done.status_code == 200, done.text
    return done.json()


async def everything_changes(platform, client) -> None:
    """Records that change what every question reads, folded; and definitions that say something else."""
    platform.clock.advance(HOUR)
    await send(client, "Trip", MORE_TRIPS)
    platform.fold()
    await send(client, "Driver", MORE_DRIVERS)
    platform.fold()
    changed = FLEET.read_text().replace("default=0", "default=-1").replace("hours=2", "minutes=1")
    assert changed != FLEET.read_text()
    await commit(client, changed, platform.settings.data_dir)
    await platform.services.current.refresh()


async def test_a_replay_as_served_gives_the_very_answer_whatever_has_come_since(fleet, platform):
    first = {question: await ask(fleet, question) for question in QUESTIONS}
    await platform.services.writer.flush()
    await everything_changes(platform, fleet)
    again = {question: await replayed(fleet, answer, "as_served") for question, answer in first.items()}
    assert {question: found["result"] for question, found in again.items()} == {
        question: answer.json() for question, answer in first.items()
    }
    assert {question: set(found["features"].values()) for question, found in again.items()} == {
        question: {"same"} for question in QUESTIONS
    }


async def test_runs_recorded_while_records_come_in_all_replay_the_same(fleet, platform):
    chosen = random.Random(5)
    answers = []
    for round_ in range(ROUNDS):
        await send(fleet, "Trip", [some_trip(chosen, f"r{round_}-{number}") for number in range(40)])
        await send(fleet, "Driver", [some_driver(chosen) for _ in range(4)])
        asked_before_folding = chosen.sample(sorted(QUESTIONS), 4)
        answers += [await ask(fleet, question) for question in asked_before_folding]
        platform.fold()
        platform.clock.advance(7 * MINUTE)
        answers += [await ask(fleet, question) for question in QUESTIONS]
    await platform.services.writer.flush()
    assert len(answers) == ROUNDS * (len(QUESTIONS) + 4)
    for answer in answers:
        again = await replayed(fleet, answer, "as_served")
        assert again["result"] == answer.json()
        assert set(again["features"].values()) == {"same"}


async def test_a_replay_of_today_says_which_features_differ(fleet, platform):
    first = await ask(fleet, "online")
    await platform.services.writer.flush()
    platform.clock.advance(MINUTE)
    await send(fleet, "Trip", MORE_TRIPS[:1])
    platform.fold()
    again = await replayed(fleet, first, "latest")
    assert again["result"]["features"]["trips"] == 3
    verdicts = {"driver": "same", "trips": "different", "fares": "different", "mean": "different", "level": "same"}
    assert (again["features"], again["knowledge"]) == (verdicts, "latest")


async def test_everything_that_changed_is_told_from_what_did_not(fleet, platform):
    first = {question: await ask(fleet, question) for question in QUESTIONS}
    await platform.services.writer.flush()
    await everything_changes(platform, fleet)
    verdicts = {q: set((await replayed(fleet, answer, "latest"))["features"].values()) for q, answer in first.items()}
    assert {question for question, found in verdicts.items() if "different" in found} >= CHANGED


async def test_a_read_of_what_was_not_applied_yet_is_not_replayed_with_it(fleet, platform):
    await send(fleet, "Trip", MORE_TRIPS)
    await send(fleet, "Driver", MORE_DRIVERS)
    first = await ask(fleet, "join and graph")
    await platform.services.writer.flush()
    platform.fold()
    again = await replayed(fleet, first, "as_served")
    assert again["result"] == first.json()
    assert again["result"]["features"]["level"] == 2


async def test_what_history_had_to_answer_is_cut_where_the_key_stood_and_replays(fleet, platform, monkeypatch):
    online = platform.services.stores.online
    kept = online.rows

    async def sealed(lookups):
        return [found._replace(row=SEALED) if found.applied else found for found in await kept(lookups)]

    wanted = (await ask(fleet, "join and graph")).json()
    await send(fleet, "Trip", MORE_TRIPS)  # accepted, and applied nowhere
    monkeypatch.setattr(online, "rows", sealed)
    first = await ask(fleet, "join and graph")
    assert first.json() == wanted
    await platform.services.writer.flush()
    platform.fold()
    assert (await replayed(fleet, first, "as_served"))["result"] == wanted


async def test_a_worker_that_takes_over_does_not_change_what_is_replayed(fleet, platform):
    """A key that a new worker touches reflects the right side as far as that worker has come."""
    await send(fleet, "Driver", MORE_DRIVERS)
    platform.fold()
    await send(fleet, "Trip", [{**MORE_TRIPS[0], "trip": "t9", "driver": "eve", "car": "c9"}])
    platform.fold()
    first = await fleet.get("/features?featureset=CarState&entity_id=c9")
    assert first.json()["features"]["level"] == 9
    await platform.services.writer.flush()
    assert (await replayed(fleet, first, "as_served"))["result"] == first.json()


async def test_a_run_of_another_digest_key_is_unknown_not_different(fleet, platform):
    first = await ask(fleet, "online")
    await platform.services.writer.flush()
    platform.services.digests._key = bytes(32)
    platform.services.digests.key_id = "00000000"
    assert set((await replayed(fleet, first, "latest"))["features"].values()) == {"unknown"}


async def test_a_run_that_failed_has_nothing_to_reproduce(fleet, platform):
    refused = await fleet.get("/features?featureset=Nothing&entity_id=ann")
    assert refused.status_code == 404
    await platform.services.writer.flush()
    (run,) = (await fleet.get("/query-runs?featureset=Nothing")).json()["runs"]
    answer = await fleet.post(f"/query-runs/{run['id']}/replay?knowledge=as_served")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert "gave no answer" in answer.json()["detail"]


async def test_no_value_and_no_key_of_a_looked_up_row_is_in_a_record(fleet, platform):
    first = await ask(fleet, "look-ups in extractors")
    await platform.services.writer.flush()
    run = platform.services.audit.get(first.headers["x-query-run-id"])
    assert run.positions["looked_up"]
    assert "ann" not in str(run.positions)
    assert "15.8" not in run.model_dump_json()
    assert len(run.digests) == 8 + 16 * 4


async def test_what_two_runs_have_in_common_does_not_show_in_their_digests(fleet, platform):
    first, second = await ask(fleet, "online"), await ask(fleet, "online")
    await platform.services.writer.flush()
    runs = [platform.services.audit.get(answer.headers["x-query-run-id"]) for answer in (first, second)]
    assert runs[0].digests[:8] == runs[1].digests[:8]
    assert not {runs[0].digests[8:24]} & {runs[1].digests[8:24]}


async def test_the_declarations_have_a_plain_join_and_a_graph(fleet, platform):
    """Each has its own way to say up to where a key reflects its inputs."""
    views = platform.services.current.snapshot.views
    assert (views["Car"].program.plain, views["Busy"].program.plain) == (True, False)
