"""`/features` and `/features/batch`: the hot routes.

Handlers take a :class:`Call` and give an :class:`Answer`; FastAPI is not involved, so their part of the OpenAPI
document is written by :func:`describe`.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from featurelib.clock import Instant, parse_instant
from featurelib.errors import InvalidRequest, ThymeError
from serve_apps.messages import Answer, Call, ErrorBody, Handler, json_answer, writable
from serve_apps.query_server import MOST_ENTITIES, Question
from serve_apps.services import Services

_MOST_PARAMETERS = 32
_KNOWN = frozenset({"featureset", "entity_id", "entity_type", "timestamp", "ts"})
# An unescaped `+` of a zone in a query string arrives as a space.
_BLANK_ZONE = re.compile(r" (\d\d:?\d\d)$")
# What a query run keeps: ids and inputs of requests up to this size, and of larger or refused ones the first ids.
_MOST_KEPT_BYTES = 256 * 1024
_IDS_OF_REFUSED = 100
_LONGEST_ERROR = 2_000
_PROBE = {"status": "ok"}


EntityId = str | int | float | list[str | int | float | bool]


class FeaturesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read with request-time inputs."""

    featureset: str
    entity_id: EntityId
    entity_type: str | None = None
    timestamp: str | int | float | None = None
    inputs: dict[str, Any] | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read of many entities, at most 10,000."""

    featureset: str
    entity_ids: list[EntityId]
    entity_type: str | None = None
    inputs: dict[str, Any] | None = None


class ReadAt(msgspec.Struct):
    """The instant R the values are of, and whose clock it is: the server's, the events', or the request's timestamp."""

    timestamp: str
    clock: Literal["wall", "event", "request"]


class FeaturesAnswer(msgspec.Struct):
    """Value by feature; `features` is null for a look-up of an unknown row."""

    entity_type: str
    entity_id: str
    features: dict[str, Any] | None
    mode: Literal["online", "point_in_time"]
    metadata: ReadAt


class BatchAnswer(msgspec.Struct):
    """Positional rows, in the order asked; the first column is `entity_id`."""

    features: list[str]
    values: list[list[Any]]


class _Outcome(NamedTuple):
    """What a query run says became of a question; ``ids`` may be the first of ``entities``."""

    ids: tuple[str, ...]
    entities: int
    hits: int = 0
    commit_id: str | None = None
    error: str | None = None


