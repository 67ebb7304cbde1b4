"""Steps that take rows back: what they give is a function of the records, whatever is tied, shared or said later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from featurelib.aggregates import Count, Sum
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    Cdc,
    ConnectorDef,
    DatasetDef,
    DedupStep,
    Definitions,
    FieldDef,
    FilterCodeStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    SourceDef,
    Step,
    UnionStep,
)
from featurelib.engine.flow import Graph
from featurelib.engine.panes import KeyState
from featurelib.engine.program import Program, states_of
from featurelib.expr import col
from tests.support.paths import table

T0 = 1_700_006_400_000_000
LATER = T0 + 1_000_000


def dataset(name: str, key: str, **columns: str) -> DatasetDef:
    fields = [FieldDef(name=column, type=kind, optional=True) for column, kind in columns.items()]
    at = FieldDef(name="at", type="datetime", timestamp=True)
    return DatasetDef(name=name, fields=(FieldDef(name=key, type="str", key=True), *fields, at))


RIDE = dataset("Ride", "ride", rider="str", city="str", stops="list[str]")
RATE = dataset("Rate", "rider", rate="int")
TOTAL = dataset("Total", "rider", rides="int")
OUT = dataset("Out", "key", n="int")
COUNT = NamedAggregate(output="n", aggregate=Count())
BY_CITY = AggregateStep(keys=("city",), aggregates=(COUNT,))
BY_RIDER = AggregateStep(keys=("rider",), aggregates=(COUNT,))


def definitions(cdc: Cdc, *pipelines: PipelineDef) -> Definitions:
    source = SourceDef(dataset="Ride", connector=ConnectorDef(type="files", config={}), cdc=cdc)
    return Definitions(datasets=(RIDE, RATE, TOTAL, OUT), pipelines=pipelines, sources=(source,))


def pipeline(*steps: Step, of: tuple[str, ...] = ("Ride",)) -> PipelineDef:
    return PipelineDef(name="p", input_datasets=of, output_dataset="Out", steps=steps)


def record(offset: int, at: int, **values: Any) -> dict[str, Any]:
    place = {"__accepted_at": T0 + offset, "__partition": 0, "__offset": offset, "__late": False, "__deleted": False}
    return {"at": at, "__time": at, **place, **values}


def ride(offset: int, at: int, city: str = "x", name: str = "r") -> dict[str, Any]:
    return record(offset, at, ride=name, rider="a", city=city, stops=["s", None])


Batch = Mapping[str, Sequence[dict[str, Any]]]


def streamed(declared: Definitions, batches: Sequence[Batch]) -> dict[str, dict[str, Any] | None]:
    """Every key's row after the batches came one by one; keys that nobody knows are left out."""
    program = Program.compile(declared.pipelines[-1], declared)
    graph = Graph(program.pipeline, declared)
    states: dict[str, KeyState] = {}
    for batch in batches:
        tables = {d.name: table(d, batch[d.name]) for d in declared.datasets if d.name in batch}
        removed, added = program.shape_delta(graph.top.apply(tables))
        gone, come = dict(program.rows_by_key(removed)), dict(program.rows_by_key(added))
        for key in {**gone, **come}:
            states.setdefault(key, program.new_state(1)).replace(gone.get(key, []), come.get(key, []))
    return known(program, states)


def at_once(declared: Definitions, rides: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    program = Program.compile(declared.pipelines[-1], declared)
    return known(program, states_of(program, {"Ride": table(RIDE, rides)}))


def known(program: Program, states: Mapping[str, KeyState]) -> dict[str, dict[str, Any] | None]:
    rows = {key: program.finish_state(state, LATER) for key, state in states.items()}
    return {key: row for key, row in rows.items() if row is not None}


TIED = [ride(0, T0, city="x"), ride(1, T0, city="y")]


@pytest.mark.parametrize("cdc", ["append", "upsert"])
def test_a_row_with_a_newer_one_at_its_own_instant_is_never_in_a_table_of_newest_rows(cdc: Cdc) -> None:
    declared = definitions(cdc, pipeline(LatestStep(keys=("rider",)), BY_CITY))
    assert streamed(declared, [{"Ride": [each]} for each in TIED]) == {"y": {"n": 1}}
    assert at_once(declared, TIED) == {"y": {"n": 1}}


def test_a_key_is_known_by_a_version_that_was_replaced_at_its_own_instant() -> None:
    declared = definitions("upsert", pipeline(BY_CITY))
    assert streamed(declared, [{"Ride": [each]} for each in TIED]) == {"x": {"n": 0}, "y": {"n": 1}}
    assert at_once(declared, TIED) == {"x": {"n": 0}, "y": {"n": 1}}


@pytest.mark.parametrize("cdc", ["append", "upsert"])
@pytest.mark.parametrize("by", [(), ("stops",)], ids=["everything", "a list"])
def test_rows_are_told_apart_by_lists_too(cdc: Cdc, by: tuple[str, ...]) -> None:
    declared = definitions(cdc, pipeline(DedupStep(by=by), BY_RIDER))
    rides = [ride(0, T0), ride(1, T0, name="r"), ride(2, T0 + 5) | {"stops": None}, ride(3, T0 + 6) | {"stops": ["s"]}]
    # Of versions only the newest is left; of records the first two are the same but for their place.
    wanted = {"a": {"n": 3 if cdc == "append" else 1}}
    assert at_once(declared, rides) == wanted
    assert streamed(declared, [{"Ride": [each]} for each in rides]) == wanted


def test_the_sides_of_a_union_stay_apart_though_they_hold_the_same_rows() -> None:
    totals = PipelineDef(
        name="totals",
        input_datasets=("Ride",),
        output_dataset="Total",
        steps=(AggregateStep(keys=("rider",), aggregates=(NamedAggregate(output="rides", aggregate=Count()),)),),
    )
    unjoined = UnionStep(dataset="Total", steps=(AssignStep(column="rate", value=(col("rides") * 1).node),))
    rated = AggregateStep(keys=("rider",), aggregates=(COUNT, NamedAggregate(output="rate", aggregate=Sum("rate"))))
    joined = JoinStep(right="Rate", on="rider", fields=("rate",))
    declared = definitions("append", totals, pipeline(joined, unjoined, rated, of=("Total", "Rate")))
    late = record(0, T0 - 5, rider="a", rate=7)
    # The rate changes the joined side alone.
    assert streamed(declared, [{"Ride": [ride(0, T0)]}, {"Rate": [late]}]) == {"a": {"n": 2, "rate": 8}}


def test_a_table_may_hold_nothing_but_its_keys() -> None:
    keys = DatasetDef(name="Out", fields=dataset("Out", "key").fields)
    declared = definitions("append", pipeline(LatestStep(keys=("city",))))
    bare = declared.model_copy(update={"datasets": (RIDE, keys)})
    assert streamed(bare, [{"Ride": TIED}]) == at_once(bare, TIED) == {"x": {}, "y": {}}


def test_a_row_goes_as_a_users_function_gave_it_whatever_that_says_by_now() -> None:
    source = (
        "calls = []\n\ndef once(frame):\n    calls.append(1)\n    return frame if len(calls) == 1 else frame.clear()\n"
    )
    once = FilterCodeStep(code=PyCode(entry_point="once", source=source))
    declared = definitions("upsert", pipeline(once, BY_CITY))
    versions = [ride(0, T0, city="x"), ride(1, T0 + 1, city="y")]
    assert streamed(declared, [{"Ride": [each]} for each in versions]) == {}
