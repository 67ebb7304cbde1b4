"""Definitions as the status and the lists show them: every step, versions of featuresets, what is kept for them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from featurelib.compile import compile_module
from featurelib.definitions import (
    AggregateStep,
    DedupStep,
    DropStep,
    ExplodeStep,
    FilterCodeStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    RenameStep,
    SelectStep,
    Step,
    TransformStep,
    UnionStep,
)
from serve_apps.shapes import operators
from tests.api.test_definitions import FIXTURES, rides_commit

FOLDER = Path(__file__).parent
CODE = PyCode(entry_point="keep", source="def keep(df): return df\n")
SHOWN_CODE = {"expression": "keep(df)", "pycode": {"entry_point": "keep", "source_code": CODE.source}}
DEDUP = DedupStep(by=("a",))
STEPS = [
    (FilterCodeStep(code=CODE), {"filter": SHOWN_CODE}),
    (TransformStep(code=CODE, columns=(("x", "int"),)), {"transform": {**SHOWN_CODE, "columns": {"x": "int"}}}),
    (RenameStep(columns=(("a", "b"),)), {"rename": {"columns": {"a": "b"}}}),
    (SelectStep(columns=("a", "b")), {"select": {"columns": ["a", "b"]}}),
    (DropStep(columns=("a",)), {"drop": {"columns": ["a"]}}),
    (ExplodeStep(column="a"), {"explode": {"column": "a"}}),
    (DEDUP, {"dedup": {"by": ["a"]}}),
    (LatestStep(keys=("a",)), {"latest": {"keys": ["a"]}}),
    (FirstStep(keys=("a",)), {"first": {"keys": ["a"]}}),
    (UnionStep(dataset="D", steps=(DEDUP,)), {"union": {"dataset": "D", "operators": [{"dedup": {"by": ["a"]}}]}}),
    (
        JoinStep(right="R", on="a", fields=("x",), within_us=3_600_000_000),
        {"temporal_join": {"right_dataset": "R", "left_key_field": "a", "select_fields": ["x"], "within": "1h"}},
    ),
]
SHOWN_ELSEWHERE = {"filter", "assign", "aggregate"}


def _operators(*steps):
    return operators(PipelineDef(name="p", version=1, input_datasets=("D",), output_dataset="O", steps=steps))


@pytest.mark.parametrize(("step", "shown"), STEPS, ids=[step.op for step, _ in STEPS])
def test_a_step_is_shown(step, shown):
    assert _operators(step) == [shown]


def test_every_kind_of_step_is_shown_by_one_of_these_tests():
    (kinds, _) = get_args(Step)
    every = {kind.model_fields["op"].default for kind in get_args(kinds)}
    assert every == {step.op for step, _ in STEPS} | SHOWN_ELSEWHERE


def test_the_mark_of_a_deletion_is_no_column_that_people_see(flights):
    plane = next(job for job in flights if job["name"] == "Plane_index_job")
    shown = [each["aggregate"]["output_field"] for each in plane["spec"]["pipeline_spec"]["operators"]]
    assert shown == ["seats", "model", "updated_at"]


def test_an_aggregate_before_other_steps_says_when_it_emits():
    made = rides_commit().pipelines[0].steps[-1]
    assert isinstance(made, AggregateStep)
    named: NamedAggregate = made.aggregates[0]
    step = AggregateStep(keys=("a",), aggregates=(named,), emit="on_event")
    assert _operators(step)[0]["aggregate"]["emit"] == "on_event"


@pytest.fixture
async def flights(client):
    """The jobs of the stock SDK's example."""
    body = (FIXTURES / "flights_features.json").read_bytes()
    done = await client.post("/api/v1/commit", content=body)
    assert done.status_code == 200, done.text
    return (await client.get("/api/v1/jobs")).json()


async def test_a_featureset_has_the_version_that_its_changes_gave_it(platform, rides, tmp_path):
    async def versions():
        return {each["name"]: each["version"] for each in (await rides.get("/api/v1/status")).json()["featuresets"]}

    assert set((await versions()).values()) == {1}
    changed = tmp_path / "changed.py"
    source = (FOLDER / "rides.py").read_text()
    changed.write_text(source.replace("distance * 1.5 + tip", "distance * 2.5 + tip"))
    done = await rides.post("/api/v1/commit", content=compile_module(changed).model_dump_json())
    assert done.status_code == 200, done.text
    found = await versions()
    assert (found["Quote"], found["Rider"]) == (2, 1)
    listed = (await rides.get("/api/v1/featuresets/Quote/versions")).json()["versions"]
    assert found["Quote"] == listed[0]["version"]


async def test_what_is_kept_is_listed_and_logs_are_weighed(rides, platform):
    async def assets():
        found = (await rides.get("/api/v1/status")).json()["physical_assets"]
        return {(each["kind"], each["name"]): each for each in found}

    before = await assets()
    assert {kind for kind, _ in before} == {"stream", "table", "state"}
    assert ("table", "RiderStats@1") not in before
    assert before["state", "by_rider@1"]["owner"] == "RiderStats"
    events = [
        {"ride": f"n{n}", "rider": n, "city": "Oslo", "fare": 1.0, "at": "2026-03-01T11:00:00Z"} for n in range(400)
    ]
    assert (await rides.post("/api/v1/log", json={"dataset": "Ride", "events": events})).status_code == 200
    assert (await assets())["stream", "Ride@1"]["bytes"] > before["stream", "Ride@1"]["bytes"] > 0
