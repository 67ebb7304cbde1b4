"""A backfill on real Ray over several nodes: its partitions spread, and one that was killed is gone on with exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from featurelib.clock import HOUR
from featurelib.definitions import Definitions
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.settings import load_settings
from featurelib.stores.online import StateName
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from jobs.partitioned import map_partitions
from tests.support.killed_builds import BUILT_BEFORE, DYING, PARTITIONS, KilledBuild
from tests.support.worlds import OUT, RAIN, RIDES, T0, World

# Ray Data reads settings of its own that it has deprecated.
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
]
NODES, RIDERS, RIDES_EACH = 2, 40, 3


@pytest.fixture
def world(empty_redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Rides of every partition; what they are in is what every process of the cluster finds in its settings."""
    monkeypatch.setenv("THYME_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("THYME_ONLINE__REDIS_URL", empty_redis_url)
    monkeypatch.setenv("THYME_PIPELINE__PARTITION_COUNT", str(PARTITIONS))
    made = World(empty_redis_url, "rider", seed=3)
    for number in range(RIDERS * RIDES_EACH):
        made.ride_at(T0 + number % 30 * HOUR, f"r{number % RIDERS}", "xyz"[number % 3], 5)
    made.rain_at(T0, "x", 5)
    made.archive(load_settings().archive_url)
    yield made
    made.close()


@pytest.fixture
def nodes(world: World) -> Iterator[Cluster]:  # its settings are inherited by every node
    """Two nodes of this machine, as one cluster."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()  # type: ignore[no-untyped-call]
    cluster.shutdown()


def order(world: World, generation: int) -> Order:
    cut = [world.log.head(*source.address).next_offset for source in input_partitions(world.program, world.log)]
    definitions, state = Definitions(datasets=(RIDES, RAIN, OUT)), StateName(world.program.ref, generation)
    return Order(world.pipeline, definitions, state, cut, since=None, rows_expected=RIDERS * RIDES_EACH)


def stored(world: World, generation: int) -> dict[str, dict[bytes, bytes]]:
    state, client = StateName(world.program.ref, generation), world.store._redis
    return {f"r{n}": cast("dict[bytes, bytes]", client.hgetall(state.key(f"r{n}"))) for n in range(RIDERS)}


@pytest.mark.usefixtures("nodes")
def test_partitions_spread_over_nodes_and_a_killed_builder_loses_no_group_that_was_built(
    world: World, tmp_path: Path
) -> None:
    what, died = order(world, 2), str(tmp_path / "died")
    with pytest.raises(RayError):
        map_partitions(KilledBuild, (what, str(tmp_path / "first"), died), PARTITIONS)
    kept = world.store.progress(what.state)
    theirs = [group for group in kept.standings if owner_of_group(group, PARTITIONS) == DYING]
    assert len(theirs) == BUILT_BEFORE
    assert 0 < kept.rows < RIDERS * RIDES_EACH

    again = map_partitions(KilledBuild, (what, str(tmp_path / "again"), died), PARTITIONS)
    assert sorted(each["partition"] for each in again) == list(range(PARTITIONS))
    # The other builders of the job that failed may have gone on for a while.
    assert sum(each["rows"] for each in again) <= RIDERS * RIDES_EACH - kept.rows
    groups = [key_group(f"r{n}") for n in range(RIDERS)]
    left = [group for group in groups if owner_of_group(group, PARTITIONS) == DYING and group not in theirs]
    assert [each["rows"] for each in again if each["partition"] == DYING] == [len(left) * RIDES_EACH]
    assert len(Counter(each["node"] for each in again)) == NODES

    whole = order(world, 3)
    straight = PartitionBuilder(whole, load_settings())
    rows = sum(straight.build(partition).rows for partition in range(PARTITIONS))
    straight.close()
    assert rows == RIDERS * RIDES_EACH == world.store.progress(what.state).rows
    assert stored(world, 2) == stored(world, 3)
    assert all(stored(world, 2).values())
