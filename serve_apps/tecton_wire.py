"""Requests and answers of Tecton's feature service: names in two spellings, protobuf's JSON, types and their values.

What is read here is checked by hand: its refusals have words that clients of that API look for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from featurelib.clock import Instant, format_instant, parse_instant
from featurelib.errors import InvalidRequest
from featurelib.types import Value, decimal_scale, element_type, is_nested, members_of, value_type
from serve_apps.service_plan import ContextKey, ServicePlan
from serve_apps.service_reads import AskedRow
from serve_apps.tecton_sent import read_scalar, read_sent

Json = dict[str, Any]
Encode = Callable[[Value], Any]
_decode = msgspec.json.Decoder().decode
_VERSIONED = re.compile(r"^(?P<name>.+):v(?P<version>[1-9][0-9]{0,8})$")
_NAMING = ("featureServiceName", "featureServiceId", "featureViewName")
_LEAST_BUDGET_MS = 100
_EDGES: Mapping[str, Literal["wall", "event"]] = {"WALL_CLOCK_TIME": "wall", "LATEST_EVENT_TIME": "event"}
_NO_EDGE = "UNSPECIFIED"
_EDGE_PREFIX = "AGGREGATION_MODE_"
_TYPES = {"int": "int64", "float": "float64", "bool": "boolean", "str": "string", "datetime": "timestamp"}


class Options(NamedTuple):
    """What of ``metadata`` an answer has; see the table of options in the documentation."""

    names: bool = True
    data_types: bool = True
    types: bool = False
    effective_times: bool = False
    statuses: bool = False
    descriptions: bool = False
    tags: bool = False
    slo_info: bool = False


_OPTIONS = {
    "includeNames": "names",
    "includeDataTypes": "data_types",
    "includeTypes": "types",
    "includeEffectiveTimes": "effective_times",
    "includeServingStatus": "statuses",
    "includeFeatureDescriptions": "descriptions",
    "includeFeatureTags": "tags",
    "includeSloInfo": "slo_info",
}


class ServiceName(NamedTuple):
    """Which service is meant: by name, or by id; or which feature view, by name."""

    workspace: str
    name: str | None
    id: str | None
    view: str | None = None


class Wanted(NamedTuple):
    """What a request says beside the service, its join keys and its context."""

    options: Options
    partial: bool = False
    zero_counts: bool = False
    ignore_extra: bool = False
    budget_s: float | None = None
    clock: Literal["wall", "event"] | None = None
    at: Instant | None = None


def params_of(body: bytes) -> Json:
    """The ``params`` of a request.

    Raises:
        InvalidRequest: the body is no JSON object, or has none.
    """
    tree = object_of(body)
    if "params" not in tree:
        raise InvalidRequest('params: missing; the body is {"params": {…}}')
    return _object(tree["params"], "params")


def object_of(body: bytes) -> Json:
    """The JSON object of a body.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        tree = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"body: {error}") from None
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None
    return _object(tree, "body")


def member(tree: Mapping[str, Any], name: str) -> Any:
    """A member by its name in camelCase, or in the snake_case that other clients send; ``None`` where it is not."""
    found = tree.get(name)
    return found if found is not None else tree.get(_SNAKE.get(name) or _snake(name))


def member_object(tree: Mapping[str, Any], name: str) -> Json:
    """A member that is an object; an empty one where it is not there.

    Raises:
        InvalidRequest: it is something else.
    """
    found = member(tree, name)
    return {} if found is None else _object(found, name)


def service_name(tree: Mapping[str, Any], default_workspace: str | None = None) -> ServiceName:
    """Which service a request means.

    Raises:
        InvalidRequest: several or none of name, id and feature view, or no workspace.
    """
    named = [_text(tree, member) for member in _NAMING]
    if len(named) - named.count(None) != 1:
        found = " and ".join(m for m, given in zip(_NAMING, named, strict=True) if given is not None) or "neither"
        raise InvalidRequest(f"expected exactly one of {', '.join(_NAMING)}; found {found}")
    workspace = _text(tree, "workspaceName") or default_workspace
    if workspace is None:
        raise InvalidRequest("workspaceName: missing; name the workspace of the feature service")
    return ServiceName(workspace, *named)


