"""`/api/v1/training-sets`: have a training set made, see how far that is, take its rows, end it, delete it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl

import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from featurelib.engine.asof import Knowledge
from featurelib.errors import InvalidRequest, ThymeError
from featurelib.stores.training_files import Manifest
from featurelib.stores.training_places import UploadForm
from featurelib.stores.training_requests import OPEN, AskedBy, TrainingQuestion, TrainingState
from serve_apps.accepting import preference
from serve_apps.exchange import Exchange
from serve_apps.messages import Answer, ErrorBody, encode
from serve_apps.routes.access import Anybody, ServicesOf
from serve_apps.services import Services
from serve_apps.tabular import ARROW
from serve_apps.training_service import Receiving, TrainingService

PATH = "/api/v1/training-sets"
"""Where training sets are asked for."""
PARQUET = b"application/vnd.apache.parquet"
"""Media type of a Parquet file."""

router = APIRouter(prefix=PATH, tags=["training sets"])

_FORMS: Mapping[bytes, UploadForm] = {PARQUET: "parquet", ARROW: "arrow"}
_ACCEPTED = 202
# Asking the registry takes a fraction of a millisecond, and a job several seconds.
_LOOK_EVERY_S = 0.25
_LONGEST_WAIT_S = 20.0
_EXAMPLE_ID = "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11"
TrainingId = Annotated[str, Path(description="Of the training set.", examples=[_EXAMPLE_ID])]


class _Columns(BaseModel):
    """What is read of a spine."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    entity_column: StrictStr | None = Field(default=None, min_length=1, max_length=256)
    """Column of ids. Left out: `entity_id`, or the one named like the featureset's entity."""
    timestamp_column: StrictStr = Field(default="timestamp", min_length=1, max_length=256)
    """Column of instants."""
    knowledge: Knowledge = "latest"
    """`as_served` counts of each row only what had been accepted by its instant."""


class Uploaded(_Columns):
    """The query of an upload."""

    featureset: StrictStr = Field(min_length=1, max_length=128)
    """Its name."""


class TrainingSetOrder(_Columns):
    """Which featureset is to be read for which rows; or which training set is to be made again."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"example": {"featureset": "Rider", "spine": "s3://spines/march.parquet"}},
    )

    featureset: StrictStr | None = Field(default=None, min_length=1, max_length=128)
    """Its name."""
    spine: StrictStr | None = Field(default=None, min_length=1, max_length=4_096)
    """Path or URL of the rows: Parquet, CSV, Arrow, a folder of Parquet files or a Delta table, below one of
    `training.spine_roots`."""
    like: StrictStr | None = Field(default=None, min_length=1, max_length=64)
    """Id of a training set that is complete: the same rows are read of the same records by the same definitions. Give
    nothing else with it."""


class TrainingSetView(BaseModel):
    """A training set that was asked for."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "id": _EXAMPLE_ID,
                "featureset": "Rider",
                "spine": None,
                "entity_column": None,
                "timestamp_column": "timestamp",
                "knowledge": "latest",
                "like": None,
                "state": "running",
                "error": None,
                "detail": "",
                "submission_id": f"thyme-training-set-{_EXAMPLE_ID}",
                "attempt": 1,
                "rows": 1_000_000,
                "parts": 20,
                "parts_done": 7,
                "requested_by": "1f0c9a2b",
                "correlation_id": "0c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f",
                "created_at": "2026-03-01T12:00:00Z",
                "updated_at": "2026-03-01T12:00:09Z",
            }
        },
    )

    id: str
    """A UUID."""
    featureset: str
    """Its name."""
    spine: str | None
    """Where its rows were named to be; null: they were uploaded, or are those of `like`."""
    entity_column: str | None
    """As it was asked."""
    timestamp_column: str
    """As it was asked."""
    knowledge: Knowledge
    """Which records count."""
    like: str | None
    """The training set that it is made like."""
    state: TrainingState
    """`cancelled`, `complete` and `failed` are final."""
    error: str | None
    """Stable code of what it failed with."""
    detail: str
    """What went wrong, or what it waits for."""
    submission_id: str | None
    """Of its Ray job."""
    attempt: int
    """Which Ray job of it, from 1 on: the next goes on where one that died stopped."""
    rows: int | None
    """Of its spine; null: of a large CSV file, until its job has counted them."""
    parts: int | None
    """Into how many parts the spine is split; null: not yet."""
    parts_done: int
    """How many of them were read."""
    requested_by: str | None
    """Fingerprint of the key it was asked with."""
    correlation_id: str | None
    """Of the request."""
    created_at: str
    """When it was asked for."""
    updated_at: str
    """When any of this changed last."""


