"""The one ASGI application both services run: a dictionary look-up for the hot routes, FastAPI for the rest.

Every request passes here: correlation id, key, body limit, and the request boundary, where any failure becomes
the one error body. FastAPI in front of a look-up would halve the throughput, so the hot routes go round it.
"""

from __future__ import annotations

import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from featurelib.errors import InvalidRequest, PayloadTooLarge, ThymeError, Unauthenticated
from serve_apps.api import build_api
from serve_apps.auth import STRANGER, Caller
from serve_apps.messages import Answer, Call, Handler, internal_error, refuse, refuse_status
from serve_apps.routes.features import FeatureRoutes
from serve_apps.services import Services

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""Paths that need no key."""

DELIVERIES = "/api/v1/webhooks/"
"""Paths below it may be called without a key: a signature may stand in for it."""

_CORRELATION_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A client that takes one setting for both base and full URL asks for this doubled prefix.
_COMMIT_PATH = "/api/v1/commit"
_DOUBLED_PREFIX = f"{_COMMIT_PATH}/api/v1/"
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
_SERVER_ERROR = 500
_LONGEST_LENGTH = 18  # digits

_log = structlog.get_logger("thyme.serve")


class _Disconnected(Exception):
    """The client went away while it sent its body: nothing failed, nobody waits for an answer."""


class Application:
    """The ASGI application.

    Args:
        open_services: opens stores and services; called on the event loop that serves.
    """

    def __init__(self, open_services: Callable[[], AbstractAsyncContextManager[Services]]) -> None:
        self._open_services = open_services
        self._services: Services | None = None
        self._hot: Mapping[str, Mapping[str, Handler]] = {}
        self.api: FastAPI = build_api()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Services]:
        """Open the services, serve, close them; what ASGI's lifespan calls."""
        async with self._open_services() as services:
            self._services = services
            self.api.state.services = services
            self._hot = FeatureRoutes(services).table
            yield services

    def check_extractors(self) -> None:
        """Raise when an extractor could not be stopped; may be called from any thread, also while the loop is stuck."""
        if self._services is not None:
            self._services.isolation.check()

    @property
    def is_stuck(self) -> bool:
        """Whether an extractor holds the thread that serves."""
        return self._services is not None and self._services.isolation.is_stuck

    async def check(self) -> None:
        """Raise what ended the background work, if anything did; that it runs at all shows that the loop turns."""
        if self._services is not None:
            self._services.check_background()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event, as ASGI asks."""
        if scope["type"] == "http":
            await self._serve(scope, receive, _Exchange(send, scope))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        services = self._services
        assert services is not None  # the server opens the lifespan before it accepts
        try:
            await self._dispatch(scope, receive, exchange, services)
        except _Disconnected:
            return
        except ThymeError as error:
            if error.status >= _SERVER_ERROR:
                _log.error("request_failed", **exchange.context, code=error.code, error=str(error))
            await exchange.answer(refuse(error, exchange.correlation_id))
        except Exception as error:  # noqa: BLE001  # the request boundary: what nobody foresaw is a 500 and a log entry
            # Formatted here: a renderer of its own might print local variables, which hold keys and values.
            trace = "".join(traceback.format_exception(error))
            _log.error("request_failed", **exchange.context, traceback=trace)
            await exchange.answer(internal_error(exchange.correlation_id))
        seconds = time.perf_counter() - exchange.started
        services.metrics.answered(exchange.route, exchange.method, exchange.status, seconds)

    async def _dispatch(self, scope: Scope, receive: Receive, exchange: _Exchange, services: Services) -> None:
        path = scope["path"]
        if path.startswith(_DOUBLED_PREFIX):
            path = scope["path"] = path[len(_COMMIT_PATH) :]
        caller = Caller(None, None)
        if path not in OPEN_PATHS:
            caller = _caller(path, exchange.headers, services)
        limit = services.settings.serving.max_body_bytes
        body = b"" if exchange.method in _WITHOUT_BODY else await _read_body(receive, exchange.headers, limit)
        methods = self._hot.get(path)
        if methods is None:
            scope["thyme.caller"], scope["thyme.correlation_id"] = caller, exchange.correlation_id
            await self.api(scope, _Replay(body, receive), exchange.send)
            exchange.name_route(scope)
            return
        exchange.route = path
        await exchange.answer(await _hot_answer(methods, exchange, scope, caller, body))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except ThymeError as error:
            _log.error("startup_failed", error=str(error))
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


def _caller(path: str, headers: Mapping[bytes, bytes], services: Services) -> Caller:
    keys = services.current.snapshot.keys
    try:
        return keys.caller(headers.get(b"authorization"), services.clock.now())
    except Unauthenticated:
        # A delivery is signed instead, where its webhook has a secret; the route finds out.
        if not path.startswith(DELIVERIES):
            raise
        return STRANGER


async def _hot_answer(
    methods: Mapping[str, Handler],
    exchange: _Exchange,
    scope: Scope,
    caller: Caller,
    body: bytes,
) -> Answer:
    handler = methods.get(exchange.method)
    if handler is None:
        allowed = ", ".join(methods)
        refusal = refuse_status(405, f"{exchange.method} is not one of {allowed}", exchange.correlation_id)
        return refusal._replace(headers=(*refusal.headers, (b"allow", allowed.encode())))
    call = Call(exchange.method, scope["query_string"], body, caller, exchange.correlation_id, exchange.started)
    return await handler(call)


async def _read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or len(declared) > _LONGEST_LENGTH:
        raise InvalidRequest("Content-Length: not a size in bytes")
    parts, size, more = [], 0, True
    if int(declared) > limit:
        raise PayloadTooLarge(f"the body is larger than {limit} bytes")
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise PayloadTooLarge(f"the body is larger than {limit} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


class _Replay:
    """Gives a body that was read already, then whatever the server reports next."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return message if message is not None else await self._receive()


class _Exchange:
    """One request on its way through: its headers and id, and what has been sent."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        self.route = "other"
        self.status = 0
        self.correlation_id = _correlation_id(self.headers)
        self._path: str = scope["path"]
        self._send = send

    @property
    def context(self) -> dict[str, str]:
        """What a log entry says of the request: no query, no body, since those hold ids and values."""
        return {"correlation_id": self.correlation_id, "method": self.method, "path": self._path[:200]}

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer, unless one was begun already."""
        if self.status:
            return
        headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if self.method == "HEAD" else answer.body
        await self._send({"type": "http.response.body", "body": body})

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the correlation id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            correlation = (b"x-correlation-id", self.correlation_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), correlation]}
        await self._send(message)

    def name_route(self, scope: Scope) -> None:
        """Take the route's pattern as the metric's label: a raw path would make a series per id."""
        route = scope.get("route")
        if route is not None:
            self.route = getattr(route, "path", "other")


def _correlation_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-correlation-id") or headers.get(b"x-request-id")
    if given is not None and _CORRELATION_ID.fullmatch(given):
        return given.decode()
    return uuid.uuid4().hex