def with_version(name: str) -> tuple[str, int | None]:
    """``name:v2`` as name and version; the version is ``None`` where none is given."""
    found = _VERSIONED.match(name)
    return (found["name"], int(found["version"])) if found else (name, None)


def wanted(params: Mapping[str, Any]) -> Wanted:
    """What a request says of its answer.

    Raises:
        InvalidRequest: a member has another type than it should, or a value out of range.
    """
    options = _options(member_object(params, "metadataOptions"))
    partial = bool(_flag(params, "allowPartialResults", "params"))
    asked = member_object(params, "requestOptions")
    if not asked:  # as most requests have it
        return Wanted(options, partial)
    for name in ("readFromCache", "writeToCache"):
        _flag(asked, name, "requestOptions")  # values are as new as the store tells: neither has anything to do
    return Wanted(
        options=options,
        partial=partial,
        zero_counts=bool(_flag(asked, "coerceNullCountsToZero", "requestOptions")),
        ignore_extra=bool(_flag(asked, "ignoreExtraRequestContextFields", "requestOptions")),
        budget_s=_budget(asked),
        clock=_clock(asked),
        at=_pinned(asked),
    )


def asked_row(
    tree: Mapping[str, Any], plan: ServicePlan, *, ignore_extra: bool = False, free: str | None = None
) -> AskedRow:
    """The join keys and the request context of one row.

    Args:
        tree: what holds ``joinKeyMap`` and ``requestContextMap``.
        plan: of the service.
        ignore_extra: whether values that the service does not take are ignored.
        free: the join key that may be left out.

    Raises:
        InvalidRequest: one is missing, unknown, or of another type.
    """
    keys = _keys(member_object(tree, "joinKeyMap"), plan, free)
    return AskedRow(keys, _context(member_object(tree, "requestContextMap"), plan, ignore_extra=ignore_extra))


def data_type(type_name: str) -> Json:
    """A column type as ``dataType`` says it; decimals travel as their text."""
    element = element_type(type_name)
    if element is not None:
        return {"type": "array", "elementType": data_type(element)}
    value, members = value_type(type_name), members_of(type_name)
    if value is not None:
        return {"type": "map", "keyType": {"type": "string"}, "valueType": data_type(value)}
    if members is not None:
        return {"type": "struct", "fields": [{"name": name, "dataType": data_type(kind)} for name, kind in members]}
    return {"type": "string" if decimal_scale(type_name) is not None else _TYPES[type_name]}


def encoder(type_name: str) -> Encode | None:
    """How the wire shows a value of the type, which is not null; ``None``: as it is."""
    element, scale = element_type(type_name), decimal_scale(type_name)
    if element is not None:
        return _list_encoder(encoder(element))
    value, members = value_type(type_name), members_of(type_name)
    if value is not None:
        return _map_encoder(encoder(value))
    if members is not None:
        return _struct_encoder([(name, encoder(kind)) for name, kind in members])
    if scale is not None:
        digits = f".{scale}f"
        return lambda value: format(value, digits)
    return _ENCODERS.get(type_name)


def encoded(column: Sequence[Value], encode: Encode | None) -> Sequence[Any]:
    """A column of values as the wire shows them."""
    return column if encode is None else [None if value is None else encode(value) for value in column]


def _list_encoder(encode: Encode | None) -> Encode | None:
    return None if encode is None else lambda values: [None if value is None else encode(value) for value in values]


def _map_encoder(encode: Encode | None) -> Encode | None:
    if encode is None:
        return None
    return lambda values: {name: None if value is None else encode(value) for name, value in values.items()}


def _struct_encoder(members: Sequence[tuple[str, Encode | None]]) -> Encode:
    """A struct travels as the list of its values, in the order of its members."""
    return lambda values: [
        value if value is None or encode is None else encode(value)
        for value, encode in ((values.get(name), encode) for name, encode in members)
    ]


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


_ENCODERS: Mapping[str, Encode] = {"int": str, "float": _float, "datetime": format_instant}


def _keys(given: Mapping[str, Any], plan: ServicePlan, free: str | None) -> Json:
    if not given.keys() <= plan.join_keys.keys():
        unknown = next(name for name in given if name not in plan.join_keys)
        raise InvalidRequest(f"Unknown join key: {unknown[:60]}, expected one of: [{' '.join(plan.join_keys)}]")
    found = {}
    for name, key in plan.join_keys.items():
        if name in given:
            found[name] = _key(name, key.type, given[name])
        elif name != free:
            raise InvalidRequest(f"Missing required join key: {name}")
    return found


