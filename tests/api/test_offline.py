"""Reads of many rows, each as of an instant of its own: equal to one point-in-time read each, as JSON and as Arrow."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest

from featurelib.clock import HOUR, MINUTE, format_instant, to_datetime
from featurelib.compile import compile_module
from featurelib.stores.archive import Archive
from tests.api.conftest import NOON, Platform

ARROW = "application/vnd.apache.arrow.stream"
STOCK_ACCEPT = f"{ARROW}, application/json;q=0.9"
START = NOON - 12 * HOUR


def trips(random_: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "rider": random_.randrange(6),
            "city": random_.choice(["Oslo", "Bergen", "Narvik"]),
            "fare": round(random_.uniform(0, 40), 2),
            "km": random_.choice([None, 3, 12]),
            "toll": random_.choice([None, "1.50", "0.10"]),
            "at": format_instant(START + random_.randrange(10 * HOUR // MINUTE) * MINUTE),
        }
        for _ in range(160)
    ]


def weather(random_: random.Random) -> list[dict[str, Any]]:
    return [
        {"city": city, "rain": random_.randrange(4), "at": format_instant(START + hour * HOUR)}
        for hour in range(0, 10, 2)
        for city in ("Oslo", "Bergen")
    ]


async def take_trips(platform: Platform, client: httpx2.AsyncClient) -> None:
    """Commit the declarations and log trips, some archived and some in the log alone."""
    chosen = random.Random(5)
    commit = compile_module(Path(__file__).parent / "trips.py")
    done = await client.post("/api/v1/commit", content=commit.model_dump_json())
    assert done.status_code == 200, done.text
    platform.create_logs()
    taken = trips(chosen)
    await sent(client, "Trip", taken[:100])
    archive_all(platform)
    platform.clock.advance(2 * HOUR)
    await sent(client, "Weather", weather(chosen))
    platform.clock.advance(2 * HOUR)
    await sent(client, "Trip", taken[100:])
    await platform.services.current.refresh()


@pytest.fixture
async def trips_taken(platform: Platform, client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A writer's client of a platform with trips."""
    await take_trips(platform, client)
    return client


async def sent(client: httpx2.AsyncClient, dataset: str, events: list[dict[str, Any]]) -> None:
    done = await client.post("/api/v1/log", json={"dataset": dataset, "events": events})
    assert done.json()["events_sent"] == len(events), done.text


def archive_all(platform: Platform) -> None:
    archive = Archive(platform.settings.archive_url)
    for dataset in platform.registry.definitions().datasets:
        for partition in range(platform.log.partitions(f"{dataset.name}@{dataset.version}")):
            table = platform.log.read(f"{dataset.name}@{dataset.version}", partition, 0, 10**9)
            if table is not None:
                archive.append(dataset, table)


