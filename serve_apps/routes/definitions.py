"""`/api/v1/status`: everything at a glance."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field

from serve_apps.records import CommitEntry, ExtractorRecord, FeatureRecord, Shown, SourceRecord
from serve_apps.routes.access import Anybody, ServicesOf, definition_service
from serve_apps.routes.feed import EventView
from serve_apps.routes.jobs import JobView

router = APIRouter(tags=["definitions"])
_AT = "2026-03-01T12:00:00Z"


class PartitionFreshness(Shown):
    """Where a log partition of a dataset ends."""

    partition: int
    """From 0."""
    rows_out: int
    """Records in it."""
    accepted_until: str | None = Field(examples=[_AT])
    """The newest event time."""
    last_accepted_at: str | None = Field(examples=[_AT])
    """When the last record was accepted."""
    watermark: str | None = Field(examples=[_AT])
    """What is older comes too late; null where nothing does."""
    idle: bool
    """Whether it accepted nothing for so long that its watermark says little."""


class DatasetFreshness(Shown):
    """How fresh a dataset is, and what it counted."""

    event_time_lag_s: float | None
    """Age of the newest event time accepted, in seconds; null before the first."""
    accepted_until: str | None = Field(examples=[_AT])
    """The newest event time accepted."""
    last_accepted_at: str | None = Field(examples=[_AT])
    """When the last record was accepted."""
    records_behind: int
    """Records that the slowest pipeline has not applied yet."""
    waiting_s: float | None
    """Since when the oldest of them waits, in seconds; null when none does."""
    archive_records_behind: int | None
    """Records that are not in the archive yet."""
    rows_in: int
    """Records that came."""
    rows_out: int
    """Records accepted."""
    rows_late: int
    """Of them, too late to be aggregated."""
    rows_dead: int
    """Records that became dead letters."""
    partitions: list[PartitionFreshness]
    """Of its log."""
    updated_at: str | None = Field(examples=[_AT])
    """When this was written down."""


class DatasetStatus(Shown):
    """A dataset at a glance."""

    name: str = Field(examples=["Ride"])
    """Its name."""
    version: int
    """As declared."""
    freshness: DatasetFreshness | None
    """Null before anything was written down of it."""


class PipelineStatus(Shown):
    """A pipeline at a glance."""

    name: str = Field(examples=["by_rider"])
    """Its name."""
    version: int
    """As declared."""
    input_datasets: list[str]
    """What it reads, the left side first."""
    output_dataset: str = Field(examples=["RiderStats"])
    """What it fills."""


class FeaturesetStatus(Shown):
    """A featureset at a glance."""

    name: str = Field(examples=["Rider"])
    """Its name."""
    version: int
    """The version that is committed: one per commit that changed it."""
    feature_count: int
    """How many features it has."""
    features: list[FeatureRecord]
    """Its features."""
    extractors: list[ExtractorRecord]
    """What fills them."""


class FeatureServiceStatus(Shown):
    """A feature service at a glance."""

    name: str = Field(examples=["fraud_detection_feature_service"])
    """Its name within the workspace."""
    workspace: str = Field(examples=["prod"])
    """The namespace of its name."""
    version: int
    """As declared."""
    feature_count: int
    """How many features it gives."""


class BackfillStatus(Shown):
    """A backfill at a glance."""

    job_name: str = Field(examples=["by_rider_job"])
    """The pipeline's job."""
    source_dataset: str = Field(examples=["Ride"])
    """What is read again."""
    status: str = Field(examples=["complete"])
    """How far it got."""
    records_ingested: int
    """Records read."""


class PhysicalAsset(Shown):
    """A thing that is kept for a definition."""

    kind: Literal["stream", "state", "table"]
    """A log, a pipeline's state, or a table of the archive."""
    name: str = Field(examples=["Ride@1"])
    """What it is named by."""
    owner: str = Field(examples=["Ride"])
    """The definition it is kept for."""
    bytes: int | None
    """What a log takes in memory; null of others, and while the online store does not answer."""


class Status(Shown):
    """Everything at a glance."""

    datasets: list[DatasetStatus]
    """Datasets, all versions."""
    pipelines: list[PipelineStatus]
    """Pipelines, all versions."""
    featuresets: list[FeaturesetStatus]
    """Featuresets."""
    feature_services: list[FeatureServiceStatus]
    """Feature services, all versions."""
    sources: list[SourceRecord]
    """Sources."""
    jobs: list[JobView]
    """Jobs."""
    backfills: list[BackfillStatus]
    """Backfills that were begun."""
    physical_assets: list[PhysicalAsset]
    """What is kept for definitions."""
    latest_commit: CommitEntry | None
    """The newest commit; null before the first."""
    recent_events: list[EventView]
    """The newest entries of the feed."""


@router.get("/api/v1/status", response_model=Status)
def status(services: ServicesOf, caller: Anybody) -> dict[str, Any]:
    """Everything at a glance; of feature services those of workspaces that the caller may read."""
    found = definition_service(services).status(services.clock.now())
    shown = [each for each in found["feature_services"] if caller.may_read_workspace(each["workspace"])]
    return {**found, "feature_services": shown}
