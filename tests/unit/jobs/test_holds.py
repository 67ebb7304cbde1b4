"""Which pipelines must not run, and what is shown of them, over a real log, registry and online store. No Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from featurelib.clock import SystemClock
from featurelib.definitions import Definitions, ref
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.orders import JobOrder
from featurelib.stores.registry import Registry
from jobs.holds import Hold, Holds
from jobs.wanted import TaskSpec, wanted_tasks
from tests.support.worlds import OUT, RAIN, RIDES, World, drain

PAUSED = {"by_rider@1": JobOrder(pipeline="by_rider@1", paused=True)}
FAR = 50


class Scene:
    """Holds over real stores."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.world = World(redis_url, "rider", seed=3)
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}", SystemClock())
        self.registry.migrate()
        self.requests = BackfillRequests(self.registry.database, SystemClock())
        self.holds = Holds(self.registry, self.world.log, self.world.store, FAR)
        self.definitions = Definitions(datasets=(RIDES, RAIN, OUT), pipelines=(self.world.pipeline,))

    def wanted(self, generation: int = 1) -> dict[str, TaskSpec]:
        return wanted_tasks(self.definitions, lambda _: 2, lambda _: (generation,))

    def held(self, orders: dict[str, JobOrder] | None = None, there: Collection[str] = ()) -> dict[str, Hold]:
        return self.holds.of(self.wanted(), orders or {}, there)

    def close(self) -> None:
        self.world.close()
        self.registry.close()


@pytest.fixture
def scene(tmp_path: Path, empty_redis_url: str) -> Iterator[Scene]:
    made = Scene(tmp_path, empty_redis_url)
    yield made
    made.close()


def test_a_pipeline_that_is_little_behind_runs_at_once(scene: Scene) -> None:
    scene.world.post_rides(FAR - 1)
    assert scene.held() == {}
    assert scene.requests.open() == []


def test_one_that_is_far_behind_is_built_by_one_bounded_job_first(scene: Scene) -> None:
    scene.world.post_rides(FAR)
    for _ in range(3):
        assert {name: hold.why for name, hold in scene.held().items()} == {"by_rider@1": "catching_up"}
    (request,) = scene.requests.open()
    assert (request.pipeline, request.requested_by) == ("by_rider@1", None)
    assert "50 records behind" in request.detail


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_when_that_job_fails_or_is_cancelled_the_live_workers_fold_it(scene: Scene, ending: str) -> None:
    scene.world.post_rides(FAR)
    scene.held()
    (request,) = scene.requests.open()
    getattr(scene.requests, ending)(request, "so it was")
    assert scene.held() == {}
    assert scene.requests.open() == []


def test_while_the_same_was_asked_for_by_somebody_the_workers_wait_for_that(scene: Scene) -> None:
    scene.world.post_rides(FAR)
    request = scene.requests.request("by_rider@1")
    assert [hold.why for hold in scene.held().values()] == ["catching_up"]
    assert [each.id for each in scene.requests.open()] == [request.id]


def test_a_pipeline_with_a_state_is_not_built_again_however_far_behind(scene: Scene) -> None:
    scene.world.worker().start()
    scene.world.post_rides(FAR)
    assert scene.held() == {}


def test_one_whose_workers_are_there_is_left_alone(scene: Scene) -> None:
    scene.world.post_rides(FAR)
    assert scene.held(there=["by_rider:0"]) == {}


def test_a_paused_pipeline_is_held_and_no_job_builds_it(scene: Scene) -> None:
    scene.world.post_rides(FAR)
    held = scene.held(PAUSED)
    assert [hold.why for hold in held.values()] == ["paused"]
    assert held["by_rider@1"].names == {"by_rider:0", "by_rider:1"}
    assert scene.requests.open() == []


def test_what_is_held_is_shown_with_where_its_state_stands(scene: Scene) -> None:
    scene.world.post_rides(30)
    scene.world.post_rain(4)
    worker = scene.world.worker()
    worker.start()
    drain(worker)
    rows = scene.world.store.progress(scene.world.state).rows
    scene.world.post_rides(9)
    shown = scene.holds.shown(scene.held(PAUSED), [])["by_rider@1"]
    assert (shown.state, shown.workers) == ("paused", 2)
    assert shown.progress is not None
    assert shown.progress.rows == rows
    assert sum(offset for (name, _), offset in shown.progress.applied.items() if name == ref(RIDES)) == 30
    assert sum(offset for (name, _), offset in shown.progress.applied.items() if name == ref(RAIN)) == 4


def test_it_is_pausing_while_a_worker_is_still_there(scene: Scene) -> None:
    shown = scene.holds.shown(scene.held(PAUSED), ["by_rider:1", "archive"])["by_rider@1"]
    assert (shown.state, shown.progress) == ("pausing", None)
    assert scene.holds.shown(scene.held(PAUSED), ["by_rider@2:1"])["by_rider@1"].state == "paused"
