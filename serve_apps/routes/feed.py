"""`/api/v1/events`: the platform's feed, as it is and as it grows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from featurelib.clock import Clock
from featurelib.errors import InvalidRequest, ThymeError
from featurelib.stores.feed import Place
from featurelib.stores.registry import severity_named
from serve_apps import shapes
from serve_apps.auth import Caller
from serve_apps.current import Current
from serve_apps.live_feed import Filters, LiveFeed
from serve_apps.routes.access import ServicesOf

router = APIRouter(prefix="/api/v1", tags=["events"])
_log = structlog.get_logger("thyme.serve")
_EVENT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# A client that takes nothing of what it is sent for this long is given up; what waits for it is then let go.
_TAKEN_WITHIN_S = 10.0
# A replica that stops waits this long for followers to take the end of their streams.
_END_WITHIN_S = 1.0
_EXAMPLE: dict[str, Any] = {
    "id": "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11",
    "event_type": "job_paused",
    "severity": "info",
    "source": "definition-service",
    "subject": "by_rider@1",
    "message": "by_rider@1 shall stand still; its state and position stay",
    "detail": {"requested_by": "1f0c9a2b"},
    "created_at": "2026-03-01T12:00:00Z",
}


class EventView(BaseModel):
    """An entry of the platform's feed."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"example": _EXAMPLE})

    id: str
    """A UUID; `Last-Event-ID` of a stream that goes on after it."""
    event_type: str
    """What happened; the page on events lists the types."""
    severity: Literal["info", "warn", "error"]
    """Whether people should know, look, or act."""
    source: str
    """Who says it."""
    subject: str
    """What it is about: a commit, a dataset, a pipeline, a key …"""
    message: str
    """The same for people."""
    detail: dict[str, Any] | None
    """More, by type."""
    created_at: str
    """Instant, UTC."""


Limit = Annotated[int, Query(ge=1, le=1_000, description="Most entries, newest first.")]
Severity = Annotated[
    str | None, Query(description="`info`, `warn` or `error`; `warning` is taken for `warn`.", examples=["error"])
]
EventType = Annotated[str | None, Query(description="Only this type.", examples=["job_failed"])]
Subject = Annotated[str | None, Query(description="Only about this.", examples=["by_rider@1"])]


@router.get("/events", response_model=list[EventView])
def events(
    services: ServicesOf,
    limit: Limit = 100,
    severity: Severity = None,
    event_type: EventType = None,
    subject: Subject = None,
) -> Response:
    """The platform's feed, newest first; filters are exact and combine."""
    registry = services.stores.registry
    found = registry.events(limit=limit, severity=severity, event_type=event_type, subject=subject)
    # ASCII: what people and sources write need not be Unicode that UTF-8 can spell.
    return Response(json.dumps([shapes.event_record(event) for event in found]), media_type="application/json")


class EventStream(Response):
    """Server-sent events until the client goes, or the feed ends it."""

    media_type = "text/event-stream"

    def __init__(
        self,
        feed: LiveFeed | None = None,
        after: Place | None = None,
        filters: Filters = Filters(),  # noqa: B008  # a value
        admitted: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._after = after
        self._filters = filters
        self._admitted = admitted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # fixed signature
        """Serve it, as ASGI asks."""
        assert self._feed is not None
        async with self._feed.following(self._after) as place:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            sending = asyncio.ensure_future(self._send_all(self._feed, place, send))
            gone = asyncio.ensure_future(_gone(receive))
            closed = asyncio.ensure_future(self._feed.closed.wait())
            others: set[asyncio.Future[Any]] = {gone, closed}
            try:
                await asyncio.wait({sending, *others}, return_when=asyncio.FIRST_COMPLETED)
                if not gone.done():
                    await asyncio.wait({sending, gone}, timeout=_END_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    sending.result()
            finally:
                for task in (sending, *others):
                    task.cancel()
                await asyncio.gather(sending, *others, return_exceptions=True)

    async def _send_all(self, feed: LiveFeed, place: Place, send: Send) -> None:
        """Send what comes. What a client does not take is left without an end, so that its connection is reset."""
        try:
            async with contextlib.aclosing(feed.chunks(place, self._filters, self._admitted)) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(_TAKEN_WITHIN_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TimeoutError:
            return
        except ThymeError as error:
            # The status is sent: all that can be said is to come back.
            _log.warning("event_stream_ended", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_WITHIN_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Entries as they come: `id` is the entry's, `data` the entry as JSON. Lines that begin with a "
        "colon say that the stream is alive. It ends when the replica does, when the key is revoked, or when the "
        "client is slower than the feed; a browser comes back by itself, and misses nothing.",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": f"retry: 1000\n\nid: {_EXAMPLE['id']}\ndata: {json.dumps(_EXAMPLE)}\n\n: still here\n\n",
            }
        },
    }
}


@router.get("/events/stream", status_code=200, response_class=EventStream, responses=_STREAM)
async def stream(  # noqa: PLR0917  # one parameter per parameter
    request: Request,
    services: ServicesOf,
    severity: Severity = None,
    event_type: EventType = None,
    subject: Subject = None,
    last_event_id: Annotated[
        str | None,
        Header(description="Id of the last entry that was seen; left out, the stream begins with what is new."),
    ] = None,
    after: Annotated[
        str | None, Query(description="The same, for clients that cannot set a header; the header goes before it.")
    ] = None,
) -> Response:
    """The platform's feed as it grows, as server-sent events; filters are exact and combine.

    A stream that names the last entry seen begins with the one after it, on any replica: nothing is lost or repeated.
    """
    seen = last_event_id or after or None
    if seen is not None and not _EVENT_ID.fullmatch(seen):
        raise InvalidRequest("Last-Event-ID: not the id of an event, a UUID in lower case")
    place = await services.feed.place(seen)
    filters = Filters(severity_named(severity), event_type, subject)
    admitted = _admission(services.current, services.clock, request.scope)
    if request.scope["thyme.head"]:
        return Response(media_type=EventStream.media_type)
    return EventStream(services.feed, place, filters, admitted)


def _admission(current: Current, clock: Clock, scope: Scope) -> Callable[[], bool]:
    """Whether the key the stream was opened with still opens it, and its client is there."""
    authorization = dict(scope["headers"]).get(b"authorization")
    has_left: Callable[[], bool] = scope.get("thyme.half_closed", lambda: False)

    def admitted() -> bool:
        if has_left():
            return False
        try:
            caller: Caller = current.snapshot.keys.caller(authorization, clock.now())
            caller.require("reader")
        except ThymeError:
            return False
        return True

    return admitted
