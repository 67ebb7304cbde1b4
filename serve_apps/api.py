"""The FastAPI part: every route but the hot ones, and the OpenAPI document of all of them."""

from __future__ import annotations

from copy import copy
from functools import cache
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from featurelib.errors import ThymeError
from serve_apps.dialects import told
from serve_apps.messages import Answer, ErrorBody, internal_error, refuse, refuse_status
from serve_apps.routes import (
    authorization,
    backfills,
    catalogue,
    commit,
    definitions,
    erase,
    features_openapi,
    feed,
    health,
    intake,
    jobs,
    keys,
    monitoring,
    principals,
    query_runs,
    secrets,
    snowflake_openapi,
    tecton_openapi,
    training_sets,
)
from serve_apps.routes.parameters import known_parameters

_DESCRIPTION = """A real-time feature platform. Both services answer every route on both ports: 8081 is the fast
listener of the query server, 8080 the definition service's. Every failure has the one error body."""
_VERSION = "0.1.0"
_SERVER_ERROR = 500
_log = structlog.get_logger("thyme.serve")
_NO_TELEMETRY: dict[str, Any] = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong; the detail names the member at fault."},
    401: {"model": ErrorBody, "description": "The bearer key is missing, unknown, expired or revoked."},
    403: {"model": ErrorBody, "description": "The key's role does not allow this."},
    404: {"model": ErrorBody, "description": "Nothing of that name exists."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {
        "model": ErrorBody,
        "description": "The key has sent more requests than it may.",
        "headers": {"Retry-After": {"description": "Seconds until it may again.", "schema": {"type": "integer"}}},
    },
    500: {"model": ErrorBody, "description": "User code failed, or the service did."},
    503: {"model": ErrorBody, "description": "A store does not answer; retry."},
}


_STRICT = (
    *(module.router for module in (commit, definitions, catalogue, jobs, backfills, feed, intake, erase, query_runs)),
    *(module.router for module in (keys, monitoring, training_sets, principals)),
    secrets.rotation,
)
# Monitors ask with parameters of their own; Tecton's routes answer in words of theirs.
_LENIENT = tuple(module.router for module in (health, secrets, authorization))


def build_api() -> FastAPI:
    """A FastAPI application with a state of its own; its `state.services` is set before the first request."""
    api = copy(_routed())
    api.state = State()
    return api


@cache
def _routed() -> FastAPI:
    """The application with every route. Making them ready takes 0.2 s, at the first request: once in a process."""
    api = FastAPI(
        title="Thyme on Ray",
        description=_DESCRIPTION,
        version=_VERSION,
        redirect_slashes=False,
        # The boundary in front of it accepts any content type: `curl -d` sends JSON as a form.
        strict_content_type=False,
        telemetry=_NO_TELEMETRY,  # type: ignore[arg-type]
        responses=_ERRORS,
        exception_handlers={
            ThymeError: _on_thyme_error,
            RequestValidationError: _on_invalid,
            HTTPException: _on_http_error,
            # Answered here, raised again by the framework, and logged once at the request boundary.
            Exception: _on_unforeseen,
        },
    )
    for router in _STRICT:
        api.include_router(router, dependencies=[Depends(known_parameters)])
    for router in _LENIENT:
        api.include_router(router)
    api.openapi = lambda: _document(api)  # type: ignore[method-assign]
    return api


def _document(api: FastAPI) -> dict[str, Any]:
    if api.openapi_schema is None:
        document = get_openapi(
            title=api.title, version=api.version, description=api.description, routes=api.routes, summary=api.summary
        )
        features_openapi.describe(document)
        tecton_openapi.describe(document)
        snowflake_openapi.describe(document)
        commit.describe(document)
        intake.describe(document)
        training_sets.describe(document)
        _secure(document)
        api.openapi_schema = document
    return api.openapi_schema


def _secure(document: dict[str, Any]) -> None:
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes["bearer"] = {"type": "http", "scheme": HTTPBearer().model.scheme, "description": "An API key, `tk_…`."}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # A framework refusal is a 400 with the one error body here.
            operation["responses"].pop("422", None)
            operation["security"] = [] if path in {"/health", "/metrics"} else [{"bearer": []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)


async def _on_thyme_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ThymeError)
    if error.status >= _SERVER_ERROR:
        _log.error("request_failed", path=request.url.path[:200], code=error.code, error=str(error))
    return _response(request, refuse(error, request.scope["thyme.correlation_id"]))


async def _on_unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001  # fixed signature
    return _response(request, internal_error(request.scope["thyme.correlation_id"]))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [{"field": _place(problem), "message": problem["msg"]} for problem in error.errors()]
    detail = "; ".join(f"{problem['field']}: {problem['message']}" for problem in details[:5])
    return _response(request, refuse_status(400, detail, request.scope["thyme.correlation_id"], details))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail, headers = error.detail, error.headers
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"no route {request.method} {request.url.path[:200]}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of the first route that fits, and there is one for each method.
        allowed = ", ".join(_methods(request.url.path))
        detail, headers = f"{request.method} is not one of {allowed}", {"allow": allowed}
    answer = refuse_status(error.status_code, detail, request.scope["thyme.correlation_id"])
    return _response(request, answer, headers)


def _methods(path: str) -> list[str]:
    """The methods that a path is served with; HEAD is served as GET."""
    routes = (route for router in (*_STRICT, *_LENIENT) for route in router.routes if isinstance(route, APIRoute))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _response(request: Request, refusal: Answer, more: Any = None) -> Response:
    answer = told(request.url.path, refusal)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, answer.status, {**headers, **(more or {})})


def _place(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    # Of malformed JSON the framework gives the character's number; "body" says more.
    return ".".join(location[1:]) or location[0] if problem["type"] != "json_invalid" else "body"
