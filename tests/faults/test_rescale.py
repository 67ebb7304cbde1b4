"""Another number of workers in the middle of a stream: each record is counted once, whoever applies it."""

from __future__ import annotations

import pytest

from featurelib.engine.keys import groups_of
from featurelib.errors import Fenced
from jobs.worker import PartitionWorker
from tests.support.worlds import World, drain


@pytest.fixture(params=["rider", "city"])
def world(request: pytest.FixtureRequest, empty_redis_url: str):
    made = World(empty_redis_url, request.param, seed=3)
    made.post_rain(5)
    yield made
    made.close()


def workers(world: World, count: int) -> list[PartitionWorker]:
    made = [world.worker(groups_of(partition, count)) for partition in range(count)]
    for worker in made:
        worker.start()
    return made


def some_steps(world: World, running: list[PartitionWorker]) -> None:
    """Records arrive, and each worker applies some of them: none is at the end, and no two are at the same place."""
    for _ in range(4):
        world.post_rides(40)
        for number, worker in enumerate(running):
            if world.random.random() < 0.4 + number / 10:
                worker.step()


@pytest.mark.parametrize("counts", [(1, 4, 2), (2, 3, 1), (2, 64, 5)])
def test_each_ride_is_counted_once_while_the_number_of_workers_changes(world: World, counts: tuple[int, ...]) -> None:
    for count in counts:
        running = workers(world, count)
        some_steps(world, running)
    world.post_rain(5)
    drain(*running)
    assert world.check() > 0
    assert sum(worker.rows for worker in running) == len([ride for ride in world.rides if ride[4] != 0])


def test_workers_of_the_former_number_that_go_on_are_fenced_and_change_nothing(world: World) -> None:
    former = workers(world, 2)
    some_steps(world, former)
    present = workers(world, 3)
    world.post_rides(40)
    for worker in former:
        with pytest.raises(Fenced):
            drain(worker)
    drain(*present)
    world.check()


def test_a_worker_that_stays_behind_holds_only_its_own_groups(world: World) -> None:
    first = workers(world, 4)
    world.post_rides(60)
    drain(*first[:3])
    two = workers(world, 2)
    world.post_rides(60)
    drain(two[1])
    (one,) = workers(world, 1)
    drain(one)
    world.check()
    assert all(offset == world.log.head(*address).next_offset for address, offset in one.applied().items())
