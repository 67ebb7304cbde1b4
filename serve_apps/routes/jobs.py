"""`/api/v1/jobs`: the pipelines that run, and orders to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from serve_apps.messages import ErrorBody
from serve_apps.routes.access import ServicesOf, Writer, job_control

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

JobName = Annotated[
    str,
    Path(
        description="Of the job or its pipeline; `@2` behind it names a version.", examples=["by_rider", "by_rider@2"]
    ),
]


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class PipelineSpecView(_View):
    """What a job folds."""

    operators: list[dict[str, Any]]
    """The steps, flat: one entry per operator and per aggregate."""
    max_lateness: str = Field(examples=["1h", ""])
    """How late a record of its source may come and still count; empty: nothing is late."""


class JobSpecView(_View):
    """What a job is made of. Topics are names only: the log has a partition per worker of its dataset."""

    name: str
    """Of the job."""
    partition_count: int
    """Workers."""
    input_topic: str
    """Of the dataset it reads first."""
    output_topic: str
    """Of the dataset it fills."""
    replaylog_topic: str
    """A name that stock clients show; nothing is written there."""
    pipeline_spec: PipelineSpecView
    """What it folds."""


class JobFreshnessView(_View):
    """How fresh a job is, and what it counted."""

    event_time_lag_s: float | None
    """Age of the newest event time applied, in seconds; null before the first."""
    records_behind: int
    """Records of its inputs that are not applied yet."""
    waiting_s: float | None
    """Since when the oldest of them waits, in seconds; null when none does."""
    rows_in: int
    """Records of its inputs applied."""
    rows_out: int
    """Rows folded from them."""
    rows_late: int
    """Records of its inputs that came too late to count."""
    rows_failed: int
    """Rows that a function of the pipeline could not take."""


class WorkerView(_View):
    """A worker as it last answered."""

    partition: int
    """Which share of the keys it has."""
    state: str
    """`starting`, `running`, `stalled`, `retrying`, `pausing`, `paused` …"""
    detail: str
    """What it said last when something failed."""
    failures: int
    """How often it began again after a failure."""
    host: str
    """Where its process runs; empty while there is none."""
    pid: int
    """Of its process; 0 while there is none."""
    step_s: float
    """How long the step under way has taken, in seconds."""


_EXAMPLE: dict[str, Any] = {
    "id": "0f0a9a6e-55a8-5a0e-9a8e-7a3f0d1f8a11",
    "name": "by_rider_job",
    "job_type": "pipeline",
    "partition_count": 1,
    "version": 1,
    "state": "running",
    "paused": False,
    "detail": "",
    "applied_until": "2026-03-01T12:00:00Z",
    "lag": 0,
    "rows": 1200,
    "freshness": {
        "event_time_lag_s": 1.4,
        "records_behind": 0,
        "waiting_s": None,
        "rows_in": 1200,
        "rows_out": 1200,
        "rows_late": 0,
        "rows_failed": 0,
    },
    "workers": [
        {"partition": 0, "state": "running", "detail": "", "failures": 0, "host": "node1", "pid": 4711, "step_s": 0.0}
    ],
    "updated_at": "2026-03-01T12:00:01Z",
    "spec": {
        "name": "by_rider_job",
        "partition_count": 1,
        "input_topic": "Ride_topic",
        "output_topic": "RiderStats_topic",
        "replaylog_topic": "by_rider_job_replaylog",
        "pipeline_spec": {
            "operators": [
                {"aggregate": {"agg_type": "count", "field": None, "window": "24h", "output_field": "trips_24h"}}
            ],
            "max_lateness": "1h",
        },
    },
}


class JobView(_View):
    """A job, how far it got and how fresh it is."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"example": _EXAMPLE})

    id: str
    """The same for the same pipeline and version, always."""
    name: str
    """That of the pipeline with `_job` behind it."""
    job_type: Literal["pipeline", "backfill"]
    """A continuous job, or bounded work."""
    partition_count: int
    """Workers."""
    version: int
    """Of the pipeline."""
    state: str
    """`pending`, `starting`, `running`, `stalled`, `retrying`, `degraded`, `pausing`, `paused`, `catching_up` …"""
    paused: bool
    """Whether it shall stand still; its workers follow within a moment, and `state` says when they have."""
    detail: str
    """What the workers that do not run have said."""
    applied_until: str | None
    """The newest event time applied."""
    lag: int
    """The same as `freshness.records_behind`."""
    rows: int
    """The same as `freshness.rows_out`."""
    freshness: JobFreshnessView
    """How far behind it is, and what it counted."""
    workers: list[WorkerView]
    """Each as it last answered; empty before the supervisor wrote anything down."""
    updated_at: str | None
    """When the supervisor wrote this down; null before it did."""
    spec: JobSpecView
    """What it is made of."""


class JobChange(BaseModel):
    """What can be changed of a job."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, json_schema_extra={"example": {"partition_count": 4}}
    )

    partition_count: StrictInt = Field(ge=1, le=64)
    """Workers of the pipeline, from 1 to 64."""


_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": ErrorBody, "description": "The job is paused."}}


@router.get("", response_model=list[JobView])
def jobs(services: ServicesOf) -> list[dict[str, Any]]:
    """Every job, how far it got and how fresh it is."""
    return job_control(services).jobs()


@router.get("/{name}", response_model=JobView)
def job(name: JobName, services: ServicesOf) -> dict[str, Any]:
    """One job, how far it got and how fresh it is."""
    return job_control(services).job(name)


@router.patch("/{name}", response_model=JobView)
def scale(name: JobName, change: JobChange, services: ServicesOf, caller: Writer) -> dict[str, Any]:  # noqa: ARG001  # the role is the point
    """Give a pipeline another number of workers, while records go on arriving; the log's partitions stay."""
    return job_control(services).scale(name, change.partition_count)


@router.post("/{name}/pause", response_model=JobView)
def pause(name: JobName, services: ServicesOf, caller: Writer) -> dict[str, Any]:
    """Have a pipeline stand still: its workers end after their current step, its state and position stay.

    Reads are answered as ever, from the state as it stands; records go on being accepted. Again it changes nothing.
    """
    return job_control(services).pause(name, caller.fingerprint)


@router.post("/{name}/resume", response_model=JobView)
def resume(name: JobName, services: ServicesOf, caller: Writer) -> dict[str, Any]:
    """Have a paused pipeline go on from where it stands; what came meanwhile is counted once.

    Again it changes nothing.
    """
    return job_control(services).resume(name, caller.fingerprint)


@router.post("/{name}/restart", response_model=JobView, responses=_CONFLICT)
def restart(name: JobName, services: ServicesOf, caller: Writer) -> dict[str, Any]:
    """Replace every worker of a pipeline, each after its current step; they go on from where it stands."""
    return job_control(services).restart(name, caller.fingerprint)
