"""When derived tables are brought up to date: a stand-in for Ray's dashboard, and hours that pass at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.launcher import Launcher
from featurelib.errors import ClusterError
from featurelib.stores.registry import Registry
from jobs.derived_schedule import DerivedSchedule
from tests.support.clocks import MovedClock
from tests.support.http_service import http_service
from tests.support.worlds import T0
from tests.unit.jobs.test_requested import Dashboard


class Scene:
    """A schedule, and the seconds it goes by."""

    def __init__(self, folder: Path, dashboard: Dashboard) -> None:
        self.dashboard = dashboard
        dashboard.service.answers["GET /api/jobs/"] = lambda: (200, list(dashboard.jobs.values()))
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}", MovedClock(T0))
        self.registry.migrate()
        self.launcher = Launcher(dashboard.service.url, "token")
        self.seconds = 0.0
        self.schedule = self.begun()

    def begun(self, every_s: int = 3_600) -> DerivedSchedule:
        """One of another supervisor, from now on."""
        return DerivedSchedule(self.registry, self.launcher, every_s, lambda: self.seconds)

    def ends(self, status: str) -> None:
        """The newest job is over."""
        list(self.dashboard.jobs.values())[-1]["status"] = status

    def told(self) -> list[str]:
        return [event.message for event in self.registry.events(event_type="derived_tables_failed")]

    def close(self) -> None:
        self.launcher.close()
        self.registry.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with http_service() as service:
        made = Scene(tmp_path, Dashboard(service))
        yield made
        made.close()


def test_a_job_is_due_five_minutes_after_a_start_and_then_as_often_as_asked(scene: Scene) -> None:
    assert not scene.schedule.step()
    scene.seconds = 300
    assert scene.schedule.step()
    (job,) = scene.dashboard.jobs.values()
    assert job["entrypoint"] == "python -m jobs.derived --keep-up"
    scene.ends("SUCCEEDED")
    scene.seconds = 3_899
    assert not scene.schedule.step()
    scene.seconds = 3_900
    assert scene.schedule.step()
    assert scene.told() == []


def test_the_next_waits_for_the_one_that_runs_whoever_began_it(scene: Scene) -> None:
    scene.seconds = 300
    assert scene.schedule.step()
    scene.seconds = 9_000
    assert not scene.schedule.step()
    other = scene.begun()
    scene.seconds = 9_300
    assert not other.step()
    scene.ends("SUCCEEDED")
    assert other.step()


def test_a_failure_is_told_of_once(scene: Scene) -> None:
    scene.seconds = 300
    assert scene.schedule.step()
    scene.ends("FAILED")
    assert not scene.schedule.step()
    assert not scene.schedule.step()
    (message,) = scene.told()
    assert "ray job logs thyme-derived-" in message


def test_without_an_interval_there_is_no_job_and_without_ray_it_stays_due(scene: Scene) -> None:
    never = scene.begun(0)
    scene.seconds = 1e9
    assert not never.step()
    away = Launcher("http://127.0.0.1:9", "token")
    schedule = DerivedSchedule(scene.registry, away, 3_600, lambda: scene.seconds)
    scene.seconds += 300
    with pytest.raises(ClusterError):
        schedule.step()
    away.close()
