"""A worker that dies at any point, and right sides that arrive late: the state is that of the accepted records."""

from __future__ import annotations

import pytest

from featurelib.clock import HOUR
from featurelib.engine.keys import key_group
from featurelib.errors import Fenced, StoreUnavailable
from featurelib.stores import online
from featurelib.stores.online import StateName
from tests.support.worlds import RIDERS_OF_ONE_GROUP, T0, World, drain


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


@pytest.mark.parametrize("world", [("rider", 4)], indirect=True, ids=["rider-4"])
def test_a_commit_cut_between_chunks_is_finished_with_what_was_learnt_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RIDERS_OF_ONE_GROUP
    worker = world.worker()
    worker.start()
    world.rain_at(T0, "x", 1)
    drain(worker)
    for rider in (first, second):
        world.ride_at(T0 + 2 * HOUR, rider, "x", 5)
    with monkeypatch.context() as patch:
        patch.setattr(online, "_KEYS_OF_GROUP", 1)
        patch.setattr(worker._store, "commit", dying_after_one_write(worker._store))
        with pytest.raises(StoreUnavailable):
            drain(worker)
    world.rain_at(T0 + HOUR, "x", 9)  # belongs to both rides, and comes after the crash
    successor = world.worker()
    successor.start()
    drain(successor)
    assert {rider: world.read(rider, T0 + 3 * HOUR)["last_"] for rider in (first, second)} == {first: 9, second: 9}
    assert {rider: world.read(rider, T0 + 3 * HOUR)["n_"] for rider in (first, second)} == {first: 1, second: 1}


def dying_after_one_write(store: online.OnlineStore):
    """The process dies when the first chunk that changes a key has reached the server."""

    def commit(state: StateName, commits: list[online.GroupCommit]) -> None:
        changing = next(each for each in commits if each.changes)
        store._fenced.write([next(iter(online._writes(state, [changing])))], state.pipeline)
        raise StoreUnavailable("killed")

    return commit


@pytest.mark.parametrize("world", [("rider", 5)], indirect=True, ids=["rider-5"])
def test_an_epoch_is_never_given_out_twice_even_when_the_state_was_cleared(world: World) -> None:
    group = key_group("a")
    (stale,) = world.store.claim(world.state, [group])
    world.store.clear(world.state, range(64))
    (fresh,) = world.store.claim(world.state, [group])
    assert fresh.epoch > stale.epoch
    late = online.GroupCommit(group, stale.epoch, [0, 0, 0, 0], None, 0, {"a": {b"h": b"x"}})
    with pytest.raises(Fenced):
        world.store.commit(world.state, [late])


@pytest.mark.parametrize("world", [("rider", 6)], indirect=True, ids=["rider-6"])
def test_a_group_that_never_got_a_record_has_begun_all_the_same(world: World) -> None:
    assert world.store.progress(world.state).positions is None
    worker = world.worker()
    worker.start()
    assert world.store.progress(world.state).positions == [0, 0, 0, 0]
