"""Requested backfills over a real registry and online store, and a stand-in for Ray's dashboard. No Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.launcher import Launcher
from featurelib.clock import SECOND
from featurelib.definitions import Commit, ref
from featurelib.engine.program import compiled, pipelines_of
from featurelib.errors import Conflict, StoreUnavailable
from featurelib.plan import plan
from featurelib.settings import Settings
from featurelib.stores.backfill_requests import Asked, BackfillRequest, BackfillRequests
from featurelib.stores.feed import Feed
from featurelib.stores.generations import Generations, Stand
from featurelib.stores.log import Log
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.registry import Registry
from jobs.backfill import Backfill
from jobs.requested import BuildStores, RequestedBackfills, submission_of
from tests.support.clocks import MovedClock
from tests.support.http_service import HttpService, http_service
from tests.support.worlds import RAIN, RIDES, T0

NAME = "Ride_index@1"
KEEP_S = 600


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
        self.clock = MovedClock(T0)
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}", self.clock)
        self.registry.migrate()
        commit = Commit(datasets=tuple(each.model_copy(update={"index": True}) for each in (RIDES, RAIN)), message="")
        self.registry.commit(commit, plan, None)
        self.requests = BackfillRequests(self.registry.database, self.clock)
        self.store = OnlineStore(redis_url)
        self.generations = Generations(redis_url)
        self.log = Log(redis_url, self.clock)
        for dataset in ("Ride@1", "Rain@1"):
            self.log.create(dataset, 1)
        self.dashboard = Dashboard(service)
        self.launcher = Launcher(service.url, "token")
        self.backfills = self.following(self.launcher)

    def following(self, launcher: Launcher) -> RequestedBackfills:
        stores = BuildStores(self.registry, self.log, self.store, self.generations)
        return RequestedBackfills(stores, launcher, KEEP_S, self.clock)

    def ask(self, **given: Any) -> BackfillRequest:
        return self.requests.request(NAME, **given)

    def build(self, request: BackfillRequest, generation: int = 2) -> StateName:
        """What the job does: begin, and write every group of the new state."""
        assert self.requests.began(request.id, generation, 10, cut=[1])
        return self.fold(generation)

    def fold(self, generation: int, position: int = 1) -> StateName:
        """What workers do: bring every group to a position."""
        state = StateName(NAME, generation)
        claims = self.store.claim(state, range(64))
        self.store.commit(state, [commit_of(claim.group, claim.epoch, position) for claim in claims])
        return state

    def complete(self) -> BackfillRequest:
        """A backfill of a pipeline that had a state, with its switch made after its job died."""
        self.fold(1)
        request = self.ask()
        self.backfills.step()
        self.build(request)
        assert self.requests.built(request.id)
        self.job(request)["status"] = "FAILED"
        self.backfills.step()
        assert self.state(request) == "complete"
        return request

    def stand(self) -> Stand:
        return self.generations.of([NAME])[NAME]

    def job(self, request: BackfillRequest) -> dict[str, Any]:
        return self.dashboard.jobs[submission_of(self.requests.get(request.id))]

    def state(self, request: BackfillRequest) -> str:
        return self.requests.get(request.id).state

    def told(self) -> list[str]:
        return [entry.event.event_type for entry in Feed(self.registry.database).after(0)][1:]

    def close(self) -> None:
        self.launcher.close()
        self.store.close()
        self.generations.close()
        self.log.close()
        self.registry.close()


def commit_of(group: int, epoch: int, position: int) -> GroupCommit:
    return GroupCommit(group, epoch, [position], None, 1, {})


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
    scene.backfills = scene.following(Launcher("http://127.0.0.1:1", "token"))
    scene.backfills.step()
    found = scene.requests.get(request.id)
    assert found.state == "requested"
    assert "does not answer" in found.detail
    scene.backfills = scene.following(scene.launcher)
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


def test_for_a_job_that_died_another_goes_on_with_what_it_built(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    built = scene.build(request)
    scene.job(request).update(status="FAILED", message="exit code 137, last available logs: rider ann, secret s3cr3t")
    scene.backfills.step()
    scene.backfills.step()
    found = scene.requests.get(request.id)
    assert (found.state, found.attempt, found.generation, found.cut) == ("running", 2, 2, (1,))
    assert sorted(scene.dashboard.jobs) == [f"thyme-backfill-{request.id}", f"thyme-backfill-{request.id}-2"]
    assert scene.store.progress(built).positions == [1]
    told = [entry.event for entry in Feed(scene.registry.database).after(0)]
    assert told[-1].event_type == "backfill_resumed"
    assert told[-1].message.startswith("attempt 2: exit code 137; `ray job logs ")
    assert "s3cr3t" not in told[-1].message


def test_a_job_that_keeps_dying_makes_the_backfill_fail_and_leaves_nothing(scene: Scene) -> None:
    request = scene.ask()
    scene.backfills.step()
    unserved = scene.build(request)
    for _ in range(2):
        scene.job(request).update(status="FAILED", message="exit code 1")
        scene.backfills.step()
        scene.backfills.step()
    scene.job(request).update(status="FAILED", message="exit code 137, last available logs: rider ann, secret s3cr3t")
    scene.requests.stumbled(request.id, "")
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
    assert scene.stand() == Stand(1)
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


def test_what_was_served_before_is_kept_and_served_again_by_a_rollback(scene: Scene) -> None:
    request = scene.complete()
    assert scene.stand() == Stand(served=2, kept=1)
    scene.requests.roll_back(request.id, "1f0c9a2b")
    scene.backfills.step()
    assert scene.stand() == Stand(served=1, kept=2)
    found = scene.requests.get(request.id)
    assert (found.state, found.detail) == ("rolled_back", "generation 1 is served again")
    assert scene.told()[-1] == "backfill_rolled_back"
    assert scene.requests.roll_back(request.id).state == "rolled_back"  # asked twice, done once
    scene.backfills.step()
    assert scene.stand() == Stand(served=1, kept=2)


def test_a_supervisor_that_died_between_the_swap_and_saying_so_does_not_swap_back(scene: Scene) -> None:
    request = scene.complete()
    scene.requests.roll_back(request.id)
    assert scene.generations.swap(NAME, Stand(2, 1))
    scene.backfills.step()
    assert (scene.state(request), scene.stand()) == ("rolled_back", Stand(1, 2))


def test_a_rollback_waits_for_a_state_that_an_erasure_has_cleared(scene: Scene) -> None:
    request = scene.complete()
    scene.store.clear(StateName(NAME, 1), range(64))
    scene.fold(1, position=0)
    scene.requests.roll_back(request.id)
    scene.backfills.step()
    assert (scene.state(request), scene.stand()) == ("rolling_back", Stand(2, 1))
    assert scene.requests.get(request.id).detail == "generation 1 is being brought up to date"
    scene.fold(1, position=1)
    scene.backfills.step()
    assert (scene.state(request), scene.stand()) == ("rolled_back", Stand(1, 2))


def test_what_is_kept_is_let_go_of_in_time_and_cleared_after_its_workers_have_ended(scene: Scene) -> None:
    request = scene.complete()
    scene.clock.advance((KEEP_S - 1) * SECOND)
    scene.backfills.step()
    assert scene.stand() == Stand(2, 1)
    scene.clock.advance(2 * SECOND)
    scene.backfills.step()
    assert scene.stand() == Stand(2)
    assert scene.store.progress(StateName(NAME, 1)).positions == [1]
    with pytest.raises(Conflict, match="not kept any more"):
        scene.requests.roll_back(request.id)
    scene.clock.advance(30 * SECOND)
    scene.backfills.step()
    assert scene.store.progress(StateName(NAME, 1)).standings == {}
    assert scene.store.progress(StateName(NAME, 2)).positions == [1]
    assert scene.requests.get(request.id).kept_until is None


def test_a_rolled_back_state_can_be_dropped_before_its_time(scene: Scene) -> None:
    request = scene.complete()
    with pytest.raises(Conflict):
        scene.requests.drop_kept(scene.ask().id)
    scene.requests.roll_back(request.id)
    scene.backfills.step()
    scene.requests.drop_kept(request.id)
    scene.backfills.step()
    scene.clock.advance(31 * SECOND)
    scene.backfills.step()
    assert scene.stand() == Stand(1)
    assert scene.store.progress(StateName(NAME, 2)).standings == {}
    assert scene.store.progress(StateName(NAME, 1)).positions == [1]


def test_what_was_served_until_a_moment_ago_is_not_cleared_at_once(scene: Scene) -> None:
    request = scene.complete()
    scene.requests.roll_back(request.id)
    scene.clock.advance((KEEP_S + 31) * SECOND)
    scene.backfills.step()
    assert (scene.state(request), scene.stand()) == ("rolled_back", Stand(1, 2))
    scene.backfills.step()
    assert scene.stand() == Stand(1)
    scene.clock.advance(29 * SECOND)
    scene.backfills.step()
    assert scene.store.progress(StateName(NAME, 2)).positions == [1]
    scene.clock.advance(SECOND)
    scene.backfills.step()
    assert scene.store.progress(StateName(NAME, 2)).standings == {}
    assert scene.requests.get(request.id).kept_until is None


def test_a_backfill_that_begins_while_one_is_rolled_back_clears_nothing_that_is_served(
    scene: Scene, tmp_path: Path, empty_redis_url: str
) -> None:
    class RolledBackMeanwhile(Generations):
        def of(self, pipelines: Sequence[str]) -> dict[str, Stand]:
            found = super().of(pipelines)
            self.swap(NAME, Stand(2, 1))
            return found

    scene.complete()
    work = Backfill(Settings(data_dir=tmp_path, online={"redis_url": empty_redis_url}))
    work._generations = RolledBackMeanwhile(empty_redis_url)
    definitions = scene.registry.definitions()
    (pipeline,) = (each for each in pipelines_of(definitions) if ref(each) == NAME)
    with pytest.raises(StoreUnavailable, match="begin again"):
        work._beginning(compiled(pipeline, definitions))
    assert scene.stand() == Stand(1, 2)
    assert all(scene.store.progress(StateName(NAME, each)).positions == [1] for each in (1, 2))


def test_a_request_in_trouble_does_not_hold_up_another_one(scene: Scene) -> None:
    first, second = scene.ask(), scene.requests.request("Rain_index@1")
    scene.dashboard.service.answers[f"GET /api/jobs/{submission_of(first)}"] = (500, {"error": "no"})
    scene.backfills.step()
    assert (scene.state(first), scene.state(second)) == ("requested", "running")
