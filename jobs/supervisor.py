"""The supervisor: keeps every wanted task running as a named Ray actor, and says how they do.

What is wanted follows from the registry alone (jobs/wanted.py); what to do about it is decided in jobs/reconcile.py
and done here. Actors are detached: they outlive a supervisor or a Ray head that dies, and the next supervisor finds
them by name, those that nobody wants any more included.

Run as one Ray job: ``python -m jobs.supervisor``.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import psutil
import ray
import structlog
from ray.actor import ActorHandle

from cluster.launcher import connect
from cluster.processes import Owned, begin_session, collect_seldom
from featurelib.clock import SystemClock
from featurelib.definitions import Definitions, ref
from featurelib.engine.program import pipelines_of
from featurelib.errors import ClusterError, StoreUnavailable, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.generations import Generations, Stand
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore
from featurelib.stores.orders import JobOrder, Orders
from featurelib.stores.registry import NewEvent, Registry
from jobs.board import Board
from jobs.derived_schedule import keep_derived_tables
from jobs.driver import Answer, Driver, Report, Task, leave
from jobs.holds import Hold, Holds
from jobs.reconcile import Drain, End, Limits, Seen, Start, absence, caught_up, decide
from jobs.requested import follow
from jobs.requested_training import follow_training_sets
from jobs.wanted import Kind, TaskSpec, log_datasets, wanted_tasks

_log = structlog.get_logger(__name__)
NAMESPACE = "thyme"
_ROUND_S = 0.4
# Actors that nobody started here: of a supervisor before this one.
_LOOK_FOR_OTHERS_S = 15.0
# A task that ended, and that no supervisor ends, is a process for nothing.
_LEAVE_AFTER_S = 60.0
# Workers mostly wait; a hundredth of a logical CPU each places them on the raylet that has any (the head's has none).
_ACTOR_CPUS = 0.01


class TaskActor:
    """A Ray actor around one task."""

    def __init__(self, spec: TaskSpec) -> None:
        collect_seldom(between=True)
        begin_session(load_settings().pipeline.niceness)
        self._process = Owned.of(os.getpid())
        self._driver = Driver(spec.name, spec.digest, lambda: _make_task(spec, load_settings()))
        self._driver.begin()
        threading.Thread(target=leave, args=(self._driver, _LEAVE_AFTER_S, os._exit), daemon=True).start()

    def report(self) -> Answer:
        """How the task is doing."""
        return Answer(self._driver.report(), socket.gethostname(), self._process)

    def stop(self) -> None:
        """Have the task end after its current step."""
        self._driver.ask_to_stop()


def _make_task(spec: TaskSpec, settings: Settings) -> Task:
    from jobs.ingest import SourceTask
    from jobs.maintain import ArchiveTask
    from jobs.monitor import MonitorTask
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
    if spec.kind == "monitor":
        return MonitorTask(settings)
    return ArchiveTask(spec.definitions.datasets, settings)


class _Held:
    """An actor: its handle, the question it has not answered yet, and what is known of it."""

    def __init__(self, handle: ActorHandle[Any], name: str, now: float) -> None:
        self.handle = handle
        self.seen = Seen(name, now)
        self.asked: Any = None
        self.answer: Answer | None = None

    def ask(self) -> Any:
        """The question that is open; one that is not answered is not asked again."""
        if self.asked is None:
            self.asked = self.handle.report.remote()
        return self.asked

    def answered(self, answer: Answer, now: float) -> None:
        """Note an answer."""
        self.asked, self.answer = None, answer
        self.seen = Seen(self.seen.name, now, answer.report, self.seen.ending_since)

    def kill(self) -> None:
        """End its process, one that is stopped included."""
        ray.kill(self.handle)
        if self.answer is None or self.answer.report.state in ("fenced", "stopped"):
            return
        # Ray first asks the process to end, which takes it five seconds of one that is stopped.
        process = self.answer.process.process() if self.answer.host == socket.gethostname() else None
        if process is not None:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                _log.debug("already_gone", task=self.seen.name)


class Supervisor:
    """Compares wanted with running, round after round."""

    def __init__(self, settings: Settings, registry: Registry, log: Log, store: OnlineStore) -> None:
        self._settings = settings
        self._registry = registry
        self._log = log
        self._store = store
        limits = settings.pipeline
        self._limits = Limits(limits.lease_ms / 1_000, limits.step_limit_ms / 1_000, limits.drain_ms / 1_000)
        self._actors: dict[str, _Held] = {}
        self._failures: dict[str, int] = {}
        self._holds = Holds(registry, log, store, limits.catch_up_rows)
        self._order_book = Orders(registry.database, SystemClock())
        self._orders: dict[str, JobOrder] = {}
        self._generations = Generations(settings.online.redis_url.get_secret_value())
        self._stands: dict[str, Stand] = {}
        self._board = Board(settings, registry, log)
        self._version: int | None = None
        self._definitions = Definitions()
        self._counts: dict[str, int] = {}
        self._looked = time.monotonic()
        self._others_at = float("-inf")

    def round(self) -> None:
        """One comparison. Stores that do not answer leave everything as it is until the next round."""
        try:
            wanted = self._wanted()
            served = {name: spec for name, spec in wanted.items() if self._is_served(spec)}
            held = self._holds.of(served, self._orders, self._actors)
        except StoreUnavailable as error:
            _log.warning("store_unavailable", detail=str(error))
            return
        running = {name: spec for name, spec in wanted.items() if self._runs(spec, held)}
        self._find_others()
        self._collect()
        self._act(running, held)
        try:
            shown = self._holds.shown(held, self._actors)
            published = {name: spec for name, spec in running.items() if name in served}
            self._board.publish(self._definitions, published, self._answers(), shown)
        except StoreUnavailable as error:
            _log.warning("store_unavailable", detail=str(error))

    def _act(self, running: Mapping[str, TaskSpec], held: Mapping[str, Hold]) -> None:
        seen = [actor.seen for actor in self._actors.values()]
        paused = {name for hold in held.values() if hold.why == "paused" for name in hold.names}
        for action in decide(running, seen, self._look(), self._limits, paused):
            match action:
                case Start(spec):
                    self._start(spec)
                case Drain(name, why):
                    self._drain(name, why)
                case End(name, why, outcome):
                    self._end(name, why, outcome)

    def _wanted(self) -> dict[str, TaskSpec]:
        version = self._registry.version()
        if version != self._version:
            self._definitions = self._registry.definitions()
            self._counts = self._registry.partition_counts()
            for dataset in log_datasets(self._definitions):
                self._log.create(ref(dataset), self._settings.pipeline.partition_count)
            self._version = version
        self._orders = self._order_book.all()
        self._stands = self._generations.of([ref(pipeline) for pipeline in pipelines_of(self._definitions)])
        return wanted_tasks(
            self._definitions,
            self._workers_of,
            self._generations_of,
            self._restarts_of,
            monitored=self._settings.monitor.is_on,
        )

    def _generations_of(self, pipeline: str) -> tuple[int, ...]:
        return self._stands[pipeline].all

    def _runs(self, spec: TaskSpec, held: Mapping[str, Hold]) -> bool:
        """Whether nothing holds the task: the shadow of what a bounded job has built runs before it is served."""
        hold = held.get(ref(spec.pipeline)) if spec.pipeline is not None else None
        return hold is None or (hold.why == "catching_up" and not self._is_served(spec))

    def _is_served(self, spec: TaskSpec) -> bool:
        """Whether it is not the worker of a state that is only kept."""
        return spec.pipeline is None or spec.generation == self._stands[ref(spec.pipeline)].served

    def _workers_of(self, pipeline: str) -> int:
        return self._counts.get(pipeline, self._settings.pipeline.partition_count)

    def _restarts_of(self, pipeline: str) -> int:
        order = self._orders.get(pipeline)
        return order.restarts if order is not None else 0

    def _find_others(self) -> None:
        """Take up actors that another supervisor started; those that nobody wants are then ended like any other."""
        if time.monotonic() - self._others_at < _LOOK_FOR_OTHERS_S:
            return
        for name in ray.util.list_named_actors():
            if name not in self._actors:
                self._adopt(name)
        self._others_at = time.monotonic()

    def _adopt(self, name: str) -> None:
        try:
            handle = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return  # it ended meanwhile
        self._actors[name] = _Held(handle, name, time.monotonic())
        _log.info("adopted", task=name)

    def _collect(self) -> None:
        asked = {held.ask(): name for name, held in self._actors.items()}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ROUND_S) if asked else ([], [])
        for reply in answered:
            self._take(asked[reply], reply)

    def _take(self, name: str, reply: Any) -> None:
        held = self._actors[name]
        try:
            answer: Answer = ray.get(reply)
        except ray.exceptions.ActorUnavailableError as error:
            # A connection broke; whether the actor is gone is for its next answer, or its lease, to say.
            held.asked = None
            _log.warning("no_report", task=name, detail=str(error).splitlines()[0][:200])
        except ray.exceptions.RayActorError as error:
            del self._actors[name]
            why = f"its process died: {str(error).splitlines()[0][:200]}"
            if held.seen.ending_since is None:
                self._event("job_failed", name, why, severity="error")
        except ray.exceptions.RayError as error:
            held.asked = None
            _log.warning("no_report", task=name, detail=str(error)[-300:])
        else:
            held.answered(answer, time.monotonic())
            self._note_failure(name, answer.report)

    def _look(self) -> float:
        """The time to decide at. What this process was itself stopped or starved for is not held against actors."""
        before, self._looked = self._looked, time.monotonic()
        lost_s = absence(before, self._looked)
        for held in self._actors.values():
            held.seen = caught_up(held.seen, min(lost_s, self._looked - held.seen.heard))
        return self._looked

    def _start(self, spec: TaskSpec) -> None:
        options = {"name": spec.name, "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": _ACTOR_CPUS}
        try:
            handle = _actor_class(spec.kind).options(**options, max_concurrency=2).remote(spec)
        except ValueError:
            self._adopt(spec.name)  # the name is taken
            return
        self._actors[spec.name] = _Held(handle, spec.name, time.monotonic())
        restarted = spec.name in self._failures
        self._failures[spec.name] = 0
        self._event("job_restarted" if restarted else "job_started", spec.name, "started")

    def _drain(self, name: str, why: str) -> None:
        held = self._actors[name]
        held.handle.stop.remote()
        held.seen = Seen(name, held.seen.heard, held.seen.report, time.monotonic())
        _log.info("draining", task=name, why=why)
        self._event("job_stopped", name, why)

    def _end(self, name: str, why: str, outcome: Literal["stopped", "failed"]) -> None:
        held = self._actors.pop(name)
        # The epoch keeps a worker that is still in a step from writing after its successor has begun.
        held.kill()
        if outcome == "failed":
            self._event("job_failed", name, f"{why}; its process was ended", severity="error")
        elif held.seen.ending_since is None:
            self._event("job_stopped", name, why)
        else:
            _log.info("ended", task=name, why=why)

    def _note_failure(self, name: str, report: Report) -> None:
        if report.failures > self._failures.get(name, 0):
            self._event("job_failed", name, f"{report.detail}; retrying", severity="warn")
        self._failures[name] = report.failures

    def _answers(self) -> dict[str, Answer]:
        return {
            name: held.answer
            for name, held in self._actors.items()
            if held.answer is not None and held.seen.ending_since is None
        }

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
    title = {"pipeline": "PipelineWorker", "source": "SourceReader", "archive": "Archiver", "monitor": "Monitor"}[kind]
    return ray.remote(type(title, (TaskActor,), {}))


def run(settings: Settings, stopping: threading.Event) -> None:
    """Supervise until told to stop. Tasks go on without a supervisor.

    Raises:
        ClusterError: backfills, training sets or derived tables are no longer carried out.
    """
    clock = SystemClock()
    url = settings.online.redis_url.get_secret_value()
    registry = Registry(settings.registry_url, clock)
    supervisor = Supervisor(settings, registry, Log(url, clock), OnlineStore(url))
    following = _following(settings, stopping)
    while not stopping.is_set():
        try:
            supervisor.round()
        except (ThymeError, ray.exceptions.RayError) as error:
            _log.warning("round_failed", detail=str(error)[:500])
        ended = [each.name for each in following if not each.is_alive()]
        if ended and not stopping.is_set():
            # Nobody foresaw why; its traceback is in this job's log. The watcher starts the next supervisor.
            raise ClusterError(f"the thread that carries out {ended[0]} has ended")
        stopping.wait(_ROUND_S)


def _following(settings: Settings, stopping: threading.Event) -> list[threading.Thread]:
    """Threads that carry out what was asked for: the dashboard may take seconds, and live workers wait for nobody."""
    carried_out = {"backfills": follow, "training sets": follow_training_sets, "derived tables": keep_derived_tables}
    threads = [
        threading.Thread(target=work, args=(settings, stopping), name=name, daemon=True)
        for name, work in carried_out.items()
    ]
    for thread in threads:
        thread.start()
    return threads


def main() -> None:
    """Entry point of the supervisor's Ray job."""
    settings = load_settings()
    connect(settings, namespace=NAMESPACE, log_to_driver=False)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    run(settings, stopping)


if __name__ == "__main__":
    main()
