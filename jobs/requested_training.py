"""Carries out the training sets that were asked for over HTTP: submits their Ray jobs, follows them, ends, forgets.

    ray job submit … -- python -m jobs.requested_training --request <id>

The row of a training set says how far it is (stores/training_requests.py), Ray whether its job is alive. Every step can
be done again by another supervisor: a job's submission id follows from id and attempt, so none is submitted twice. For
a job that died another goes on with the parts that are left, twice at most. A small spine is read in the process of the
job, a large one on Ray Data.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import structlog

from cluster.launcher import Job, Launcher
from featurelib.clock import DAY, Clock, SystemClock
from featurelib.errors import ClusterError, NotFound, StoreUnavailable, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.registry import Registry
from featurelib.stores.training_places import TrainingPlace, allowed_spine, uploaded_before
from featurelib.stores.training_requests import TrainingRequests, TrainingSet
from jobs.training_run import Progress, ReadParts, TrainingAsked, TrainingRun, Work
from jobs.training_set import read_here, read_on_ray

_log = structlog.get_logger(__name__)
_ROUND_S = 1.0
_MESSAGE = 500
# Jobs of one training set: the first, and two that go on.
_ATTEMPTS = 3
# What is over is looked through for what is too old this often.
_FORGET_EVERY_ROUNDS = 600


class RequestedTrainingSets:
    """Moves every training set as far as it can get now.

    Args:
        registry: where they are kept.
        launcher: what runs the jobs.
        settings: where their files lie, and how long those are kept.
        clock: what that is counted by.
    """

    def __init__(self, registry: Registry, launcher: Launcher, settings: Settings, clock: Clock) -> None:
        self._requests = TrainingRequests(registry.database, clock)
        self._launcher = launcher
        self._settings = settings
        self._clock = clock

    def step(self) -> None:
        """Look at each that is not over once.

        Raises:
            StoreUnavailable: a store does not answer; a later step goes on where this one stopped.
        """
        for made in self._requests.open():
            try:
                self._advance(made)
            except ClusterError as error:
                # Ray's head is being brought back: what was asked for waits, and says so.
                said = str(error).partition("\n")[0][:_MESSAGE]
                self._requests.stumbled(made.id, said)
                _log.warning("training_set_waits", training_set=made.id, state=made.state, detail=said)

    def forget_old(self) -> int:
        """Delete those whose time is over, with their files; returns how many.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        old = self._requests.over_before(self._clock.now() - self._settings.training.keep_days * DAY)
        for made in old:
            self._place(made).remove()
            self._requests.forget(made.id)
        return len(old)

    def forget_abandoned(self) -> int:
        """Delete uploads of a day ago that nobody asked for in the end, since their replica died; returns how many.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        gone = 0
        for name in uploaded_before(self._settings.training_url, self._clock.now() - DAY):
            try:
                self._requests.get(name)
            except NotFound:
                TrainingPlace(self._settings.training_url, name).remove()
                gone += 1
        return gone

    def _advance(self, made: TrainingSet) -> None:
        job = self._launcher.job(submission_of(made))
        match made.state:
            case "cancelling":
                self._cancel(made, job)
            case _ if job is None:
                self._submit(made)
            case "requested":
                self._requests.submitted(made, job.submission_id)
            case _ if not job.running:
                self._ended(made, job)

    def _submit(self, made: TrainingSet) -> None:
        metadata = {"featureset": made.featureset, "training_set_id": made.id}
        if made.correlation_id:
            metadata["correlation_id"] = made.correlation_id
        command = f"python -m jobs.requested_training --request {made.id}"
        submission = self._launcher.submit(command, submission_of(made), metadata=metadata)
        self._requests.submitted(made, submission)

    def _cancel(self, made: TrainingSet, job: Job | None) -> None:
        if job is not None and job.running:
            self._launcher.stop(job.submission_id)
            return
        self._place(made).remove()
        self._requests.cancelled(made)

    def _ended(self, made: TrainingSet, job: Job) -> None:
        """The job is over and its training set is not: it died, met a store that is away, or was stopped by hand."""
        why = made.detail or _said(job)
        if job.status == "STOPPED":
            self._requests.failed(made, "cluster_error", f"its Ray job {job.submission_id} was stopped by hand")
        elif made.attempt < _ATTEMPTS:
            self._requests.retried(made, why)
        else:
            self._requests.failed(made, "cluster_error", why)

    def _place(self, made: TrainingSet) -> TrainingPlace:
        return TrainingPlace(self._settings.training_url, made.id)


class _NoLongerWanted(Exception):
    """Nobody waits for the training set any more."""


def make(settings: Settings, training_id: str, clock: Clock, read: ReadParts) -> bool:
    """Make a training set that was asked for, or go on with it; what its job does.

    Args:
        settings: where records, definitions and files are.
        training_id: of it.
        clock: says which instants have been.
        read: reads the parts.

    Returns:
        Whether it is over: complete, failed for good, or not wanted any more. Otherwise the same call goes on.

    Raises:
        NotFound: there is none of that id.
        StoreUnavailable: the registry does not answer.
    """
    with closing(Registry(settings.registry_url, clock)) as registry:
        requests = TrainingRequests(registry.database, clock)
        made = requests.get(training_id)
        if not made.is_open:
            return True
        try:
            manifest = TrainingRun(settings, clock).make(
                _asked(settings, requests, made), read, _teller(requests, made)
            )
        except _NoLongerWanted:
            return True
        except ThymeError as error:
            return _failed(requests, made, error)
        requests.completed(made, manifest.rows)
        return True


def _failed(requests: TrainingRequests, made: TrainingSet, error: ThymeError) -> bool:
    said = str(error)[:_MESSAGE]
    if error.retryable or isinstance(error, ClusterError):
        requests.stumbled(made.id, said)
        return False
    requests.failed(made, error.code, said)
    return True


def _teller(requests: TrainingRequests, made: TrainingSet) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        _log.info("training_set_progress", **progress._asdict())
        if not requests.advance(made.id, *progress):
            raise _NoLongerWanted

    return tell


def _asked(settings: Settings, requests: TrainingRequests, made: TrainingSet) -> TrainingAsked:
    output = TrainingPlace(settings.training_url, made.id).output
    spine = _spine(settings, requests, made)
    # One that died between its manifest and its row is there already: it is put in its own place again.
    if made.like_id is not None:
        like = TrainingPlace(settings.training_url, made.like_id).manifest_url
        return TrainingAsked(output=output, spine=spine, like=like, overwrite=True)
    return TrainingAsked(
        output=output,
        spine=spine,
        featureset=made.featureset,
        entity_column=made.entity_column,
        timestamp_column=made.timestamp_column,
        knowledge=made.knowledge,
        overwrite=True,
    )


def _spine(settings: Settings, requests: TrainingRequests, made: TrainingSet) -> str:
    """Where the spine lies: named, or uploaded with the first of those that were made like each other."""
    if made.spine is not None:
        return allowed_spine(made.spine, settings.training.spine_roots)
    while made.like_id is not None:
        made = requests.get(made.like_id)
    return TrainingPlace(settings.training_url, made.id).spine()


def submission_of(made: TrainingSet) -> str:
    """The submission id of a training set's Ray job."""
    first = f"thyme-training-set-{made.id}"
    return first if made.attempt == 1 else f"{first}-{made.attempt}"


