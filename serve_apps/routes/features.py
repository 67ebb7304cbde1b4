"""`/features`, `/features/batch` and `/features/offline`: the hot routes.

Handlers take a :class:`Call` and give an :class:`Answer`; FastAPI is not involved, so their part of the OpenAPI
document is written in :mod:`serve_apps.routes.features_openapi`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast, get_args
from urllib.parse import parse_qsl

import msgspec

from featurelib.clock import Instant, parse_instant
from featurelib.engine.asof import Knowledge
from featurelib.errors import InvalidRequest, ThymeError
from featurelib.stores.questions import Question
from serve_apps.exchange import new_run_id
from serve_apps.feature_shapes import BatchRequest, FeaturesRequest, OfflineRequest
from serve_apps.kept_answers import KeptAnswers, Words
from serve_apps.large_reads import LargeReads
from serve_apps.messages import JSON_HEADER, Answer, AtHand, Call, Handler, json_answer
from serve_apps.query_server import MOST_ENTITIES, Reply
from serve_apps.run_log import Outcome, RunLog, refused
from serve_apps.services import Services
from serve_apps.tabular import ARROW, JSON, arrow_stream, wants_arrow

_MOST_PARAMETERS = 32
_KNOWN = frozenset({"featureset", "entity_id", "entity_type", "timestamp", "ts", "knowledge", "explain"})
# An unescaped `+` of a zone in a query string arrives as a space.
_BLANK_ZONE = re.compile(r" (\d\d:?\d\d)$")
_IDS_OF_REFUSED = 100
_PROBE = {"status": "ok"}
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_T = TypeVar("_T")
_R = TypeVar("_R")


class FeatureRoutes:
    """The handlers, over the services of a replica."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._runs = RunLog(services)
        self._kept = KeptAnswers()
        self._features_body = msgspec.json.Decoder(FeaturesRequest)
        self._batch_body = msgspec.json.Decoder(BatchRequest)
        self._offline_body = msgspec.json.Decoder(OfflineRequest)
        self._large_reads = LargeReads(services.settings, services.clock, services.stores.history, services.threads)
        self.table: Mapping[str, Mapping[str, Handler]] = {
            "/features": {"GET": self.get, "HEAD": self.probe, "POST": self.post},
            "/features/batch": {"POST": self.batch},
            "/features/offline": {"POST": self.offline},
        }
        self.at_hand: Mapping[tuple[str, str], AtHand] = {
            ("GET", "/features"): self._again,
            ("POST", "/features"): self._again,
        }

    async def probe(self, call: Call) -> Answer:  # noqa: ARG002  # a handler's signature
        """Say that reads are served; monitors ask without parameters."""
        return json_answer(_PROBE)

    def _again(self, call: Call) -> Answer | None:
        """The answer to these words if it was given before and a read would give it again."""
        services, words = self._services, Words(call.method, call.query, call.body)
        now = services.clock.now()
        kept = self._kept.again(words, services.current.snapshot, now)
        if kept is None:
            return None
        run_id = new_run_id()
        self._runs.record(call, kept.question, run_id, kept.outcome_at(now))
        return Answer(200, kept.body(now), (JSON_HEADER, _run_header(run_id)))

    async def get(self, call: Call) -> Answer:
        """Features of one entity, or the row of a dataset."""
        parameters = _parameters(call.query)
        if not parameters:
            return await self.probe(call)
        at = _timestamp(parameters)
        knowledge = _knowledge(parameters.get("knowledge", "latest"), at)
        explain = _flag(parameters, "explain")
        featureset = parameters.get("featureset")
        if featureset is None:
            asked = _lookup(parameters, at)._replace(knowledge=knowledge)
            return await (self._explained(call, asked) if explain else self._answer(call, asked))
        # The entity's own name is an alias of entity_id; only the plan knows it.
        plan = self._services.current.snapshot.plans.get(featureset)
        entity_id = _entity_id(parameters, plan.entity_name if plan else "entity_id", known=plan is not None)
        asked = Question("features", featureset, (entity_id,), parameters.get("entity_type"), at, knowledge=knowledge)
        return await (self._explained(call, asked) if explain else self._answer(call, asked))

    async def post(self, call: Call) -> Answer:
        """Features of one entity with request-time inputs."""
        body = _decoded(self._features_body, call.body)
        at = None if body.timestamp is None else parse_instant(body.timestamp)
        ids = (body.entity_id,)
        knowledge = _knowledge(body.knowledge, at)
        asked = Question("features", body.featureset, ids, body.entity_type, at, body.inputs or {}, knowledge=knowledge)
        explain = call.query and _flag(_parameters(call.query, {"explain"}), "explain")
        return await (self._explained(call, asked) if explain else self._answer(call, asked))

    async def batch(self, call: Call) -> Answer:
        """Features of many entities, as positional rows or as Arrow."""
        arrow = wants_arrow(call.headers, _parameters(call.query, {"format"}).get("format"))
        body = _decoded(self._batch_body, call.body)
        count = len(body.entity_ids)
        if count > MOST_ENTITIES:
            refusal = InvalidRequest(f"entity_ids: {count} ids; at most {MOST_ENTITIES} at once")
            asked = Question("batch", body.featureset, tuple(body.entity_ids[:_IDS_OF_REFUSED]), body.entity_type)
            self._runs.record(call, asked, new_run_id(), refused(asked, refusal)._replace(entities=count))
            raise refusal
        asked = Question("batch", body.featureset, tuple(body.entity_ids), body.entity_type, None, body.inputs or {})
        return await self._answer(call, asked, arrow=arrow)

    async def offline(self, call: Call) -> Answer:
        """Features of many entities, each as of its own instant, in the order asked."""
        arrow = wants_arrow(call.headers, _parameters(call.query, {"format"}).get("format"))
        body = _decoded(self._offline_body, call.body)
        question = await self._apart(_offline_question, body)
        if len(question.entity_ids) > self._services.settings.serving.offline_rows:
            return await self._large(call, question, arrow=arrow)
        return await self._answer(call, question, arrow=arrow)

    async def _large(self, call: Call, question: Question, *, arrow: bool) -> Answer:
        run_id, snapshot = new_run_id(), self._services.current.snapshot
        try:
            rows = await self._large_reads.read(question, snapshot, call.correlation_id)
        except ThymeError as error:
            self._runs.record(call, question, run_id, refused(question, error))
            raise
        self._runs.record(
            call, question, run_id, Outcome(rows.keys, len(rows.keys), rows.outcome.hits, snapshot.commit_id)
        )
        headers = ((b"content-type", ARROW if arrow else JSON), _run_header(run_id))
        parts = self._large_reads.send(rows, arrow=arrow)
        # The first part is made here: what fails has its status, and a caller who goes leaves nothing behind, since
        # the end of a generator that was begun always runs.
        return Answer(200, await anext(parts), headers, parts)

    async def _explained(self, call: Call, question: Question) -> Answer:
        reply, run_header = await self._read(call, question)
        explain = await self._services.query_server.explained(question, reply)
        return json_answer({**reply.body, "explain": explain}, run_header)

    async def _answer(self, call: Call, question: Question, *, arrow: bool = False) -> Answer:
        reply, run_header = await self._read(call, question, as_table=arrow)
        if arrow:
            return await self._arrow(reply, run_header)
        answer = json_answer(reply.body, run_header)
        self._kept.keep(Words(call.method, call.query, call.body), question, reply, answer.body)
        return answer

    async def _read(
        self, call: Call, question: Question, *, as_table: bool = False
    ) -> tuple[Reply, tuple[bytes, bytes]]:
        """The reply, recorded, and the header that names its run."""
        reply, run_id = await self._runs.read(call, question, as_table=as_table)
        return reply, _run_header(run_id)

    async def _arrow(self, reply: Reply, run_header: tuple[bytes, bytes]) -> Answer:
        assert reply.table is not None
        body = await self._apart(lambda table: arrow_stream(table.arrow()), reply.table)
        return Answer(200, body, ((b"content-type", ARROW), run_header))

    async def _apart(self, call: Callable[[_T], _R], argument: _T) -> _R:
        # Thousands of rows are tens of milliseconds: in a thread, other requests get their turn in between.
        return await asyncio.get_running_loop().run_in_executor(self._services.threads, call, argument)