class TrainingSetDetail(TrainingSetView):
    """A training set, and what it was made of."""

    manifest: Manifest | None
    """Null until it is complete."""


_REFUSED: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The state of the training set does not allow it."}
}
_NO_ROOM: dict[int | str, dict[str, Any]] = {
    507: {"model": ErrorBody, "description": "As many training sets, or bytes of them, are kept as may be."}
}
_ROWS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The columns of the spine and the features, in the order of the spine.",
        "content": {
            ARROW.decode(): {"schema": {"type": "string", "format": "binary"}},
            PARQUET.decode(): {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **_REFUSED,
}


def _service(services: Services) -> TrainingService:
    return TrainingService(services.stores.registry, services.settings, services.clock)


@router.post("", response_model=TrainingSetDetail, status_code=_ACCEPTED, responses={**_REFUSED, **_NO_ROOM})
def request_training_set(
    order: TrainingSetOrder, request: Request, services: ServicesOf, caller: Anybody
) -> dict[str, Any]:
    """Have a training set made: features of many entities, each at an instant of its own, as they were known then.

    The rows to ask for, a spine, are named in the JSON, or are the body of the request (a Parquet file or an Arrow IPC
    stream, up to `training.upload_bytes`), with the other members in the query. It is made by a job: on Ray Data where
    there are more than `serving.offline_rows` rows. `training.most_kept` and `training.kept_bytes` say how many are
    kept.
    """
    asked = AskedBy(caller.fingerprint, request.scope["thyme.correlation_id"])
    return _service(services).request(_question(order), services.current.snapshot, asked)


@router.get("", response_model=list[TrainingSetView])
def training_sets(
    services: ServicesOf,
    caller: Anybody,  # noqa: ARG001  # its right
    limit: Annotated[int, Query(ge=1, le=1_000, description="Most training sets, newest first.")] = 100,
    featureset: Annotated[str | None, Query(description="Only of this featureset.", examples=["Rider"])] = None,
) -> list[dict[str, Any]]:
    """The latest training sets, newest first."""
    return _service(services).latest(limit, featureset)


@router.get("/{training_id}", response_model=TrainingSetDetail)
async def training_set(
    training_id: TrainingId,
    services: ServicesOf,
    caller: Anybody,  # noqa: ARG001  # its right
    wait_s: Annotated[
        float,
        Query(ge=0.0, le=_LONGEST_WAIT_S, description="While it is not over: how long to wait for it to get further."),
    ] = 0.0,
) -> dict[str, Any]:
    """One training set: how many of its parts are read, and its manifest once it is complete."""
    service = _service(services)
    before = found = await anyio.to_thread.run_sync(service.get, training_id)
    ends_at = time.monotonic() + wait_s
    while _stands(before, found) and time.monotonic() < ends_at and not services.stopping.is_set():
        await asyncio.sleep(_LOOK_EVERY_S)
        found = await anyio.to_thread.run_sync(service.get, training_id)
    return found


@router.get("/{training_id}/rows", response_class=StreamingResponse, responses=_ROWS)
def rows(
    training_id: TrainingId,
    request: Request,
    services: ServicesOf,
    caller: Anybody,  # noqa: ARG001  # its right
) -> Response:
    """The rows of a complete training set, in the order of its spine.

    As an Arrow IPC stream, or as a Parquet file where `Accept` prefers that.
    """
    service, accept = _service(services), request.headers.get("accept", "").lower().encode()
    as_parquet = preference(accept, PARQUET) > preference(accept, ARROW)
    media_type = (PARQUET if as_parquet else ARROW).decode()
    parts: Iterator[bytes] = (service.parquet if as_parquet else service.arrow)(training_id)
    if request.scope["thyme.head"]:
        return Response(media_type=media_type)
    return StreamingResponse(parts, media_type=media_type)


@router.post("/{training_id}/cancel", response_model=TrainingSetView, responses=_REFUSED)
def cancel(training_id: TrainingId, services: ServicesOf, caller: Anybody) -> dict[str, Any]:
    """End a training set; nothing of it is kept. With the key it was asked for with, or a writer's."""
    return _service(services).cancel(training_id, caller)


@router.delete("/{training_id}", response_model=TrainingSetView, responses=_REFUSED)
def forget(training_id: TrainingId, services: ServicesOf, caller: Anybody) -> dict[str, Any]:
    """Delete a training set that is over, and its files. With the key it was asked for with, or a writer's."""
    return _service(services).forget(training_id, caller)


class TrainingUploads:
    """`POST /api/v1/training-sets` with the spine as its body, which is written to its file while it comes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._service = _service(services)
        # Of disks and object stores: an upload that waits for one holds up no other request.
        self._threads = anyio.CapacityLimiter(4)
        self.body_limit = services.settings.training.upload_bytes

    def streams(self, exchange: Exchange) -> bool:
        """Whether a request is an upload."""
        return exchange.path == PATH and exchange.method == "POST" and _form(exchange) is not None

    async def stream(self, exchange: Exchange) -> Answer:
        """Take a spine, and ask for its training set."""
        caller, form = exchange.caller, _form(exchange)
        assert caller is not None and form is not None  # noqa: PT018  # admitted, and streams() said so
        caller.require("reader")
        if exchange.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise InvalidRequest("Content-Encoding: send the body without one")
        question, snapshot = _uploaded(exchange.query), self._services.current.snapshot
        receiving = await self._apart(self._service.receive, question, snapshot, form)
        try:
            async for piece in exchange.pieces():
                await self._apart(receiving.upload.write, piece)
            asked = AskedBy(caller.fingerprint, exchange.correlation_id)
            made = await self._apart(self._service.received, receiving, question, snapshot, asked)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._abandon(receiving)
            raise
        return Answer(_ACCEPTED, encode(made))

    async def _abandon(self, receiving: Receiving) -> None:
        # What made it fail is told; a disk that is full may not even let its folder go, and that is no more news.
        with contextlib.suppress(ThymeError):
            await self._apart(self._service.abandon, receiving)

    async def _apart(self, call: Any, *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._threads)


def describe(document: dict[str, Any]) -> None:
    """Add uploads to an OpenAPI document: FastAPI knows of the JSON alone."""
    operation = document["paths"][PATH]["post"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    operation["requestBody"]["content"] |= {PARQUET.decode(): binary, ARROW.decode(): binary}
    operation["responses"]["413"] = {**operation["responses"]["413"], "description": "The spine is too large."}
    properties = Uploaded.model_json_schema()["properties"]
    operation["parameters"] = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {each: value for each, value in told.items() if each not in ("description", "title")},
            "description": f"Of an uploaded spine. {told['description']}",
        }
        for name, told in properties.items()
    ]


def _stands(before: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a training set is under way, and no further than it was."""
    return found["state"] in OPEN and found["updated_at"] == before["updated_at"]


def _form(exchange: Exchange) -> UploadForm | None:
    kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return _FORMS.get(kind)


def _uploaded(query: bytes) -> TrainingQuestion:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    if len(dict(given)) != len(given):
        raise InvalidRequest("query: a parameter is given twice")
    try:
        return TrainingQuestion(**Uploaded.model_validate(dict(given)).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"query.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _question(order: TrainingSetOrder) -> TrainingQuestion:
    given = order.model_dump(exclude={"like"})
    if order.like is not None:
        if order.model_fields_set != {"like"}:
            raise InvalidRequest("like: give nothing else with it; the training set it names says all of it")
        return TrainingQuestion(**{**given, "featureset": ""}, like_id=order.like)
    missing = next((name for name in ("featureset", "spine") if given[name] is None), None)
    if missing is not None:
        raise InvalidRequest(f"{missing}: missing; give featureset and spine, or like")
    return TrainingQuestion(**given)
