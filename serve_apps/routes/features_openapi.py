"""The hot routes in the OpenAPI document: FastAPI does not know them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from serve_apps.feature_shapes import (
    BatchAnswer,
    BatchRequest,
    FeaturesAnswer,
    FeaturesRequest,
    OfflineAnswer,
    OfflineRequest,
)
from serve_apps.messages import ErrorBody
from serve_apps.tabular import ARROW

_REFERENCE = "#/components/schemas/{name}"
_READ = {
    "featureset": "Featureset to read.",
    "entity_id": "The entity's id; the featureset's entity feature may be used as the parameter's name instead.",
    "entity_type": "Without `featureset`: the dataset whose row is looked up.",
    "timestamp": "Read as of this instant: ISO 8601 (UTC without a zone) or epoch seconds.",
    "ts": "The same as `timestamp`.",
    "knowledge": "Of a read with a timestamp: `latest` counts all records, `as_served` those accepted by then.",
    "explain": "`true`: say of every feature what its value is made of, or why it is null.",
}
_EXPLAIN = {"explain": _READ["explain"]}
_BATCH = {"format": "`positional` or `arrow`; outweighs `Accept`."}
_OFFLINE = {"format": "`json` or `arrow`; outweighs `Accept`."}
_CHOICES = {"knowledge": ["latest", "as_served"], "explain": ["true", "false", "1", "0"]}
_ERROR_STATUSES = {
    "400": "wrong request",
    "401": "no valid key",
    "404": "unknown featureset",
    "413": "body too large",
    "429": "the key's rate limit is reached; `Retry-After` says for how many seconds",
    "500": "an extractor failed",
    "503": "the store does not answer",
}
_RUN_HEADER = {"X-Query-Run-Id": {"description": "Id of the query run.", "schema": {"type": "string"}}}


_SERVING = {
    "title": "Serving",
    "type": "object",
    "description": "What a request without parameters is answered with.",
    "properties": {"status": {"const": "ok"}},
    "required": ["status"],
}


class _Operation(NamedTuple):
    summary: str
    answer: type
    body: type | None
    parameters: dict[str, str]
    tabular: bool = False


_GET = _Operation("Features of one entity, or a dataset's row", FeaturesAnswer, None, _READ)
_POST = _Operation("Features of one entity with request-time inputs", FeaturesAnswer, FeaturesRequest, _EXPLAIN)
_MANY = _Operation("Features of many entities", BatchAnswer, BatchRequest, _BATCH, tabular=True)
_THEN = _Operation(
    "Features of many entities, each as of its own instant", OfflineAnswer, OfflineRequest, _OFFLINE, tabular=True
)


def describe(document: dict[str, Any]) -> None:
    """Add the hot routes to an OpenAPI document."""
    operations = (_GET, _POST, _MANY, _THEN)
    shapes = {shape for each in operations for shape in (each.answer, each.body) if shape is not None}
    _, schemas = msgspec.json.schema_components(sorted(shapes, key=lambda s: s.__name__), ref_template=_REFERENCE)
    schemas["Serving"] = _SERVING
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    reads = _described(_GET)
    # A monitor that asks without parameters is told that reads are served.
    answers = [{"$ref": _REFERENCE.format(name=name)} for name in (FeaturesAnswer.__name__, "Serving")]
    reads["responses"]["200"]["content"]["application/json"]["schema"] = {"anyOf": answers}
    document["paths"]["/features"] = {
        "get": reads,
        "head": {
            "tags": ["features"],
            "summary": "Whether reads are served; without parameters, so does GET",
            "responses": {"200": {"description": "They are."}, "401": {"description": _ERROR_STATUSES["401"]}},
        },
        "post": _described(_POST),
    }
    document["paths"]["/features/batch"] = {"post": _described(_MANY)}
    document["paths"]["/features/offline"] = {"post": _described(_THEN)}


def _described(operation: _Operation) -> dict[str, Any]:
    content = _content(operation.answer)
    if operation.tabular:
        stream = {"type": "string", "format": "binary", "description": "An Arrow IPC stream, a column per feature."}
        content[ARROW.decode()] = {"schema": stream}
    done = {"description": "The values.", "content": content, "headers": _RUN_HEADER}
    failed = {status: {"description": why, "content": _content(ErrorBody)} for status, why in _ERROR_STATUSES.items()}
    described: dict[str, Any] = {
        "tags": ["features"],
        "summary": operation.summary,
        "parameters": [_parameter(name, what) for name, what in operation.parameters.items()],
        "responses": {"200": done, **failed},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _parameter(name: str, what: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name in _CHOICES:
        schema["enum"] = _CHOICES[name]
    return {"name": name, "in": "query", "description": what, "schema": schema}


def _content(shape: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=shape.__name__)}}}
