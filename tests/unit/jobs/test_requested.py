"""Requested backfills over a real registry and online store, and a stand-in for Ray's dashboard. No Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.launcher import Launcher
from featurelib.clock import SystemClock
from featurelib.definitions import Commit
from featurelib.plan import plan
from featurelib.stores.backfill_requests import Asked, BackfillRequest, BackfillRequests
from featurelib.stores.feed import Feed
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.registry import Registry
from jobs.requested import RequestedBackfills, submission_of
from tests.support.http_service import HttpService, http_service
from tests.support.worlds import RAIN, RIDES

NAME = "Ride_index@1"


class Dashboard:
    """The part of Ray's job interface that is used."""

    def __init__(self, service: HttpService) -> None:
        self.service = service
        self.jobs: dict[str, dict[str, Any]] = {}
        service.answers["POST /api/jobs/"] = self._submit

    def _submit(self) -> tuple[int, dict[str, Any]]:
        body = self.service.asked[-1].json
        job = {"submission_id": body["submission_id"], "status": "RUNNING", **body}
        self.jobs[job["submission_id"]] = job
        path = f"/api/jobs/{job['submission_id']}"
        self.service.answers[f"GET {path}"] = lambda: (200, job)
        self.service.answers[f"POST {path}/stop"] = lambda: self._stop(job)
        return 200, {"submission_id": job["submission_id"]}

    def _stop(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        job["status"] = "STOPPED"
        return 200, {"stopped": True}

    def forget(self) -> None:
        """Ray starts anew without its tables."""
        self.jobs.clear()
        for name in [name for name in self.service.answers if "thyme-backfill" in name]:
            del self.service.answers[name]


class Scene:
    """Requests, and what carries them out."""

    def __init__(self, folder: Path, redis_url: str, service: HttpService) -> None:
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}", SystemClock())
        self.registry.migrate()
        commit = Commit(datasets=tuple(each.model_copy(update={"index": True}) for each in (RIDES, RAIN)), message="")
        self.registry.commit(commit, plan, None)
        self.requests = BackfillRequests(self.registry.database, SystemClock())
        self.store = OnlineStore(redis_url)
        self.dashboard = Dashboard(service)
        self.launcher = Launcher(service.url, "token")
        self.backfills = RequestedBackfills(self.registry, self.store, self.launcher)

    def ask(self, **given: Any) -> BackfillRequest:
        return self.requests.request(NAME, **given)

    def build(self, request: BackfillRequest, generation: int = 2) -> StateName:
        """What the job does: begin, and write every group of the new state."""
        assert self.requests.began(request.id, generation, 10)
        state = StateName(NAME, generation)
        claims = self.store.claim(state, range(64))
        self.store.commit(state, [commit_of(claim.group, claim.epoch) for claim in claims])
        return state

    def job(self, request: BackfillRequest) -> dict[str, Any]:
        return self.dashboard.jobs[submission_of(request)]

    def state(self, request: BackfillRequest) -> str:
        return self.requests.get(request.id).state

    def told(self) -> list[str]:
        return [entry.event.event_type for entry in Feed(self.registry.database).after(0)][1:]

    def close(self) -> None:
        self.launcher.close()
        self.store.close()
        self.registry.close()


def commit_of(group: int, epoch: int) -> GroupCommit:
    return GroupCommit(group, epoch, [1], None, 1, {})


@pytest.fixture
def scene(tmp_path: Path, empty_redis_url: str) -> Iterator[Scene]:
    with http_service() as service:
        made = Scene(tmp_path, empty_redis_url, service)
        yield made
        made.close()


def test_a_request_becomes_one_ray_job_that_says_what_and_for_whom(scene: Scene) -> None:
    request = scene.ask(since=0, until=1_500_000, asked=Asked("1f0c9a2b", "c-1"))
    for _ in range(3):
        scene.backfills.step()
    (job,) = scene.dashboard.jobs.values()
    assert job["entrypoint"] == (
        f"python -m jobs.backfill --pipeline Ride_index --version 1 --request {request.id}"
        " --since 1970-01-01T00:00:00Z --until 1970-01-01T00:00:01.500000Z"
    )
    assert job["metadata"] == {"pipeline": NAME, "backfill_id": request.id, "correlation_id": "c-1"}
    assert job["entrypoint_num_cpus"] > 0
    assert (scene.state(request), scene.told()) == ("running", ["backfill_requested", "backfill_started"])


def test_a_supervisor_that_died_after_submitting_does_not_submit_again(scene: Scene) -> None:
    request = scene.ask()
    scene.launcher.submit("python -m jobs.backfill", submission_of(request))
    scene.backfills.step()
    assert len([asked for asked in scene.dashboard.service.asked if asked.path == "/api/jobs/"]) == 1
    assert scene.state(request) == "running"


