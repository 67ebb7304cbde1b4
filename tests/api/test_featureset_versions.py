"""Versions of featuresets, what changed between them, commits, and metadata edited on the platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurelib.clock import HOUR
from featurelib.compile import compile_module
from featurelib.definitions import Commit, FeatureDef, FeaturesetDef
from featurelib.metadata import Metadata


def rides() -> Commit:
    return compile_module(Path(__file__).parent / "rides.py")


def rider() -> FeaturesetDef:
    return next(each for each in rides().featuresets if each.name == "Rider")


def second() -> FeaturesetDef:
    """The rider with a feature more, another default, and changed code."""
    first = rider()
    features = tuple(
        each.model_copy(update={"default": 1}) if each.name == "trips" else each for each in first.features
    )
    code = first.extractors[0].code
    changed = first.extractors[0].model_copy(
        update={"code": code.model_copy(update={"source": code.source.replace("/ trips", "/ max(trips, 1)")})}
    )
    more = FeatureDef(name="tip", type="float", request=True, default=0.0)
    return first.model_copy(update={"features": (*features, more), "extractors": (changed, *first.extractors[1:])})


async def commit(client, *featuresets: FeaturesetDef) -> str:
    body = Commit(featuresets=featuresets) if featuresets else rides()
    answer = await client.post("/api/v1/commit", content=body.model_dump_json())
    assert answer.status_code == 200, answer.text
    return answer.json()["commit_id"]


async def get(client, path: str) -> Any:
    answer = await client.get(f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def metadata(client, name: str = "Rider") -> dict:
    return (await get(client, f"featuresets/{name}"))["metadata"]


async def patch(client, members: dict, kind: str = "featureset", name: str = "Rider") -> dict:
    answer = await client.patch(f"/api/v1/metadata/{kind}/{name}", json=members)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def events(client, event_type: str) -> list:
    return await get(client, f"events?event_type={event_type}")


def said(members: dict) -> FeaturesetDef:
    """The rider whose code says something about it."""
    return rider().model_copy(update={"metadata": Metadata(**members)})


async def test_each_commit_that_changes_a_featureset_makes_a_version(client, clock):
    first = await commit(client)
    clock.advance(HOUR)
    await commit(client)  # changes nothing
    later = await commit(client, second())
    found = await get(client, "featuresets/Rider/versions")
    assert found["name"] == "Rider"
    assert found["versions"] == [
        {"version": 2, "parent_version": 1, "created_at": "2026-03-01T13:00:00Z", "graph_commit_id": later},
        {"version": 1, "parent_version": None, "created_at": "2026-03-01T12:00:00Z", "graph_commit_id": first},
    ]
    assert len((await get(client, "featuresets/Quote/versions"))["versions"]) == 1


async def test_a_version_shows_the_featureset_as_it_was(client):
    await commit(client)
    before = await get(client, "featuresets/Rider")
    await commit(client, second())
    shown = await get(client, "featuresets/Rider/versions/1")
    assert shown["spec"] == before["spec"]
    assert (await get(client, "featuresets/Rider/versions/2"))["spec"] == (await get(client, "featuresets/Rider"))[
        "spec"
    ]


async def test_a_diff_names_features_and_extractors_that_differ(client):
    await commit(client)
    await commit(client, second())
    found = await get(client, "featuresets/Rider/diff")
    assert found == {
        "name": "Rider",
        "from": 1,
        "to": 2,
        "added": [{"name": "tip", "dtype": "float"}],
        "removed": [],
        "changed": [{"name": "trips", "from_dtype": "int", "to_dtype": "int", "members": ["default"]}],
        "extractors_added": [],
        "extractors_removed": [],
        "extractors_changed": ["_thyme_lookup_trips", "each_trip"],
    }
    back = await get(client, "featuresets/Rider/diff?from=2&to=1")
    assert (back["added"], back["removed"]) == ([], [{"name": "tip", "dtype": "float"}])
    assert (await get(client, "featuresets/Rider/diff?from=2&to=2"))["changed"] == []


async def test_a_commit_is_shown_with_what_it_changed_member_by_member(client):
    first = await commit(client)
    second_id = await commit(client, second())
    shown = await get(client, f"commits/{second_id}")
    assert (shown["changes"]["updated"], shown["jobs_created"]) == (["featureset:Rider"], 0)
    whole = await get(client, f"commits/{first}/diff")
    assert {each["change"] for each in whole["definitions"]} == {"added"}
    assert len(whole["definitions"]) == 8
    (change,) = (await get(client, f"commits/{second_id}/diff"))["definitions"]
    assert (change["kind"], change["name"], change["change"]) == ("featureset", "Rider", "updated")
    by_path = {each["path"]: each for each in change["changes"]}
    assert by_path["features.trips.default"] == {
        "path": "features.trips.default",
        "change": "changed",
        "before": 0,
        "after": 1,
    }
    assert by_path["features.tip"]["change"] == "added"
    assert set(by_path) == {
        "features.trips.default",
        "features.tip",
        "extractors._thyme_lookup_trips.lookup_info.default",
        "extractors.each_trip.pycode.source_code",
    }


async def test_an_edit_holds_over_commits_until_the_code_says_something_else(client):
    await commit(client)
    await commit(client, said({"owner": "code", "description": "old"}))
    edited = await patch(client, {"owner": "ui", "tags": ["pii"]})
    assert (edited["owner"], edited["tags"], edited["description"]) == ("ui", {"pii": ""}, "old")
    await commit(client, said({"owner": "code", "description": "new"}))
    assert {"owner": "ui", "tags": {"pii": ""}, "description": "new"}.items() <= (await metadata(client)).items()
    await commit(client, said({"owner": "other", "description": "new"}))
    assert {"owner": "other", "tags": {"pii": ""}}.items() <= (await metadata(client)).items()
    await commit(client, said({"owner": "code", "description": "new"}))
    assert (await metadata(client))["owner"] == "code"  # overtaken once, an edit does not come back


async def test_an_edit_can_empty_what_the_code_says_and_give_it_back(client, clock):
    await commit(client)
    await commit(client, said({"owner": "code", "tags": {"pii": ""}}))
    clock.advance(HOUR)
    emptied = await patch(client, {"owner": None, "tags": {}})
    assert (emptied["owner"], emptied["tags"]) == (None, {})
    assert emptied["updated_at"] == "2026-03-01T13:00:00Z"
    assert (await patch(client, {"owner": "code"}))["owner"] == "code"
    assert (await patch(client, {}))["tags"] == {}


async def test_metadata_of_datasets_and_sources_is_edited_by_name(client):
    await commit(client)
    city = next(each for each in rides().datasets if each.name == "City")
    await client.post(
        "/api/v1/commit", content=Commit(datasets=(city.model_copy(update={"version": 2}),)).model_dump_json()
    )
    await patch(client, {"description": "Where"}, "dataset", "City")
    assert [each["metadata"]["description"] for each in await get(client, "datasets") if each["name"] == "City"] == [
        "Where",
        "Where",
    ]
    assert (await client.patch("/api/v1/metadata/source/City", json={"owner": "x"})).status_code == 404
    assert (await client.patch("/api/v1/metadata/pipeline/by_rider", json={"owner": "x"})).status_code == 400


async def test_an_edit_that_changes_something_is_told_in_the_feed(client):
    await commit(client)
    await patch(client, {"owner": "ui"})
    await patch(client, {"owner": "ui"})
    (event,) = await events(client, "metadata_edited")
    assert (event["subject"], event["detail"]["members"]) == ("Rider", ["owner"])


async def test_a_deprecated_featureset_is_marked_told_of_and_served_on(client, clock):
    await commit(client)
    answer = await client.post("/api/v1/featuresets/Rider/deprecate", json={"reason": "old", "replacement": "Quote"})
    marked = {"deprecated_at": "2026-03-01T12:00:00Z", "deprecation_reason": "old", "replacement": "Quote"}
    assert answer.json() == {"name": "Rider", **marked}
    assert (await metadata(client)).items() >= {"deprecated": True, **marked}.items()
    (event,) = await events(client, "featureset_deprecated")
    assert (event["subject"], event["message"]) == ("Rider", "Rider is deprecated: old; use Quote")
    assert (await client.get("/features?featureset=Rider&entity_id=7")).status_code == 200

    clock.advance(HOUR)
    again = (await client.post("/api/v1/featuresets/Rider/deprecate")).json()
    assert again == {"name": "Rider", **marked, "deprecation_reason": None, "replacement": None}
    restored = (await client.delete("/api/v1/featuresets/Rider/deprecate")).json()
    assert restored == {"name": "Rider", "deprecated_at": None, "deprecation_reason": None, "replacement": None}
    assert (await metadata(client))["deprecated"] is False
    assert len(await events(client, "featureset_restored")) == 1


async def test_what_the_code_deprecates_is_dated_by_the_commit_that_said_so(client, clock):
    await commit(client)
    clock.advance(HOUR)
    await commit(client, said({"deprecated": True}))
    clock.advance(HOUR)
    await commit(client, said({"deprecated": True, "owner": "code"}))
    assert (await metadata(client))["deprecated_at"] == "2026-03-01T13:00:00Z"
    shown = await client.post("/api/v1/featuresets/Rider/deprecate", json={"reason": "because"})
    assert shown.json()["deprecated_at"] == "2026-03-01T13:00:00Z"
    assert (await client.delete("/api/v1/featuresets/Rider/deprecate")).json()["deprecated_at"] is None


WRONG = [
    b"{",
    b"[]",
    b'{"project": "x"}',
    b'{"owner": 7}',
    b'{"owner": "\\u0000"}',
    b'{"description": "\\ud800"}',
    b'{"tags": {"\\ud800": ""}}',
    b'{"tags": {"": ""}}',
    b'{"description": "' + b"x" * 10_001 + b'"}',
    b'{"tags": [' + b", ".join(b'"t%d"' % each for each in range(101)) + b"]}",
]


async def test_metadata_that_is_not_meant_so_is_refused(client):
    await commit(client)
    for body in WRONG:
        answer = await client.patch("/api/v1/metadata/featureset/Rider", content=body)
        assert answer.status_code == 400, body
        assert set(answer.json()) == {"error", "detail", "message", "details", "correlation_id"}
    assert (await metadata(client))["owner"] is None


async def test_a_reader_edits_nothing(platform, client):
    await commit(client)
    async with platform.client("reader") as reader:
        for method, path in (
            ("PATCH", "metadata/featureset/Rider"),
            ("POST", "featuresets/Rider/deprecate"),
            ("DELETE", "featuresets/Rider/deprecate"),
        ):
            assert (await reader.request(method, f"/api/v1/{path}", json={})).status_code == 403
        assert (await reader.get("/api/v1/search")).status_code == 200
