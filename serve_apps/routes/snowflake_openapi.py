"""The routes of Snowflake's API in the OpenAPI document: FastAPI does not know them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from serve_apps.snowflake_wire import IngestAnswer, QueryAnswer, QueryRequest, SnowflakeError, StreamRecords

_REFERENCE = "#/components/schemas/{name}"
_REFUSED = {
    "400": "The request is wrong; the message names the member at fault.",
    "401": "The token is missing, unknown, expired or revoked.",
    "403": "The role of the token does not allow this.",
    "404": "There is no such feature view or group, or not in this version.",
    "413": "The body is too large.",
    "429": "The token has sent more requests than it may; `Retry-After` says for how many seconds.",
    "500": "User code failed, or the service did.",
    "503": "A store does not answer; send the same again.",
}
_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    "description": "Echoed as `request_id`; made here where there is none.",
}


class _Operation(NamedTuple):
    summary: str
    description: str
    body: type
    answer: type
    partial: str
    example: dict[str, Any]


_INGEST = _Operation(
    "Records for stream sources",
    "Appends at most 10 records for each of at most 2 stream sources, and answers when every feature view has applied "
    "them. Records upsert by key and event time: a request may be sent again.",
    StreamRecords,
    IngestAnswer,
    "A record was refused, or a feature view has not applied the records.",
    {"records": {"transactions_stream": [{"timestamp": "2024-01-15T10:30:00Z", "user_id": "user_123", "amount": 150}]}},
)
_QUERY = _Operation(
    "Features of a feature view or a feature group",
    "Reads the newest features of at most 10 entities.",
    QueryRequest,
    QueryAnswer,
    "An input of a feature is missing, or its computation took too long.",
    {
        "name": "user_transaction_features",
        "version": "v1",
        "object_type": "feature_view",
        "request_rows": [{"entity": {"user_id": "user_123"}}],
    },
)
_OPERATIONS = {"/api/v1/ingest": _INGEST, "/api/v1/query": _QUERY}


def describe(document: dict[str, Any]) -> None:
    """Add the routes to an OpenAPI document."""
    shapes = [SnowflakeError, *(shape for each in _OPERATIONS.values() for shape in (each.body, each.answer))]
    _, schemas = msgspec.json.schema_components(shapes, ref_template=_REFERENCE)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    for path, operation in _OPERATIONS.items():
        document["paths"][path] = {"post": _described(operation)}


def _described(operation: _Operation) -> dict[str, Any]:
    refused = {status: {"description": why, "content": _content(SnowflakeError)} for status, why in _REFUSED.items()}
    body = {"application/json": {**_content(operation.body)["application/json"], "example": operation.example}}
    return {
        "tags": ["snowflake"],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [_REQUEST_ID],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "200": {"description": "All of it was done.", "content": _content(operation.answer)},
            "207": {"description": operation.partial, "content": _content(operation.answer)},
            **refused,
        },
    }


def _content(shape: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=shape.__name__)}}}
