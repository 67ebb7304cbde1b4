"""Requested training sets over a real registry and real folders, and a stand-in for Ray's dashboard. No Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launcher import Launcher
from featurelib.clock import DAY, MINUTE, SystemClock
from featurelib.errors import Conflict, NotFound
from featurelib.settings import Settings
from featurelib.stores.feed import Feed
from featurelib.stores.registry import Registry
from featurelib.stores.training_places import TrainingPlace
from featurelib.stores.training_requests import (
    AskedBy,
    TrainingQuestion,
    TrainingRequests,
    TrainingSet,
    new_training_id,
)
from jobs.requested_training import RequestedTrainingSets, submission_of
from tests.support.clocks import MovedClock
from tests.support.http_service import http_service
from tests.support.worlds import T0
from tests.unit.jobs.test_requested import Dashboard


class Scene:
    """Training sets that were asked for, and what carries them out."""

    def __init__(self, folder: Path, dashboard: Dashboard) -> None:
        self.clock = MovedClock(T0)
        self.settings = Settings(data_dir=folder, training={"keep_days": 2})
        self.registry = Registry(self.settings.registry_url, self.clock)
        self.registry.migrate()
        self.requests = TrainingRequests(self.registry.database, self.clock)
        self.dashboard = dashboard
        self.launcher = Launcher(dashboard.service.url, "token")
        self.training = RequestedTrainingSets(self.registry, self.launcher, self.settings, self.clock)

    def ask(self) -> TrainingSet:
        """One whose spine was uploaded."""
        training_id = new_training_id()
        upload = self.place(training_id).receiving("parquet")
        upload.write(b"rows")
        upload.close()
        return self.requests.request(training_id, TrainingQuestion("Rider"), 5, AskedBy("1f0c9a2b", "c-1"))

    def place(self, training_id: str) -> TrainingPlace:
        return TrainingPlace(self.settings.training_url, training_id)

    def files(self) -> list[str]:
        return [path.name for path in Path(self.settings.training_url).rglob("*") if path.is_file()]

    def now(self, made: TrainingSet) -> TrainingSet:
        return self.requests.get(made.id)

    def job(self, made: TrainingSet) -> dict[str, Any]:
        return self.dashboard.jobs[submission_of(self.now(made))]

    def told(self) -> list[str]:
        return [entry.event.event_type for entry in Feed(self.registry.database).after(0)]

    def close(self) -> None:
        self.launcher.close()
        self.registry.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with http_service() as service:
        made = Scene(tmp_path, Dashboard(service))
        yield made
        made.close()


def test_a_request_becomes_one_ray_job_that_says_what_and_for_whom(scene: Scene) -> None:
    made = scene.ask()
    for _ in range(3):
        scene.training.step()
    (job,) = scene.dashboard.jobs.values()
    assert job["entrypoint"] == f"python -m jobs.requested_training --request {made.id}"
    assert job["metadata"] == {"featureset": "Rider", "training_set_id": made.id, "correlation_id": "c-1"}
    assert (scene.now(made).state, scene.now(made).submission_id) == ("running", submission_of(made))
    assert scene.told() == ["training_set_requested", "training_set_started"]


def test_a_job_that_died_is_followed_by_two_others_and_no_more(scene: Scene) -> None:
    made = scene.ask()
    for attempt in (1, 2, 3):
        scene.training.step()
        assert (scene.now(made).attempt, scene.job(made)["status"]) == (attempt, "RUNNING")
        assert scene.requests.advance(made.id, attempt, 9, 5)
        scene.job(made).update(status="FAILED", message="killed\nlast lines of its output")
        scene.training.step()
    found = scene.now(made)
    assert (found.state, found.error, found.parts_done) == ("failed", "cluster_error", 3)
    assert "killed" in found.detail and "last lines" not in found.detail  # noqa: PT018  # of one text
    assert scene.told().count("training_set_resumed") == 2


def test_a_job_that_was_stopped_by_hand_is_not_begun_again(scene: Scene) -> None:
    made = scene.ask()
    scene.training.step()
    scene.job(made)["status"] = "STOPPED"
    scene.training.step()
    assert (scene.now(made).state, "stopped by hand" in scene.now(made).detail) == ("failed", True)


def test_a_cancelled_one_is_stopped_and_its_files_go_once_nothing_writes_them(scene: Scene) -> None:
    made = scene.ask()
    scene.training.step()
    scene.requests.cancel(made.id, "1f0c9a2b")
    scene.training.step()
    assert (scene.job(made)["status"], scene.now(made).state, scene.files()) == (
        "STOPPED",
        "cancelling",
        ["spine.parquet"],
    )
    scene.training.step()
    assert (scene.now(made).state, scene.files()) == ("cancelled", [])
    assert not scene.requests.completed(made, 5)
    with pytest.raises(Conflict, match="is requested: cancel it"):
        scene.requests.forget(scene.ask().id)


def test_ray_that_does_not_answer_is_waited_for_and_said_to_be(scene: Scene) -> None:
    made = scene.ask()
    away = Launcher("http://127.0.0.1:9", "token")
    RequestedTrainingSets(scene.registry, away, scene.settings, scene.clock).step()
    away.close()
    assert (scene.now(made).state, "does not answer" in scene.now(made).detail) == ("requested", True)
    scene.training.step()
    assert (scene.now(made).state, scene.now(made).detail) == ("running", "")


def test_what_is_over_for_long_enough_is_forgotten_with_its_files(scene: Scene) -> None:
    old, open_still = scene.ask(), scene.ask()
    assert scene.requests.completed(old, 5)
    scene.clock.advance(DAY)
    assert scene.training.forget_old() == 0
    scene.clock.advance(2 * DAY)
    assert scene.training.forget_old() == 1
    with pytest.raises(NotFound):
        scene.now(old)
    assert (scene.now(open_still).state, len(scene.files())) == ("requested", 1)


def test_an_upload_that_nobody_asked_for_in_the_end_goes_after_a_day(scene: Scene) -> None:
    scene.clock.advance(SystemClock().now() - scene.clock.now())  # files have the time of the machine
    made = scene.ask()
    abandoned = scene.place(new_training_id()).receiving("arrow")
    abandoned.write(b"half")
    assert scene.training.forget_abandoned() == 0
    scene.clock.advance(DAY + MINUTE)
    assert scene.training.forget_abandoned() == 1
    abandoned.close()
    assert (scene.now(made).state, scene.files()) == ("requested", ["spine.parquet"])


def test_what_others_keep_below_the_same_root_is_left_alone_however_old(scene: Scene) -> None:
    scene.clock.advance(SystemClock().now() - scene.clock.now() + 2 * DAY)
    folder = Path(scene.settings.training_url) / "invoices"
    folder.mkdir(parents=True)
    (folder / "2025.parquet").write_bytes(b"rows")
    assert (scene.training.forget_abandoned(), scene.files()) == (0, ["2025.parquet"])
