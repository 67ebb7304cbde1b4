"""A worker that dies at any point, and right sides that arrive late: the state is that of the accepted records."""

from __future__ import annotations

import pytest

from featurelib.errors import Fenced
from tests.support.worlds import World, drain


@pytest.fixture
def world(request: pytest.FixtureRequest, empty_redis_url: str):
    key, seed = request.param
    made = World(empty_redis_url, key, seed)
    yield made
    made.close()


WORLDS = [(key, seed) for key in ("rider", "city") for seed in range(3)]


@pytest.mark.parametrize("world", WORLDS, indirect=True, ids=lambda p: f"{p[0]}-{p[1]}")
def test_state_is_that_of_all_records_however_sides_interleave_and_workers_restart(world: World) -> None:
    worker = world.worker()
    worker.start()
    for _ in range(30):
        world.random.choice([world.post_rides, world.post_rides, world.post_rain])(world.random.randrange(1, 60))
        for _ in range(world.random.randrange(3)):
            worker.step()
        if world.random.random() < 0.2:
            worker = world.worker()
            worker.start()
    drain(worker)
    assert world.check() > 0


@pytest.mark.parametrize("world", WORLDS[:1], indirect=True, ids=lambda p: f"{p[0]}-{p[1]}")
def test_a_worker_that_was_replaced_writes_nothing(world: World) -> None:
    old, new = world.worker(), world.worker()
    old.start()
    world.post_rides(50)
    new.start()
    with pytest.raises(Fenced):
        old.step()
    drain(new)
    world.check()


@pytest.mark.parametrize("world", [("city", 7)], indirect=True, ids=["city-7"])
def test_a_crash_between_the_commits_of_two_groups_counts_nothing_twice(world: World) -> None:
    # Two workers of half the groups each stop at different positions; one over all groups goes on.
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
    world.check()


@pytest.mark.parametrize("world", [("city", 2)], indirect=True, ids=["city-2"])
def test_lag_counts_the_records_of_every_input_that_are_not_applied(world: World) -> None:
    worker = world.worker()
    worker.start()
    world.post_rides(10)
    world.post_rain(4)
    assert worker.lag() == 14
    worker.step()
    assert worker.lag() == 10
    drain(worker)
    assert worker.lag() == 0
