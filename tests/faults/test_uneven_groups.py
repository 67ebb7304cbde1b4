"""Groups of a graph's worker at different positions: what one of them holds and the others never saw goes again."""

from __future__ import annotations

import pytest

from featurelib.aggregates import Count
from featurelib.clock import HOUR
from featurelib.definitions import AggregateStep, Definitions, FirstStep, PipelineDef
from featurelib.engine.keys import key_group
from featurelib.engine.program import Program
from featurelib.errors import StoreUnavailable
from featurelib.stores import online
from featurelib.stores.online import StateName
from tests.faults.test_worker import dying_after_one_write
from tests.support.worlds import OUT, RIDES, T0, World, drain, named

STEPS = (FirstStep(keys=("rider",)), AggregateStep(keys=("city",), aggregates=(named("n", Count()),)))
LATER = T0 + HOUR


@pytest.fixture
def world(empty_redis_url: str):
    made = World(empty_redis_url, "city", seed=1)
    made.pipeline = PipelineDef(name="firsts", input_datasets=("Ride",), output_dataset="Out", steps=STEPS)
    made.program = Program.compile(made.pipeline, Definitions(datasets=(RIDES, OUT)))
    made.state = StateName(made.program.ref, 1)
    yield made
    made.close()


def test_a_first_row_that_only_one_group_saw_is_taken_back(world: World) -> None:
    group = key_group("x")
    for groups in (range(group), range(group + 1, 64)):
        world.worker(groups).start()
    ahead = world.worker(range(group, group + 1))
    ahead.start()
    world.ride_at(LATER, "a", "x", 5)
    drain(ahead)
    # The same rider's first ride, unknown until now, is another; to a graph that begins before both there was no other.
    world.ride_at(T0, "a", "y", 5)
    whole = world.worker()
    whole.start()
    drain(whole)
    assert world.read("y", LATER) == {"n": 1}
    assert nothing(world, "x")
    assert whole.rows == 1


def test_a_first_row_that_only_some_keys_of_a_group_saw_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = next(name for n in range(10_000) if key_group(name := f"town{n}") == key_group("x"))
    worker = world.worker()
    worker.start()
    world.ride_at(LATER, "a", "x", 5)
    world.ride_at(LATER, "b", town, 5)
    with monkeypatch.context() as patch:
        patch.setattr(online, "_KEYS_OF_GROUP", 1)
        patch.setattr(worker._store, "commit", dying_after_one_write(worker._store))
        with pytest.raises(StoreUnavailable):
            drain(worker)
    written = [city for city in ("x", town) if not nothing(world, city)]
    assert len(written) == 1
    for rider in "ab":
        world.ride_at(T0, rider, "y", 5)
    successor = world.worker()
    successor.start()
    drain(successor)
    assert world.read("y", LATER) == {"n": 2}
    assert nothing(world, "x")
    assert nothing(world, town)


def nothing(world: World, city: str) -> bool:
    """Whether nobody knows the city."""
    fields = world.program.read_fields(LATER)
    return world.program.finish(world.store.load(world.state, {city: fields})[city], LATER) is None
