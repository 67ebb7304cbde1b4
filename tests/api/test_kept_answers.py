"""Answers that are given again: what a read would give, recorded as any other, and gone as soon as a row may differ."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cluster.sockets import bind_listener
from featurelib.clock import HOUR, MINUTE, SECOND
from featurelib.compile import compile_module
from featurelib.definitions import Commit
from featurelib.stores import pipelined
from serve_apps import kept_answers
from serve_apps.exchange import Exchange
from serve_apps.listener import Listener
from serve_apps.messages import Answer
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.api.test_connections import Client
from tests.api.test_erase_routes import finish

ASKED = {"featureset": "Driver", "entity_id": "ann"}
DRIVE = {"driver": "ann", "city": "Oslo", "toll": "2.50", "at": "2026-03-01T11:30:00Z"}


@pytest.fixture(autouse=True)
def never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment makes no news doubtful, so that what is read can be counted."""
    monkeypatch.setattr(pipelined, "_HEARD_SECONDS", 3_600.0)


@pytest.fixture(scope="module")
def declared() -> Commit:
    return compile_module(Path(__file__).parent / "drives.py")


@pytest.fixture
async def drives(platform, client, declared) -> AsyncIterator[httpx2.AsyncClient]:
    """A writer's client of a platform with one drive folded."""
    done = await client.post("/api/v1/commit", content=declared.model_dump_json())
    assert done.status_code == 200, done.text
    platform.create_logs()
    await append(client, platform, DRIVE)
    yield client


@pytest.fixture
def reads(platform, monkeypatch) -> Iterator[list[str]]:
    """The questions that the query server was asked, by target."""
    asked: list[str] = []
    server = platform.services.query_server
    answer = server.answer

    async def noted(question: Any, **how: Any) -> Any:
        asked.append(question.target)
        return await answer(question, **how)

    monkeypatch.setattr(server, "answer", noted)
    yield asked


async def append(client: httpx2.AsyncClient, platform: Any, *events: dict) -> None:
    done = await client.post("/api/v1/log", json={"dataset": "Drive", "events": events})
    assert done.json()["events_sent"] == len(events), done.text
    platform.fold()


