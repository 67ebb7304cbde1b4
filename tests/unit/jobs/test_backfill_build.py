"""What one partition's build tells of itself, and which records it takes. No Ray."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from featurelib.clock import HOUR, Instant, SystemClock
from featurelib.definitions import Definitions
from featurelib.errors import StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.online import StateName
from featurelib.stores.registry import Registry
from jobs.backfill import Order, PartitionBuilder, Tally
from jobs.inputs import input_partitions
from tests.support.worlds import OUT, RAIN, RIDES, T0, World


@pytest.fixture(params=["rider", "city"])
def world(request: pytest.FixtureRequest, empty_redis_url: str) -> Iterator[World]:
    """Rides and rain; a pipeline that is keyed like its dataset, and one whose partitions all read everything."""
    made = World(empty_redis_url, request.param, seed=5)
    made.post_rides(200)
    made.post_rain(10)
    yield made
    made.close()


def order(world: World, since: Instant | None = None, until: Instant | None = None) -> Order:
    inputs = input_partitions(world.program, world.log)
    cut = [world.log.head(*source.address).next_offset for source in inputs]
    definitions = Definitions(datasets=(RIDES, RAIN, OUT))
    fresh = StateName(world.program.ref, 2)
    return Order(world.pipeline, definitions, fresh, cut, since, until, rows_expected=200)


def build(world: World, root: Path, what: Order) -> list[tuple[int, int]]:
    """Build every partition, with a clock on which each look is a second later; what was told."""
    told: list[tuple[int, int]] = []
    seconds = count()
    settings = Settings(data_dir=root, online={"redis_url": world.url}, archive={"url": str(root / "archive")})
    builder = PartitionBuilder(what, settings, lambda *more: told.append(more), seconds=lambda: float(next(seconds)))
    for partition in range(2):
        builder.build(partition)
    builder.close()
    return told


def folded(world: World) -> int:
    return world.store.progress(StateName(world.program.ref, 2)).rows


def test_rows_are_counted_as_they_are_folded_and_the_guess_ends_as_what_was_folded(
    world: World, tmp_path: Path
) -> None:
    told = build(world, tmp_path, order(world))
    rows, more_expected = (sum(column) for column in zip(*told, strict=True))
    assert rows == folded(world) < 200  # the filter leaves some out
    assert 200 + more_expected == rows
    assert len([rows for rows, _ in told if rows]) > 2


def test_only_records_dated_within_both_ends_are_folded(world: World, tmp_path: Path) -> None:
    since, until = T0 + 5 * HOUR, T0 + 20 * HOUR
    told = build(world, tmp_path, order(world, since, until))
    expected = [ride for ride in world.rides if since <= ride[0] <= until and ride[4] != 0]
    assert folded(world) == len(expected) == 200 + sum(more for _, more in told)
    assert 0 < len(expected) < len([ride for ride in world.rides if ride[4] != 0])


def test_what_the_registry_did_not_take_is_told_with_the_next_rows(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}", SystemClock())
    registry.migrate()
    requests = BackfillRequests(registry.database, SystemClock())
    request = requests.request("by_rider@1")
    requests.began(request.id, 2, 100)
    away = BackfillRequests(Registry(f"sqlite:///{tmp_path / 'none.db'}", SystemClock()).database, SystemClock())
    with pytest.raises(StoreUnavailable):
        away.advance(request.id, 1)

    tally = Tally(away, request.id)
    tally(10, 5)
    tally._requests = requests  # the database is back
    tally(7, 0)
    found = requests.get(request.id)
    assert (found.rows, found.rows_expected) == (17, 105)
    registry.close()