def _run_header(run_id: str) -> tuple[bytes, bytes]:
    return (b"x-query-run-id", run_id.encode())


def _offline_question(body: OfflineRequest) -> Question:
    instants = tuple(parse_instant(each.timestamp, f"queries[{i}].timestamp") for i, each in enumerate(body.queries))
    inputs = tuple(each.inputs for each in body.queries)
    return Question(
        "offline",
        body.featureset,
        tuple(each.entity_id for each in body.queries),
        body.entity_type,
        inputs=body.inputs or {},
        instants=instants,
        row_inputs=inputs if any(inputs) else (),
        knowledge=body.knowledge,
    )


def _knowledge(given: str, at: Instant | None) -> Knowledge:
    if given not in get_args(Knowledge):
        raise InvalidRequest(f"knowledge: {given[:60]!r} is neither 'latest' nor 'as_served'")
    if given == "as_served" and at is None:
        raise InvalidRequest("knowledge: as_served is of a read with a timestamp; what is read now is as served")
    return cast("Knowledge", given)


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    given = parameters.get(name, "false").lower()
    if given not in _FLAGS:
        raise InvalidRequest(f"{name}: {given[:60]!r} is neither true nor false")
    return _FLAGS[given]


def _parameters(query: bytes, accepted: Collection[str] = ()) -> dict[str, str]:
    """The parameters of a query; only those ``accepted``, where any are named."""
    if not query:
        return {}
    try:
        pairs = _pairs(query.decode("ascii"))
    except UnicodeDecodeError:
        raise InvalidRequest("query: not UTF-8 in percent-encoding") from None
    except ValueError:
        raise InvalidRequest(f"query: more than {_MOST_PARAMETERS} parameters") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise InvalidRequest(f"{twice[:60]}: given more than once")
    strange = [name for name in parameters if accepted and name not in accepted]
    if strange:
        raise InvalidRequest(f"{strange[0][:60]}: no such parameter; accepted: {', '.join(sorted(accepted))}")
    return parameters


def _pairs(query: str) -> list[tuple[str, str]]:
    if "%" in query or "+" in query or query.count("&") >= _MOST_PARAMETERS:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    # Nothing is escaped in most queries; the library takes 6 µs to find that out.
    parts = [part.partition("=") for part in query.split("&") if part]
    return [(name, value) for name, _, value in parts]


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
