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