def _key(name: str, type_name: str, given: Any) -> Value:
    if given is None:
        return None
    try:
        return read_scalar(type_name, given)
    except ValueError:
        raise _unexpected(name, "joinKeyMap", type_name) from None


def _context(given: Mapping[str, Any], plan: ServicePlan, *, ignore_extra: bool) -> Json:
    if not given and not plan.context:
        return {}
    unknown = [name for name in given if name not in plan.context]
    if unknown and not ignore_extra:
        expected = " ".join(plan.context)
        raise InvalidRequest(f"Unknown key: {unknown[0][:60]} in requestContextMap, expected one of: [{expected}]")
    absent = [name for name, key in plan.context.items() if key.required and name not in given]
    if absent:
        raise InvalidRequest(f"Expected key not found: [{' '.join(absent)}] in requestContextMap")
    # Null is a value of everything: what a feature makes of it is the engine's to say.
    return {
        name: _context_value(key, given[name], ignore_extra=ignore_extra)
        for name, key in plan.context.items()
        if name in given
    }


def _context_value(key: ContextKey, given: Any, *, ignore_extra: bool) -> Any:
    try:
        return read_sent(key.type, given, ignore_extra=ignore_extra)
    except ValueError as error:
        told = _unexpected(key.name, "requestContextMap", key.type)
        raise InvalidRequest(f"{told} {error}") if is_nested(key.type) else told from None


def _unexpected(name: str, where: str, type_name: str) -> InvalidRequest:
    return InvalidRequest(f"Unexpected JSON type for {name} in {where}. Expected {_said(type_name)} or null.")


def _said(type_name: str) -> str:
    kind = data_type(type_name)
    return f"array of {kind['elementType']['type']}" if kind["type"] == "array" else str(kind["type"])


def _options(given: Mapping[str, Any]) -> Options:
    if not given:
        return _DEFAULT_OPTIONS
    chosen = {field: _flag(given, name, "metadataOptions") for name, field in _OPTIONS.items()}
    return Options(**{field: value for field, value in chosen.items() if value is not None})


_DEFAULT_OPTIONS = Options()


def _budget(asked: Mapping[str, Any]) -> float | None:
    given = member(asked, "latencyBudgetMs")
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool):
        raise InvalidRequest("Unexpected JSON type for latencyBudgetMs in requestOptions. Expected int32 or null.")
    if given < _LEAST_BUDGET_MS:
        raise InvalidRequest(f"latencyBudgetMs in requestOptions: {given}; expected {_LEAST_BUDGET_MS} or more")
    return given / 1_000


def _clock(asked: Mapping[str, Any]) -> Literal["wall", "event"] | None:
    given = _text(asked, "aggregationLeadingEdge")
    if given is None:
        return None
    name = given.upper().removeprefix(_EDGE_PREFIX)
    if name != _NO_EDGE and name not in _EDGES:
        known = " or ".join(_EDGES)
        raise InvalidRequest(f"aggregationLeadingEdge in requestOptions: {given[:60]!r}; expected {known}")
    return _EDGES.get(name)


def _pinned(asked: Mapping[str, Any]) -> Instant | None:
    given = _text(asked, "highWatermarkOverride")
    return None if given is None else parse_instant(given, "highWatermarkOverride")


def _flag(tree: Mapping[str, Any], name: str, where: str) -> bool | None:
    given = member(tree, name)
    if given is None or isinstance(given, bool):
        return given
    raise InvalidRequest(f"Unexpected JSON type for {name} in {where}. Expected bool or null.")


def _text(tree: Mapping[str, Any], name: str) -> str | None:
    given = member(tree, name)
    if given is None or given == "":  # protobuf's JSON makes no difference between the two
        return None
    if not isinstance(given, str):
        raise InvalidRequest(f"Unexpected JSON type for {name}. Expected string or null.")
    return given


def _object(given: Any, name: str) -> Json:
    if not isinstance(given, dict):
        raise InvalidRequest(f"Unexpected JSON type for {name}. Expected object.")
    return given


_SNAKE: dict[str, str] = {}


def _snake(name: str) -> str:
    found = _SNAKE.get(name)
    if found is None:
        found = _SNAKE[name] = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return found