async def offline(client: httpx2.AsyncClient, queries: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    answer = await client.post("/features/offline", json={"featureset": "Rider", "queries": queries, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


async def arrow(client: httpx2.AsyncClient, path: str, body: dict[str, Any], accept: str = STOCK_ACCEPT) -> pa.Table:
    answer = await client.post(path, json=body, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    assert answer.headers["x-query-run-id"]
    return pa.ipc.open_stream(answer.content).read_all()


@pytest.mark.parametrize("knowledge", ["latest", "as_served"])
async def test_each_row_equals_a_point_in_time_read_of_it_alone(trips_taken, platform, knowledge):
    chosen = random.Random(7)
    queries: list[dict[str, Any]] = []
    for _ in range(20):
        at = START + chosen.randrange(-HOUR, 40 * HOUR)
        price = {} if chosen.random() < 0.5 else {"inputs": {"price": chosen.choice([0.5, 2])}}
        # Riders 6 and 7 never took a trip; rows come in no order, and some twice.
        queries.append({"entity_id": str(chosen.randrange(8)), "timestamp": format_instant(at), **price})
    queries += [queries[3], queries[0]]
    found = await offline(trips_taken, queries, knowledge=knowledge)
    expected = []
    for query in queries:
        body = {"featureset": "Rider", "knowledge": knowledge, **query}
        alone = (await trips_taken.post("/features", json=body)).json()
        expected.append(
            {"entity_id": query["entity_id"], "timestamp": query["timestamp"]} | {"features": alone["features"]}
        )
    assert found == expected


async def test_rows_see_what_their_own_windows_hold(trips_taken):
    rows = await offline(
        trips_taken, [{"entity_id": 1, "timestamp": format_instant(START + hour * HOUR)} for hour in (3, 6, 40)]
    )
    assert len({row["features"]["fares_3h"] for row in rows}) == 3
    # Nothing for a day, but known: counts are 0, and what has a default of its own keeps it.
    assert (rows[2]["features"]["trips_1h"], rows[2]["features"]["km_max"], rows[2]["features"]["mean_1d"]) == (
        0,
        -1,
        0.0,
    )


async def test_inputs_of_a_row_go_before_those_of_the_request(trips_taken):
    at = format_instant(START + 6 * HOUR)
    rows = await offline(
        trips_taken,
        [{"entity_id": 1, "timestamp": at}, {"entity_id": 1, "timestamp": at, "inputs": {"price": 3}}],
        inputs={"price": 2},
    )
    assert [row["features"]["price"] for row in rows] == [2.0, 3.0]
    assert rows[1]["features"]["cost"] == pytest.approx(rows[0]["features"]["cost"] * 1.5)


FORMS = [
    "2026-03-01T10:30:00Z",
    "2026-03-01 10:30:00+00:00",
    "2026-03-01 11:30:00+01:00",
    "2026-03-01T10:30",
    "2026-03-01 10:30:00",
    "2026-03-01T10:30:00.000000",
    "2026-03-01T10:30:00.000000000",
    str(datetime(2026, 3, 1, 10, 30, tzinfo=UTC)),
    "1772361000",
    "1772361000.0",
    1772361000,
    1772361000.0,
]


async def test_every_form_of_a_timestamp_is_one_instant(trips_taken):
    rows = await offline(trips_taken, [{"entity_id": "1", "timestamp": form} for form in FORMS])
    assert {row["timestamp"] for row in rows} == {"2026-03-01T10:30:00Z"}
    assert all(row == rows[0] for row in rows)


async def test_an_offline_read_as_arrow_holds_the_same_values_typed(trips_taken):
    body = {
        "featureset": "Rider",
        "queries": [{"entity_id": rider, "timestamp": format_instant(START + 5 * HOUR)} for rider in (1, 7, 2)],
    }
    table = await arrow(trips_taken, "/features/offline", body)
    assert table.column_names[:3] == ["entity_id", "timestamp", "rider"]
    kinds = {field.name: field.type for field in table.schema}
    instant = pa.timestamp("us", tz="UTC")
    assert (kinds["entity_id"], kinds["timestamp"], kinds["last_at"]) == (pa.string(), instant, instant)
    assert (kinds["trips_1h"], kinds["toll"], kinds["cities"]) == (
        pa.int64(),
        pa.decimal128(38, 2),
        pa.list_(pa.string()),
    )
    shown = await offline(trips_taken, body["queries"])
    rows = table.to_pylist()
    assert [row["entity_id"] for row in rows] == ["1", "7", "2"]
    assert {row["timestamp"] for row in rows} == {to_datetime(START + 5 * HOUR)}
    for row, expected in zip(rows, shown, strict=True):
        values = {name: wire(row[name]) for name in expected["features"]}
        assert values == expected["features"]


def wire(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, Decimal) else value


async def test_a_batch_is_arrow_or_positional_json_as_the_caller_accepts(trips_taken, platform):
    platform.fold()
    body = {"featureset": "Rider", "entity_ids": ["2", 7, "1", "2"]}
    positional = (await trips_taken.post("/features/batch", json=body)).json()
    assert positional["features"][:2] == ["entity_id", "rider"]
    table = await arrow(trips_taken, "/features/batch", body)
    assert table.column_names == positional["features"]
    assert [[wire(value) for value in row.values()] for row in table.to_pylist()] == positional["values"]
    forced = await trips_taken.post("/features/batch?format=positional", json=body, headers={"Accept": STOCK_ACCEPT})
    assert forced.json() == positional


async def test_an_empty_request_has_an_empty_answer(trips_taken):
    empty = {"/features/batch": {"entity_ids": []}, "/features/offline": {"queries": []}}
    for path, rows in empty.items():
        body = {"featureset": "Rider", **rows}
        answer = await trips_taken.post(path, json=body)
        assert answer.json() in ({"results": []}, {"features": ["entity_id", *PLAN], "values": []})
        table = await arrow(trips_taken, path, body)
        assert (len(table), table.column_names[-1]) == (0, PLAN[-1])


PLAN = [
    *("rider", "trips_1h", "fares_3h", "mean_1d", "km_max", "toll", "cities", "last_at", "wet", "hourly", "streak"),
    *("fare", "home", "price", "cost", "since", "double", "city_trips", "city_riders"),
]
GOOD = {"entity_id": "1", "timestamp": "2026-03-01T10:30"}
REFUSED = {
    "a row without an instant": ({"queries": [{"entity_id": "1"}]}, "timestamp"),
    "an instant that is none": ({"queries": [GOOD, {"entity_id": "1", "timestamp": "NaT"}]}, "queries[1].timestamp"),
    "an id that is none": ({"queries": [GOOD, {**GOOD, "entity_id": "x"}]}, "queries[1].entity_id"),
    "an input of a row": ({"queries": [GOOD, {**GOOD, "inputs": {"price": "x"}}]}, "queries[1].inputs.price"),
    "an unknown input": ({"queries": [GOOD], "inputs": {"nothing": 1}}, "inputs.nothing"),
    "an unknown member": ({"queries": [GOOD], "rows": 1}, "rows"),
    "knowledge of nothing": ({"queries": [GOOD], "knowledge": "best"}, "knowledge"),
    "another entity type": ({"queries": [GOOD], "entity_type": "driver"}, "entity_type"),
    "no queries": ({}, "queries"),
}


async def test_a_wrong_offline_request_is_refused_by_name(trips_taken):
    for case, (body, named) in REFUSED.items():
        answer = await trips_taken.post("/features/offline", json={"featureset": "Rider", **body})
        assert (answer.status_code, named in answer.json()["detail"]) == (400, True), (case, answer.text)


async def test_unknown_things_of_an_answer_of_many_rows(trips_taken):
    unknown = await trips_taken.post("/features/offline", json={"featureset": "Nobody", "queries": [GOOD]})
    assert (unknown.status_code, unknown.json()["error"]) == (404, "not_found")
    strange = await trips_taken.post("/features/offline?form=arrow", json={"featureset": "Rider", "queries": [GOOD]})
    assert (strange.status_code, "form" in strange.json()["detail"]) == (400, True)
    neither = await trips_taken.post("/features/batch?format=xml", json={"featureset": "Rider", "entity_ids": []})
    assert (neither.status_code, "format" in neither.json()["detail"]) == (400, True)


async def test_a_failing_extractor_fails_the_whole_read_and_names_its_line(trips_taken):
    body = {"featureset": "Failing", "queries": [{**GOOD, "entity_id": "7"}]}
    answer = await trips_taken.post("/features/offline", json=body, headers={"Accept": STOCK_ACCEPT})
    assert (answer.status_code, answer.json()["error"]) == (500, "user_code_error")
    assert "trips.py:" in answer.json()["detail"]


async def test_an_offline_read_is_recorded_and_can_be_replayed(trips_taken, platform):
    queries = [GOOD, {**GOOD, "entity_id": "7", "inputs": {"price": 9}}, {**GOOD, "timestamp": "2026-03-01T03:00"}]
    first = await trips_taken.post("/features/offline", json={"featureset": "Rider", "queries": queries})
    await platform.services.writer.flush()
    run = (await trips_taken.get(f"/query-runs/{first.headers['x-query-run-id']}")).json()
    assert (run["kind"], run["row_count"], run["requested_timestamp"]) == ("offline", 3, None)
    assert run["entity_ids"] == ["1", "7", "1"]
    replayed = (await trips_taken.post(f"/query-runs/{run['id']}/replay")).json()
    assert replayed["result"] == first.json()
    one = await trips_taken.post("/features/offline", json={"featureset": "Rider", "queries": [GOOD]})
    await platform.services.writer.flush()
    run = (await trips_taken.get(f"/query-runs/{one.headers['x-query-run-id']}")).json()
    assert (run["requested_timestamp"], run["row_count"]) == ("2026-03-01T10:30:00Z", 1)
