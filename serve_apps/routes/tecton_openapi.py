"""Tecton's feature service in the OpenAPI document: FastAPI does not know the hot routes."""

from __future__ import annotations

from typing import Any, NamedTuple

from serve_apps.tecton_errors import TectonErrorBody

Json = dict[str, Any]
_PREFIX = "/api/v1/feature-service"
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": ["boolean", "null"]}
_MAP: Json = {"type": "object", "additionalProperties": True}
_TYPED: Json = {
    "type": "object",
    "properties": {"name": _TEXT, "dataType": _MAP},
    "required": ["name", "dataType"],
}
_FEATURES: Json = {
    "type": "object",
    "description": "Values in the order of the service: int64 as text, timestamps as ISO 8601, NaN and infinities as "
    "text, null for no value.",
    "properties": {"features": {"type": "array", "items": True}},
    "required": ["features"],
    "additionalProperties": False,
}
_METADATA: Json = {
    "type": "object",
    "description": "What `metadataOptions` asked for.",
    "properties": {
        "features": {"type": "array", "items": {"type": "object"}},
        "joinKeys": {"type": "array", "items": _TYPED},
        "sloInfo": {"type": ["object", "array"]},
        "batchSloInfo": {"type": "object"},
        "partialResults": {"const": True},
    },
    "additionalProperties": False,
}
_OPTIONS = (
    "includeNames",
    "includeDataTypes",
    "includeTypes",
    "includeEffectiveTimes",
    "includeServingStatus",
    "includeFeatureDescriptions",
    "includeFeatureTags",
    "includeSloInfo",
)
_SERVICE: Json = {
    "featureServiceName": {**_TEXT, "examples": ["fraud_detection_feature_service"]},
    "featureServiceId": {**_TEXT, "description": "In place of the name."},
    "featureViewName": {**_TEXT, "description": "In place of a service: one of its parts, with all its features."},
    "workspaceName": {**_TEXT, "examples": ["prod"]},
}
_ROW: Json = {
    "joinKeyMap": {**_MAP, "examples": [{"user_id": "u1"}]},
    "requestContextMap": {**_MAP, "examples": [{"amount": 100.0}]},
}
_HOW: Json = {
    "metadataOptions": {"type": "object", "properties": dict.fromkeys(_OPTIONS, _FLAG)},
    "requestOptions": {
        "type": "object",
        "properties": {
            "readFromCache": _FLAG,
            "writeToCache": _FLAG,
            "ignoreExtraRequestContextFields": _FLAG,
            "latencyBudgetMs": {"type": ["integer", "null"], "minimum": 100},
            "coerceNullCountsToZero": _FLAG,
            "aggregationLeadingEdge": {"enum": ["WALL_CLOCK_TIME", "LATEST_EVENT_TIME", None]},
            "highWatermarkOverride": {"type": ["string", "null"], "format": "date-time"},
        },
    },
    "allowPartialResults": _FLAG,
}
_FAILURES = {
    "400": "The request is wrong (code 3), or cannot be served as it is (9).",
    "401": "The key is missing, unknown, expired or revoked (16).",
    "403": "The key's principal holds no role on the workspace (7).",
    "404": "There is no such feature service in the workspace (5).",
    "413": "The body is too large (8).",
    "429": "The key's rate limit, or the limit of reads under way at once, is reached (8).",
    "500": "User code failed, or the service did (13).",
    "503": "The store does not answer (14).",
    "504": "The read took longer than it may (4).",
}


class _Operation(NamedTuple):
    name: str
    summary: str
    params: Json
    answer: Json
    is_wrapped: bool = True


def _object(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


_READS = _object({"result": _FEATURES, "metadata": _METADATA}, "result")
_BATCH = _object({"result": {"type": "array", "items": _FEATURES}, "metadata": _METADATA}, "result")
_WILD_ROW = _object({"features": {"type": "array"}, "joinKeys": {"type": "array"}}, "features", "joinKeys")
_WILD = _object({"results": {"type": "array", "items": _WILD_ROW}, "metadata": _METADATA}, "results", "metadata")
_LISTS = ("inputJoinKeys", "inputRequestContextKeys", "outputJoinKeys", "featureValues")
_DESCRIBED = _object(
    {
        "featureServiceType": {"enum": ["DEFAULT", "WILDCARD"]},
        **{name: {"type": "array", "items": _TYPED} for name in _LISTS},
    },
    "featureServiceType",
    "inputJoinKeys",
    "inputRequestContextKeys",
    "featureValues",
)
_ROWS = {"requestData": {"type": "array", "items": _object(_ROW), "minItems": 1, "maxItems": 10}}
_OPERATIONS = (
    _Operation("get-features", "Features of one row of a feature service", {**_SERVICE, **_ROW, **_HOW}, _READS),
    _Operation("get-features-batch", "Features of up to ten rows", {**_SERVICE, **_ROWS, **_HOW}, _BATCH),
    _Operation(
        "query-features", "Features for every value of the join key left out", {**_SERVICE, **_ROW, **_HOW}, _WILD
    ),
    _Operation("metadata", "What a feature service takes and gives", _SERVICE, _DESCRIBED),
    _Operation("get-feature-service-state", "Whether a feature service is served", _SERVICE, {"type": "object"}, False),
)


def describe(document: Json) -> None:
    """Add the routes to an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.setdefault(TectonErrorBody.__name__, TectonErrorBody.model_json_schema())
    for operation in _OPERATIONS:
        document["paths"][f"{_PREFIX}/{operation.name}"] = {"post": _described(operation)}


def _described(operation: _Operation) -> Json:
    wrapper = "params" if operation.is_wrapped else "featureServiceLocator"
    body = _object({wrapper: _object(operation.params)}, wrapper)
    done = {"description": "Done.", "content": {"application/json": {"schema": operation.answer}}}
    return {
        "tags": ["tecton"],
        "summary": operation.summary,
        "description": "As clients of Tecton's HTTP API send it; names come in camelCase or snake_case.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": done, **{status: _failed(why) for status, why in _FAILURES.items()}},
    }


def _failed(why: str) -> Json:
    reference = {"$ref": f"#/components/schemas/{TectonErrorBody.__name__}"}
    return {"description": why, "content": {"application/json": {"schema": reference}}}
