"""The supervisor: keeps every wanted task running as a named Ray actor, and says how they do.

What is wanted follows from the registry's definitions alone (jobs/wanted.py); the supervisor
compares it with the actors that answer and starts, replaces or ends the difference. Actors are detached:
they outlive a supervisor or a Ray head that dies, and the next supervisor adopts them by name.

Run as one Ray job: ``python -m jobs.supervisor``.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Mapping
from typing import Any, Literal

import ray
import structlog
from ray.actor import ActorHandle

from cluster.launcher import Launcher, connect
from featurelib.clock import SystemClock
from featurelib.definitions import Definitions, PipelineDef, ref
from featurelib.errors import StoreUnavailable, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import JobRecord, NewEvent, Registry, SourceStatus
from jobs.driver import Driver, Report, Task
from jobs.wanted import Kind, TaskSpec, log_datasets, wanted_tasks

_log = structlog.get_logger(__name__)
NAMESPACE = "thyme"
_ROUND_S = 0.4
_ANSWER_S = 5.0
# Workers mostly wait; a hundredth of a logical CPU each places them on the raylet that has any (the head's has none).
_ACTOR_CPUS = 0.01
_GC_THRESHOLDS = (100_000, 50, 100)


class TaskActor:
    """A Ray actor around one task."""

    def __init__(self, spec: TaskSpec) -> None:
        # A worker keeps millions of small tuples; looking through them for cycles at the usual thresholds took a
        # third of the time of folding.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        self._driver = Driver(spec.name, spec.digest, lambda: _make_task(spec, load_settings()))
        self._driver.begin()

    def report(self) -> Report:
        """How the task is doing."""
        return self._driver.report()

    def stop(self) -> None:
        """Let the current step end."""
        self._driver.stop()


def _make_task(spec: TaskSpec, settings: Settings) -> Task:
    from jobs.ingest import SourceTask
    from jobs.maintain import ArchiveTask
    from jobs.pipeline import PipelineTask

    if spec.kind == "pipeline":
        assert spec.pipeline is not None
        return PipelineTask(
            spec.pipeline,
            spec.definitions,
            partition=spec.partition,
            partitions=spec.partitions,
            generation=spec.generation,
            settings=settings,
        )
    if spec.kind == "source":
        assert spec.source is not None
        return SourceTask(spec.source, spec.definitions.datasets[0], settings)
    return ArchiveTask(spec.definitions.datasets, settings)


class Supervisor:
    """Compares wanted with running, round after round."""

    def __init__(self, settings: Settings, registry: Registry, log: Log, store: OnlineStore) -> None:
        self._settings = settings
        self._registry = registry
        self._log = log
        self._store = store
        self._actors: dict[str, ActorHandle[Any]] = {}
        self._reports: dict[str, Report] = {}
        self._failures: dict[str, int] = {}
        self._version: int | None = None
        self._definitions = Definitions()

    def round(self) -> None:
        """One comparison. Stores that do not answer leave everything as it is until the next round."""
        try:
            wanted = self._wanted()
        except StoreUnavailable as error:
            _log.warning("store_unavailable", detail=str(error))
            return
        for name in [name for name in self._actors if name not in wanted]:
            self._end(name, "no longer wanted")
        for name, spec in wanted.items():
            if name not in self._actors:
                self._start(spec)
        self._collect(wanted)
        self._publish(wanted)

    def _wanted(self) -> dict[str, TaskSpec]:
        version = self._registry.version()
        if version != self._version:
            self._definitions = self._registry.definitions()
            for dataset in log_datasets(self._definitions):
                self._log.create(ref(dataset), self._settings.pipeline.partition_count)
            self._version = version
        wanted = wanted_tasks(self._definitions, self._settings.pipeline.partition_count, self._store.generation)
        behind = self._far_behind(wanted)
        return {
            name: spec for name, spec in wanted.items() if spec.pipeline is None or ref(spec.pipeline) not in behind
        }

    def _far_behind(self, wanted: Mapping[str, TaskSpec]) -> set[str]:
        """Pipelines that have no state yet and more input than live workers should fold: a bounded job goes first."""
        specs = {ref(s.pipeline): s for s in wanted.values() if s.pipeline is not None and s.name not in self._actors}
        return {pipeline for pipeline, spec in specs.items() if self._is_catching_up(pipeline, spec)}

    def _is_catching_up(self, pipeline: str, spec: TaskSpec) -> bool:
        assert spec.pipeline is not None
        if self._store.progress(StateName(pipeline, spec.generation)).positions is not None:
            return False
        waiting = sum(self._rows_in_log(dataset.name) for dataset in log_datasets(spec.definitions))
        if waiting < self._settings.pipeline.catch_up_rows:
            return False
        # One submission id per build, so that a supervisor that starts anew finds the job and does not send a second.
        submission = f"thyme-catch-up-{pipeline.replace('@', '-')}-{spec.generation}"
        with Launcher.of(self._settings) as launcher:
            known = launcher.job(submission)
            if known is None:
                command = f"python -m jobs.backfill --pipeline {spec.pipeline.name} --version {spec.pipeline.version}"
                launcher.submit(command, submission, metadata={"pipeline": pipeline})
                self._event("backfill_started", pipeline, f"{waiting} records behind: catching up as a bounded job")
        # A job that failed has said so; the live workers then fold what it did not.
        return known is None or known.running

    def _rows_in_log(self, name: str) -> int:
        dataset = self._definitions.dataset(name)
        assert dataset is not None
        return sum(head.next_offset for head in self._log.heads(ref(dataset), self._log.partitions(ref(dataset))))

    def _start(self, spec: TaskSpec) -> None:
        try:
            self._actors[spec.name] = ray.get_actor(spec.name, namespace=NAMESPACE)
            _log.info("adopted", task=spec.name)
        except ValueError:
            options = {"name": spec.name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": _ACTOR_CPUS}
            self._actors[spec.name] = _actor_class(spec.kind).options(**options, max_concurrency=2).remote(spec)
            restarted = spec.name in self._failures
            self._failures.setdefault(spec.name, 0)
            self._event("job_restarted" if restarted else "job_started", spec.name, "started")

    def _end(self, name: str, why: str) -> None:
        actor = self._actors.pop(name)
        self._reports.pop(name, None)
        # The epoch keeps a worker that is still in a step from writing after its successor has begun.
        ray.kill(actor)
        self._event("job_stopped", name, why)

    def _collect(self, wanted: Mapping[str, TaskSpec]) -> None:
        asked: dict[Any, str] = {actor.report.remote(): name for name, actor in self._actors.items()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        for reply in answered:
            name = asked[reply]
            try:
                report: Report = ray.get(reply)
            except ray.exceptions.RayActorError as error:
                self._actors.pop(name)
                self._reports.pop(name, None)
                self._event(
                    "job_failed", name, f"its process died: {str(error).splitlines()[0][:200]}", severity="error"
                )
                continue
            except ray.exceptions.RayTaskError as error:
                _log.warning("no_report", task=name, detail=str(error.cause)[:300])
                continue
            self._note_failure(name, report)
            self._reports[name] = report
            if report.digest != wanted[name].digest or report.state in ("fenced", "stopped"):
                self._end(name, "replaced by a newer definition" if report.state != "fenced" else report.detail)

    def _note_failure(self, name: str, report: Report) -> None:
        if report.failures > self._failures.get(name, 0):
            self._event("job_failed", name, f"{report.detail}; retrying", severity="warn")
        self._failures[name] = report.failures

    def _publish(self, wanted: Mapping[str, TaskSpec]) -> None:
        try:
            for pipeline in {ref(s.pipeline): s.pipeline for s in wanted.values() if s.pipeline is not None}.values():
                self._registry.put_job(self._job_record(pipeline, wanted))
            for spec in wanted.values():
                if spec.source is not None and spec.name in self._reports:
                    self._registry.put_source(self._source_status(spec.source.dataset, self._reports[spec.name]))
        except StoreUnavailable as error:
            _log.warning("registry_unavailable", detail=str(error))

    def _job_record(self, pipeline: PipelineDef, wanted: Mapping[str, TaskSpec]) -> JobRecord:
        names = [s.name for s in wanted.values() if s.pipeline is not None and ref(s.pipeline) == ref(pipeline)]
        reports = [self._reports[name] for name in names if name in self._reports]
        states = {report.state for report in reports} if len(reports) == len(names) else {"starting"}
        newest = [r.facts["newest_us"] for r in reports if r.facts.get("newest_us") is not None]
        return JobRecord(
            pipeline=ref(pipeline),
            partition_count=len(names),
            state=next(iter(states)) if len(states) == 1 else "degraded",
            detail="; ".join(report.detail for report in reports if report.state != "running" and report.detail),
            applied_us=max(newest, default=None),
            rows=sum(report.facts.get("rows", 0) for report in reports),
            lag=sum(report.facts.get("lag", 0) for report in reports),
        )

    def _source_status(self, dataset: str, report: Report) -> SourceStatus:
        facts = report.facts
        return SourceStatus(
            dataset=dataset,
            cursor_value=facts.get("cursor") or None,
            rows_in=facts.get("accepted", 0),
            rows_dead=facts.get("dead", 0),
            rows_late=facts.get("late", 0),
            last_error=facts.get("error") or (report.detail if report.state == "retrying" else None),
        )

    def _event(
        self, event_type: str, subject: str, message: str, severity: Literal["info", "warn", "error"] = "info"
    ) -> None:
        _log.info(event_type, subject=subject, message=message)
        event = NewEvent(
            event_type=event_type, severity=severity, source="supervisor", subject=subject, message=message
        )
        try:
            self._registry.record_event(event)
        except StoreUnavailable as error:
            _log.warning("event_not_recorded", detail=str(error))


def _actor_class(kind: Kind) -> Any:
    # The dashboard shows the class: one name per kind of task.
    title = {"pipeline": "PipelineWorker", "source": "SourceReader", "archive": "Archiver"}[kind]
    return ray.remote(type(title, (TaskActor,), {}))


def run(settings: Settings, stopping: threading.Event) -> None:
    """Supervise until told to stop. Tasks go on without a supervisor."""
    clock = SystemClock()
    url = settings.online.redis_url.get_secret_value()
    registry = Registry(settings.registry_url, clock)
    supervisor = Supervisor(settings, registry, Log(url, clock), OnlineStore(url))
    while not stopping.is_set():
        try:
            supervisor.round()
        except (ThymeError, ray.exceptions.RayError) as error:
            _log.warning("round_failed", detail=str(error)[:500])
        stopping.wait(_ROUND_S)


def main() -> None:
    """Entry point of the supervisor's Ray job."""
    settings = load_settings()
    connect(settings, namespace=NAMESPACE, log_to_driver=False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    run(settings, stopping)


if __name__ == "__main__":
    main()