def follow_training_sets(settings: Settings, stopping: threading.Event) -> None:
    """Carry out requests until told to stop."""
    registry = Registry(settings.registry_url, SystemClock())
    rounds = 0
    with closing(registry), Launcher.of(settings) as launcher:
        training = RequestedTrainingSets(registry, launcher, settings, SystemClock())
        while not stopping.wait(_ROUND_S):
            try:
                training.step()
                if rounds % _FORGET_EVERY_ROUNDS == 0:
                    training.forget_old()
                    training.forget_abandoned()
                rounds += 1
            except ThymeError as error:
                _log.warning("training_sets_not_followed", detail=str(error)[:_MESSAGE])


def _said(job: Job) -> str:
    # Ray puts the end of the job's output behind its own words; that may hold anything.
    told = job.message.partition(", last available logs")[0].partition("\n")[0][:_MESSAGE]
    return f"{told or 'its Ray job ended without a result'}; `ray job logs {job.submission_id}` shows more"


def read_by_size(settings: Settings, work: Work) -> Iterator[int]:
    """Read parts: few rows in this process, many on Ray Data.

    Raises:
        ThymeError: what a part gave.
    """
    small = work.rows <= settings.serving.offline_rows
    return (read_here if small else read_on_ray)(settings, work)


def main() -> None:
    """Command line of the job."""
    parser = argparse.ArgumentParser(prog="jobs.requested_training", description=__doc__.splitlines()[0])
    parser.add_argument("--request", required=True, help="id of the training set")
    settings = load_settings()
    request = parser.parse_args().request
    try:
        over = make(settings, request, SystemClock(), lambda work: read_by_size(settings, work))
    except StoreUnavailable as error:
        sys.exit(f"{error.code}: {error}\n{error.remedy}")
    if not over:
        sys.exit("it is gone on with by another job")


if __name__ == "__main__":
    main()
