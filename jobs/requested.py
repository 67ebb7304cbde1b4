"""Carries out the backfills that were asked for: submits their Ray jobs, follows them, and ends the cancelled ones.

The request's row says how far it is (stores/backfill_requests.py), Ray whether its job is alive. Every step can be
done again by another supervisor: a job's submission id follows from its request's id, so none is submitted twice, and
a switch that was begun is finished. A job that Ray has forgotten, since the platform was stopped, is submitted anew.
Runs in a thread of its own: the dashboard may take seconds to answer, and live workers must not wait for that.
"""

from __future__ import annotations

import threading

import structlog

from cluster.launcher import Job, Launcher
from featurelib.clock import SystemClock, format_instant
from featurelib.definitions import PipelineDef, ref
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import pipelines_of
from featurelib.errors import ClusterError, ThymeError
from featurelib.settings import Settings
from featurelib.stores.backfill_requests import SWITCHING, BackfillRequest, BackfillRequests
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import Registry
from jobs.backfill import generation_served, shown

_log = structlog.get_logger(__name__)
_ROUND_S = 1.0
_MESSAGE = 500


class RequestedBackfills:
    """Moves every open request as far as it can get now.

    Args:
        registry: what is committed, and where requests are kept.
        store: where states are built and switched.
        launcher: what runs the jobs.
    """

    def __init__(self, registry: Registry, store: OnlineStore, launcher: Launcher) -> None:
        self._registry = registry
        self._requests = BackfillRequests(registry.database, SystemClock())
        self._store = store
        self._launcher = launcher

    def step(self) -> None:
        """Look at each open request once.

        Raises:
            StoreUnavailable: a store does not answer; a later step goes on where this one stopped.
        """
        for request in self._requests.open():
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
        """The job is over and its request is not: it died before it could say why, or was stopped by hand."""
        if job.status == "STOPPED":
            over = self._requests.failed(request, f"its Ray job {job.submission_id} was stopped by hand")
        else:
            over = self._requests.failed(request, _said(job))
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
        if self._store.generation(request.pipeline) < fresh.generation:
            if self._store.progress(fresh).positions is None:
                self._requests.failed(request, "the new state was cleared before it was served", SWITCHING)
                return
            self._store.switch_generation(request.pipeline, fresh.generation)
        if self._requests.completed(request, f"{request.rows} rows rebuilt; {generation_served(fresh.generation)}"):
            self._show(request, "complete")

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
    return f"thyme-backfill-{request.id}"


def follow(settings: Settings, stopping: threading.Event) -> None:
    """Carry out requests until told to stop."""
    registry = Registry(settings.registry_url, SystemClock())
    store = OnlineStore(settings.online.redis_url.get_secret_value())
    with Launcher.of(settings) as launcher:
        backfills = RequestedBackfills(registry, store, launcher)
        while not stopping.wait(_ROUND_S):
            try:
                backfills.step()
            except ThymeError as error:
                _log.warning("backfills_not_followed", detail=str(error)[:_MESSAGE])
    store.close()
    registry.close()


def _command(request: BackfillRequest) -> str:
    name, _, version = request.pipeline.rpartition("@")
    ends = {"since": request.since, "until": request.until}
    given = [f" --{end} {format_instant(instant)}" for end, instant in ends.items() if instant is not None]
    return f"python -m jobs.backfill --pipeline {name} --version {version} --request {request.id}{''.join(given)}"


def _said(job: Job) -> str:
    # Ray puts the end of the job's output behind its own words; that may hold anything.
    told = job.message.partition(", last available logs")[0].partition("\n")[0][:_MESSAGE]
    return f"{told or 'its Ray job ended without a result'}; `ray job logs {job.submission_id}` shows more"
