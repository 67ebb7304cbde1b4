"""The control plane: takes commits and events, and shows what is committed and what became of it.

Knows no HTTP. Methods block (SQL, log appends): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import structlog

from featurelib.definitions import Commit, Definitions, ref
from featurelib.engine.extractor import INLINE, Runner
from featurelib.errors import DefinitionError, InvalidRequest, MaybeTaken, NotFound, Problem, StoreUnavailable
from featurelib.plan import CommitReceipt, Plan, plan
from featurelib.settings import Settings
from featurelib.stock import read_commit
from featurelib.stores.intake import Intake, Taken, lateness_of
from featurelib.stores.log import Log
from featurelib.stores.registry import EventRecord, NewEvent, Registry
from featurelib.validation import merged
from serve_apps import shapes
from serve_apps.current import compile_all

_RECENT_EVENTS = 20
_log = structlog.get_logger("thyme.serve")


class DefinitionService:
    """What the definition routes answer with.

    Args:
        registry: what is committed.
        log: where records sent over HTTP go.
        settings: partition counts and lateness rules.
        runner: where a commit's extractors are tried.
    """

    def __init__(self, registry: Registry, log: Log, settings: Settings, runner: Runner = INLINE) -> None:
        self._runner = runner
        self._registry = registry
        self._log = log
        self._settings = settings

    def commit(self, body: bytes, committed_by: str | None) -> CommitReceipt:
        """Store a commit whole or not at all.

        Raises:
            DefinitionError: listing every problem; nothing was committed.
            BreakingChange: listing every break; nothing was committed.
        """
        try:
            commit = read_commit(body, self._registry.definitions())
        except RecursionError:
            raise InvalidRequest("body: nested too deeply") from None
        return self._registry.commit(commit, partial(decide, runner=self._runner), committed_by)

    def log(self, dataset: str, events: Sequence[Mapping[str, Any]]) -> Taken:
        """Append records to a dataset; one that does not fit goes to its dead letters, the others continue.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the dataset is made by a pipeline.
            StoreUnavailable: nothing was taken.
            MaybeTaken: some of the records may have been accepted.
        """
        definitions = self._registry.definitions()
        found = definitions.dataset(dataset)
        if found is None:
            raise NotFound(f"dataset {dataset[:128]!r} is not committed")
        if definitions.producer(dataset) is not None:
            raise InvalidRequest(f"dataset: {dataset!r} is made by a pipeline; send records to its input")
        # A log that no worker has made yet is made here: its number of partitions is fixed by whoever comes first.
        partitions = self._log.create(ref(found), self._settings.pipeline.partition_count)
        lateness = lateness_of(definitions.source(dataset), self._settings.ingest)
        try:
            taken = Intake(self._log, found, partitions, lateness, definitions.cdc(found.name)).accept(events)
        except StoreUnavailable as error:
            text = f"{error}; some of the {len(events)} records may have been taken, and sent again would count twice"
            raise MaybeTaken(text) from error
        self._report(_events_of(found.name, taken))
        return taken

    def _report(self, events: Iterator[NewEvent]) -> None:
        for event in events:
            try:
                self._registry.record_event(event)
            except StoreUnavailable as error:
                # The records are in the log: an error now would have them sent twice.
                _log.warning("event_lost", event_type=event.event_type, subject=event.subject, error=str(error))
                return

    def featuresets(self) -> list[shapes.Json]:
        """Every featureset."""
        return [shapes.featureset_record(featureset) for featureset in self._registry.definitions().featuresets]

    def datasets(self) -> list[shapes.Json]:
        """Every dataset, all versions."""
        return [shapes.dataset_record(dataset) for dataset in self._registry.definitions().datasets]

    def pipelines(self) -> list[shapes.Json]:
        """Every pipeline, all versions."""
        return [shapes.pipeline_record(pipeline) for pipeline in self._registry.definitions().pipelines]

    def sources(self) -> list[shapes.Json]:
        """Every source and how far it got."""
        progress = shapes.by_dataset(self._registry.source_statuses())
        sources = self._registry.definitions().sources
        return [shapes.source_record(source, progress.get(source.dataset)) for source in sources]

    def jobs(self) -> list[shapes.Json]:
        """Every job and how far it got."""
        return self._jobs(self._registry.definitions())

    def commits(self, limit: int) -> list[shapes.Json]:
        """The latest commits, newest first."""
        return [shapes.commit_record(commit) for commit in self._registry.commits(limit)]

    def events(
        self, limit: int, severity: str | None, event_type: str | None, subject: str | None
    ) -> list[shapes.Json]:
        """The latest events, newest first."""
        found: list[EventRecord] = self._registry.events(
            limit=limit, severity=severity, event_type=event_type, subject=subject
        )
        return [shapes.event_record(event) for event in found]

    def status(self) -> shapes.Json:
        """Everything at a glance."""
        definitions = self._registry.definitions()
        latest = self._registry.latest_commit()
        return {
            **shapes.status(definitions, self._jobs(definitions), self.sources(), self._registry.backfills()),
            "latest_commit": shapes.commit_record(latest) if latest else None,
            "recent_events": [shapes.event_record(e) for e in self._registry.events(limit=_RECENT_EVENTS)],
        }

    def _jobs(self, definitions: Definitions) -> list[shapes.Json]:
        return shapes.job_records(definitions, self._registry.jobs(), self._settings.pipeline.partition_count)


def _events_of(dataset: str, taken: Taken) -> Iterator[NewEvent]:
    if taken.dead:
        first = taken.rejected[0]
        message = f"{taken.dead} records sent to {dataset} were rejected; the first: {first.message}"
        yield _event(
            "dead_letter", dataset, message, {"dead": taken.dead, "reason": first.reason, "field": first.field}
        )
    if taken.late:
        yield _event("late_records", dataset, f"{taken.late} records sent to {dataset} are late", {"late": taken.late})
    for violation in taken.violations:
        message = f"{violation.failed} of {violation.total} records sent to {dataset} break an expectation"
        rule = violation.expectation.model_dump(mode="json", exclude_defaults=True)
        detail = {"expectation": rule, "failed": violation.failed, "total": violation.total}
        yield _event("expectation_violation", dataset, message, detail)


def _event(event_type: str, dataset: str, message: str, detail: dict[str, Any]) -> NewEvent:
    return NewEvent(
        event_type=event_type,
        severity="warn",
        source="definition-service",
        subject=dataset,
        message=message,
        detail=detail,
    )


def decide(current: Definitions, commit: Commit, runner: Runner = INLINE) -> Plan:
    """What a commit would do; the rules every commit passes. ``runner`` says where its extractors are tried.

    Raises:
        DefinitionError: listing every problem.
        BreakingChange: listing every break.
    """
    decided = plan(current, commit)
    _check_readable(current, commit, runner)
    return decided


def _check_readable(current: Definitions, commit: Commit, runner: Runner) -> None:
    # Compiled here as replicas will: a featureset that cannot be served is refused, not found out at the first read.
    _, _, broken = compile_all(merged(current, commit), runner)
    touched = {f.name for f in commit.featuresets} | {d.name for d in commit.datasets}
    problems = [_unreadable(commit, name, why) for name, why in broken.items() if name in touched]
    if problems:
        raise DefinitionError(problems)


def _unreadable(commit: Commit, name: str, why: str) -> Problem:
    where = commit.locate(f"featureset:{name}") or commit.locate(f"dataset:{name}")
    return Problem("not_servable", name, why, file=where.file if where else None, line=where.line if where else None)