class FeatureRoutes:
    """The handlers, over the services of a replica."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._features_body = msgspec.json.Decoder(FeaturesRequest)
        self._batch_body = msgspec.json.Decoder(BatchRequest)
        self.table: Mapping[str, Mapping[str, Handler]] = {
            "/features": {"GET": self.get, "HEAD": self.probe, "POST": self.post},
            "/features/batch": {"POST": self.batch},
        }

    async def probe(self, call: Call) -> Answer:  # noqa: ARG002  # a handler's signature
        """Say that reads are served; monitors ask without parameters."""
        return json_answer(_PROBE)

    async def get(self, call: Call) -> Answer:
        """Features of one entity, or the row of a dataset."""
        parameters = _parameters(call.query)
        if not parameters:
            return await self.probe(call)
        at = _timestamp(parameters)
        featureset = parameters.get("featureset")
        if featureset is None:
            return await self._answer(call, _lookup(parameters, at))
        # The entity's own name is an alias of entity_id; only the plan knows it.
        plan = self._services.current.snapshot.plans.get(featureset)
        entity_id = _entity_id(parameters, plan.entity_name if plan else "entity_id", known=plan is not None)
        return await self._answer(
            call, Question("features", featureset, (entity_id,), parameters.get("entity_type"), at)
        )

    async def post(self, call: Call) -> Answer:
        """Features of one entity with request-time inputs."""
        body = _decoded(self._features_body, call.body)
        at = None if body.timestamp is None else parse_instant(body.timestamp)
        ids = (body.entity_id,)
        return await self._answer(
            call, Question("features", body.featureset, ids, body.entity_type, at, body.inputs or {})
        )

    async def batch(self, call: Call) -> Answer:
        """Features of many entities, as positional rows."""
        body = _decoded(self._batch_body, call.body)
        count = len(body.entity_ids)
        if count > MOST_ENTITIES:
            refusal = InvalidRequest(f"entity_ids: {count} ids; at most {MOST_ENTITIES} at once")
            asked = Question("batch", body.featureset, tuple(body.entity_ids[:_IDS_OF_REFUSED]), body.entity_type)
            self._record(call, asked, str(uuid.uuid4()), _refused(asked, refusal)._replace(entities=count))
            raise refusal
        ids = tuple(body.entity_ids)
        return await self._answer(
            call, Question("batch", body.featureset, ids, body.entity_type, None, body.inputs or {})
        )

    async def _answer(self, call: Call, question: Question) -> Answer:
        run_id = str(uuid.uuid4())
        try:
            reply = await self._services.query_server.answer(question)
        except ThymeError as error:
            self._record(call, question, run_id, _refused(question, error))
            raise
        self._record(
            call, question, run_id, _Outcome(reply.entity_ids, len(reply.entity_ids), reply.hits, reply.commit_id)
        )
        return json_answer(reply.body, (b"x-query-run-id", run_id.encode()))

    def _record(self, call: Call, question: Question, run_id: str, outcome: _Outcome) -> None:
        # A request bounds what its run weighs: one too large to keep is recorded without its question.
        size = len(call.body) + len(call.query)
        ids = outcome.ids if size <= _MOST_KEPT_BYTES else tuple(each[:64] for each in outcome.ids[:_IDS_OF_REFUSED])
        kept = size <= _MOST_KEPT_BYTES and len(ids) == outcome.entities
        self._services.writer.put(
            {
                "id": run_id,
                "kind": question.kind,
                "featureset": question.target,
                "entity_ids": ids,
                "entity_count": outcome.entities,
                "requested_timestamp": question.at,
                "hit_count": outcome.hits,
                "latency_ms": round((time.perf_counter() - call.started) * 1_000),
                "api_key_fingerprint": call.caller.fingerprint,
                "correlation_id": call.correlation_id,
                "error": outcome.error,
                "created_at": self._services.clock.now(),
                "inputs": question.recorded() if kept else None,
                "definition": outcome.commit_id,
            },
            min(size, _MOST_KEPT_BYTES),
        )


def _refused(question: Question, error: ThymeError) -> _Outcome:
    ids = tuple(str(given) for given in question.entity_ids[:_IDS_OF_REFUSED])
    text = writable(f"{error.code}: {error}"[:_LONGEST_ERROR])
    return _Outcome(ids, len(question.entity_ids), error=text)


def _parameters(query: bytes) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS
        )
    except UnicodeDecodeError:
        raise InvalidRequest("query: not UTF-8 in percent-encoding") from None
    except ValueError:
        raise InvalidRequest(f"query: more than {_MOST_PARAMETERS} parameters") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise InvalidRequest(f"{twice[:60]}: given more than once")
    return parameters


def _timestamp(parameters: Mapping[str, str]) -> Instant | None:
    if "timestamp" in parameters and "ts" in parameters:
        raise InvalidRequest("ts: an alias of timestamp; give one of them")
    for name in ("timestamp", "ts"):
        if name in parameters:
            return parse_instant(_BLANK_ZONE.sub(r"+\1", parameters[name]), name)
    return None


def _lookup(parameters: Mapping[str, str], at: Instant | None) -> Question:
    dataset = parameters.get("entity_type")
    if not dataset:
        raise InvalidRequest("featureset: missing; name a featureset, or a dataset by entity_type")
    return Question("lookup", dataset, (_entity_id(parameters, "entity_id", known=True),), at=at)


def _entity_id(parameters: Mapping[str, str], alias: str, *, known: bool) -> str:
    names = [name for name in ("entity_id", alias) if name in parameters]
    strange = [name for name in parameters if name not in _KNOWN and name != alias]
    # A misspelt `timestamp` that was ignored would silently answer "now". Of an unknown featureset nobody knows
    # the entity's name: that answer is 404.
    if strange and known:
        accepted = ", ".join(sorted({*_KNOWN, alias}))
        raise InvalidRequest(f"{strange[0][:60]}: no such parameter; accepted: {accepted}")
    if not names:
        if not known:
            return ""
        raise InvalidRequest(f"{alias}: missing" + ("" if alias == "entity_id" else " (entity_id is taken too)"))
    if len({parameters[name] for name in names}) > 1:
        raise InvalidRequest(f"{alias}: differs from entity_id; give one of them")
    return parameters[names[0]]


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"body: {error}") from None
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None


_REFERENCE = "#/components/schemas/{name}"
_PARAMETERS = {
    "featureset": "Featureset to read.",
    "entity_id": "The entity's id; the featureset's entity feature may be used as the parameter's name instead.",
    "entity_type": "Without `featureset`: the dataset whose row is looked up.",
    "timestamp": "Read as of this instant: ISO 8601 (UTC without a zone) or epoch seconds.",
    "ts": "The same as `timestamp`.",
}
_ERROR_STATUSES = {"400": "wrong request", "401": "no valid key", "404": "unknown featureset", "413": "body too large"}
_ERROR_STATUSES |= {"500": "an extractor failed", "503": "the store does not answer"}


def describe(document: dict[str, Any]) -> None:
    """Add the hot routes to an OpenAPI document."""
    shapes = (FeaturesAnswer, FeaturesRequest, BatchAnswer, BatchRequest)
    _, schemas = msgspec.json.schema_components(shapes, ref_template=_REFERENCE)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    document["paths"]["/features"] = {
        "get": _operation("Features of one entity, or a dataset's row", FeaturesAnswer, parameters=True),
        "head": {"summary": "Whether reads are served", "responses": {"200": {"description": "They are."}}},
        "post": _operation("Features of one entity with request-time inputs", FeaturesAnswer, FeaturesRequest),
    }
    document["paths"]["/features/batch"] = {"post": _operation("Features of many entities", BatchAnswer, BatchRequest)}


def _operation(summary: str, answer: type, body: type | None = None, *, parameters: bool = False) -> dict[str, Any]:
    done = {"description": "The values.", "content": _content(answer), "headers": _RUN_HEADER}
    failed = {status: {"description": why, "content": _content(ErrorBody)} for status, why in _ERROR_STATUSES.items()}
    operation: dict[str, Any] = {"tags": ["features"], "summary": summary, "responses": {"200": done, **failed}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
            for name, what in _PARAMETERS.items()
        ]
    return operation


def _content(shape: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(name=shape.__name__)}}}


_RUN_HEADER = {"X-Query-Run-Id": {"description": "Id of the query run.", "schema": {"type": "string"}}}
