"""The one ASGI application both services run: a dictionary look-up for the hot routes, FastAPI for the rest.

Every request passes here: correlation id, key, body limit, and the request boundary, where any failure becomes
the one error body. FastAPI in front of a look-up would halve the throughput, so the hot routes go round it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from fastapi import FastAPI

from featurelib.errors import ThymeError, Unauthenticated
from serve_apps.api import build_api
from serve_apps.auth import STRANGER, Caller
from serve_apps.committing import PROTOBUF
from serve_apps.dialects import told
from serve_apps.exchange import Disconnected, Exchange, Receive, Scope, Send, ServedByAsgi
from serve_apps.key_pair import caller_of, is_token
from serve_apps.messages import Answer, AtHand, Call, Handler, internal_error, refuse, refuse_status
from serve_apps.routes.features import FeatureRoutes
from serve_apps.routes.intake import LogRoutes
from serve_apps.routes.snowflake import SnowflakeRoutes
from serve_apps.routes.tecton import TectonRoutes
from serve_apps.routes.training_sets import TrainingUploads
from serve_apps.services import Services
from serve_apps.tracing import Answered

OPEN_PATHS = frozenset({"/health", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""Paths that need no key."""

DELIVERIES = "/api/v1/webhooks/"
"""Paths below it may be called without a key: a signature may stand in for it."""

# A client that takes one setting for both base and full URL asks for this doubled prefix.
_COMMIT_PATH = "/api/v1/commit"
_DOUBLED_PREFIX = f"{_COMMIT_PATH}/api/v1/"
_SERVER_ERROR = 500
_JSON = b"application/json"
_AS_THEY_SAY = frozenset({*PROTOBUF, "", "application/json"})
_NOBODY = Caller(None, None)

_log = structlog.get_logger("thyme.serve")


