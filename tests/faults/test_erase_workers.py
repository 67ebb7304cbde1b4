"""Workers and tombstones: after an erase every value is that of a world that never held the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.erasing import CITIES, RIDERS, Town, drain


@pytest.fixture
def town(request: pytest.FixtureRequest, empty_redis_url: str, tmp_path: Path):
    made = Town(empty_redis_url, tmp_path, getattr(request, "param", 0))
    yield made
    made.close()


@pytest.mark.parametrize("town", range(3), indirect=True)
def test_whatever_is_erased_and_when_every_pipeline_ends_as_if_it_had_never_been(town: Town) -> None:
    workers = town.workers()
    for _ in range(14):
        name = town.random.choice(["Ride", "Ride", "Rain", "Card"])
        town.post(name, town.some(name, town.random.randrange(1, 20)))
        if town.random.random() < 0.5:
            name, keys = town.random.choice([("Ride", RIDERS), ("Rain", CITIES), ("Card", RIDERS)])
            town.erase(name, town.random.sample(keys, town.random.randrange(1, 3)))
        for pipeline, worker in workers.items():
            for _ in range(town.random.randrange(3)):
                worker.step()
            if town.random.random() < 0.15:
                workers[pipeline] = town.worker(pipeline)
                workers[pipeline].start()
    drain(*workers.values())
    assert town.check() > 20


@pytest.mark.parametrize("town", [10, 11, 105], indirect=True)
def test_groups_that_stand_apart_around_a_tombstone_end_alike(town: Town) -> None:
    halves = {name: (town.worker(name, range(32)), town.worker(name, range(32, 64))) for name in town.programs}
    for pair in halves.values():
        for worker in pair:
            worker.start()
    for _ in range(10):
        name = town.random.choice(["Ride", "Ride", "Rain", "Card"])
        town.post(name, town.some(name, town.random.randrange(1, 15)))
        if town.random.random() < 0.4:
            name, keys = town.random.choice([("Ride", RIDERS), ("Rain", CITIES), ("Card", RIDERS)])
            town.erase(name, town.random.sample(keys, 1))
        for low, high in halves.values():
            for worker in town.random.choice([(low,), (high,), (low, high)]):
                for _ in range(town.random.randrange(5)):
                    worker.step()
    workers = town.workers()
    drain(*workers.values())
    assert town.check() > 20
