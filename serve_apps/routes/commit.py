"""`POST /api/v1/commit` and `POST /api/v1/plan`: definitions are stored, or it is shown what storing them would do."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.to_thread
import structlog
from fastapi import APIRouter, Depends, Query, Request, Response

from featurelib.clock import DAY, parse_duration
from featurelib.definitions import Commit
from featurelib.engine.sizing import Load
from featurelib.errors import InvalidRequest, ThymeError
from featurelib.plan import CommitReceipt
from featurelib.stock_protobuf import response_of
from featurelib.stores.secret_values import Place
from featurelib.stores.standings import Resource
from serve_apps.accepting import preference
from serve_apps.auth import Caller
from serve_apps.committing import PROTOBUF, CommitService, Rights, SentCommit
from serve_apps.messages import ErrorBody
from serve_apps.planning import PlanAnswer
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services

router = APIRouter(tags=["definitions"])

_JSON = b"application/json"
_PROTOBUF = "application/protobuf"
_LONGEST_SPAN_US = 36_500 * DAY
_log = structlog.get_logger("thyme.serve")

_KINDS = ("datasets", "pipelines", "featuresets", "sources")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE = {
    "format": 1,
    "message": "sales",
    "datasets": [
        {
            "name": "Sale",
            "fields": [
                {"name": "shop", "type": "str", "key": True},
                {"name": "amount", "type": "float"},
                {"name": "at", "type": "datetime", "timestamp": True},
            ],
        }
    ],
}
_STOCK: dict[str, Any] = {
    "title": "StockCommit",
    "description": "The JSON body of the stock Thyme SDK. Members that are not known are ignored.",
    "type": "object",
    "not": {"required": ["format"]},
    "properties": {
        **{name: {"type": "array", "items": {"type": "object"}} for name in _KINDS},
        "message": {"type": "string", "description": "What the commit is for."},
        "allow_retention_narrowing": {
            "type": "boolean",
            "default": False,
            "description": "Whether a dataset's retention may become shorter.",
        },
        "backfill": {
            "type": "boolean",
            "default": True,
            "description": "False: refused, if it would start a pipeline that has history to fold.",
        },
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The platform's own form (it says `format`), or the stock SDK's, as JSON or as protobuf.",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/commit.Commit"},
                        {"$ref": "#/components/schemas/commit.StockCommit"},
                    ]
                },
                "example": _EXAMPLE,
            },
            _PROTOBUF: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "A `thyme.CommitRequest`, told by `Content-Type: application/protobuf`.",
                }
            },
        },
    }
}
_COMMITTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What the commit did; with `dry_run` the plan. `Accept: application/protobuf` is answered with "
        "`thyme.CommitResponse`.",
        "content": {_PROTOBUF: _BINARY},
    },
    409: {"model": ErrorBody, "description": "An existing `(name, version)` would change its meaning; lists how."},
}


def _service(services: Services, caller: Caller) -> CommitService:
    stores = services.stores

    def may_read(place: Place) -> bool:
        return caller.holds("read_scope_role", Resource("secret_scope", place.scope))

    rights = Rights(may_read, caller.may_edit_workspace)
    return CommitService(
        stores.registry, stores.log, services.settings, services.isolation.runner, rights, services.clock
    )


def _load(
    keys: Annotated[int, Query(ge=1, le=1_000_000_000_000, description="Keys of each pipeline.")] = 10_000,
    events_per_key: Annotated[
        int, Query(ge=1, le=100_000, description="Rows of each key that reach the aggregate.")
    ] = 1_000,
    over: Annotated[
        str,
        Query(
            pattern="^[1-9][0-9]{0,9}[dhms]$", description="Time over which a key's rows are spread; at most 36500d."
        ),
    ] = "30d",
    distinct: Annotated[
        int, Query(ge=1, le=100_000, description="Distinct values of a key, where each is kept.")
    ] = 100,
) -> Load:
    """What a prediction assumes of the data."""
    span = parse_duration(over)
    if span > _LONGEST_SPAN_US:
        raise InvalidRequest(f"over: {over} is more than 36500d")
    return Load(keys=keys, events_per_key=events_per_key, over_us=span, distinct=distinct)


@router.post("/api/v1/commit", openapi_extra=_BODY, responses=_COMMITTED, response_model=CommitReceipt | PlanAnswer)
@router.post("/", include_in_schema=False, response_model=CommitReceipt | PlanAnswer)
async def commit(
    request: Request,
    services: ServicesOf,
    caller: Writer,
    dry_run: Annotated[bool, Query(description="Answer with the plan, as `/api/v1/plan` does; store nothing.")] = False,
) -> CommitReceipt | PlanAnswer | Response:
    """Store definitions sent together, whole or not at all; what a commit leaves out stays."""
    sent = await _sent(request)
    # Not in asyncio's own threads: user code may take long, and what keeps this replica current runs there.
    if dry_run:
        return await anyio.to_thread.run_sync(_service(services, caller).plan, sent, Load())
    receipt = await anyio.to_thread.run_sync(_service(services, caller).commit, sent, caller.fingerprint)
    try:
        # This replica serves the commit before it is acknowledged; the others follow within one poll.
        await services.current.refresh()
    except ThymeError as error:
        # It is stored: an error now would say that it is not. The poll catches up when the store is back.
        _log.warning("commit_not_served_yet", commit_id=receipt.commit_id, error=str(error))
    if _wants_protobuf(request):
        return Response(response_of(receipt), media_type=_PROTOBUF)
    return receipt


@router.post("/api/v1/plan", openapi_extra=_BODY)
async def plan(
    request: Request,
    services: ServicesOf,
    caller: Writer,  # planning runs the commit's extractors
    load: Annotated[Load, Depends(_load)],
) -> PlanAnswer:
    """What committing this would do, break and take; stores nothing. Breaks are listed, and the status is 200."""
    return await anyio.to_thread.run_sync(_service(services, caller).plan, await _sent(request), load)


def describe(document: dict[str, Any]) -> None:
    """Add the forms of a commit's body to an OpenAPI document."""
    own = Commit.model_json_schema(ref_template="#/components/schemas/commit.{model}")
    schemas = document["components"]["schemas"]
    for name, schema in own.pop("$defs").items():
        schemas[f"commit.{name}"] = schema
    for kind in _KINDS:
        # Named, not referred to: whoever makes bodies from the document would walk expressions within expressions.
        record = own["properties"][kind]["items"].pop("$ref").rpartition("/")[2]
        own["properties"][kind]["items"] = {"type": "object", "description": f"A `{record}`."}
    # The stock form says no format; one that is left out would make a body of ours a stock one.
    schemas["commit.Commit"] = {**own, "required": [*own.get("required", ()), "format"]}
    schemas["commit.StockCommit"] = _STOCK


async def _sent(request: Request) -> SentCommit:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return SentCommit(await request.body(), media_type in PROTOBUF)


def _wants_protobuf(request: Request) -> bool:
    accept = request.headers.get("accept", "").lower().encode()
    if b"protobuf" not in accept:
        return False
    return max(preference(accept, each.encode()) for each in PROTOBUF) > preference(accept, _JSON)
