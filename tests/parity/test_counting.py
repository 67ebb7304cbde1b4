"""A pipeline that was told where its history begins counts the same records on every path, whenever they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurelib.aggregates import Count, Sum
from featurelib.clock import HOUR
from featurelib.definitions import (
    AggregateStep,
    BackfillDef,
    DatasetDef,
    Definitions,
    FieldDef,
    LatestStep,
    PipelineDef,
)
from featurelib.engine.program import Program
from featurelib.settings import Settings
from featurelib.stores.online import StateName
from featurelib.stores.online_reader import Lookup
from featurelib.stores.point_in_time import PointInTime
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from tests.support.worlds import OUT, RAIN, RIDES, T0, World, drain, named

BY_CITY = AggregateStep(keys=("city",), aggregates=(named("n", Count()), named("fares", Sum("fare", "12h"))))
DEFINITIONS = Definitions(datasets=(RIDES, RAIN, OUT))


@pytest.fixture(params=[(BY_CITY,), (LatestStep(keys=("rider",)), BY_CITY)], ids=["plain", "graph"])
def world(request: pytest.FixtureRequest, empty_redis_url: str) -> Iterator[World]:
    made = World(empty_redis_url, "city", seed=3)
    made.pipeline = PipelineDef(name="rides", input_datasets=("Ride",), output_dataset="Out", steps=request.param)
    yield made
    made.close()


def limited(world: World, limits: BackfillDef) -> None:
    world.pipeline = world.pipeline.model_copy(update={"backfill": limits})
    world.program = Program.compile(world.pipeline, DEFINITIONS)
    world.state = StateName(world.program.ref, 1)


def rows_of(world: World, folder: Path, generation: int) -> list[dict[str, object] | None]:
    """What is served at some instants: from the stream's state or a backfill's."""
    if generation > 1:
        settings = Settings(data_dir=folder, online={"redis_url": world.url}, archive={"url": str(folder / "archive")})
        cut = [world.log.head(*source.address).next_offset for source in input_partitions(world.program, world.log)]
        state = StateName(world.program.ref, generation)
        builder = PartitionBuilder(Order(world.pipeline, DEFINITIONS, state, cut, since=None), settings)
        for partition in range(2):
            builder.build(partition)
        builder.close()
    state = StateName(world.program.ref, generation)
    return [stored(world, state, at) for at in instants()]


def stored(world: World, state: StateName, at: int) -> dict[str, object] | None:
    return world.program.finish(world.store.load(state, {"x": world.program.read_fields(at)})["x"], at)


def instants() -> list[int]:
    return [T0 + hours * HOUR for hours in (1, 9, 16, 31)]


def follow(world: World) -> None:
    worker = world.worker()
    worker.start()
    drain(worker)


def past(world: World, folder: Path) -> list[dict[str, object] | None]:
    reader = PointInTime(world.archive(str(folder / "archive")), world.log)
    return [reader.rows([Lookup(world.program, "x", at)])[0] for at in instants()]


def test_records_dated_before_the_beginning_never_count_even_when_they_come_late(world: World, tmp_path: Path) -> None:
    limited(world, BackfillDef(since_us=T0 + 8 * HOUR))
    world.post_rides(60)
    follow(world)
    world.ride_at(T0 + HOUR, "a", "x", 1_000_000)
    world.ride_at(T0 + 8 * HOUR, "f", "x", 500)  # the first instant that counts
    follow(world)
    world.archive(str(tmp_path / "archive"))
    streamed = rows_of(world, tmp_path, 1)
    assert rows_of(world, tmp_path, 2) == streamed == past(world, tmp_path)
    assert streamed[0] is None
    assert streamed[1] is not None
    if len(world.pipeline.steps) == 1:
        mine = [ride for ride in world.rides if ride[0] >= T0 + 8 * HOUR and ride[3] == "x"]
        assert streamed[-1] is not None
        assert streamed[-1]["n"] == len(mine)


def test_without_history_only_records_count_that_were_accepted_afterwards(world: World, tmp_path: Path) -> None:
    world.post_rides(60)
    world.archive(str(tmp_path / "archive"))
    before = max(accepted for _, (accepted, *_), *_ in world.rides)
    limited(world, BackfillDef(enabled=False, from_us=before + 1))
    follow(world)
    assert rows_of(world, tmp_path, 1) == [None] * 4
    world.ride_at(T0 + HOUR, "a", "x", 10)  # dated long ago, and new
    follow(world)
    world.archive(str(tmp_path / "archive"))
    streamed = rows_of(world, tmp_path, 1)
    assert rows_of(world, tmp_path, 2) == streamed == past(world, tmp_path)
    assert streamed[0] == {"n": 1, "fares": 10}


def test_what_a_limited_pipeline_made_is_what_another_one_reads(world: World, tmp_path: Path) -> None:
    per_rider = DatasetDef(
        name="Rider",
        fields=(
            FieldDef(name="rider", type="str", key=True),
            FieldDef(name="rides", type="int"),
            FieldDef(name="at", type="datetime", timestamp=True),
        ),
    )
    first = PipelineDef(
        name="per_rider",
        input_datasets=("Ride",),
        output_dataset="Rider",
        steps=(AggregateStep(keys=("rider",), aggregates=(named("rides", Count()),)),),
        backfill=BackfillDef(since_us=T0 + 20 * HOUR),
    )
    second = PipelineDef(
        name="totals",
        input_datasets=("Rider",),
        output_dataset="Out",
        steps=(AggregateStep(keys=("rider",), aggregates=(named("most", Sum("rides")),)),),
    )
    program = Program.compile(second, Definitions(datasets=(RIDES, RAIN, OUT, per_rider), pipelines=(first, second)))
    world.post_rides(80)
    history = world.archive(str(tmp_path / "archive"))
    (row,) = PointInTime(history, world.log).rows([Lookup(program, "a", T0 + 31 * HOUR)])
    assert row == {"most": len([ride for ride in world.rides if ride[2] == "a" and ride[0] >= T0 + 20 * HOUR])}
