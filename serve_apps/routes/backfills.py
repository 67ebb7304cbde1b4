"""`/api/v1/backfills`: have the state of a pipeline built anew, see how far that is, end it, and go back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from featurelib.clock import Instant, parse_instant
from featurelib.stores.backfill_requests import Asked, BackfillState
from serve_apps.control import BackfillControl
from serve_apps.messages import ErrorBody
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services

router = APIRouter(prefix="/api/v1/backfills", tags=["backfills"])

BackfillId = Annotated[str, Path(description="Of the backfill.", examples=["5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11"])]
_Moment = StrictStr | StrictInt | StrictFloat | None


class BackfillOrder(BaseModel):
    """Which pipeline, and which of the records that are there when it begins."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"example": {"pipeline": "by_rider", "since": "2026-01-01T00:00:00Z"}},
    )

    pipeline: StrictStr = Field(min_length=1, max_length=160)
    """Of the pipeline or its job; `@2` behind it names a version."""
    since: _Moment = None
    """Only records dated at or after it; ISO 8601 or epoch seconds, not in the future. Left out: all."""
    until: _Moment = Field(default=None, validation_alias=AliasChoices("until", "to"))
    """Only records dated at or before it, likewise; `to` is taken for it too. Records that come while it runs count in
    any case."""


class BackfillView(BaseModel):
    """A backfill that was asked for."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "id": "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11",
                "pipeline": "by_rider@1",
                "since": "2026-01-01T00:00:00Z",
                "until": None,
                "state": "running",
                "detail": "",
                "rows": 310_000,
                "rows_expected": 1_200_000,
                "generation": 2,
                "submission_id": "thyme-backfill-5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11",
                "requested_by": "1f0c9a2b",
                "correlation_id": "0c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f",
                "created_at": "2026-03-01T12:00:00Z",
                "updated_at": "2026-03-01T12:00:09Z",
                "attempt": 1,
                "previous": None,
                "kept_until": None,
            }
        },
    )

    id: str
    """A UUID."""
    pipeline: str
    """Ref of the pipeline."""
    since: str | None
    """Only records dated at or after it; null: no end."""
    until: str | None
    """Only records dated at or before it; null: no end."""
    state: BackfillState
    """While it is not `cancelled`, `complete`, `failed` or `rolled_back`, no other one of the pipeline is taken."""
    detail: str
    """What it waits for, or how it ended."""
    rows: int
    """Folded so far."""
    rows_expected: int | None
    """How many it will be, as far as is known; exact once every partition has read its history."""
    generation: int | None
    """Which generation of the state it builds; the one before is served until it is complete."""
    submission_id: str | None
    """Of its Ray job."""
    requested_by: str | None
    """Fingerprint of the key it was asked with; null: the platform itself, for a pipeline far behind."""
    correlation_id: str | None
    """Of the request."""
    created_at: str
    """When it was asked for."""
    updated_at: str
    """When any of this changed last."""
    attempt: int
    """Which Ray job of it, from 1 on: the next goes on where one that died stopped."""
    previous: int | None
    """The generation that was served before it was complete; null where there was none, or none is kept."""
    kept_until: str | None
    """Until when the generation that is not served is kept up to date, so that it can be gone back to; null: it is
    not."""


class BackfillPrice(BaseModel):
    """What a backfill would read, write and take."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "pipeline": "by_rider@1",
                "records": 1_200_000,
                "archive_bytes": 31_000_000,
                "rows": 1_200_000,
                "keys": 12_000,
                "state_bytes": 58_000_000,
                "seconds": 21.5,
                "rough": False,
            }
        },
    )

    pipeline: str
    """Ref of the pipeline."""
    records: int
    """Records of its inputs that are read."""
    archive_bytes: int
    """Of the archive's files that they are read from."""
    rows: int
    """Rows that are folded."""
    keys: int
    """Keys that are written."""
    state_bytes: int
    """What their state takes in the online store, beside the state that is served."""
    seconds: float
    """From when it is asked for until it is served, on this machine as busy as it is now."""
    rough: bool
    """Whether it is more than a tenth uncertain: of a graph with more than a million records only a part is tried."""


_UNDER_WAY: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "A backfill of the pipeline is not over."}
}
_PRICED: dict[int | str, dict[str, Any]] = {
    200: {"model": BackfillPrice, "description": "What it would take, with `dry_run`."}
}
_NOT_KEPT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The backfill is not complete, or nothing is kept to go back to."}
}
_TOO_LATE: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The backfill is over, or can only be finished."}
}


def _control(services: Services) -> BackfillControl:
    return BackfillControl(services.stores.registry, services.clock)


@router.post("", response_model=BackfillView, status_code=202, responses={**_UNDER_WAY, **_PRICED})
def request_backfill(
    order: BackfillOrder,
    request: Request,
    services: ServicesOf,
    caller: Writer,
    dry_run: Annotated[
        bool, Query(description="Only say what it would read, write and take; nothing is begun, and 200 is answered.")
    ] = False,
) -> Any:
    """Have the state of a pipeline built anew from its records, while the one there is goes on being kept and served.

    The new state is switched to when it has caught up; until then, and if it fails or is cancelled, nothing changes.
    """
    asked = Asked(caller.fingerprint, request.scope["thyme.correlation_id"])
    since, until = _instant(order.since, "since"), _instant(order.until, "until")
    if dry_run:
        price = _control(services).price(order.pipeline, since, until, services.stores.log, services.settings)
        return JSONResponse(price)
    return _control(services).request(order.pipeline, since, until, asked)


@router.get("", response_model=list[BackfillView])
def backfills(
    services: ServicesOf,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Most backfills, newest first.")] = 100,
    pipeline: Annotated[
        str | None, Query(description="Only of this pipeline; `@2` behind it names a version.", examples=["by_rider"])
    ] = None,
) -> list[dict[str, Any]]:
    """The latest backfills, newest first."""
    return _control(services).latest(limit, pipeline)


@router.get("/{backfill_id}", response_model=BackfillView)
def backfill(backfill_id: BackfillId, services: ServicesOf) -> dict[str, Any]:
    """One backfill: its state, and how many rows are folded of how many."""
    return _control(services).get(backfill_id)


@router.post("/{backfill_id}/cancel", response_model=BackfillView, responses=_TOO_LATE)
def cancel(backfill_id: BackfillId, services: ServicesOf, caller: Writer) -> dict[str, Any]:
    """End a backfill; the state that is served stays. One that is being cancelled already stays so."""
    return _control(services).cancel(backfill_id, caller.fingerprint)


@router.post("/{backfill_id}/rollback", response_model=BackfillView, responses=_NOT_KEPT)
def roll_back(backfill_id: BackfillId, services: ServicesOf, caller: Writer) -> dict[str, Any]:
    """Serve the state again that was served before a backfill: it was kept up to date, so nothing is built.

    The one that the backfill built is kept from then on. Asked again, it stays so.
    """
    return _control(services).roll_back(backfill_id, caller.fingerprint)


@router.post("/{backfill_id}/drop", response_model=BackfillView, responses=_NOT_KEPT)
def drop(backfill_id: BackfillId, services: ServicesOf, caller: Writer) -> dict[str, Any]:  # noqa: ARG001  # its right
    """Free what is kept of a backfill to go back to, before its time is over; what is served stays."""
    return _control(services).drop(backfill_id)


def _instant(given: str | float | None, field: str) -> Instant | None:
    return None if given is None else parse_instant(given, field)
