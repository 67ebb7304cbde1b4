"""What is shown of jobs, sources and datasets: put together from what workers answer and where the logs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cluster.processes import Owned
from featurelib.definitions import Definitions, ref
from featurelib.settings import Settings
from featurelib.stores.log import Head, Log
from featurelib.stores.registry import JobRecord, Registry, SourceStatus, WorkerStatus
from jobs import freshness
from jobs.driver import Answer, Report
from jobs.holds import Held
from jobs.wanted import TaskSpec, log_datasets

# Numbers change with every record; what a worker is doing is shown at once.
_PUBLISH_EVERY_S = 1.0


class Board:
    """Puts what is shown into the registry.

    Args:
        settings: when a step counts as stalled.
        registry: where it is shown.
        log: where the logs of the datasets end.
        seconds: a clock that only ever moves forward.
    """

    def __init__(
        self, settings: Settings, registry: Registry, log: Log, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._stalled_s = settings.pipeline.stalled_after_ms / 1_000
        self._registry = registry
        self._log = log
        self._seconds = seconds
        self._before: dict[str, JobRecord] | None = None
        self._progress: dict[str, freshness.Progress] = {}
        self._failed: dict[Owned, int] = {}
        self._shown: object = None
        self._at = float("-inf")

    def publish(
        self,
        definitions: Definitions,
        wanted: Mapping[str, TaskSpec],
        answers: Mapping[str, Answer],
        held: Mapping[str, Held] = MappingProxyType({}),
    ) -> None:
        """Publish when something changed that people wait for, and else once a second.

        Args:
            definitions: what is committed.
            wanted: the tasks that should run.
            answers: what they said, by name.
            held: pipelines that do not run now, by ref.

        Raises:
            StoreUnavailable: log or registry does not answer.
        """
        workers = self._workers(wanted, answers)
        for pipeline, hold in held.items():
            workers[pipeline] = [WorkerStatus(partition=at, state=hold.state) for at in range(hold.workers)]
        shown = {pipeline: [worker.state for worker in each] for pipeline, each in workers.items()}
        now = self._seconds()
        if shown == self._shown and now - self._at < _PUBLISH_EVERY_S:
            return
        if self._before is None:
            self._before = {job.pipeline: job for job in self._registry.jobs() if job.job_type == "pipeline"}
        self._note_progress(wanted, answers, held)
        self._put(definitions, workers, wanted, answers)
        self._shown, self._at = shown, now

    def _workers(self, wanted: Mapping[str, TaskSpec], answers: Mapping[str, Answer]) -> dict[str, list[WorkerStatus]]:
        workers: dict[str, list[WorkerStatus]] = {}
        for name, spec in wanted.items():
            if spec.pipeline is not None:
                status = _worker_status(spec.partition, answers.get(name), self._stalled_s)
                workers.setdefault(ref(spec.pipeline), []).append(status)
        return workers

    def _note_progress(
        self, wanted: Mapping[str, TaskSpec], answers: Mapping[str, Answer], held: Mapping[str, Held]
    ) -> None:
        facts: dict[str, list[Mapping[str, Any]]] = {}
        for name, spec in wanted.items():
            if spec.pipeline is None:
                continue
            answer = answers.get(name)
            facts.setdefault(ref(spec.pipeline), []).append(answer.report.facts if answer else {})
            if answer is not None:
                self._count_failed(ref(spec.pipeline), answer)
        # Processes that are gone are not asked about again.
        there = {answer.process for answer in answers.values()}
        self._failed = {process: told for process, told in self._failed.items() if process in there}
        # A pipeline with a worker that has not said yet how far it is stands where it stood.
        told_whole = {pipeline: each for pipeline, each in facts.items() if all(each)}
        self._progress.update({pipeline: freshness.progress_of(each) for pipeline, each in told_whole.items()})
        self._progress = {pipeline: each for pipeline, each in self._progress.items() if pipeline in facts}
        self._progress |= {name: hold.progress for name, hold in held.items() if hold.progress is not None}

    def _count_failed(self, pipeline: str, answer: Answer) -> None:
        """Add what a worker's process counted since it was asked last; every process counts from nothing."""
        assert self._before is not None
        told = answer.report.facts.get("failed", 0)
        before = self._before.get(pipeline) or JobRecord(pipeline=pipeline, partition_count=0, state="")
        last = self._failed.get(answer.process)
        if last is None:
            # A supervisor before this one has counted what it was told by a process that it has shown.
            shown = {(worker.host, worker.pid) for worker in before.workers or ()}
            last = told if (answer.host, answer.process.pid) in shown else 0
        self._failed[answer.process] = told
        if told > last:
            self._before[pipeline] = before.model_copy(update={"rows_failed": before.rows_failed + told - last})

    def _put(
        self,
        definitions: Definitions,
        workers: Mapping[str, list[WorkerStatus]],
        wanted: Mapping[str, TaskSpec],
        answers: Mapping[str, Answer],
    ) -> None:
        assert self._before is not None
        heads = freshness.heads_of(self._log, [ref(dataset) for dataset in log_datasets(definitions)])
        stands = {pipeline: progress.applied for pipeline, progress in self._progress.items()}
        behind = freshness.backlogs(self._log, heads, stands)
        for pipeline, each in workers.items():
            before = self._before.get(pipeline)
            if pipeline not in self._progress:
                self._before[pipeline] = freshness.unknown_job(pipeline, each, before)
                continue
            failed = before.rows_failed if before else 0
            self._before[pipeline] = freshness.job_record(
                pipeline, each, self._progress[pipeline], behind[pipeline], heads, failed
            )
        archive_lag = answers["archive"].report.facts.get("lag", {}) if "archive" in answers else {}
        slowest = freshness.slowest(stands.values())
        by_dataset = {name: {at: to for at, to in slowest.items() if at[0] == name} for name in heads}
        waiting = freshness.backlogs(self._log, heads, by_dataset)
        self._registry.put_statuses(
            [self._before[pipeline] for pipeline in workers],
            [
                _source_status(spec.source.dataset, answers[name].report, heads[ref(spec.definitions.datasets[0])])
                for name, spec in wanted.items()
                if spec.source is not None and name in answers
            ],
            [freshness.dataset_status(n, h, waiting[n], archive_lag.get(n)) for n, h in heads.items()],
        )


def _worker_status(partition: int, answer: Answer | None, stalled_s: float) -> WorkerStatus:
    if answer is None:
        return WorkerStatus(partition=partition, state="starting")
    report = answer.report
    stalled = report.step_s > stalled_s and report.state in ("starting", "running", "retrying")
    return WorkerStatus(
        partition=partition,
        state="stalled" if stalled else report.state,
        detail=f"one step has taken {report.step_s:.0f} s" if stalled else report.detail,
        failures=report.failures,
        host=answer.host,
        pid=answer.process.pid,
        step_s=round(report.step_s, 3),
    )


def _source_status(dataset: str, report: Report, heads: Sequence[Head]) -> SourceStatus:
    # The log counts: what the task has counted itself is of one process, and after a crash holds records twice.
    return SourceStatus(
        dataset=dataset,
        cursor_value=report.facts.get("cursor") or None,
        rows_in=sum(head.next_offset for head in heads),
        rows_dead=sum(head.records_dead for head in heads),
        rows_late=sum(head.records_late for head in heads),
        last_error=report.facts.get("error") or (report.detail if report.state == "retrying" else None),
    )
