"""`/query-runs`: the audit of reads, and replay."""

from __future__ import annotations

import re
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query
from pydantic import BaseModel

from featurelib.errors import Erased, InvalidRequest, NotFound
from featurelib.stores.audit import QueryKind, QueryRun
from serve_apps import shapes
from serve_apps.query_server import Question
from serve_apps.routes.access import ServicesOf
from serve_apps.services import Services

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# `row_count` says how many there are; a thousand runs of ten thousand ids each would be a hundred megabytes.
_IDS_LISTED = 10
router = APIRouter(prefix="/query-runs", tags=["query runs"])


class QueryRunList(BaseModel):
    """Query runs, newest first."""

    runs: list[dict[str, Any]]


class Replayed(BaseModel):
    """The answer a recorded question gets today, in the shape the first answer had."""

    kind: QueryKind
    result: dict[str, Any]


@router.get("")
def query_runs(
    services: ServicesOf, limit: Annotated[int, Query(ge=1, le=1_000)] = 100, featureset: str | None = None
) -> QueryRunList:
    """The latest query runs, each with its first ten ids; metadata only, never values."""
    runs = services.audit.list(limit, featureset)
    return QueryRunList(runs=[shapes.query_run_record(run, most_ids=_IDS_LISTED) for run in runs])


@router.get("/{run_id}")
def query_run(run_id: str, services: ServicesOf) -> dict[str, Any]:
    """One query run. It is written behind the answer it belongs to: just after it, it may not be there yet."""
    return shapes.query_run_record(_found(services, run_id))


@router.post("/{run_id}/replay")
async def replay(run_id: str, services: ServicesOf) -> Replayed:
    """Ask the recorded question again, of today's state; makes no new run."""
    run = await anyio.to_thread.run_sync(_found, services, run_id)
    if run.is_erased:
        raise Erased(f"query run {run_id} names an entity that has been erased since")
    if run.inputs is None:
        raise InvalidRequest(f"query run {run_id} was recorded without its question and cannot be replayed")
    reply = await services.query_server.answer(Question.from_recorded(run.inputs, run.entity_ids))
    return Replayed(kind=run.kind, result=reply.body)


def _found(services: Services, run_id: str) -> QueryRun:
    # PostgreSQL and SQLite differ in which texts they can compare at all; an id is always a UUID.
    run = services.audit.get(run_id) if _UUID.fullmatch(run_id) else None
    if run is None:
        raise NotFound(f"no query run {run_id[:64]!r}")
    return run