class Application:
    """The ASGI application.

    Args:
        open_services: opens stores and services; called on the event loop that serves.
    """

    def __init__(self, open_services: Callable[[], AbstractAsyncContextManager[Services]]) -> None:
        self._open_services = open_services
        self._services: Services | None = None
        self._hot: Mapping[str, Mapping[str, Handler]] = {}
        self._at_hand: Mapping[tuple[str, str], AtHand] = {}
        self._streaming: tuple[LogRoutes | TrainingUploads, ...] = ()
        self._body_limit = 0
        self.api: FastAPI = build_api()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Services]:
        """Open the services, serve, close them; what ASGI's lifespan calls."""
        async with self._open_services() as services:
            self._services = services
            self.api.state.services = services
            log_routes = LogRoutes(services)
            self._streaming = (log_routes, TrainingUploads(services))
            features = FeatureRoutes(services)
            self._at_hand = features.at_hand
            surfaces = (features, TectonRoutes(services), SnowflakeRoutes(services), log_routes)
            self._hot = {path: methods for each in surfaces for path, methods in each.table.items()}
            self._body_limit = services.settings.serving.max_body_bytes
            yield services

    def check_extractors(self) -> None:
        """Raise when an extractor could not be stopped; may be called from any thread, also while the loop is stuck."""
        if self._services is not None:
            self._services.isolation.check()

    @property
    def is_stuck(self) -> bool:
        """Whether an extractor holds the thread that serves."""
        return self._services is not None and self._services.isolation.is_stuck

    def end_streams(self) -> None:
        """End the answers that would go on for ever; called on the loop when a replica begins to stop."""
        if self._services is not None:
            self._services.feed.close()

    async def check(self) -> None:
        """Raise what ended the background work, if anything did; that it runs at all shows that the loop turns."""
        if self._services is not None:
            self._services.check_background()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event, as ASGI asks."""
        if scope["type"] == "http":
            await self.serve(ServedByAsgi(scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    def admit(self, exchange: Exchange) -> None:
        """Decide by its headers whether a request may go on; called once for each, before its body is read.

        Raises:
            Unauthenticated: no valid key.
            RateLimited: the key has sent more requests than it may.
            InvalidRequest: the declared size of its body is no number.
            PayloadTooLarge: it is too large.
        """
        services = self._services
        assert services is not None  # the server opens the lifespan before it accepts
        if exchange.path.startswith(_DOUBLED_PREFIX):
            exchange.path = exchange.path[len(_COMMIT_PATH) :]
        caller = _NOBODY
        if exchange.path not in OPEN_PATHS:
            caller = _caller(exchange, services)
            services.limits.check(services.current.snapshot.keys, caller.fingerprint, exchange.started)
        if exchange.body is None:
            streaming = self._streaming_of(exchange)
            exchange.body_limit = self.body_limit if streaming is None else streaming.body_limit
            exchange.check_declared(exchange.body_limit)
            exchange.is_streamed = streaming is not None
        exchange.caller = caller

    @property
    def body_limit(self) -> int:
        """Largest request body, in bytes."""
        return self._body_limit

    def at_hand(self, exchange: Exchange) -> Answer | None:
        """The answer to a request if nothing needs to be read for it; ``None``: :meth:`serve` is to find out.

        Raises:
            ThymeError: the request is refused, as by :meth:`admit`.
        """
        at_hand = self._at_hand.get((exchange.method, exchange.path))
        if at_hand is None:
            return None
        if exchange.caller is None:
            self.admit(exchange)
        exchange.route = exchange.path
        return at_hand(_call(exchange))

    def answered(self, exchange: Exchange) -> None:
        """Count a request that was answered."""
        services = self._services
        assert services is not None
        seconds = time.perf_counter() - exchange.started
        services.metrics.answered(exchange.route, exchange.method, exchange.status, seconds)
        if services.traces is not None:
            services.traces.answered(_answered(exchange, seconds), exchange.headers)

    async def serve(self, exchange: Exchange, refusal: Exception | None = None) -> None:
        """Answer a request: the request boundary.

        Args:
            exchange: the request.
            refusal: why it was refused before its body was read, or what failed when its answer was looked for.
        """
        try:
            await self._dispatch(exchange, refusal)
        except Disconnected:
            return
        except ThymeError as error:
            if error.status >= _SERVER_ERROR:
                _log.error("request_failed", **exchange.context, code=error.code, error=str(error))
            await exchange.answer(told(exchange.path, refuse(error, exchange.correlation_id)))
        except Exception as error:  # noqa: BLE001  # the request boundary: what nobody foresaw is a 500 and a log entry
            # Formatted here: a renderer of its own might print local variables, which hold keys and values.
            trace = "".join(traceback.format_exception(error))
            _log.error("request_failed", **exchange.context, traceback=trace)
            await exchange.answer(told(exchange.path, internal_error(exchange.correlation_id)))
        self.answered(exchange)

    async def _dispatch(self, exchange: Exchange, refusal: Exception | None) -> None:
        if refusal is not None:
            raise refusal
        if exchange.caller is None:
            self.admit(exchange)
        if exchange.is_streamed:
            streaming = self._streaming_of(exchange)
            assert streaming is not None  # which said so
            exchange.route = exchange.path
            await exchange.answer(await streaming.stream(exchange))
            return
        if exchange.body is None:
            exchange.body = await exchange.read_body(self._body_limit)
        methods = self._hot.get(exchange.path)
        if methods is None:
            await self._through_api(exchange)
            return
        exchange.route = exchange.path
        # A connection of our own has asked for what is at hand before; whoever comes through ASGI has not.
        await exchange.answer(self.at_hand(exchange) or await _hot_answer(methods, exchange))

    def _streaming_of(self, exchange: Exchange) -> LogRoutes | TrainingUploads | None:
        """Who takes the body of a request while it comes; ``None``: it is read whole."""
        return next((each for each in self._streaming if each.streams(exchange)), None)

    async def _through_api(self, exchange: Exchange) -> None:
        scope = exchange.scope()
        scope["headers"] = _with_json_named(exchange, scope["headers"])
        scope["thyme.caller"], scope["thyme.correlation_id"] = exchange.caller, exchange.correlation_id
        scope["thyme.head"] = exchange.method == "HEAD"
        await self.api(scope, exchange.receive, exchange.send)
        exchange.route = getattr(scope.get("route"), "path", "other")

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


def _with_json_named(exchange: Exchange, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request whose body is JSON, whatever it is called: `curl -d` calls it a form."""
    kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if kind in _AS_THEY_SAY or exchange.path.startswith(DELIVERIES):
        return headers
    return [*((name, value) for name, value in headers if name != b"content-type"), (b"content-type", _JSON)]


def _caller(exchange: Exchange, services: Services) -> Caller:
    keys, authorization = services.current.snapshot.keys, exchange.headers.get(b"authorization")
    try:
        return keys.caller(authorization, services.clock.now())
    except Unauthenticated:
        if authorization is not None and is_token(authorization):
            return caller_of(authorization, keys, services.clock.now())
        # A delivery is signed instead, where its webhook has a secret; the route finds out.
        if not exchange.path.startswith(DELIVERIES):
            raise
        return STRANGER


async def _hot_answer(methods: Mapping[str, Handler], exchange: Exchange) -> Answer:
    handler = methods.get(exchange.method)
    if handler is None:
        allowed = ", ".join(methods)
        refusal = refuse_status(405, f"{exchange.method} is not one of {allowed}", exchange.correlation_id)
        refusal = told(exchange.path, refusal)
        return refusal._replace(headers=(*refusal.headers, (b"allow", allowed.encode())))
    return await handler(_call(exchange))


def _call(exchange: Exchange) -> Call:
    assert exchange.caller is not None and exchange.body is not None  # noqa: PT018  # admitted, and read
    return Call(
        exchange.method,
        exchange.query,
        exchange.body,
        exchange.caller,
        exchange.correlation_id,
        exchange.started,
        exchange.headers,
        exchange.given_headers,
    )


def _answered(exchange: Exchange, seconds: float) -> Answered:
    """What a trace says of it."""
    return Answered(exchange.method, exchange.route, exchange.status, exchange.correlation_id, time.time_ns(), seconds)
