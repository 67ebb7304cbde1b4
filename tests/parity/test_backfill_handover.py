"""A backfill beside live traffic: every record counts once, also after a crash, and old and new state stay alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from featurelib.clock import HOUR
from featurelib.definitions import Definitions
from featurelib.engine.keys import groups_of, key_group
from featurelib.errors import Fenced, StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.bulk import BulkWriter
from featurelib.stores.online import StateName
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from jobs.spill import Spill
from jobs.worker import PartitionWorker
from tests.support.worlds import OUT, RAIN, RIDES, T0, World, drain

DEFINITIONS = Definitions(datasets=(RIDES, RAIN, OUT))
RIDERS = "abcdefghijklmnop"
# A stream that outruns a busy machine would make the test as slow as the machine.
_MOST_RIDES = 1_500


@pytest.fixture(params=["rider", "city"])
def world(request: pytest.FixtureRequest, empty_redis_url: str) -> Iterator[World]:
    made = World(empty_redis_url, request.param, seed=29)
    yield made
    made.close()


def settings(world: World, root: Path) -> Settings:
    return Settings(data_dir=root, online={"redis_url": world.url}, archive={"url": str(root / "archive")})


def order(world: World) -> Order:
    cut = [world.log.head(*source.address).next_offset for source in input_partitions(world.program, world.log)]
    return Order(world.pipeline, DEFINITIONS, StateName(world.program.ref, 2), cut, since=None, rows_expected=200)


class Traffic:
    """Rides of every partition and some rain, from a thread of its own until it is stopped."""

    def __init__(self, world: World) -> None:
        self._feed = World(world.url, world.key, seed=31)
        self._stopping = threading.Event()
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._began.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._feed.close()

    def _run(self) -> None:
        number = 0
        while not self._stopping.is_set() and number < _MOST_RIDES:
            rider = RIDERS[number % len(RIDERS)]
            self._feed.ride_at(T0 + number % (30 * HOUR), rider, "xyz"[number % 3], 5)
            if number % 20 == 0:
                self._feed.rain_at(T0 + number % (30 * HOUR), "xyz"[number % 3], number % 9)
            number += 1
            if number > len(RIDERS):
                self._began.set()


def test_under_live_traffic_each_partition_has_records_on_both_sides_of_the_border(
    world: World, tmp_path: Path
) -> None:
    live = world.worker()
    live.start()
    world.post_rides(150)
    world.post_rain(8)
    world.archive(str(tmp_path / "archive"))
    with Traffic(world):
        live.step()
        ordered = order(world)
        builder = PartitionBuilder(ordered, settings(world, tmp_path))
        for partition in range(2):
            builder.build(partition)
            live.step()
        builder.close()
    ends = order(world).cut
    rides = range(2)  # the left input's partitions come first
    assert all(0 < ordered.cut[part] < ends[part] for part in rides), (ordered.cut, ends)
    successors = [worker_of(world, ordered, tmp_path, partition) for partition in range(2)]
    drain(live, *successors)
    assert all(rows_of(world, 2, at) == rows_of(world, 1, at) for at in instants())
    assert world.store.progress(ordered.state).rows == world.store.progress(world.state).rows


def worker_of(world: World, ordered: Order, folder: Path, partition: int) -> PartitionWorker:
    history = world.archive(str(folder / "archive"))
    worker = PartitionWorker(
        world.program,
        ordered.state,
        groups_of(partition, 2),
        log=world.log,
        store=world.store,
        history=history,
        batch_rows=64,
    )
    worker.start()
    return worker


def instants() -> list[int]:
    return [T0 + hours * HOUR for hours in (1, 7, 31)]


def rows_of(world: World, generation: int, at: int) -> dict[str, object]:
    state = StateName(world.program.ref, generation)
    keys = sorted(world.store.keys(state))
    fields = world.program.read_fields(at)
    stored = world.store.load(state, dict.fromkeys(keys, fields))
    return {key: world.program.finish(stored[key], at) for key in keys}


class Dies(BulkWriter):
    """A writer whose process dies at one group."""

    def __init__(self, url: str, before: int) -> None:
        super().__init__(url)
        self._before = before
        self.groups: list[int] = []

    def write(self, state, group, epoch, changes):  # type: ignore[no-untyped-def]
        if group == self._before:
            super().write(state, group, epoch, dict(list(changes.items())[:1]))
            raise StoreUnavailable("killed")
        self.groups.append(group)
        super().write(state, group, epoch, changes)


def test_after_a_crash_only_the_group_that_was_being_built_is_built_again(world: World, tmp_path: Path) -> None:
    world.post_rides(150)
    world.post_rain(8)
    world.archive(str(tmp_path / "archive"))
    ordered = order(world)
    live = world.worker()
    live.start()
    drain(live)
    mine = sorted({key_group(key) for key in world.store.keys(world.state)} & set(groups_of(0, 2)))
    dying, going_on = Dies(world.url, before=mine[-1]), Dies(world.url, before=-1)
    builder = PartitionBuilder(ordered, settings(world, tmp_path))
    builder._bulk = dying
    with pytest.raises(StoreUnavailable, match="killed"):
        builder.build(0)
    builder = PartitionBuilder(ordered, settings(world, tmp_path))
    builder._bulk = going_on
    for partition in range(2):
        builder.build(partition)
    builder.close()
    assert dying.groups == mine[:-1]
    assert set(going_on.groups) & set(groups_of(0, 2)) == {mine[-1]}
    assert all(rows_of(world, 2, at) == rows_of(world, 1, at) for at in instants())
    assert not list((tmp_path / "backfills").rglob("*.arrow"))


def test_a_builder_that_was_replaced_writes_nothing_more(world: World, tmp_path: Path) -> None:
    world.post_rides(60)
    ordered = order(world)
    (claim,) = world.store.claim(ordered.state, [3])
    world.store.claim(ordered.state, [3])
    writer = BulkWriter(world.url)
    with pytest.raises(StoreUnavailable, match="taken over"):
        writer.write(ordered.state, 3, claim.epoch, {"late": {b"h": b"x"}})
    writer.close()
    assert list(world.store.keys(ordered.state)) == []


def test_a_builder_that_was_replaced_leaves_the_files_of_its_successor_alone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.post_rides(150)
    world.post_rain(8)
    world.archive(str(tmp_path / "archive"))
    live = world.worker()
    live.start()
    drain(live)
    monkeypatch.setattr(Spill.__init__, "__kwdefaults__", {"run_rows": 20})
    ordered, mine = order(world), groups_of(0, 2)
    replaced, successor = (PartitionBuilder(ordered, settings(world, tmp_path)) for _ in range(2))
    claims = {claim.group: claim for claim in world.store.claim(ordered.state, mine)}
    pieces = successor._pieces

    def beside_the_other(groups, columns):  # type: ignore[no-untyped-def]
        yield from pieces(groups, columns)
        with pytest.raises(Fenced):
            replaced._fold_history(mine, claims, [])

    monkeypatch.setattr(successor, "_pieces", beside_the_other)
    for partition in range(2):
        successor.build(partition)
    replaced.close()
    successor.close()
    assert all(rows_of(world, 2, at) == rows_of(world, 1, at) for at in instants())
