"""The control plane: shows what is committed and what became of it.

Knows no HTTP. Methods block (SQL, log appends): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Mapping

from featurelib.clock import Instant
from featurelib.definitions import Definitions, SourceDef, ref
from featurelib.errors import NotFound, StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry, SourceStatus
from featurelib.stores.revisions import Revisions
from featurelib.stores.shapes import Shapes, as_detail
from serve_apps import shapes
from serve_apps.catalogue import Catalogued
from serve_apps.control import JobControl
from serve_apps.freshness import dataset_freshness, rules_of

_RECENT_EVENTS = 20


class DefinitionService:
    """What the definition routes answer with.

    Args:
        registry: what is committed.
        log: where records sent over HTTP go.
        settings: when a partition counts as idle.
        jobs: how the jobs do.
        drift: what is known of the columns that came to datasets.
    """

    def __init__(
        self, registry: Registry, log: Log, settings: Settings, jobs: JobControl, drift: Shapes | None = None
    ) -> None:
        self._jobs = jobs
        self._drift = drift
        self._registry = registry
        self._log = log
        self._settings = settings

    def sources(self) -> list[shapes.Json]:
        """Every source, how far it got, and how the columns that come differ; null where the log does not answer."""
        progress = shapes.by_dataset(self._registry.source_statuses())
        read = Catalogued.read(self._registry)
        return [self._source(source, progress, read) for source in read.definitions.sources]

    def source(self, dataset: str) -> shapes.Json:
        """The source of one dataset, as in the list.

        Raises:
            NotFound: the dataset has none.
        """
        read = Catalogued.read(self._registry)
        source = read.definitions.source(dataset)
        if source is None:
            raise NotFound(f"source {dataset[:128]!r} is not committed")
        return self._source(source, shapes.by_dataset(self._registry.source_statuses()), read)

    def _source(self, source: SourceDef, progress: Mapping[str, SourceStatus], read: Catalogued) -> shapes.Json:
        status = progress.get(source.dataset)
        try:
            if source.connector.type == "webhook":
                status = self._pushed(source, read.definitions)
            drift = self._drift_of(source, read.definitions)
        except StoreUnavailable:
            drift = None
        return {**shapes.source_record(source, status, read.about(source)), "schema_drift": drift}

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

    def status(self, now: Instant) -> shapes.Json:
        """Everything at a glance; ages are counted from ``now``."""
        definitions = self._registry.definitions()
        latest = self._registry.latest_commit()
        versions = Revisions(self._registry.database).newest("featureset")
        known = shapes.Known(self._fresh(definitions, now), versions, self._log_bytes())
        return {
            **shapes.status(definitions, self._jobs.jobs(), self.sources(), self._registry.backfills(), known),
            "latest_commit": shapes.commit_record(latest) if latest else None,
            "recent_events": [shapes.event_record(e) for e in self._registry.events(limit=_RECENT_EVENTS)],
        }

    def _log_bytes(self) -> dict[str, int]:
        try:
            return self._log.sizes()
        except StoreUnavailable:
            return {}  # the rest of the status is wanted all the more

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
