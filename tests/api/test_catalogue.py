"""The catalogue: records with their metadata, search, labels, projects, lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurelib.clock import DAY, HOUR
from featurelib.compile import compile_module
from featurelib.definitions import Commit, ConnectorDef, SourceDef
from featurelib.metadata import Metadata
from featurelib.secrets import SecretRef

SECRET = SecretRef(kind="literal", value="hunter2")
LABELS = {
    "Rider": Metadata(
        description="Trips of a rider", owner="rides", project="pricing", tags={"pii": "", "tier": "gold"}
    ),
    "Quote": Metadata(owner="sales", project="pricing", tags={"tier": "gold"}),
    "Fragile": Metadata(owner="rides"),
    "Ride": Metadata(owner="rides", project="pricing", tags={"pii": ""}),
    "City": Metadata(project="places", tags={"tier": "silver"}),
}


def labelled() -> Commit:
    """The rides, with metadata and a source."""
    commit = compile_module(Path(__file__).parent / "rides.py")
    connector = ConnectorDef(type="files", config={"path": "rides/*.csv", "password": SECRET})
    source = SourceDef(
        dataset="Ride", connector=connector, cursor="at", metadata=Metadata(owner="intake", tags={"pii": ""})
    )
    return commit.model_copy(
        update={
            "datasets": tuple(with_labels(dataset) for dataset in commit.datasets),
            "featuresets": tuple(with_labels(featureset) for featureset in commit.featuresets),
            "sources": (source,),
        }
    )


def with_labels(definition: Any) -> Any:
    return definition.model_copy(update={"metadata": LABELS.get(definition.name, Metadata())})


async def commit(client, body: Commit) -> dict:
    answer = await client.post("/api/v1/commit", content=body.model_dump_json())
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def catalogue(client):
    """A writer's client of a platform with the labelled rides."""
    await commit(client, labelled())
    return client


