"""Tecton's feature service, as its clients speak it: get-features, a batch of them, wildcard reads, metadata.

Handlers are hot routes. A request becomes rows for :class:`serve_apps.service_reads.ServiceReads`, which asks the
query server; nothing is decided here but the wire format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from featurelib.clock import Instant, format_instant
from featurelib.definitions import ParameterDef
from featurelib.engine.user_code import TimeLimit
from featurelib.errors import FailedPrecondition, InvalidRequest, NotFound, RateLimited, TimedOut, UserCodeError
from featurelib.stores.pipelined import Meter
from featurelib.types import Value
from serve_apps.messages import Answer, Call, Handler, encode, json_answer
from serve_apps.run_log import RunLog
from serve_apps.service_plan import ServedFeature, ServicePlan, ServicePlans
from serve_apps.service_reads import AskedRow, FreeValues, How, ServiceAnswer, ServiceReads, Status
from serve_apps.services import Services
from serve_apps.tecton_wire import (
    Json,
    Options,
    ServiceName,
    Wanted,
    asked_row,
    data_type,
    encoded,
    encoder,
    member,
    member_object,
    object_of,
    params_of,
    service_name,
    wanted,
    with_version,
)

PREFIX = "/api/v1/feature-service"
# Join keys of other types are in the wire's form already.
_NUMBERS = frozenset({"int", "float"})
_SIZE_EXCEEDED, _LATENCY_EXCEEDED = "REDIS_RESPONSE_SIZE_LIMIT_EXCEEDED", "REDIS_LATENCY_LIMIT_EXCEEDED"


class _Shown:
    """How the answers of a service look: an encoder per feature, and what is told of each whatever was read."""

    def __init__(self, plan: ServicePlan) -> None:
        self.plan = plan
        self.encoders = [encoder(feature.type) for feature in plan.features]
        self._told: dict[Options, list[Json] | None] = {}
        self._written: dict[Options, msgspec.Raw | None] = {}

    def told(self, options: Options) -> list[Json] | None:
        """``metadata.features`` without statuses and times, not to be changed; ``None``: nothing is asked for."""
        if options not in self._told:
            self._told[options] = _told(self.plan, options)
        return self._told[options]

    def written(self, options: Options) -> msgspec.Raw | None:
        """What :meth:`told` gives, as JSON: it is the same in every answer."""
        if options not in self._written:
            told = self.told(options)
            self._written[options] = None if told is None else msgspec.Raw(encode(told))
        return self._written[options]


class _Read(NamedTuple):
    """A request that was answered: by what, what it wanted, and when it came, of ``time.perf_counter``."""

    shown: _Shown
    wanted: Wanted
    answer: ServiceAnswer
    started: float


class TectonRoutes:
    """The handlers, over the services of a replica."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits = services.settings.tecton
        self._plans = ServicePlans()
        self._reads = ServiceReads(services, RunLog(services))
        self._under_way = 0
        self._shown: dict[str, _Shown] = {}
        self.table: Mapping[str, Mapping[str, Handler]] = {
            f"{PREFIX}/get-features": {"POST": self.get_features},
            f"{PREFIX}/get-features-batch": {"POST": self.get_features_batch},
            f"{PREFIX}/query-features": {"POST": self.query_features},
            f"{PREFIX}/metadata": {"POST": self.metadata},
            f"{PREFIX}/get-feature-service-state": {"POST": self.state},
        }

    async def get_features(self, call: Call) -> Answer:
        """Features of one row."""
        params = params_of(call.body)
        plan, asked = self._plan(call, service_name(params)), wanted(params)
        row = asked_row(params, plan, ignore_extra=asked.ignore_extra)
        read = await self._read(call, plan, [row], asked)
        (features,) = _rows(read)
        body: Json = {"result": {"features": features}}
        metadata = self._metadata_of(read, single=True)
        return _answered(body, metadata, read.answer)

    async def get_features_batch(self, call: Call) -> Answer:
        """Features of several rows, in the order of the request."""
        params = params_of(call.body)
        plan, asked = self._plan(call, service_name(params)), wanted(params)
        rows = self._batch(params, plan, ignore_extra=asked.ignore_extra)
        read = await self._read(call, plan, rows, asked)
        body: Json = {"result": [{"features": features} for features in _rows(read)]}
        metadata = self._metadata_of(read, single=False)
        if asked.options.slo_info:
            info = self._slo_info(read)
            metadata["sloInfo"] = [_share(info, len(rows))] * len(rows)
            metadata["batchSloInfo"] = {name: value for name, value in info.items() if name in _OF_BATCH}
        return _answered(body, metadata, read.answer)

    async def query_features(self, call: Call) -> Answer:
        """A row of features for every value of the join key that was left out."""
        params = params_of(call.body)
        plan, asked = self._plan(call, service_name(params)), wanted(params)
        if plan.free_key is None:
            raise FailedPrecondition(
                f"FeatureService {plan.definition.name} has no wildcard join key; use get-features, or declare one"
            )
        row = asked_row(params, plan, ignore_extra=asked.ignore_extra, free=plan.free_key)
        free = await self._values(call, plan, row, asked)
        rows = [row._replace(keys={**row.keys, plan.free_key: value}) for value in free.values]
        read = await self._read(call, plan, rows, asked) if rows else _nothing(self._shown_of(plan), asked, call)
        read.answer.meter.add(free.meter)
        key = plan.join_keys[plan.free_key]
        shown = encoded(free.values, encoder(key.type) if key.type in _NUMBERS else None)
        found = [{"features": f, "joinKeys": [k]} for f, k in zip(_rows(read), shown, strict=True)]
        metadata = self._metadata_of(read, single=False)
        metadata["joinKeys"] = [_parameter(key)]
        if asked.options.slo_info:
            metadata["sloInfo"] = self._slo_info(read)
        answer = read.answer._replace(run_ids=(*free.run_ids, *read.answer.run_ids))
        return _answered({"results": found}, metadata, answer)

    async def metadata(self, call: Call) -> Answer:
        """What a service takes and gives."""
        name = service_name(params_of(call.body))
        try:
            plan = self._plan(call, name)
        except NotFound:
            if name.view is not None:
                raise
            what = "name" if name.name is not None else "id"
            text = f"Unknown feature_service_{what}: {(name.name or name.id or '')[:128]} in workspace {name.workspace}"
            raise NotFound(text) from None
        service = plan.definition
        inputs = [key for key in service.join_keys if key.name != plan.free_key]
        body: Json = {
            "featureServiceType": "DEFAULT" if plan.free_key is None else "WILDCARD",
            "inputJoinKeys": [_parameter(key) for key in inputs],
            "inputRequestContextKeys": [_parameter(key) for key in service.request_context],
            "featureValues": [{"name": each.name, "dataType": data_type(each.type)} for each in plan.features],
        }
        if plan.free_key is not None:
            body["outputJoinKeys"] = [_parameter(plan.join_keys[plan.free_key])]
        return json_answer(body)

    async def state(self, call: Call) -> Answer:
        """Whether a service is served."""
        tree = object_of(call.body)
        locator = member_object(member_object(tree, "params") or tree, "featureServiceLocator")
        self._plan(call, service_name(locator))
        return json_answer({})

    def _plan(self, call: Call, named: ServiceName) -> ServicePlan:
        call.caller.require_workspace(named.workspace)
        if named.view is not None:
            return self._view_plan(named.workspace, named.view)
        try:
            return self._plans.plan(self._services.current.snapshot, named.workspace, *self._name_of(named))
        except NotFound:
            shown, why = (
                (named.name or named.id or "")[:128],
                "none is committed there; a new one is served in a second",
            )
            text = f"Unable to query FeatureService {shown} for workspace {named.workspace[:128]}: {why}"
            raise NotFound(text) from None

    def _view_plan(self, workspace: str, view: str) -> ServicePlan:
        try:
            return self._plans.of_view(self._services.current.snapshot, workspace, view)
        except NotFound as error:
            text = f"FeatureView: {view[:128]} has no materialized data in the online store"
            raise NotFound(f"Cannot retrieve features. {text}. There is none: {error}") from None

    def _name_of(self, named: ServiceName) -> tuple[str, int | None]:
        """Name and version; an id stands for the newest."""
        if named.name is not None:
            return with_version(named.name)
        workspace, name = self._plans.named(self._services.current.snapshot, named.id or "")
        # Of another workspace the id is as unknown as its name would be.
        return (name, None) if workspace == named.workspace else ("", None)

    def _batch(self, params: Json, plan: ServicePlan, *, ignore_extra: bool) -> list[AskedRow]:
        given, most = member(params, "requestData"), self._limits.batch_rows
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            raise InvalidRequest("Unexpected JSON type for requestData. Expected array of objects.")
        if not given:
            raise InvalidRequest("requestData: empty; send at least one row")
        if len(given) > most:
            raise InvalidRequest(f"Batch size {len(given)} exceeds maximum of {most}.")
        return [asked_row(each, plan, ignore_extra=ignore_extra) for each in given]

    async def _values(self, call: Call, plan: ServicePlan, row: AskedRow, asked: Wanted) -> FreeValues:
        """The values of the free join key: the one that was sent after all, or every one there is."""
        if plan.free_key is not None and plan.free_key in row.keys:
            return FreeValues([row.keys[plan.free_key]], Meter())
        self._admit()
        try:
            return await self._reads.free_values(call, plan, row.keys, self._how(asked))
        except UserCodeError as error:
            _refuse_late(error)
            raise
        finally:
            self._under_way -= 1

    async def _read(self, call: Call, plan: ServicePlan, rows: Sequence[AskedRow], asked: Wanted) -> _Read:
        self._admit()
        try:
            answer = await self._reads.read(call, plan, rows, self._how(asked))
        except UserCodeError as error:
            _refuse_late(error)
            raise
        finally:
            self._under_way -= 1
        if asked.zero_counts:
            answer = answer._replace(values=_with_zeros(plan.features, answer.values))
        return _Read(self._shown_of(plan), asked, answer, call.started)

    def _shown_of(self, plan: ServicePlan) -> _Shown:
        name = f"{plan.definition.qualified_name}@{plan.definition.version}"
        shown = self._shown.get(name)
        if shown is None or shown.plan is not plan:
            shown = self._shown[name] = _Shown(plan)
        return shown

    def _how(self, asked: Wanted) -> How:
        return How(
            at=asked.at,
            clock=asked.clock,
            limit_s=self._limits.time_limit_ms / 1_000,
            budget_s=asked.budget_s,
            most_bytes=self._limits.read_limit_bytes,
            partial=asked.partial,
            effective=asked.options.effective_times,
            bare=not (asked.options.statuses or asked.options.effective_times or asked.options.slo_info),
        )

    def _admit(self) -> None:
        """Count a read as under way; whoever reads takes it off."""
        if self._under_way >= self._limits.concurrent_reads:
            raise RateLimited("GetFeatures exceeded the concurrent request limit, please retry later")
        self._under_way += 1

    def _metadata_of(self, read: _Read, *, single: bool) -> Json:
        options = read.wanted.options
        metadata: Json = {}
        features = _described(read, single=single)
        if features is not None:
            metadata["features"] = features
        if single and options.slo_info:
            metadata["sloInfo"] = self._slo_info(read)
        if single and read.answer.is_partial:
            metadata["partialResults"] = True
        return metadata

    def _slo_info(self, read: _Read) -> Json:
        meter, seconds = read.answer.meter, time.perf_counter() - read.started
        reasons = [
            *([_SIZE_EXCEEDED] if meter.size > self._limits.read_limit_bytes else []),
            *([_LATENCY_EXCEEDED] if meter.longest_s * 1_000 > self._limits.slo_latency_ms else []),
        ]
        return {
            "sloEligible": not reasons,
            **({"sloIneligibilityReasons": reasons} if reasons else {}),
            "sloServerTimeSeconds": max(0.0, seconds - read.answer.extract_s),
            "serverTimeSeconds": seconds,
            "storeTimeSeconds": meter.seconds,
            "storeMaxLatency": meter.longest_s,
            "storeResponseSizeBytes": meter.size,
            "dynamodbResponseSizeBytes": 0,
        }