def test_while_the_dashboard_is_away_requests_wait_and_say_so(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills = RequestedBackfills(scene.registry, scene.store, Launcher("http://127.0.0.1:1", "token"))
    scene.backfills.step()
    found = scene.requests.get(request.id)
    assert found.state == "requested"
    assert "does not answer" in found.detail
    scene.backfills = RequestedBackfills(scene.registry, scene.store, scene.launcher)
    scene.backfills.step()
    assert scene.state(request) == "running"
    assert scene.requests.get(request.id).detail == ""
    *_, started = Feed(scene.registry.database).after(0)
    assert started.event.message == f"all records; Ray job {submission_of(request)}"


def test_a_job_that_ray_has_forgotten_is_submitted_anew(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    scene.dashboard.forget()
    scene.backfills.step()
    assert list(scene.dashboard.jobs) == [submission_of(request)]
    assert (scene.state(request), scene.told()) == ("running", ["backfill_requested", "backfill_started"])


def test_a_cancelled_backfill_is_stopped_and_the_state_before_stays_alone(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    unserved = scene.build(request)
    scene.requests.cancel(request.id, "1f0c9a2b")
    scene.backfills.step()
    assert (scene.job(request)["status"], scene.state(request)) == ("STOPPED", "cancelling")
    scene.backfills.step()
    assert scene.state(request) == "cancelled"
    assert scene.store.generation(NAME) == 1
    assert scene.store.progress(unserved).standings == {}
    assert scene.told()[-1] == "backfill_cancelled"
    assert scene.requests.get(request.id).detail == (
        "cancelled with the key 1f0c9a2b; the state before is served as ever"
    )
    (shown,) = scene.registry.backfills()
    assert (shown.job_name, shown.source_dataset, shown.status) == ("backfill:Ride_index@1#2", "Ride", "cancelled")


def test_one_that_was_cancelled_before_it_was_submitted_never_runs(scene: Scene) -> None:
    request = scene.ask()
    scene.requests.cancel(request.id)
    scene.backfills.step()
    assert (scene.state(request), scene.dashboard.jobs) == ("cancelled", {})
    scene.ask()


def test_a_job_that_dies_makes_the_backfill_fail_and_leaves_nothing(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    unserved = scene.build(request)
    scene.job(request).update(status="FAILED", message="exit code 137, last available logs: rider ann, secret s3cr3t")
    scene.backfills.step()
    found = scene.requests.get(request.id)
    assert found.state == "failed"
    assert found.detail.startswith("exit code 137; `ray job logs ")
    assert "s3cr3t" not in found.detail
    assert scene.store.progress(unserved).standings == {}
    assert scene.told()[-1] == "backfill_failed"


def test_a_job_that_said_itself_why_it_failed_is_not_told_of_twice(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    assert scene.requests.failed(request, "the archive is away")
    scene.job(request).update(status="FAILED", message="exit code 1")
    scene.backfills.step()
    assert scene.requests.get(request.id).detail == "the archive is away"
    assert scene.told().count("backfill_failed") == 1


def test_a_job_killed_in_the_middle_of_the_switch_is_finished(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    built = scene.build(request)
    assert scene.requests.built(request.id)
    scene.backfills.step()
    assert scene.state(request) == "switching"  # the job is alive: it is its own to finish
    scene.job(request)["status"] = "FAILED"
    scene.backfills.step()
    assert (scene.state(request), scene.store.generation(NAME)) == ("complete", 2)
    assert scene.store.progress(built).positions == [1]
    assert "generation 2 is served" in scene.requests.get(request.id).detail
    assert scene.told()[-1] == "backfill_completed"


def test_a_job_killed_after_the_switch_is_complete_and_nothing_is_switched_back(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    scene.build(request)
    assert scene.requests.built(request.id)
    scene.store.switch_generation(NAME, 3)  # and a later one was made by hand meanwhile
    scene.job(request)["status"] = "FAILED"
    scene.backfills.step()
    assert (scene.state(request), scene.store.generation(NAME)) == ("complete", 3)


def test_a_state_that_was_cleared_before_it_was_served_is_not_switched_to(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    built = scene.build(request)
    assert scene.requests.built(request.id)
    scene.store.clear(built, range(64))
    scene.job(request)["status"] = "FAILED"
    scene.backfills.step()
    assert (scene.state(request), scene.store.generation(NAME)) == ("failed", 1)


def test_a_request_in_trouble_does_not_hold_up_another_one(scene: Scene) -> None:
    first, second = scene.ask(), scene.requests.request("Rain_index@1")
    scene.dashboard.service.answers[f"GET /api/jobs/{submission_of(first)}"] = (500, {"error": "no"})
    scene.backfills.step()
    assert (scene.state(first), scene.state(second)) == ("requested", "running")