async def get(client, path: str) -> Any:
    answer = await client.get(f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(records: list[dict]) -> list[str]:
    return [record.get("name") or record["dataset"] for record in records]


async def test_records_say_when_they_were_committed_and_changed(catalogue, clock):
    clock.advance(HOUR)
    changed = labelled()
    rider = next(each for each in changed.featuresets if each.name == "Rider")
    changed = Commit(featuresets=(rider.model_copy(update={"online_clock": "event"}),))
    await commit(catalogue, changed)
    shown = (await get(catalogue, "featuresets/Rider"))["metadata"]
    assert (shown["owner"], shown["tags"], shown["deprecated"]) == ("rides", {"pii": "", "tier": "gold"}, False)
    assert (shown["created_at"], shown["updated_at"]) == ("2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z")
    pipeline = await get(catalogue, "pipelines/by_rider")
    assert pipeline["created_at"] == pipeline["updated_at"] == "2026-03-01T12:00:00Z"
    for listed in ("featuresets", "datasets", "sources"):
        for record in await get(catalogue, listed):
            assert {"created_at", "updated_at", "deprecated_at"} <= set(record["metadata"])


async def test_one_record_is_the_same_as_in_the_list(catalogue):
    for kind, name in (("featuresets", "Rider"), ("datasets", "Ride"), ("pipelines", "by_rider"), ("sources", "Ride")):
        listed = {each.get("name") or each["dataset"]: each for each in await get(catalogue, kind)}
        assert await get(catalogue, f"{kind}/{name}") == listed[name]


async def test_a_dataset_is_shown_in_its_newest_version_or_the_one_asked_for(catalogue):
    city = next(each for each in labelled().datasets if each.name == "City")
    await commit(catalogue, Commit(datasets=(city.model_copy(update={"version": 2}),)))
    assert (await get(catalogue, "datasets/City"))["version"] == 2
    assert (await get(catalogue, "datasets/City?version=1"))["version"] == 1
    assert (await catalogue.get("/api/v1/datasets/City?version=3")).status_code == 404
    found = (await get(catalogue, "search?q=city&kinds=dataset"))["datasets"]
    assert [each["version"] for each in found if each["name"] == "City"] == [2]


async def test_search_ranks_names_above_members_above_prose(catalogue):
    found = await get(catalogue, "search?q=rider")
    assert names(found["featuresets"])[:2] == ["Rider", "RiderReplayed"]
    assert set(names(found["featuresets"])) == {"Rider", "RiderReplayed", "Quote", "Fragile"}
    assert names(found["datasets"]) == ["RiderStats", "Ride"]
    assert names(found["pipelines"]) == ["by_rider"]
    assert names((await get(catalogue, "search?q=TRIPS%20of"))["featuresets"]) == ["Rider"]
    assert all(not each for each in (await get(catalogue, "search?q=rider%20nowhere")).values())


NARROWED = [
    ("tags=pii", ["Rider"], ["Ride"], ["Ride"]),
    ("tags=pii,tier:gold", ["Rider"], [], []),
    ("tags=tier:silver", [], ["City"], []),
    ("owners=sales,intake", ["Quote"], [], ["Ride"]),
    ("project=pricing", ["Quote", "Rider"], ["Ride"], []),
    ("project=pricing&kinds=dataset,source", [], ["Ride"], []),
    ("kinds=featureset&owners=rides&q=frag", ["Fragile"], [], []),
    ("project=pricing&limit=1", ["Quote"], ["Ride"], []),
]
"""Filters, and the featuresets, datasets and sources that they leave."""


async def test_a_word_said_again_counts_once(catalogue):
    once = await get(catalogue, "search?q=rider%20of")
    assert await get(catalogue, "search?q=" + "rider%20of%20" * 100) == once


async def test_search_narrows_by_labels(catalogue):
    for query, *wanted in NARROWED:
        found = await get(catalogue, f"search?{query}")
        assert [names(found[kind]) for kind in ("featuresets", "datasets", "sources")] == wanted, query


async def test_facets_count_all_that_was_found_also_beyond_the_limit(catalogue):
    found = await get(catalogue, "search?project=pricing&limit=1")
    assert found["tags"] == [{"name": "pii", "count": 2}, {"name": "tier:gold", "count": 2}]
    assert found["owners"] == [{"name": "rides", "count": 2}, {"name": "sales", "count": 1}]
    assert found["projects"] == [{"name": "pricing", "count": 3}]


async def test_every_tag_that_is_listed_finds_what_has_it(catalogue):
    for tag in await get(catalogue, "tags"):
        found = await get(catalogue, f"search?tags={tag['name']}")
        assert sum(len(found[kind]) for kind in ("featuresets", "datasets", "pipelines", "sources")) == tag["count"]
    assert (await get(catalogue, "owners"))[0] == {"name": "rides", "count": 3}


async def test_projects_count_their_members_and_how_lately_they_changed(catalogue, clock):
    clock.advance(DAY)
    quote = next(each for each in labelled().featuresets if each.name == "Quote")
    await commit(catalogue, Commit(featuresets=(quote.model_copy(update={"online_clock": "event"}),)))
    pricing, places = await get(catalogue, "projects")
    assert (pricing["name"], pricing["owner"], pricing["description"]) == ("pricing", "rides", None)
    assert pricing["member_count"] == {"featuresets": 2, "datasets": 1, "sources": 0}
    assert pricing["freshness"] == {"fresh": 1, "stale": 2, "broken": 0}
    assert (pricing["created_at"], pricing["updated_at"]) == ("2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z")
    clock.advance(6 * DAY)
    assert (await get(catalogue, f"projects/{places['id']}"))["freshness"] == {"fresh": 0, "stale": 0, "broken": 1}


async def test_a_project_is_found_by_id_and_by_name_with_its_members(catalogue):
    summary = (await get(catalogue, "projects"))[0]
    by_id, by_name = await get(catalogue, f"projects/{summary['id']}"), await get(catalogue, "projects/pricing")
    assert by_id == by_name
    assert "member_count" not in by_id
    assert {kind: names(members) for kind, members in by_id["members"].items()} == {
        "featuresets": ["Quote", "Rider"],
        "datasets": ["Ride"],
        "sources": [],
    }


async def test_dependents_are_what_takes_data_directly(catalogue):
    found = await get(catalogue, "datasets/RiderStats/dependents")
    assert (found["kind"], found["name"]) == ("dataset", "RiderStats")
    assert {(each["name"], each["edge_type"]) for each in found["dependents"]} == {
        ("Rider", "featureset_lookup"),
        ("RiderReplayed", "featureset_lookup"),
        ("Fragile", "featureset_lookup"),
    }
    assert (await get(catalogue, "featuresets/Rider/dependents"))["dependents"] == [
        {"kind": "featureset", "name": "RiderReplayed", "edge_type": "featureset_dep"}
    ]
    assert names((await get(catalogue, "sources/Ride/dependents"))["dependents"]) == ["Ride"]
    assert names((await get(catalogue, "datasets/Ride/dependents"))["dependents"]) == ["by_rider"]
    assert names((await get(catalogue, "pipelines/by_rider/dependents"))["dependents"]) == ["RiderStats"]


async def test_lineage_follows_a_column_into_features_of_features(catalogue):
    found = await get(catalogue, "lineage")
    edges = {(edge["source"], edge["target"], edge["type"], edge["via"]) for edge in found["edges"]}
    assert {
        ("source:Ride", "dataset:Ride", "source_feeds", None),
        ("field:Ride.fare", "field:RiderStats.spent", "field_input", "by_rider"),
        ("field:RiderStats.spent", "feature:Rider.spent", "feature_lookup", None),
        ("feature:Rider.spent", "feature:Rider.each", "feature_input", "each_trip"),
        ("feature:Rider.trips", "feature:RiderReplayed.busy", "feature_input", "is_busy"),
    } <= edges
    ids = {node["id"] for node in found["nodes"]}
    assert {end for edge in found["edges"] for end in (edge["source"], edge["target"])} <= ids
    fare = next(node for node in found["nodes"] if node["id"] == "field:Ride.fare")
    assert (fare["parent"], fare["dtype"]) == ("dataset:Ride", "float")


async def test_lineage_around_a_node_shows_one_way_or_both(catalogue):
    async def ids(query: str) -> set[str]:
        return {node["id"] for node in (await get(catalogue, f"lineage?{query}"))["nodes"]}

    definitions = {"source:Ride", "dataset:Ride", "pipeline:by_rider", "dataset:RiderStats"}
    assert await ids("level=definition&node=dataset:RiderStats&direction=upstream") == definitions
    below = await ids("level=definition&node=dataset:RiderStats&direction=downstream")
    assert below == {"dataset:RiderStats", "featureset:Rider", "featureset:RiderReplayed", "featureset:Fragile"}
    assert await ids("level=definition&node=dataset:RiderStats") == definitions | below
    assert await ids("node=feature:Rider.each&direction=upstream") >= {
        "field:Ride.fare",
        "dataset:Ride",
        "featureset:Rider",
    }
    assert "feature:Rider.last_at" not in await ids("node=feature:Rider.each&direction=upstream")


async def test_no_answer_of_the_catalogue_holds_a_secret(catalogue):
    await commit(catalogue, Commit(sources=(with_password("hunter3"),)))
    (first, second) = reversed(await get(catalogue, "commits"))
    paths = [
        *("featuresets", "datasets", "sources", "sources/Ride", "search", "projects", "projects/pricing", "lineage"),
        *(f"commits/{each['id']}{part}" for each in (first, second) for part in ("", "/diff")),
    ]
    for path in paths:
        text = (await catalogue.get(f"/api/v1/{path}")).text
        assert "hunter" not in text, path
    (change,) = (await get(catalogue, f"commits/{second['id']}/diff"))["definitions"]
    assert [(each["path"], each["before"], each["after"]) for each in change["changes"]] == [
        ("config.password", "***", "***")
    ]


def with_password(text: str) -> SourceDef:
    (source,) = labelled().sources
    config = {**source.connector.config, "password": SecretRef(kind="literal", value=text)}
    return source.model_copy(update={"connector": ConnectorDef(type="files", config=config)})


UNKNOWN = [
    *(
        f"{kind}/Nothing{rest}"
        for kind in ("featuresets", "datasets", "pipelines", "sources")
        for rest in ("", "/dependents")
    ),
    "featuresets/Nothing/versions",
    "featuresets/Nothing/versions/1",
    "featuresets/Rider/versions/9",
    "featuresets/Nothing/diff",
    "featuresets/Rider/diff?from=1&to=9",
    "featuresets/Ri%00der",
    "featuresets/%ff",
    "featuresets/..%2f..%2fetc",
    "featuresets/Rider'--/versions",
    "projects/Nothing",
    "projects/%00",
    "commits/0123",
    "commits/0123/diff",
    "lineage?node=dataset:Nothing",
]
WRONG = [
    "search?kinds=feature",
    "search?limit=0",
    "search?limit=99999999999999999999",
    "search?q=%00",
    "search?q=" + "x" * 1_001,
    "featuresets/" + "x" * 129,
    "featuresets/Rider/versions/0",
    "featuresets/Rider/versions/99999999999999999999",
    "featuresets/Rider/diff?from=one",
    "datasets/Ride?version=2147483648",
    "commits/%00",
    "commits/" + "a" * 65,
    "lineage?direction=sideways",
    "lineage?node=%00",
]  # fmt: skip


async def test_what_is_not_there_or_not_meant_gets_the_one_error_body(catalogue):
    for path, status in (*((path, 404) for path in UNKNOWN), *((path, 400) for path in WRONG)):
        answer = await catalogue.get(f"/api/v1/{path}")
        assert answer.status_code == status, f"{path}: {answer.text}"
        assert set(answer.json()) == {"error", "detail", "message", "details", "correlation_id"}
