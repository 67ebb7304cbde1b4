"""What goes over the wire of Snowflake's online feature store: bodies of ingest and query, and of every failure.

Wire types only; what they mean is in :mod:`serve_apps.snowflake_ingest` and :mod:`serve_apps.snowflake_query`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from featurelib.errors import InvalidRequest
from featurelib.types import decimal_scale, element_type, is_nested
from serve_apps.log_body import read_integer

PREFIXES = ("/api/v1/ingest", "/api/v1/query")
"""Paths whose failures have this surface's body, those of the framework included."""

MOST_SOURCES = 2
"""Most stream sources of one ingest request."""
MOST_RECORDS = 10
"""Most records of one stream source in it."""
MOST_ROWS = 10
"""Most request rows of one query."""

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "REQUEST_TOO_LARGE",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
# Decimals are kept with at most 20 digits before the point and 18 behind it.
_PRECISION = 38
_DATA_TYPES = {"int": "int64", "float": "float64", "str": "string", "bool": "boolean", "datetime": "timestamp"}

_T = TypeVar("_T")
ServingStatus = Literal["PRESENT", "MISSING_DATA", "MISSING_INPUT", "TIME_OUT"]
Status = Literal["success", "partial_success"]


class StreamRecords(msgspec.Struct, forbid_unknown_fields=True):
    """Records by stream source: at most 2 sources, 10 records each."""

    records: dict[str, list[dict[str, Any]]]
    dry_run: bool = False
    include_diagnostics: bool = False


class Refusal(msgspec.Struct):
    """What is wrong: a code, and the words for it."""

    code: str
    message: str


class RefusedRecord(msgspec.Struct):
    """A record that does not fit its stream source; `index` counts from 0."""

    index: int
    error: Refusal


class RecordCounts(msgspec.Struct):
    """What became of the records of a source; `errors` is left out when none failed."""

    total: int
    failed: int
    errors: list[RefusedRecord] | msgspec.UnsetType = msgspec.UNSET


class ViewError(msgspec.Struct):
    """Why a feature view does not hold the records; `store` says which of its stores."""

    code: Literal["NOT_FOUND", "FAILED_PRECONDITION", "UNAVAILABLE", "UDF_EXECUTION_FAILED", "WRITE_ERROR", "INTERNAL"]
    message: str
    store: Literal["online", "offline"] | msgspec.UnsetType = msgspec.UNSET
    retryable: bool | msgspec.UnsetType = msgspec.UNSET


class ViewResult(msgspec.Struct):
    """Whether a feature view has applied the records."""

    name: str
    version: str
    status: Literal["success", "failed"]
    error: ViewError | msgspec.UnsetType = msgspec.UNSET


class ViewResults(msgspec.Struct):
    """One entry per feature view that reads the source."""

    failed: int
    results: list[ViewResult]


class SourceResult(msgspec.Struct):
    """What became of one source's records."""

    records: RecordCounts
    feature_views: ViewResults


class Timings(msgspec.Struct):
    """Milliseconds the server took in all, and for each of its steps."""

    total_ms: float
    steps_ms: dict[str, float]


class IngestAnswer(msgspec.Struct):
    """`success` (200): all records accepted and applied; `partial_success` (207): see `sources`."""

    request_id: str
    status: Status
    sources: dict[str, SourceResult]
    diagnostics: Timings | msgspec.UnsetType = msgspec.UNSET


class RequestRow(msgspec.Struct, forbid_unknown_fields=True):
    """One entity: the value of each join key, and what its features need of the request."""

    entity: dict[str, Any]
    request_context: dict[str, Any] | None = None


class QueryOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer says beside the values."""

    include_names: bool = False
    include_data_types: bool = False
    include_effective_times: bool = False
    include_serving_status: bool = False

    @property
    def any_metadata(self) -> bool:
        """Whether the answer has a `metadata` member."""
        return self.include_names or self.include_data_types or self.include_effective_times


class QueryRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read of a feature view or a feature group for 1 to 10 entities."""

    name: str
    version: str
    object_type: Literal["feature_view", "feature_group"]
    request_rows: list[RequestRow]
    features: list[str] | None = None
    metadata_options: QueryOptions | None = None
    include_diagnostics: bool = False


