"""`/api/v1/...`: commits, events, and what is committed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from featurelib.errors import InvalidRequest, ThymeError
from featurelib.plan import CommitReceipt
from serve_apps.definition_service import DefinitionService
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services

router = APIRouter(tags=["definitions"])

_PROTOBUF = "application/protobuf"
_log = structlog.get_logger("thyme.serve")
Limit = Annotated[int, Query(ge=1, le=1_000, description="Most entries, newest first.")]


class JobChange(BaseModel):
    """What can be changed of a job."""

    model_config = ConfigDict(extra="forbid")

    partition_count: StrictInt = Field(ge=1, le=64)
    """Workers of the pipeline, from 1 to 64."""


def _service(services: Services) -> DefinitionService:
    stores = services.stores
    return DefinitionService(stores.registry, stores.log, services.settings, services.isolation.runner, services.shapes)


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


@router.post("/api/v1/commit", openapi_extra=_BODY, responses={409: {"description": "A breaking change."}})
@router.post("/", include_in_schema=False)
async def commit(request: Request, services: ServicesOf, caller: Writer) -> CommitReceipt:
    """Store definitions sent together, whole or not at all; what a commit leaves out stays."""
    if request.headers.get("content-type", "").startswith(_PROTOBUF):
        # These words make the stock command line send the same commit again as JSON.
        raise InvalidRequest("Unsupported operator: application/protobuf; send the commit as JSON")
    body = await request.body()
    receipt = await asyncio.to_thread(_service(services).commit, body, caller.fingerprint)
    try:
        # This replica serves the commit before it is acknowledged; the others follow within one poll.
        await services.current.refresh()
    except ThymeError as error:
        # It is stored: an error now would say that it is not. The poll catches up when the store is back.
        _log.warning("commit_not_served_yet", commit_id=receipt.commit_id, error=str(error))
    return receipt


@router.get("/api/v1/featuresets")
def featuresets(services: ServicesOf) -> list[dict[str, Any]]:
    """Every committed featureset with its features and extractors."""
    return _service(services).featuresets()


@router.get("/api/v1/datasets")
def datasets(services: ServicesOf) -> list[dict[str, Any]]:
    """Every committed dataset, all versions."""
    return _service(services).datasets()


@router.get("/api/v1/pipelines")
def pipelines(services: ServicesOf) -> list[dict[str, Any]]:
    """Every committed pipeline, all versions."""
    return _service(services).pipelines()


@router.get("/api/v1/sources")
def sources(services: ServicesOf) -> list[dict[str, Any]]:
    """Every source and how far it got; secrets are masked."""
    return _service(services).sources()


@router.get("/api/v1/jobs")
def jobs(services: ServicesOf) -> list[dict[str, Any]]:
    """Every job, how far it got and how fresh it is."""
    return _service(services).jobs(services.clock.now())


@router.patch("/api/v1/jobs/{name}")
def scale(name: str, change: JobChange, services: ServicesOf, caller: Writer) -> dict[str, Any]:  # noqa: ARG001  # the role is the point
    """Give a pipeline another number of workers, while records go on arriving; the log's partitions stay."""
    return _service(services).scale(name, change.partition_count, services.clock.now())


@router.get("/api/v1/commits")
def commits(services: ServicesOf, limit: Limit = 100) -> list[dict[str, Any]]:
    """The latest commits that changed something."""
    return _service(services).commits(limit)


@router.get("/api/v1/events")
def events(
    services: ServicesOf,
    limit: Limit = 100,
    severity: str | None = None,
    event_type: str | None = None,
    subject: str | None = None,
) -> list[dict[str, Any]]:
    """The platform's feed; filters are exact and combine."""
    return _service(services).events(limit, severity, event_type, subject)


@router.get("/api/v1/status")
def status(services: ServicesOf) -> dict[str, Any]:
    """Everything at a glance."""
    return _service(services).status(services.clock.now())
