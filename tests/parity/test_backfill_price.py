"""What a backfill is said to take is what it takes: records and rows, and bytes as the server counts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from featurelib.clock import HOUR
from featurelib.definitions import Definitions, LatestStep, ref
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.program import Program
from featurelib.settings import Settings
from featurelib.stores import backfill_price
from featurelib.stores.archive import Archive
from featurelib.stores.backfill_price import BackfillAsked, Pricing
from featurelib.stores.history import History
from featurelib.stores.online import StateName
from jobs.backfill import Order, PartitionBuilder
from tests.support.worlds import NEVER_LATE, OUT, RAIN, RIDES, T0, World, rides_table

DEFINITIONS = Definitions(datasets=(RIDES, RAIN, OUT))
RIDES_POSTED = 2_500


@pytest.fixture(params=["rider", "city", "graph"])
def world(request: pytest.FixtureRequest, empty_redis_url: str, tmp_path: Path) -> Iterator[World]:
    made = World(empty_redis_url, "city" if request.param == "city" else "rider", seed=41)
    if request.param == "graph":
        steps = (LatestStep(keys=("rider", "city")), *made.pipeline.steps[1:])
        made.pipeline = made.pipeline.model_copy(update={"steps": steps})
        made.program = Program.compile(made.pipeline, DEFINITIONS)
    made.post_rides(RIDES_POSTED)
    post_many(made, RIDES_POSTED)
    made.post_rain(20)
    made.archive(str(tmp_path / "archive"))
    made.post_rides(50)  # in the log alone
    yield made
    made.close()


def post_many(world: World, count: int) -> None:
    """Rides of many riders."""
    draw = world.random
    rows = [
        (T0 + draw.randrange(30 * HOUR), f"rider{draw.randrange(600)}", draw.choice("xyz"), 5) for _ in range(count)
    ]
    for partition in range(2):
        mine = [row for row in rows if owner_of_group(key_group(row[1]), 2) == partition]
        world.log.append(ref(RIDES), partition, rides_table(mine), lateness=NEVER_LATE)
        world.rides += [(row[0], (0, partition, 0), *row[1:]) for row in mine]


def built_bytes(world: World, folder: Path, asked: BackfillAsked) -> tuple[int, int, int]:
    """Rows, keys and bytes of what a build of the same makes."""
    state = StateName(world.program.ref, 2)
    settings = Settings(data_dir=folder, online={"redis_url": world.url}, archive={"url": str(folder / "archive")})
    order = Order(world.pipeline, DEFINITIONS, state, list(asked.cut), asked.since, asked.until)
    builder = PartitionBuilder(order, settings)
    for partition in range(2):
        builder.build(partition)
    builder.close()
    client: Any = world.store._redis
    keys = list(world.store.keys(state))
    weights = [cast("int", client.memory_usage(state.key(key), samples=0)) for key in keys]
    return world.store.progress(state).rows, len(keys), sum(weights)


@pytest.mark.parametrize("hours", [None, 10])
def test_rows_and_bytes_are_foretold_within_a_tenth(
    world: World, tmp_path: Path, hours: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, rows in (("_SAMPLE_ROWS", 2_000), ("_MANY_KEYS", 100)):
        monkeypatch.setattr(backfill_price, limit, rows)  # so that there is something to extrapolate
    since = None if hours is None else T0 + hours * HOUR
    asked = BackfillAsked.now(world.program, world.log, 2, since)
    price = Pricing(world.program, History(Archive(str(tmp_path / "archive")), world.log)).price(asked)
    built, keys, weight = built_bytes(world, tmp_path, asked)
    rides = [ride for ride in world.rides if since is None or ride[0] >= since]
    assert price.records == len(rides) + len(world.rains)
    assert price.rows == pytest.approx(built, rel=0.1)
    assert price.keys == pytest.approx(keys, rel=0.25)
    assert price.state_bytes == pytest.approx(weight, rel=0.1)
    assert price.archive_bytes > 0
    assert not price.rough


def test_an_empty_history_costs_only_the_start(world: World, tmp_path: Path) -> None:
    asked = BackfillAsked.now(world.program, world.log, 2, T0 + 1_000 * HOUR)
    price = Pricing(world.program, History(Archive(str(tmp_path / "archive")), world.log)).price(asked)
    assert (price.rows, price.keys, price.state_bytes) == (0, 0, 0)
    assert price.seconds >= backfill_price.START_S