async def asked(client: httpx2.AsyncClient, **more: str) -> dict:
    answer = await client.get("/features", params={**ASKED, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def kept(client: httpx2.AsyncClient) -> dict:
    """The answer, asked for until it is kept: the store's connection is first watched when it is open."""
    for _ in range(2):
        await asked(client)
    return await asked(client)


async def test_an_answer_is_given_again_with_the_instant_of_its_own_read(drives, platform, reads):
    first = await kept(drives)
    assert first["features"] == {"driver": "ann", "drives": 1, "paid": "2.50", "city": "Oslo", "bonus": 1.5}
    reads.clear()
    platform.clock.advance(MINUTE // 2)
    assert await asked(drives) == {**first, "metadata": {"timestamp": "2026-03-01T12:00:30Z", "clock": "wall"}}
    assert reads == []


async def test_the_same_question_in_other_words_is_read_and_answered_alike(drives, reads):
    first = await kept(drives)
    reads.clear()
    named = await drives.get("/features", params={"featureset": "Driver", "driver": "ann"})
    posted = await drives.post("/features", json=ASKED)
    assert (named.json(), posted.json(), reads) == (first, first, ["Driver", "Driver"])
    assert (await drives.post("/features", json=ASKED)).json() == first
    assert len(reads) == 2
    other = await drives.post("/features", json={**ASKED, "inputs": {"bonus": 2.0}})
    assert other.json()["features"] == {**first["features"], "bonus": 2.0}


async def test_what_is_written_is_in_the_next_answer(drives, platform):
    await kept(drives)
    for number in range(1, 4):
        await append(drives, platform, {**DRIVE, "city": f"city {number}", "at": f"2026-03-01T11:3{number}:00Z"})
        features = (await asked(drives))["features"]
        assert (features["drives"], features["city"]) == (number + 1, f"city {number}")
        assert (await asked(drives))["features"] == features


async def test_an_event_that_leaves_its_window_is_not_in_the_next_answer(drives, platform):
    await kept(drives)
    platform.clock.advance(31 * MINUTE)  # of the hour that counts
    features = (await asked(drives))["features"]
    assert (features["drives"], features["paid"], features["city"]) == (0, "2.50", "Oslo")


async def test_an_answer_is_read_anew_after_a_minute(drives, platform, reads):
    first = await kept(drives)
    reads.clear()
    platform.clock.advance(MINUTE + SECOND)
    assert (await asked(drives))["features"] == first["features"]
    assert reads == ["Driver"]


async def test_a_clock_that_was_set_back_gets_no_answer_of_later(drives, platform, reads):
    await kept(drives)
    reads.clear()
    platform.clock.advance(-HOUR)  # before the drive
    assert (await asked(drives))["features"]["drives"] == 0
    assert reads == ["Driver"]


@pytest.mark.parametrize("more", [{"explain": "true"}, {"timestamp": "2026-03-01T12:00:00Z"}])
async def test_what_is_explained_or_of_then_is_read_each_time(drives, reads, more):
    first = [await asked(drives, **more) for _ in range(3)]
    assert first[0]["features"]["drives"] == 1
    assert len(reads) == 3


@pytest.mark.parametrize("featureset", ["DriverJudged", "DriverReplayed"])
async def test_what_runs_user_code_or_has_another_clock_is_read_each_time(drives, reads, featureset):
    for _ in range(4):
        assert (await asked(drives, featureset=featureset))["features"]["drives"] == 1
    assert reads == [featureset] * 4


async def test_an_unknown_entity_is_read_each_time(drives, reads):
    for _ in range(4):
        assert (await asked(drives, entity_id="unheard-of"))["features"]["drives"] == 0
    assert len(reads) == 4


async def test_a_commit_ends_every_answer(drives, platform, reads, declared):
    before = await kept(drives)
    (driver,) = [each for each in declared.featuresets if each.name == "Driver"]
    features = tuple(f.model_copy(update={"default": 3.0}) if f.name == "bonus" else f for f in driver.features)
    others = [each for each in declared.featuresets if each.name != "Driver"]
    moved = declared.model_copy(update={"featuresets": (*others, driver.model_copy(update={"features": features}))})
    done = await drives.post("/api/v1/commit", content=moved.model_dump_json())
    assert done.status_code == 200, done.text
    await platform.services.current.refresh()
    reads.clear()
    after = await asked(drives)
    assert after["features"] == {**before["features"], "bonus": 3.0}
    assert reads == ["Driver"]


async def test_an_answer_that_was_kept_is_recorded_and_replays_like_one_that_was_read(drives, platform):
    read, again = [await drives.get("/features", params=ASKED) for _ in range(4)][::3]
    await platform.services.writer.flush()
    own = {"id", "correlation_id", "latency_ms"}
    one, two = [
        {name: member for name, member in (await drives.get(f"/query-runs/{name}")).json().items() if name not in own}
        for name in (read.headers["x-query-run-id"], again.headers["x-query-run-id"])
    ]
    assert one == two
    for answer in (read, again):
        name = answer.headers["x-query-run-id"]
        for knowledge in ("as_served", "latest"):
            replayed = await drives.post(f"/query-runs/{name}/replay?knowledge={knowledge}")
            assert replayed.status_code == 200, replayed.text
            assert set(replayed.json()["features"].values()) == {"same"}
    await append(drives, platform, {**DRIVE, "city": "Bergen", "at": "2026-03-01T11:45:00Z"})
    told = (await drives.post(f"/query-runs/{name}/replay?knowledge=latest")).json()["features"]
    assert {name for name, verdict in told.items() if verdict == "different"} == {"drives", "paid", "city"}
    assert (await drives.post(f"/query-runs/{name}/replay?knowledge=as_served")).json()["result"] == again.json()


async def test_a_key_that_was_revoked_gets_no_answer_that_was_kept(drives, platform):
    await kept(drives)
    record, secret = platform.registry.create_key("reader", "another")
    await platform.services.current.refresh()
    headers = {"Authorization": f"Bearer {secret}"}
    for _ in range(3):
        assert (await drives.get("/features", params=ASKED, headers=headers)).status_code == 200
    platform.registry.revoke_key(record.fingerprint)
    await platform.services.current.refresh()
    assert (await drives.get("/features", params=ASKED, headers=headers)).status_code == 401
    assert (await drives.get("/features", params=ASKED, headers={"Authorization": ""})).status_code == 401


async def test_nothing_is_kept_of_an_entity_that_was_erased(drives, platform):
    await kept(drives)
    done = await drives.post("/api/v1/erase", json={"dataset": "Drive", "entity_ids": ["ann"]})
    assert done.status_code == 200, done.text
    finish(platform)
    features = (await asked(drives))["features"]
    assert features == {"driver": "ann", "drives": 0, "paid": None, "city": None, "bonus": 1.5}
    assert platform.application._hot["/features"]["GET"].__self__._kept._kept == {}


async def test_answers_kept_are_bounded(drives, platform, reads, monkeypatch):
    await append(drives, platform, *({**DRIVE, "driver": f"d{number}"} for number in range(8)))
    monkeypatch.setattr(kept_answers, "KEPT_BYTES", 3 * 2_300)
    for _ in range(3):
        for number in range(8):
            await asked(drives, entity_id=f"d{number}")
    reads.clear()
    for number in range(8):
        await asked(drives, entity_id=f"d{7 - number}")
    assert 4 <= len(reads) < 8


async def test_what_an_erased_entity_was_in_other_words_goes_as_other_answers_are_kept(drives, platform):
    held = platform.application._hot["/features"]["GET"].__self__._kept
    for words in (ASKED, {"featureset": "Driver", "driver": "ann"}):
        for _ in range(3):
            assert (await drives.get("/features", params=words)).status_code == 200
    await append(drives, platform, {**DRIVE, "driver": "bea"})
    done = await drives.post("/api/v1/erase", json={"dataset": "Drive", "entity_ids": ["ann"]})
    assert done.status_code == 200, done.text
    finish(platform)
    assert len(held._kept) == 2
    for _ in range(3):
        await asked(drives, entity_id="bea")
    assert [words.query for words in held._kept] == [b"featureset=Driver&entity_id=bea"]
    assert held._bytes == sum(each.size for each in held._kept.values())


async def test_what_a_commit_ended_goes_as_other_answers_are_kept(drives, platform):
    held = platform.application._hot["/features"]["GET"].__self__._kept
    names = [f"d{number}" for number in range(8)]
    await append(drives, platform, *({**DRIVE, "driver": name} for name in names))
    for _ in range(4):
        platform.clock.advance(SECOND)  # what is due to be read ahead is, at the next instant
        for name in names:
            await asked(drives, entity_id=name)
    assert len(held._kept) == 8
    platform.registry.create_key("reader", "another")  # a new version of the registry, too
    await platform.services.current.refresh()
    for name in names[-4:]:
        await asked(drives, entity_id=name)
    assert sorted(words.query.decode()[-2:] for words in held._kept) == names[-4:]
    assert held._bytes == sum(each.size for each in held._kept.values())


@pytest.mark.parametrize("longer", [{"content": json.dumps(ASKED).encode() + b" " * 2_000}, {"inputs": {"bonus": 2.0}}])
async def test_an_answer_to_many_words_or_with_inputs_is_not_kept(drives, reads, longer):
    body = longer.get("content") or json.dumps({**ASKED, **longer}).encode()
    for _ in range(4):
        done = await drives.post("/features", content=body)
        assert done.status_code == 200, done.text
    assert len(reads) == 4


async def test_an_answer_whose_values_have_no_spelling_is_not_kept(drives, reads, monkeypatch):
    monkeypatch.setattr(kept_answers, "spelt_values", lambda values: None)
    for _ in range(4):
        assert (await asked(drives))["features"]["drives"] == 1
    assert len(reads) == 4


async def test_an_entity_named_like_an_instant_is_answered_with_its_name(drives, platform):
    name = "2026-03-01T12:00:00Z"
    await append(drives, platform, {**DRIVE, "driver": name, "city": name})
    for _ in range(4):
        answer = await asked(drives, entity_id=name)
        assert (answer["entity_id"], answer["features"]["city"]) == (name, name)
        assert answer["metadata"]["timestamp"] == name
    platform.clock.advance(SECOND)
    later = await asked(drives, entity_id=name)
    assert (later["entity_id"], later["features"]["city"]) == (name, name)
    assert later["metadata"]["timestamp"] == "2026-03-01T12:00:01Z"


@pytest.fixture
async def listening(drives, platform) -> AsyncIterator[tuple[Application, Client, bytes]]:
    """A replica on a port over the same stores: its application, a client, and the request, whole."""
    application = Application(lambda: open_services(platform.settings, platform.clock))
    listener = Listener(application, bind_listener("127.0.0.1", 0))
    listener.start()
    secret = platform.keys["reader"][1]
    head = (
        f"GET /features?featureset=Driver&entity_id=ann HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n"
    )
    client = Client(listener.port)
    with contextlib.closing(client.socket), contextlib.closing(client.reader):
        yield application, client, head.encode()
    listener.stop()


def noting(application: Application, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each request that the connection asks an answer for at once, whether there is one."""
    noted: list[bool] = []
    at_hand = application.at_hand

    def look(exchange: Exchange) -> Answer | None:
        answer = at_hand(exchange)
        noted.append(answer is not None)
        return answer

    monkeypatch.setattr(application, "at_hand", look)
    return noted


async def test_a_connection_answers_at_once_what_is_kept_and_in_order(listening, monkeypatch):
    application, client, request = listening
    noted = noting(application, monkeypatch)
    for _ in range(4):
        status, _, body = client.send(request).answer()
        assert status == 200
    assert noted[-1]
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    client.send((request + health) * 20)
    runs = set()
    for _ in range(20):
        status, headers, again = client.answer()
        assert (status, json.loads(again)["features"]) == (200, json.loads(body)["features"])
        runs.add(headers["x-query-run-id"])
        assert client.answer()[0] == 200
    assert len(runs) == 20
    counted = 'thyme_http_requests_total{method="GET",route="/features",status="200"} 24.0'
    assert counted in application._services.metrics.text().decode()


async def test_a_failure_of_what_is_kept_is_one_refusal_and_ends_nothing(listening, monkeypatch):
    _, client, request = listening
    for _ in range(4):
        assert client.send(request).answer()[0] == 200

    def failing(*_: object) -> None:
        raise RuntimeError("for the test")

    with monkeypatch.context() as patched:
        patched.setattr(kept_answers.KeptAnswers, "again", failing)
        client.send(request).refused(500, "internal")
    assert client.send(request).answer()[0] == 200


async def test_a_request_without_a_key_is_refused_however_well_the_answer_is_known(listening):
    _, client, request = listening
    for _ in range(4):
        assert client.send(request).answer()[0] == 200
    bare = b"\r\n".join(line for line in request.split(b"\r\n") if not line.startswith(b"Authorization"))
    client.send(bare).refused(401, "unauthenticated")


async def test_a_client_that_says_it_is_the_last_request_is_hung_up_on(listening):
    _, client, request = listening
    for _ in range(4):
        assert client.send(request).answer()[0] == 200
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    status, headers, _ = client.send(last).answer()
    assert (status, headers["connection"]) == (200, "close")
    assert client.is_closed()
