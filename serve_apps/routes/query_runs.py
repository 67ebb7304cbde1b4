"""`/query-runs`: the audit of reads, and replay."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query
from pydantic import BaseModel

from featurelib.clock import Instant, parse_instant
from featurelib.engine.asof import Knowledge
from featurelib.errors import NotFound
from featurelib.stores.audit import QueryKind, QueryRun, RunFilter
from serve_apps import shapes
from serve_apps.replay import replay
from serve_apps.routes.access import ServicesOf
from serve_apps.services import Services

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

router = APIRouter(prefix="/query-runs", tags=["query runs"])


class QueryRunList(BaseModel):
    """Query runs, newest first."""

    runs: list[dict[str, Any]]
    next_cursor: str | None
    """Given as `cursor`, asks for the runs after these; null when there are no more."""


class Replayed(BaseModel):
    """The answer a recorded question gets again, in the shape the first answer had."""

    kind: QueryKind
    result: dict[str, Any]
    knowledge: Knowledge
    features: dict[str, Literal["same", "different", "unknown"]]
    """Per feature of the first answer, whether this one has the same value; of many rows, whether all are the same."""


@router.get("")
def query_runs(  # noqa: PLR0913  # a parameter each
    services: ServicesOf,
    *,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    featureset: str | None = None,
    kind: QueryKind | None = None,
    key: Annotated[str | None, Query(description="Fingerprint of the API key, 8 hexadecimal digits.")] = None,
    error: Annotated[bool | None, Query(description="Only runs that failed, or only those that did not.")] = None,
    since: Annotated[str | None, Query(description="Earliest instant, included.")] = None,
    until: Annotated[str | None, Query(description="Latest instant, included.")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> QueryRunList:
    """The latest query runs, each with its first ten ids; metadata only, never values."""
    wanted = RunFilter(featureset, kind, key, error, _instant(since, "since"), _instant(until, "until"))
    page = services.audit.page(wanted, limit, cursor)
    return QueryRunList(runs=[shapes.query_run_record(run) for run in page.runs], next_cursor=page.next_cursor)


@router.get("/{run_id}")
def query_run(run_id: str, services: ServicesOf) -> dict[str, Any]:
    """One query run. It is written behind the answer it belongs to: just after it, it may not be there yet."""
    return shapes.query_run_record(_found(services, run_id))


@router.post("/{run_id}/replay")
async def replay_run(
    run_id: str,
    services: ServicesOf,
    knowledge: Annotated[
        Knowledge,
        Query(description="`latest`: today's state and definitions; `as_served`: those that the run was answered by."),
    ] = "latest",
) -> Replayed:
    """Ask the recorded question again; makes no new run."""
    run = await anyio.to_thread.run_sync(_found, services, run_id)
    done = await replay(services, run, knowledge)
    return Replayed(kind=run.kind, result=done.reply.body, knowledge=knowledge, features=done.verdicts)


def _instant(given: str | None, name: str) -> Instant | None:
    return None if given is None else parse_instant(given, name)


def _found(services: Services, run_id: str) -> QueryRun:
    # PostgreSQL and SQLite differ in which texts they can compare at all; an id is always a UUID.
    run = services.audit.get(run_id) if _UUID.fullmatch(run_id) else None
    if run is None:
        raise NotFound(f"no query run {run_id[:64]!r}")
    return run