class QueryResult(msgspec.Struct):
    """The values of one request row, and the status of each where it was asked for."""

    features: list[Any]
    status: list[ServingStatus] | msgspec.UnsetType = msgspec.UNSET


class FeatureMetadata(msgspec.Struct):
    """What was asked about one feature; `effective_time` is null where there is no data."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    feature_view: str | msgspec.UnsetType = msgspec.UNSET
    feature_view_version: str | msgspec.UnsetType = msgspec.UNSET
    data_type: str | msgspec.UnsetType = msgspec.UNSET
    precision: int | msgspec.UnsetType = msgspec.UNSET
    scale: int | msgspec.UnsetType = msgspec.UNSET
    effective_time: str | msgspec.UnsetType | None = msgspec.UNSET


class QueryMetadata(msgspec.Struct):
    """One entry per feature, in the order of the values."""

    features: list[FeatureMetadata]


class QueryAnswer(msgspec.Struct):
    """`success` (200), or `partial_success` (207) where an input was missing or a computation timed out."""

    request_id: str
    status: Status
    results: list[QueryResult]
    metadata: QueryMetadata | msgspec.UnsetType = msgspec.UNSET
    diagnostics: Timings | msgspec.UnsetType = msgspec.UNSET


class SnowflakeError(msgspec.Struct):
    """The body of every failure."""

    request_id: str
    error: Refusal


_INGEST = msgspec.json.Decoder(StreamRecords)
_QUERY = msgspec.json.Decoder(QueryRequest)


def read_ingest(body: bytes) -> StreamRecords:
    """The body of an ingest request, its limits checked.

    Raises:
        InvalidRequest: it is none; names the member at fault.
    """
    request = _decoded(_INGEST, body)
    if not 1 <= len(request.records) <= MOST_SOURCES:
        raise InvalidRequest(f"records: {len(request.records)} stream sources; a request holds 1 to {MOST_SOURCES}")
    for source, records in request.records.items():
        if not source:
            raise InvalidRequest("records: the name of a stream source is empty")
        if len(records) > MOST_RECORDS:
            text = f"records.{source[:64]}: {len(records)} records; a request holds at most {MOST_RECORDS} of a source"
            raise InvalidRequest(text)
    return request


def read_query(body: bytes) -> QueryRequest:
    """The body of a query, its limits checked.

    Raises:
        InvalidRequest: it is none; names the member at fault.
    """
    request = _decoded(_QUERY, body)
    if not 1 <= len(request.request_rows) <= MOST_ROWS:
        raise InvalidRequest(f"request_rows: {len(request.request_rows)} rows; a query holds 1 to {MOST_ROWS}")
    if request.features is not None and request.object_type == "feature_group":
        raise InvalidRequest("features: only a feature_view has a choice of features; leave it out for a feature_group")
    if request.features is not None and not request.features:
        raise InvalidRequest("features: the list is empty; leave it out for all features")
    return request


def snowflake_body(status: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a failure.

    Args:
        status: of the answer.
        told: the body it has on paths of our own.
    """
    error = {"code": _CODES.get(status, "INTERNAL"), "message": told["detail"]}
    return {"request_id": told["correlation_id"], "error": error}


def data_type_of(type_name: str) -> dict[str, Any]:
    """How metadata names a type; of decimals with their precision and scale."""
    scale = decimal_scale(type_name)
    if scale is not None:
        return {"data_type": "fixed", "precision": _PRECISION, "scale": scale}
    if is_nested(type_name) and element_type(type_name) is None:
        return {"data_type": "variant"}
    return {"data_type": "array" if element_type(type_name) else _DATA_TYPES[type_name]}


def _decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            if _OUT_OF_RANGE not in str(error):
                raise
            # One such number costs its own record, not the others: it is read as an infinity, which no column takes.
            tree = _LENIENT.decode(body.decode())
            msgspec.json.encode(tree)  # half a surrogate pair, which the strict reader refuses, has no UTF-8
            return msgspec.convert(tree, decoder.type)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"body: {error}") from None
    except (msgspec.DecodeError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise InvalidRequest(f"body: not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None


def _no_constant(name: str) -> None:
    message = f"{name} is no JSON"
    raise ValueError(message)


_OUT_OF_RANGE = "out of range"
_LENIENT = json.JSONDecoder(parse_int=read_integer, parse_constant=_no_constant)
