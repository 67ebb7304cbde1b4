"""What an answer is made of, feature by feature."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from featurelib.clock import HOUR, MINUTE, format_instant
from tests.api.conftest import NOON


async def explained(client: httpx2.AsyncClient, **parameters: str) -> dict[str, Any]:
    answer = await client.get("/features", params={**parameters, "explain": "true"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    # The values are those of the same read without an explanation.
    plain = (await client.get("/features", params=parameters)).json()
    explain = body.pop("explain")
    assert body == plain
    assert {name: each["value"] for name, each in explain.items()} == (body["features"] or dict.fromkeys(explain))
    return explain


@pytest.mark.parametrize("at", [None, "2026-03-01T12:00:00Z"])
async def test_each_feature_names_what_it_is_made_of(rides, at):
    explain = await explained(rides, featureset="Rider", entity_id="7", **({"timestamp": at} if at else {}))
    assert explain["spent"] == {
        "value": 15.0,
        "status": "present",
        "source": "lookup",
        "effective_time": "2026-03-01T12:00:00Z",
        "row": {"dataset": "RiderStats@1", "key": "7", "column": "spent", "known": True, "value": 15.0},
        "event_time": "2026-03-01T11:00:00Z",
        "age_seconds": 3600.0,
        "pipeline": "by_rider@1",
    }
    assert (explain["rider"]["source"], explain["rider"]["status"]) == ("entity", "present")
    assert explain["each"]["extractor"] == {
        "name": "Rider.each_trip",
        "version": 1,
        "inputs": {"spent": 15.0, "trips": 2, "fee": 2.0},
    }
    assert (explain["fee"]["status"], "no input" in explain["fee"]["why"]) == ("default", True)
    assert explain["last_at"]["row"]["value"] == "2026-03-01T11:00:00Z"


async def test_an_unknown_entity_has_reasons(rides):
    explain = await explained(rides, featureset="Rider", entity_id="99")
    assert (explain["trips"]["status"], explain["trips"]["value"]) == ("default", 0)
    assert "no record of '99' in RiderStats@1" in explain["trips"]["why"]
    assert "default stands" in explain["trips"]["why"]
    assert (explain["spent"]["status"], explain["spent"]["row"]["known"]) == ("missing", False)
    assert "event_time" not in explain["spent"]
    assert explain["each"]["why"] == "Rider.each_trip returned null; null among its inputs: spent"


async def test_an_empty_window_of_a_known_entity_is_no_missing_row(rides, platform):
    platform.clock.advance(40 * HOUR)
    explain = await explained(rides, featureset="Rider", entity_id="7")
    assert (explain["spent"]["status"], explain["spent"]["value"]) == ("present", 0.0)
    assert (explain["last_at"]["status"], explain["last_at"]["event_time"]) == ("null", "2026-03-01T11:00:00Z")
    assert explain["last_at"]["age_seconds"] == 41 * 3600.0
    assert "knows '7'" in explain["last_at"]["why"]


async def test_a_look_up_is_explained_by_column(rides):
    explain = await explained(rides, entity_type="City", entity_id="Oslo")
    assert list(explain) == ["city", "country", "opened", "at"]
    assert explain["opened"]["row"]["value"] == "2020-01-01T00:00:00Z"
    assert explain["country"]["event_time"] == "2026-01-01T00:00:00Z"
    unknown = await explained(rides, entity_type="City", entity_id="Atlantis")
    assert {each["status"] for each in unknown.values()} == {"missing"}
    assert await explained(rides, entity_type="Nothing", entity_id="x") == {}


async def test_what_is_in_the_log_and_not_applied_is_not_explained_with_the_row(rides, platform):
    late = {"ride": "r9", "rider": 7, "city": "Oslo", "fare": 1.0, "at": format_instant(NOON - MINUTE)}
    await rides.post("/api/v1/log", json={"dataset": "Ride", "events": [late]})
    before = await explained(rides, featureset="Rider", entity_id="7")
    platform.fold()
    after = await explained(rides, featureset="Rider", entity_id="7")
    assert (before["trips"]["value"], before["trips"]["event_time"]) == (2, "2026-03-01T11:00:00Z")
    assert (after["trips"]["value"], after["trips"]["event_time"]) == (3, "2026-03-01T11:59:00Z")


async def test_a_posted_read_is_explained_with_its_inputs(rides):
    body = {"featureset": "Rider", "entity_id": 7, "inputs": {"fee": 0.5}}
    explain = (await rides.post("/features?explain=1", json=body)).json()["explain"]
    assert (explain["fee"]["status"], explain["fee"]["source"]) == ("present", "request")
    assert explain["each"]["extractor"]["inputs"]["fee"] == 0.5
    assert "explain" not in (await rides.post("/features?explain=false", json=body)).json()


async def test_a_flag_that_is_none_is_refused(rides):
    wrong = await rides.get("/features?featureset=Rider&entity_id=7&explain=please")
    assert (wrong.status_code, "explain" in wrong.json()["detail"]) == (400, True)
    strange = await rides.post("/features?explian=true", json={"featureset": "Rider", "entity_id": 7})
    assert (strange.status_code, "explian" in strange.json()["detail"]) == (400, True)