_OF_BATCH = frozenset(
    {"sloEligible", "sloIneligibilityReasons", "sloServerTimeSeconds", "serverTimeSeconds", "storeMaxLatency"}
)


def _refuse_late(error: UserCodeError) -> None:
    if isinstance(error.__cause__, TimeLimit):
        raise TimedOut(f"Timed out: {error}") from error


def _share(info: Json, rows: int) -> Json:
    """Of a batch, what is said of each row: rows are read together, and their bytes are shared out evenly."""
    return {**info, "storeResponseSizeBytes": info["storeResponseSizeBytes"] // rows}


def _rows(read: _Read) -> list[list[Any]]:
    columns, encoders = read.answer.values, read.shown.encoders
    if columns and len(columns[0]) == 1:
        # As most requests have it; a list per column costs more than its one value.
        return [
            [
                value if encode is None or value is None else encode(value)
                for (value,), encode in zip(columns, encoders, strict=True)
            ]
        ]
    shown = [encoded(*each) for each in zip(columns, encoders, strict=True)]
    return [list(row) for row in zip(*shown, strict=True)]


def _with_zeros(features: Sequence[ServedFeature], values: Sequence[Sequence[Value]]) -> list[Sequence[Value]]:
    return [
        [0 if value is None else value for value in column] if feature.is_count else column
        for feature, column in zip(features, values, strict=True)
    ]


_Teller = Callable[[ServedFeature], Any]
_OF_FEATURE: tuple[tuple[str, str, _Teller], ...] = (
    ("names", "name", lambda feature: feature.name),
    ("data_types", "dataType", lambda feature: data_type(feature.type)),
    ("types", "type", lambda feature: data_type(feature.type)["type"]),
    ("descriptions", "description", lambda feature: feature.about.description or ""),
    ("tags", "tags", lambda feature: dict(feature.tags)),
)
"""By option, the member and what it says of a feature, whatever was read."""


def _described(read: _Read, *, single: bool) -> list[Json] | msgspec.Raw | None:
    """``metadata.features``; ``None`` where nothing of it was asked for."""
    options, answer = read.wanted.options, read.answer
    if not (options.statuses or options.effective_times):
        return read.shown.written(options)
    told = read.shown.told(options) or ()
    found = [dict(each) for each in told]
    for place, each in enumerate(found):
        if options.statuses:
            each["status"] = answer.statuses[place][0] if single else answer.statuses[place]
        instant = answer.effective[place]
        if instant is not None:
            each["effectiveTime"] = format_instant(instant)
    return found


def _told(plan: ServicePlan, options: Options) -> list[Json] | None:
    tellers = [(name, tell) for option, name, tell in _OF_FEATURE if getattr(options, option)]
    if not tellers and not options.statuses and not options.effective_times:
        return None
    return [{name: tell(feature) for name, tell in tellers} for feature in plan.features]


def _parameter(key: ParameterDef) -> Json:
    return {"name": key.name, "dataType": data_type(key.type)}


def _nothing(shown: _Shown, asked: Wanted, call: Call) -> _Read:
    """The read of no row."""
    plan = shown.plan
    columns: list[Sequence[Value]] = [[] for _ in plan.features]
    statuses: list[list[Status]] = [[] for _ in plan.features]
    unknown: list[Instant | None] = [None] * len(plan.features)
    empty = ServiceAnswer(columns, statuses, unknown, Meter(), 0.0, is_partial=False, run_ids=())
    return _Read(shown, asked, empty, call.started)


def _answered(body: Json, metadata: Json, answer: ServiceAnswer) -> Answer:
    if metadata:
        body["metadata"] = metadata
    return json_answer(body, (b"x-query-run-id", ",".join(answer.run_ids).encode()))
