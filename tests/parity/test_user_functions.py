"""Functions of a pipeline that fail for a row: the row is left out on every path, and told of once."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurelib.aggregates import Count
from featurelib.definitions import AggregateStep, Definitions, LatestStep, PipelineDef, PyCode, TransformStep
from featurelib.engine.program import Program
from featurelib.settings import Settings
from featurelib.stores.online import StateName
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from tests.support.worlds import OUT, RAIN, RIDES, T0, World, drain, named

SOURCE = """
def doubled(df):
    assert (df["fare"] != 13).all(), "unlucky"
    return df.with_columns(fare=df["fare"] * 2)
"""
DOUBLED = TransformStep(code=PyCode(entry_point="doubled", source=SOURCE, file="rides.py", line=3))
BY_CITY = AggregateStep(keys=("city",), aggregates=(named("n", Count()),))
DEFINITIONS = Definitions(datasets=(RIDES, RAIN, OUT))


@pytest.fixture(params=[(DOUBLED, BY_CITY), (LatestStep(keys=("rider",)), DOUBLED, BY_CITY)], ids=["plain", "graph"])
def world(request: pytest.FixtureRequest, empty_redis_url: str):
    made = World(empty_redis_url, "city", seed=3)
    steps = request.param
    made.pipeline = PipelineDef(name="doubling", input_datasets=("Ride",), output_dataset="Out", steps=steps)
    made.program = Program.compile(made.pipeline, DEFINITIONS)
    made.state = StateName(made.program.ref, 1)
    for rider, fare in (("a", 1), ("b", 13), ("c", 2), ("d", 3)):
        made.ride_at(T0, rider, "x", fare)
    yield made
    made.close()


def test_one_of_several_workers_tells_of_each_row_that_failed(world: World) -> None:
    workers = [world.worker(range(32)), world.worker(range(32, 64))]
    for worker in workers:
        worker.start()
    drain(*workers)
    (failure,) = [failure for worker in workers for failure in worker.failures]
    assert (failure.function, failure.time) == ("doubled", T0)
    assert "unlucky" in failure.message
    assert world.read("x", T0) == {"n": 3}


def test_a_backfill_tells_of_the_rows_it_leaves_out(world: World, tmp_path: Path) -> None:
    world.archive(str(tmp_path / "archive"))
    settings = Settings(data_dir=tmp_path, online={"redis_url": world.url}, archive={"url": str(tmp_path / "archive")})
    cut = [world.log.head(*source.address).next_offset for source in input_partitions(world.program, world.log)]
    builder = PartitionBuilder(Order(world.pipeline, DEFINITIONS, world.state, cut, since=None), settings)
    built = [builder.build(partition) for partition in range(2)]
    builder.close()
    assert [one.failed for one in built] == [1, 0]
    assert built[0].failure.startswith("doubled()")
    assert world.read("x", T0) == {"n": 3}
