"""Reads over HTTP: online, point in time, by look-up, with request inputs, in batches."""

from __future__ import annotations

import httpx2
import pytest

from featurelib.clock import HOUR
from featurelib.stores.online_reader import SEALED

NOW = {
    "rider": 7,
    "trips": 2,
    "spent": 15.0,
    "cities": ["Bergen", "Oslo"],
    "last_at": "2026-03-01T11:00:00Z",
    "fee": 2.0,
    "each": 9.5,
    "hours_since": 1.0,
}


async def read(client: httpx2.AsyncClient, **parameters: str) -> dict:
    answer = await client.get("/features", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_online_features_are_those_of_now(rides):
    answer = await rides.get("/features", params={"featureset": "Rider", "entity_id": "7"})
    assert answer.json() == {
        "entity_type": "rider",
        "entity_id": "7",
        "features": NOW,
        "mode": "online",
        "metadata": {"timestamp": "2026-03-01T12:00:00Z", "clock": "wall"},
    }
    assert answer.headers["x-query-run-id"]


async def test_a_row_of_which_only_partials_are_kept_is_read_from_history(rides, platform, monkeypatch):
    asked = []

    online = platform.services.stores.online
    kept = online.rows

    async def sealed(lookups):
        asked.extend(lookups)
        return [found._replace(row=SEALED) for found in await kept(lookups)]

    monkeypatch.setattr(online, "rows", sealed)
    answer = await read(rides, featureset="Rider", entity_id="7")
    assert asked
    assert (answer["features"], answer["mode"]) == (NOW, "online")


async def test_values_age_out_while_the_entity_is_quiet(rides, platform):
    platform.clock.advance(22 * HOUR)
    assert (await read(rides, featureset="Rider", entity_id="7"))["features"]["trips"] == 1
    platform.clock.advance(2 * HOUR)
    quiet = (await read(rides, featureset="Rider", entity_id="7"))["features"]
    assert (quiet["trips"], quiet["spent"], quiet["cities"], quiet["last_at"]) == (0, 0.0, [], None)


@pytest.mark.parametrize("name", ["timestamp", "ts"])
@pytest.mark.parametrize(
    "text", ["2026-03-01T10:30:00Z", "2026-03-01T10:30", "2026-03-01 11:30:00+01:00", "1772361000", "1772361000.0"]
)
async def test_a_timestamp_in_any_form_reads_as_of_then(rides, name, text):
    answer = await read(rides, featureset="Rider", entity_id="7", **{name: text})
    assert answer["mode"] == "point_in_time"
    assert answer["metadata"] == {"timestamp": "2026-03-01T10:30:00Z", "clock": "request"}
    assert (answer["features"]["trips"], answer["features"]["hours_since"]) == (1, 1.5)


async def test_an_unescaped_plus_of_a_zone_is_understood(rides):
    answer = await rides.get("/features?featureset=Rider&entity_id=7&timestamp=2026-03-01T11:30:00+01:00")
    assert answer.json()["metadata"]["timestamp"] == "2026-03-01T10:30:00Z"


async def test_online_at_an_instant_equals_point_in_time_at_that_instant(rides):
    online = await read(rides, featureset="Rider", entity_id="7")
    then = await read(rides, featureset="Rider", entity_id="7", timestamp=online["metadata"]["timestamp"])
    assert online["features"] == then["features"]


async def test_the_entity_feature_names_the_entity_too(rides):
    assert (await read(rides, featureset="Rider", rider="7"))["features"] == NOW


async def test_an_unknown_entity_has_nulls_and_defaults(rides):
    values = (await read(rides, featureset="Rider", entity_id="99"))["features"]
    assert values == {
        "rider": 99,
        "trips": 0,
        "spent": None,
        "cities": None,
        "last_at": None,
        "fee": 2.0,
        "each": None,
        "hours_since": None,
    }


async def test_an_event_clock_reads_at_the_newest_applied_event(rides, platform):
    platform.clock.advance(1000 * HOUR)
    answer = await read(rides, featureset="RiderReplayed", entity_id="7")
    assert answer["metadata"] == {"timestamp": "2026-03-01T11:00:00Z", "clock": "event"}
    assert answer["features"] == {"rider": 7, "trips": 2, "busy": True}


async def test_an_input_of_another_featureset_is_computed_for_the_same_entity(rides):
    assert (await read(rides, featureset="RiderReplayed", entity_id="8"))["features"]["busy"] is False


async def test_a_lookup_gives_the_stored_row(rides):
    answer = await read(rides, entity_type="City", entity_id="Oslo")
    assert answer["features"] == {
        "city": "Oslo",
        "country": "NO",
        "opened": "2020-01-01T00:00:00Z",
        "at": "2026-01-01T00:00:00Z",
    }
    assert (answer["entity_type"], answer["mode"]) == ("City", "online")


async def test_a_lookup_reads_a_pipelines_row_as_of_then(rides):
    answer = await read(rides, entity_type="RiderStats", entity_id="7", timestamp="2026-03-01T10:30:00Z")
    assert (answer["features"]["trips"], answer["features"]["last_city"]) == (1, "Oslo")


@pytest.mark.parametrize("dataset", ["City", "Nothing"])
async def test_a_lookup_of_something_unknown_is_null(rides, dataset):
    assert (await read(rides, entity_type=dataset, entity_id="Atlantis"))["features"] is None


async def test_a_request_input_takes_part(rides):
    answer = await rides.post("/features", json={"featureset": "Rider", "entity_id": 7, "inputs": {"fee": 0}})
    assert (answer.json()["features"]["fee"], answer.json()["features"]["each"]) == (0.0, 7.5)


async def test_a_posted_timestamp_reads_as_of_then(rides):
    body = {"featureset": "Quote", "entity_id": "7", "timestamp": 1772361000, "inputs": {"distance": 2.0}}
    answer = await rides.post("/features", json=body)
    assert (answer.json()["mode"], answer.json()["features"]["price"]) == ("point_in_time", 3.0)


async def test_a_batch_answers_in_the_order_asked(rides):
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": ["8", 99, "7", "8"]})
    body = answer.json()
    assert body["features"] == ["entity_id", *NOW]
    assert [row[0] for row in body["values"]] == ["8", "99", "7", "8"]
    assert body["values"][2] == ["7", *NOW.values()]


async def test_a_batch_of_many_entities_reads_every_one(rides):
    answer = await rides.post("/features/batch", json={"featureset": "Rider", "entity_ids": list(range(150))})
    trips = {row[0]: row[2] for row in answer.json()["values"]}
    assert len(trips) == 150
    assert {key for key, count in trips.items() if count} == {"7", "8"}


async def test_a_failing_extractor_is_named_with_its_line_and_harms_nothing_else(rides):
    answer = await rides.get("/features", params={"featureset": "Fragile", "entity_id": "99"})
    assert answer.status_code == 500
    assert answer.json()["error"] == "user_code_error"
    assert "rides.py:" in answer.json()["detail"]
    assert "Fragile.invert: ZeroDivisionError" in answer.json()["detail"]
    assert (await read(rides, featureset="Fragile", entity_id="7"))["features"]["inverse"] == 0.5


async def test_a_probe_without_parameters_is_answered(client):
    assert (await client.get("/features")).status_code == 200
    assert (await client.get("/features?")).status_code == 200
    assert (await client.head("/features")).status_code == 200
