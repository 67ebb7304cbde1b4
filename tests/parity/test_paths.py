"""One pipeline by every path, over the same accepted records: stream, backfill and point in time give one answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurelib.clock import HOUR
from featurelib.definitions import Definitions
from featurelib.engine.panes import BESIDE_THE_TREE, BUFFER, HEADER, TAIL, KeyState, decode_node
from featurelib.engine.program import Program
from featurelib.settings import Settings
from featurelib.stores.online import StateName
from featurelib.stores.online_reader import Lookup
from featurelib.stores.point_in_time import PointInTime
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from jobs.worker import PartitionWorker
from tests.support.worlds import OUT, RAIN, RIDES, T0, World, drain

KEYS = {"rider": "abcdef", "city": "xyz"}


@pytest.fixture(params=["rider", "city"])
def world(request: pytest.FixtureRequest, empty_redis_url: str):
    made = World(empty_redis_url, request.param, seed=11)
    yield made
    made.close()


def stream(world: World) -> None:
    worker = world.worker()
    worker.start()
    for _ in range(12):
        world.post_rides(world.random.randrange(1, 80))
        world.post_rain(world.random.randrange(1, 6))
        worker.step()
    drain(worker)


def settings(world: World, root: Path) -> Settings:
    return Settings(data_dir=root, online={"redis_url": world.url}, archive={"url": str(root / "archive")})


def order(world: World, generation: int) -> Order:
    cut = [world.log.head(*source.address).next_offset for source in input_partitions(world.program, world.log)]
    definitions = Definitions(datasets=(RIDES, RAIN, OUT))
    return Order(world.pipeline, definitions, StateName(world.program.ref, generation), cut, since=None)


def settled(program: Program, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """A key's panes with the buffer moved into the tree: what must not depend on how rows came."""
    nodes = {
        (int(level), int(index)): decode_node(data)
        for name, data in fields.items()
        if name not in BESIDE_THE_TREE
        for level, index in [name.split(b":")]
    }
    header, buffer, tail = fields[HEADER], fields.get(BUFFER), fields.get(TAIL)
    state = KeyState.stored(program.algebra, program.root, header, buffer, tail)
    state.nodes, state.whole = dict(nodes), True
    state.flush()
    for level, index in nodes:
        state.dirty.add(b"%d:%d" % (level, index))
    return {name: data for name, data in state.changes().items() if name not in BESIDE_THE_TREE}


def states(world: World, generation: int) -> dict[str, dict[bytes, bytes]]:
    name = StateName(world.program.ref, generation)
    return {key: settled(world.program, world.store.fields(name, key)) for key in world.store.keys(name)}


def test_a_backfill_ends_in_the_bytes_the_stream_ended_in(world: World, tmp_path: Path) -> None:
    stream(world)
    world.archive(str(tmp_path / "archive"))
    builder = PartitionBuilder(order(world, 2), settings(world, tmp_path))
    for partition in range(2):
        builder.build(partition)
    builder.close()
    assert states(world, 2) == states(world, 1)
    assert world.store.progress(StateName(world.program.ref, 2)).rows == world.store.progress(world.state).rows


def test_records_that_come_while_a_backfill_runs_are_handed_over_once(world: World, tmp_path: Path) -> None:
    stream(world)
    history = world.archive(str(tmp_path / "archive"))
    ordered = order(world, 2)
    # After the cut, before and after the build: some only in the log, some archived meanwhile.
    world.post_rides(60)
    world.archive(str(tmp_path / "archive"))
    world.post_rain(5)
    builder = PartitionBuilder(ordered, settings(world, tmp_path))
    for partition in range(2):
        builder.build(partition)
    builder.close()
    world.post_rides(40)
    world.post_rain(5)
    successor = PartitionWorker(
        world.program,
        ordered.state,
        range(64),
        log=world.log,
        store=world.store,
        history=history,
        batch_rows=64,
    )
    live = world.worker()
    for worker in (successor, live):
        worker.start()
        drain(worker)
    assert states(world, 2) == states(world, 1)


def test_a_partition_that_is_built_again_counts_nothing_twice(world: World, tmp_path: Path) -> None:
    stream(world)
    world.archive(str(tmp_path / "archive"))
    ordered = order(world, 2)
    world.post_rides(60)  # after the cut: folded by the catch-up of the first try
    builder = PartitionBuilder(ordered, settings(world, tmp_path))
    for partition in (0, 0, 1, 1):
        builder.build(partition)
    builder.close()
    live = world.worker()
    live.start()
    drain(live)
    assert states(world, 2) == states(world, 1)


def test_a_past_read_equals_the_stored_state_at_that_instant(world: World, tmp_path: Path) -> None:
    stream(world)
    past = PointInTime(world.archive(str(tmp_path / "archive")), world.log)
    world.post_rides(20)  # the log's tail, not archived
    worker = world.worker()
    worker.start()
    drain(worker)
    for key in KEYS[world.key]:
        for _ in range(3):
            at = T0 + world.random.randrange(31 * HOUR)
            fields = world.program.read_fields(at)
            stored = world.program.finish(world.store.load(world.state, {key: fields})[key], at)
            (row,) = past.rows([Lookup(world.program, key, at)])
            assert row == stored, (key, at)


def test_a_past_read_of_an_unknown_key_has_no_row(world: World, tmp_path: Path) -> None:
    stream(world)
    past = PointInTime(world.archive(str(tmp_path / "archive")), world.log)
    assert past.rows([Lookup(world.program, "nobody", T0 + HOUR)]) == [None]
