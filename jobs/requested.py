"""Carries out the backfills that were asked for: submits their Ray jobs, follows them, and ends the cancelled ones.

The request's row says how far it is (stores/backfill_requests.py), Ray whether its job is alive. Every step can be
done again by another supervisor: a job's submission id follows from its request's id and attempt, so none is
submitted twice, and a switch that was begun is finished. A job that Ray has forgotten, since the platform was stopped,
is submitted anew; for one that died another goes on with what it has built, twice at most.
Runs in a thread of its own: the dashboard may take seconds to answer, and live workers must not wait for that.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import structlog

from cluster.launcher import Job, Launcher
from featurelib.clock import SECOND, Clock, SystemClock, format_instant
from featurelib.definitions import PipelineDef, ref
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import compiled, pipelines_of
from featurelib.errors import ClusterError, ThymeError
from featurelib.settings import Settings
from featurelib.stores.backfill_requests import SWITCHING, BackfillRequest, BackfillRequests
from featurelib.stores.generations import Generations, Stand
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import Registry
from jobs.backfill import clear_unserved, generation_served, kept_until, shown, switch
from jobs.inputs import input_partitions, lowest_positions

_log = structlog.get_logger(__name__)
_ROUND_S = 1.0
_MESSAGE = 500
# Jobs of one request: the first, and two that go on.
_ATTEMPTS = 3
# Workers of a generation that is let go of have ended by then, and every replica has looked which one is served.
_LEAVE_US = 30 * SECOND


class BuildStores(NamedTuple):
    """The stores that backfills move."""

    registry: Registry
    log: Log
    online: OnlineStore
    generations: Generations

    def close(self) -> None:
        """Close connections."""
        for store in self:
            store.close()


class RequestedBackfills:
    """Moves every open request as far as it can get now.

    Args:
        stores: where requests are kept, and states are built and switched.
        launcher: what runs the jobs.
        keep_s: how long what was served before is kept.
        clock: what that is counted by.
    """

    def __init__(self, stores: BuildStores, launcher: Launcher, keep_s: int, clock: Clock) -> None:
        self._registry, self._log, self._store, self._generations = stores
        self._requests = BackfillRequests(self._registry.database, clock)
        self._launcher = launcher
        self._keep_s = keep_s
        self._clock = clock

    def step(self) -> None:
        """Look at each open request once, and at what is kept.

        Raises:
            StoreUnavailable: a store does not answer; a later step goes on where this one stopped.
        """
        self._drop_what_was_kept()
        for request in self._requests.open():
            if request.state == "rolling_back":
                self._roll_back(request)
                continue
            try:
                self._advance(request)
            except ClusterError as error:
                # Ray's head is being brought back: what was asked for waits, and says so.
                said = str(error).partition("\n")[0][:_MESSAGE]
                if request.state == "requested":
                    self._requests.waits(request, said)
                _log.warning("backfill_waits", request=request.id, state=request.state, detail=said)

    def _advance(self, request: BackfillRequest) -> None:
        job = self._launcher.job(submission_of(request))
        match request.state:
            case "cancelling":
                self._cancel(request, job)
            case "switching":
                self._finish(request, job)
            case _ if job is None:
                self._submit(request)
            case "requested" if job.running:
                self._requests.submitted(request, job.submission_id)
            case _ if not job.running:
                self._ended(request, job)

    def _submit(self, request: BackfillRequest) -> None:
        metadata = {"pipeline": request.pipeline, "backfill_id": request.id}
        if request.correlation_id:
            metadata["correlation_id"] = request.correlation_id
        submission = self._launcher.submit(_command(request), submission_of(request), metadata=metadata)
        self._requests.submitted(request, submission)

    def _cancel(self, request: BackfillRequest, job: Job | None) -> None:
        if job is not None and job.running:
            self._launcher.stop(job.submission_id)
            return
        self._drop(request)
        if self._requests.cancelled(request, f"{request.detail}; the state before is served as ever"):
            self._show(request, "cancelled")

    def _ended(self, request: BackfillRequest, job: Job) -> None:
        """The job is over and its request is not: it died, or was stopped by hand."""
        why = request.detail or _said(job)
        if job.status != "STOPPED" and request.attempt < _ATTEMPTS:
            self._requests.retried(request, why)
            return
        if job.status == "STOPPED":
            over = self._requests.failed(request, f"its Ray job {job.submission_id} was stopped by hand")
        else:
            over = self._requests.failed(request, why)
        # Not before: a job that got as far as the switch has moved the request on, and what it built will be served.
        if over:
            self._drop(request)
            self._show(request, "failed")

    def _finish(self, request: BackfillRequest, job: Job | None) -> None:
        """Make the switch of a job that died before it had made it, or before it had said so."""
        if job is not None and job.running:
            return
        assert request.generation is not None  # known since the job began
        fresh = StateName(request.pipeline, request.generation)
        served = self._store.generation(request.pipeline)
        if served < fresh.generation and self._store.progress(fresh).positions is None:
            self._requests.failed(request, "the new state was cleared before it was served", SWITCHING)
            return
        if served < fresh.generation and not self._is_up_to_date(request, fresh.generation):
            return  # cleared, and being folded anew
        kept = switch(self._generations, self._store, fresh, self._keep_s)
        until = kept_until(kept, self._clock.now(), self._keep_s)
        message = f"{request.rows} rows rebuilt; {generation_served(fresh.generation)}"
        if self._requests.completed(request, message, kept, until):
            self._show(request, "complete")

    def _roll_back(self, request: BackfillRequest) -> None:
        """Serve the generation before again, which its workers have kept up to date."""
        assert request.generation is not None  # both are known of one that was complete
        assert request.previous is not None
        built, before = Stand(request.generation, request.previous), Stand(request.previous, request.generation)
        stand = self._generations.of([request.pipeline])[request.pipeline]
        if stand not in (built, before):
            self._requests.not_rolled_back(request, f"generation {request.previous} is not kept any more")
        elif stand == built and not self._is_up_to_date(request, request.previous):
            self._requests.waits(request, f"generation {request.previous} is being brought up to date")
        elif self._generations.swap(request.pipeline, built):
            self._requests.rolled_back(request, f"generation {request.previous} is served again")
            self._show(request, "rolled_back")

    def _is_up_to_date(self, request: BackfillRequest, generation: int) -> bool:
        """Whether a generation has applied all that was history to the backfill.

        It had when it was built, unless an erasure has cleared it meanwhile and it is folded anew.
        """
        pipeline = self._pipeline(request)
        if pipeline is None or request.cut is None:
            return True
        program = compiled(pipeline, self._registry.definitions())
        standings = self._store.progress(StateName(request.pipeline, generation)).standings
        lowest = lowest_positions(program, input_partitions(program, self._log), standings)
        return all(applied >= history for applied, history in zip(lowest, request.cut, strict=True))

    def _drop_what_was_kept(self) -> None:
        """Let go of generations whose time is over: their workers end, then their bytes go."""
        now = self._clock.now()
        for request in self._requests.keeping():
            assert request.kept_until is not None
            kept = request.previous if request.state == "complete" else request.generation
            if kept is None or request.kept_until > now or request.state == "rolling_back":
                continue
            if self._generations.forget(request.pipeline, kept):
                # Counted from now: one that waited to be rolled back may have been served until a moment ago.
                self._requests.keep_until(request, now)
                continue
            if now - request.kept_until < _LEAVE_US:
                continue
            if kept != self._store.generation(request.pipeline):
                clear_unserved(self._store, StateName(request.pipeline, kept))
            self._requests.keep_until(request, None)

    def _drop(self, request: BackfillRequest) -> None:
        """Free what was built and is never served."""
        generation = self._requests.get(request.id).generation
        if generation is not None and self._store.generation(request.pipeline) < generation:
            self._store.clear(StateName(request.pipeline, generation), range(KEY_GROUPS))

    def _show(self, request: BackfillRequest, status: str) -> None:
        pipeline = self._pipeline(request)
        if pipeline is not None and request.generation is not None:
            state = StateName(request.pipeline, request.generation)
            self._registry.put_backfill(shown(pipeline, state, status, request.rows))

    def _pipeline(self, request: BackfillRequest) -> PipelineDef | None:
        definitions = self._registry.definitions()
        return next((each for each in pipelines_of(definitions) if ref(each) == request.pipeline), None)


def submission_of(request: BackfillRequest) -> str:
    """The submission id of a request's Ray job."""
    first = f"thyme-backfill-{request.id}"
    return first if request.attempt == 1 else f"{first}-{request.attempt}"


