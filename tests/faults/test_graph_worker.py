"""Workers of pipelines that take rows back: whatever crashes between, state ends as if all records came at once."""

from __future__ import annotations

import pytest

from featurelib.aggregates import Avg, Count, Last, LastK, Max, Sum
from featurelib.clock import HOUR
from featurelib.definitions import (
    AggregateStep,
    ConnectorDef,
    DedupStep,
    Definitions,
    JoinStep,
    LatestStep,
    PipelineDef,
    SourceDef,
    Step,
    ref,
)
from featurelib.engine.panes import PanesMissing, pane_field
from featurelib.engine.program import Program, states_of
from featurelib.errors import StoreUnavailable
from featurelib.stores import online
from featurelib.stores.online import StateName
from tests.faults.test_worker import dying_after_one_write
from tests.support.worlds import OUT, RAIN, RIDES, T0, LogHistory, World, drain, named

RAIN_ON = JoinStep(right="Rain", on="city", fields=("mm",))
BY_CITY = AggregateStep(
    keys=("city",),
    aggregates=(
        named("n", Count(window="1d")),
        named("wet", Sum("mm", "")),
        named("last", Last("fare", "")),
        named("newest", LastK("rider", "1h", k=3)),
    ),
)
PIPELINES: dict[str, tuple[Step, ...]] = {
    "newest_ride_per_rider": (RAIN_ON, LatestStep(keys=("rider",)), BY_CITY),
    "one_ride_per_fare": (RAIN_ON, DedupStep(by=("rider", "fare")), BY_CITY),
    "totals_of_totals": (
        RAIN_ON,
        AggregateStep(keys=("rider", "city"), aggregates=(named("spent", Sum("fare")), named("mm", Max("mm")))),
        AggregateStep(
            keys=("city",), aggregates=(named("mean", Avg("spent", "1d")), named("riders", Count(where=None)))
        ),
    ),
}


def graph_world(url: str, name: str, seed: int, cdc: str = "append") -> World:
    """The world of rides and rain with a pipeline that keeps rows of its own."""
    world = World(url, "city", seed)
    source = SourceDef(dataset="Ride", connector=ConnectorDef(type="files", config={}), cdc=cdc)
    world.pipeline = PipelineDef(
        name=name, input_datasets=("Ride", "Rain"), output_dataset="Out", steps=PIPELINES[name]
    )
    definitions = Definitions(datasets=(RIDES, RAIN, OUT), sources=(source,))
    world.program = Program.compile(world.pipeline, definitions)
    world.state = StateName(world.program.ref, 1)
    assert not world.program.plain
    return world


def check(world: World) -> None:
    """Every stored row equals that of all records taken at once."""
    history = LogHistory(world.log)
    records = {
        dataset.name: history.read(dataset, 2, cut={p: world.log.head(ref(dataset), p).next_offset for p in range(2)})
        for dataset in (RIDES, RAIN)
    }
    states = states_of(world.program, records)
    assert set(world.store.keys(world.state)) >= set(states)
    for key in "xyz":
        for _ in range(25):
            at = T0 + world.random.choice([world.random.randrange(31 * HOUR), world.random.randrange(31) * HOUR])
            wanted = world.program.finish_state(states[key], at) if key in states else None
            assert stored(world, key, at) == wanted, (key, at)


def stored(world: World, key: str, at: int) -> dict[str, object] | None:
    """The stored row, fetching the panes a read before the latest closing asks for."""
    fields = world.program.read_fields(at)
    values = world.store.load(world.state, {key: fields})[key]
    more: dict[tuple[int, int], bytes | None] = {}
    while True:
        try:
            return world.program.finish(values, at, more)
        except PanesMissing as missing:
            names = [pane_field(pane) for pane in missing.panes]
            more.update(zip(missing.panes, world.store.load(world.state, {key: names})[key], strict=True))


@pytest.fixture(params=[(name, cdc) for name in PIPELINES for cdc in ("append", "upsert")], ids=lambda p: "-".join(p))
def world(request: pytest.FixtureRequest, empty_redis_url: str):
    name, cdc = request.param
    made = graph_world(empty_redis_url, name, seed=sum(name.encode()), cdc=cdc)
    yield made
    made.close()


def test_state_is_that_of_all_records_however_they_come_and_workers_restart(world: World) -> None:
    worker = world.worker()
    worker.start()
    for _ in range(25):
        world.random.choice([world.post_rides, world.post_rides, world.post_rain])(world.random.randrange(1, 40))
        for _ in range(world.random.randrange(3)):
            worker.step()
        if world.random.random() < 0.25:
            worker = world.worker()
            worker.start()
    drain(worker)
    check(world)


def test_groups_that_stopped_at_different_positions_meet_again(world: World) -> None:
    low, high = world.worker(range(32)), world.worker(range(32, 64))
    low.start()
    high.start()
    world.post_rain(20)
    world.post_rides(300)
    drain(low)
    world.post_rain(20)
    world.post_rides(100)
    high.step()
    high.step()
    whole = world.worker()
    whole.start()
    drain(whole)
    check(world)


def test_a_commit_cut_between_two_keys_is_finished_by_the_next_worker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.worker()
    worker.start()
    world.post_rain(10)
    world.post_rides(60)
    drain(worker)
    world.post_rides(60)
    world.post_rain(10)
    with monkeypatch.context() as patch:
        patch.setattr(online, "_KEYS_OF_GROUP", 1)
        patch.setattr(worker._store, "commit", dying_after_one_write(worker._store))
        with pytest.raises(StoreUnavailable):
            drain(worker)
    world.post_rides(30)
    successor = world.worker()
    successor.start()
    drain(successor)
    check(world)
