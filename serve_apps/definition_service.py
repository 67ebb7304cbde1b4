"""The control plane: takes commits and events, and shows what is committed and what became of it.

Knows no HTTP. Methods block (SQL, log appends): the routes call them in threads.
"""

from __future__ import annotations

from functools import partial

from featurelib.clock import Instant
from featurelib.connectors import missing_driver
from featurelib.definitions import Commit, Definitions, PipelineDef, SourceDef, ref
from featurelib.engine.extractor import INLINE, Runner
from featurelib.engine.program import pipelines_of
from featurelib.errors import DefinitionError, InvalidRequest, NotFound, Problem, StoreUnavailable
from featurelib.plan import CommitReceipt, Plan, plan
from featurelib.settings import Settings
from featurelib.stock import read_commit
from featurelib.stores.log import Log
from featurelib.stores.registry import EventRecord, Registry, SourceStatus
from featurelib.stores.shapes import Shapes, as_detail
from featurelib.validation import merged
from serve_apps import shapes
from serve_apps.current import compile_all
from serve_apps.freshness import dataset_freshness, rules_of

_RECENT_EVENTS = 20


class DefinitionService:
    """What the definition routes answer with.

    Args:
        registry: what is committed.
        log: where records sent over HTTP go.
        settings: partition counts and lateness rules.
        runner: where a commit's extractors are tried.
        drift: what is known of the columns that came to datasets.
    """

    def __init__(
        self, registry: Registry, log: Log, settings: Settings, runner: Runner = INLINE, drift: Shapes | None = None
    ) -> None:
        self._drift = drift
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
        """Every source, how far it got, and how the columns that come differ; null where the log does not answer."""
        progress = shapes.by_dataset(self._registry.source_statuses())
        definitions = self._registry.definitions()
        records = []
        for source in definitions.sources:
            status = progress.get(source.dataset)
            try:
                if source.connector.type == "webhook":
                    status = self._pushed(source, definitions)
                drift = self._drift_of(source, definitions)
            except StoreUnavailable:
                drift = None
            records.append({**shapes.source_record(source, status), "schema_drift": drift})
        return records

    def _pushed(self, source: SourceDef, definitions: Definitions) -> SourceStatus | None:
        """How far a source got that nobody reads: what the log says of it."""
        dataset = definitions.dataset(source.dataset)
        partitions = self._log.partitions(ref(dataset)) if dataset is not None else 0
        if dataset is None or not partitions:
            return None
        heads = self._log.heads(ref(dataset), partitions)
        return SourceStatus(
            dataset=source.dataset,
            rows_in=sum(head.next_offset for head in heads),
            rows_dead=sum(head.records_dead for head in heads),
            rows_late=sum(head.records_late for head in heads),
        )

    def _drift_of(self, source: SourceDef, definitions: Definitions) -> shapes.Json | None:
        dataset = definitions.dataset(source.dataset)
        return as_detail(self._drift.drift(dataset)) if self._drift is not None and dataset is not None else None

    def jobs(self, now: Instant) -> list[shapes.Json]:
        """Every job, how far it got and how fresh it is at ``now``."""
        return self._jobs(self._registry.definitions(), now)

    def scale(self, name: str, partition_count: int, now: Instant) -> shapes.Json:
        """Give a pipeline another number of workers; they are replaced while records go on arriving.

        Args:
            name: ``by_rider`` or ``by_rider_job``, with ``@2`` where there are several versions.
            partition_count: 1 to 64.
            now: what ages are counted from.

        Raises:
            NotFound: no such job.
            InvalidRequest: the count is out of range, or the name fits several versions.
        """
        definitions = self._registry.definitions()
        pipeline = job_named(name, definitions)
        self._registry.scale(ref(pipeline), partition_count)
        return next(
            job
            for job in self._jobs(definitions, now)
            if (job["name"], job["version"], job["job_type"]) == (f"{pipeline.name}_job", pipeline.version, "pipeline")
        )

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

    def status(self, now: Instant) -> shapes.Json:
        """Everything at a glance; ages are counted from ``now``."""
        definitions = self._registry.definitions()
        latest = self._registry.latest_commit()
        jobs, fresh = self._jobs(definitions, now), self._fresh(definitions, now)
        return {
            **shapes.status(definitions, jobs, self.sources(), self._registry.backfills(), fresh),
            "latest_commit": shapes.commit_record(latest) if latest else None,
            "recent_events": [shapes.event_record(e) for e in self._registry.events(limit=_RECENT_EVENTS)],
        }

    def _jobs(self, definitions: Definitions, now: Instant) -> list[shapes.Json]:
        return shapes.job_records(definitions, self._registry.jobs(), self._settings.pipeline.partition_count, now)

    def _fresh(self, definitions: Definitions, now: Instant) -> dict[str, shapes.Json]:
        datasets = {ref(dataset): dataset for dataset in definitions.datasets}
        idle_after_us = self._settings.ingest.idle_after_ms * 1_000
        return {
            status.dataset: dataset_freshness(
                status, rules_of(datasets[status.dataset], definitions, idle_after_us), now
            )
            for status in self._registry.dataset_statuses()
            if status.dataset in datasets
        }


def job_named(name: str, definitions: Definitions) -> PipelineDef:
    """The pipeline whose job, or which itself, has the name; ``@2`` behind it names a version.

    Raises:
        NotFound: there is none.
        InvalidRequest: several versions have the name.
    """
    title, _, version = name.partition("@")
    pipelines = [p for p in pipelines_of(definitions) if version in {"", str(p.version)}]
    # A pipeline's own name may end like a job's: what is a job's name is taken for that first.
    found = [p for p in pipelines if f"{p.name}_job" == title] or [p for p in pipelines if p.name == title]
    if not found:
        raise NotFound(f"there is no job {name[:128]!r}")
    if len(found) > 1:
        versions = ", ".join(f"{pipeline.name}@{pipeline.version}" for pipeline in found)
        raise InvalidRequest(f"name: {name!r} has several versions: {versions}; name one of them")
    return found[0]


def decide(current: Definitions, commit: Commit, runner: Runner = INLINE) -> Plan:
    """What a commit would do; the rules every commit passes. ``runner`` says where its extractors are tried.

    Raises:
        DefinitionError: listing every problem.
        BreakingChange: listing every break.
    """
    decided = plan(current, commit)
    _check_drivers(current, commit)
    _check_readable(current, commit, runner)
    return decided


def _check_drivers(current: Definitions, commit: Commit) -> None:
    # A source that is committed already runs or says why not: the rest of its module must not wait for it.
    new = (source for source in commit.sources if source not in current.sources)
    absent = ((source, missing_driver(source.connector.type)) for source in new)
    problems = [_unread(commit, source, missing) for source, missing in absent if missing]
    if problems:
        raise DefinitionError(problems)


def _unread(commit: Commit, source: SourceDef, missing: str) -> Problem:
    where = commit.locate(f"source:{source.dataset}")
    text, hint = f"this platform cannot read the source: {missing}", "Install it where the platform runs."
    file, line = (where.file, where.line) if where else (None, None)
    return Problem("missing_driver", source.dataset, text, hint, file=file, line=line)


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