def follow(settings: Settings, stopping: threading.Event) -> None:
    """Carry out requests until told to stop."""
    registry = Registry(settings.registry_url, SystemClock())
    url = settings.online.redis_url.get_secret_value()
    store, generations, log = OnlineStore(url), Generations(url), Log(url, SystemClock())
    with Launcher.of(settings) as launcher:
        stores = BuildStores(registry, log, store, generations)
        backfills = RequestedBackfills(stores, launcher, settings.pipeline.keep_generation_s, SystemClock())
        while not stopping.wait(_ROUND_S):
            try:
                backfills.step()
            except ThymeError as error:
                _log.warning("backfills_not_followed", detail=str(error)[:_MESSAGE])
    stores.close()


def _command(request: BackfillRequest) -> str:
    name, _, version = request.pipeline.rpartition("@")
    ends = {"since": request.since, "until": request.until}
    given = [f" --{end} {format_instant(instant)}" for end, instant in ends.items() if instant is not None]
    return f"python -m jobs.backfill --pipeline {name} --version {version} --request {request.id}{''.join(given)}"


def _said(job: Job) -> str:
    # Ray puts the end of the job's output behind its own words; that may hold anything.
    told = job.message.partition(", last available logs")[0].partition("\n")[0][:_MESSAGE]
    return f"{told or 'its Ray job ended without a result'}; `ray job logs {job.submission_id}` shows more"
