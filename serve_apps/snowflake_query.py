"""Queries as Snowflake's online feature store has them: feature views and feature groups, for up to ten entities.

A feature group is a feature service with a version. A feature view is read as a service of one part, a dataset by
look-ups. What an answer cannot hold is said feature by feature: a row without a required input, or a computation that
took too long, costs the features that are made of it and no other. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from featurelib.clock import Instant
from featurelib.definitions import FeatureServiceDef, FeaturesetDef, ParameterDef, ServedViewDef
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.user_code import TimeLimit
from featurelib.engine.values import shown
from featurelib.errors import InvalidRequest, NotFound, UserCodeError
from featurelib.stores.questions import Question
from featurelib.validation.feature_services import needed_context
from serve_apps.current import Snapshot
from serve_apps.messages import Call
from serve_apps.query_server import QueryServer, Threads
from serve_apps.run_log import RunLog
from serve_apps.service_plan import ServicePlan, compile_service
from serve_apps.service_reads import AskedRow, How, ServiceAnswer, ServiceReads
from serve_apps.services import Services
from serve_apps.snowflake_lost import Lost, status_of, without
from serve_apps.snowflake_views import FeaturesetRevisions, number_of, version_name
from serve_apps.snowflake_wire import QueryRequest, RequestRow, ServingStatus
from serve_apps.watching import Watch

# What a feature view is called while it is read as a service of one part; nobody sees the name.
_ALONE = "view"
_Part = tuple[list[Any], list[ServingStatus]]
# Nothing is left unread for its size: no limit on bytes is set.
_STATUSES: Mapping[str, ServingStatus] = {
    "PRESENT": "PRESENT",
    "MISSING_DATA": "MISSING_DATA",
    "TIME_OUT": "TIME_OUT",
    "UNKNOWN_STATUS": "TIME_OUT",
}
# A choice of features is a reading of its own; clients that choose differ in a few.
_MOST_READINGS = 1_000
# Ten inputs may be missing in a thousand ways.
_MOST_RESTS = 64


class Described(NamedTuple):
    """One feature of an answer; ``view`` and ``version`` are of the feature view it comes from."""

    name: str
    type: str
    view: str
    version: str


class Answered(NamedTuple):
    """What was read: the features, and per row their values and statuses; ``effective`` is per feature."""

    features: list[Described]
    values: list[list[Any]]
    statuses: list[list[ServingStatus]]
    effective: list[Instant | None]

    @property
    def is_whole(self) -> bool:
        """Whether no input was missing and nothing took too long; that there is no data is no failure."""
        return all(status in {"PRESENT", "MISSING_DATA"} for row in self.statuses for status in row)


class _Required(NamedTuple):
    """The request features that a service takes: all, those without a default, and those that null is a value of."""

    names: frozenset[str]
    needed: frozenset[str]
    nullable: frozenset[str]


class _Rest(NamedTuple):
    """What of a service can be read: why each feature cannot, and the plan of the others, ``None`` for none."""

    gone: list[ServingStatus | None]
    plan: ServicePlan | None
    reads: ServiceReads | None


class _Reading:
    """A service by one snapshot's definitions: compiled once, and once more for each set of what is lost.

    Args:
        services: of the replica.
        service: what is read.
        snapshot: the definitions; not always the current ones.
        revisions: by featureset, the number of the revision it is of.
    """

    def __init__(
        self, services: Services, service: FeatureServiceDef, snapshot: Snapshot, revisions: Mapping[str, int]
    ) -> None:
        self.plan = compile_service(service, snapshot)
        self.required = _required(self.plan, snapshot)
        self.features = _described(self.plan, revisions)
        self._services = services
        self._service = service
        self._snapshot = snapshot
        self._rests: dict[Lost, _Rest] = {}

    async def rows(
        self, call: Call, rows: Sequence[AskedRow], lost: Lost, *, effective: bool
    ) -> tuple[list[_Part], list[Instant | None]]:
        """Rows that lack the same inputs; an extractor that takes too long is left out, with what is made of it."""
        while True:
            try:
                return await self._read(call, rows, self._rest(lost), effective=effective)
            except UserCodeError as error:
                if not isinstance(error.__cause__, TimeLimit) or error.function in lost.late:
                    raise
                lost = lost._replace(late=lost.late | {error.function})

    async def _read(
        self, call: Call, rows: Sequence[AskedRow], rest: _Rest, *, effective: bool
    ) -> tuple[list[_Part], list[Instant | None]]:
        if rest.plan is None or rest.reads is None:
            return [_spread(([], []), rest.gone) for _ in rows], [None] * len(rest.gone)
        budget_s = self._services.settings.snowflake.query_budget_ms / 1_000
        # Beyond the budget what is not there is left out; the limit only ends what would not let go.
        how = How(limit_s=10 * budget_s, budget_s=budget_s, most_bytes=sys.maxsize, effective=effective)
        answer = await rest.reads.read(call, rest.plan, rows, how)
        found = _rows_of(answer, [feature.type for feature in rest.plan.features], len(rows))
        times = iter(answer.effective or [None] * len(rest.plan.features))
        newest = [None if status is not None else next(times) for status in rest.gone]
        return [_spread(part, rest.gone) for part in found], newest

    def _rest(self, lost: Lost) -> _Rest:
        found = self._rests.get(lost)
        if found is None:
            found = self._compiled(lost)
            if len(self._rests) < _MOST_RESTS:
                self._rests[lost] = found
        return found

    def _compiled(self, lost: Lost) -> _Rest:
        if not lost:
            return _Rest([None] * len(self.features), self.plan, self._reads(self._snapshot, is_whole=True))
        service, snapshot = self._service, self._snapshot
        gone = [_status(view.featureset, name, snapshot, lost) for view in service.views for name in view.features]
        kept = _kept(service, snapshot, lost)
        if kept is None:
            return _Rest(gone, None, None)
        names = {view.featureset for view in kept.views}
        rest = without(snapshot, names, lost, self._services.isolation.runner)
        return _Rest(gone, compile_service(kept, rest), self._reads(rest, is_whole=False))

    def _reads(self, snapshot: Snapshot, *, is_whole: bool) -> ServiceReads:
        """Reads by the definitions of a snapshot. One that leaves something out cannot be repeated by a replay."""
        services = self._services
        sources = services.query_server.sources
        threads = Threads(services.threads, services.isolation.threads)
        server = QueryServer(_Fixed(snapshot), sources.online, sources.past, services.clock, threads)
        bound = replace(services, query_server=server)
        return ServiceReads(bound, RunLog(bound, repeatable=is_whole))


class FeatureQueries:
    """Answers queries with the stores of a replica.

    Args:
        services: of the replica.
        revisions: the numbers of the revisions of featuresets.
    """

    def __init__(self, services: Services, revisions: FeaturesetRevisions) -> None:
        self._services = services
        self._revisions = revisions
        self._runs = RunLog(services)
        self._read_by: Snapshot | None = None
        self._readings: dict[tuple[str, ...], _Reading] = {}

    async def read(self, call: Call, request: QueryRequest, *, effective: bool) -> Answered:
        """The features of every request row; ``effective``: look up the newest events too.

        Raises:
            NotFound: there is no such view or group, or not in that version.
            InvalidRequest: a feature is none of the view's, or a row does not fit.
            Forbidden: the caller may not read the workspace of the group.
            UserCodeError: an extractor failed.
            StoreUnavailable: the store does not answer.
        """
        snapshot = self._services.current.snapshot
        if request.object_type == "feature_group":
            call.caller.require_workspace(self._services.settings.snowflake.workspace)
        elif snapshot.definitions.featureset(request.name) is None:
            return await self._looked_up(call, request, _dataset_view(request, snapshot), effective=effective)
        return await self._served(call, request, await self._reading(request, snapshot), effective=effective)

    async def _reading(self, request: QueryRequest, snapshot: Snapshot) -> _Reading:
        if snapshot is not self._read_by:
            self._read_by, self._readings = snapshot, {}
        readings = self._readings
        key = (request.object_type, request.name, request.version, *(request.features or ()))
        found = readings.get(key)
        if found is None:
            make = self._group if request.object_type == "feature_group" else self._view
            # Of an earlier version, and once after a commit, the registry is asked.
            found = await asyncio.get_running_loop().run_in_executor(self._services.threads, make, request, snapshot)
            if len(readings) < _MOST_READINGS:
                readings[key] = found
        return found

    def _group(self, request: QueryRequest, snapshot: Snapshot) -> _Reading:
        workspace, number = self._services.settings.snowflake.workspace, number_of(request.version)
        service = None if number is None else snapshot.definitions.feature_service(workspace, request.name, number)
        if service is None:
            raise NotFound(f"feature group {request.name[:128]!r} has no version {request.version[:32]!r}, or is none")
        return _Reading(self._services, service, snapshot, self._revisions.of(snapshot.definitions))

    def _view(self, request: QueryRequest, snapshot: Snapshot) -> _Reading:
        """A featureset, in the revision that is asked for, as a service of one part."""
        newest, number = self._revisions.of(snapshot.definitions).get(request.name, 1), number_of(request.version)
        if number is None or number > newest:
            raise _no_version(request, newest)
        then = snapshot
        if number < newest:
            then = self._services.versions.at(self._revisions.registry_version(request.name, number))
        plan, featureset = then.plan(request.name), then.definitions.featureset(request.name)
        assert featureset is not None  # it has a plan
        service = _service_of(featureset, plan, _chosen(request.features, featureset.computed))
        return _Reading(self._services, service, then, {request.name: number})

    async def _served(self, call: Call, request: QueryRequest, reading: _Reading, *, effective: bool) -> Answered:
        rows = [_asked(row, place, reading) for place, row in enumerate(request.request_rows)]
        answered = Answered(reading.features, [[]] * len(rows), [[]] * len(rows), [None] * len(reading.features))
        for missing, places in _by_missing(rows, reading.required).items():
            asked = [rows[place] for place in places]
            found, newest = await reading.rows(call, asked, Lost(missing), effective=effective)
            for place, (values, statuses) in zip(places, found, strict=True):
                answered.values[place], answered.statuses[place] = values, statuses
            answered.effective[:] = map(_later, answered.effective, newest)
        return answered

    async def _looked_up(self, call: Call, request: QueryRequest, view: View, *, effective: bool) -> Answered:
        columns = _chosen(request.features, view.columns[1:])
        types = {field.name: field.type for field in view.dataset.fields} | dict(view.program.fold.output_types)
        version = version_name(view.dataset.version)
        features = [Described(name, types[name], view.dataset.name, version) for name in columns]
        ids = [_entity_of(row, place, _keys_of(view)) for place, row in enumerate(request.request_rows)]
        for place, row in enumerate(request.request_rows):
            _refuse_unknown(row.request_context or {}, frozenset(), place)
            view.key_form.read(ids[place], f"request_rows[{place}].entity")
        found = await asyncio.gather(*(self._row(call, view, given, effective=effective) for given in ids))
        newest = max((instant for _, instant in found if instant is not None), default=None)
        rows = [row for row, _ in found]
        return Answered(
            features,
            [[None if row is None else row[name] for name in columns] for row in rows],
            [["MISSING_DATA" if row is None else "PRESENT"] * len(columns) for row in rows],
            [newest] * len(columns),
        )

    async def _row(
        self, call: Call, view: View, given: Any, *, effective: bool
    ) -> tuple[Mapping[str, Any] | None, Instant | None]:
        watch = Watch()
        reply, _ = await self._runs.read(call, Question("lookup", view.dataset.name, (given,)), watch=watch)
        if not effective:
            return reply.body["features"], None
        (newest,) = await self._services.query_server.sources.newest(watch.lookups, is_past=False)
        return reply.body["features"], newest


class _Fixed(NamedTuple):
    """Definitions that do not move."""

    snapshot: Snapshot


def _described(plan: ServicePlan, revisions: Mapping[str, int]) -> list[Described]:
    """The features by their own names; only where a group has a name twice, with that of their view before it."""
    times = Counter(feature.about.name for feature in plan.features)
    return [
        Described(
            feature.about.name if times[feature.about.name] == 1 else feature.name,
            feature.type,
            view.plan.featureset,
            version_name(revisions.get(view.plan.featureset, 1)),
        )
        for view in plan.views
        for feature in view.features
    ]


def _dataset_view(request: QueryRequest, snapshot: Snapshot) -> View:
    view = snapshot.views.get(request.name)
    if view is None:
        raise NotFound(f"feature view {request.name[:128]!r} is neither a featureset nor a dataset that is read by key")
    if number_of(request.version) != view.dataset.version:
        raise _no_version(request, view.dataset.version)
    return view


def _no_version(request: QueryRequest, newest: int) -> NotFound:
    text = f"feature view {request.name[:128]!r} has no version {request.version[:32]!r}; its newest is v{newest}"
    return NotFound(text)


def _chosen(asked: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The features that are asked for, by the names they are declared by; case tells only equal ones apart."""
    if asked is None:
        return list(there)
    folded = {name.casefold(): name for name in reversed(there)}
    chosen = [name if name in there else folded.get(name.casefold()) for name in asked]
    for given, found in zip(asked, chosen, strict=True):
        if found is None:
            raise InvalidRequest(f"features: there is no feature {given[:128]!r}; there are {', '.join(there)}"[:1_000])
    names = [name for name in chosen if name is not None]
    if len(set(names)) < len(names):
        raise InvalidRequest("features: a feature is asked for twice")
    return names


def _service_of(featureset: FeaturesetDef, plan: ReadPlan, features: Sequence[str]) -> FeatureServiceDef:
    """A featureset as a service of one part."""
    widest = max((view.program.pipeline.keys for view in plan.views), key=len, default=())
    keys = widest if len(widest) > 1 else (plan.entity_name,)
    view = ServedViewDef(name=_ALONE, featureset=featureset.name, features=tuple(features), join_keys=keys)
    # The parts of a composite id have no types of their own, and the query server reads each as its plan says.
    return FeatureServiceDef(
        name=_ALONE, views=(view,), join_keys=tuple(ParameterDef(name=name, type="str") for name in keys)
    )


def _keys_of(view: View) -> tuple[str, ...]:
    keys = view.program.pipeline.keys
    return keys if len(keys) > 1 else (view.dataset.key.name,)


def _required(plan: ServicePlan, snapshot: Snapshot) -> _Required:
    names, needed, strict = set[str](), set[str](), set[str]()
    for view in plan.views:
        # What only other features of the featureset take may be sent too.
        names |= set(snapshot.plan(view.plan.featureset).request_names)
        featureset, chosen = snapshot.definitions.featureset(view.plan.featureset), view.chosen or None
        for feature in needed_context(featureset, snapshot.definitions, chosen) if featureset else ():
            needed |= {feature.name} if feature.default is None else set()
            strict |= set() if feature.optional else {feature.name}
    return _Required(frozenset(names), frozenset(needed), frozenset(names - strict))


def _asked(row: RequestRow, place: int, reading: _Reading) -> AskedRow:
    """A row as a service is asked it.

    Raises:
        InvalidRequest: its keys are not those of the service, or it has a value nobody takes.
    """
    _entity_of(row, place, tuple(reading.plan.join_keys))
    given, required = row.request_context or {}, reading.required
    _refuse_unknown(given, required.names, place)
    # A null that a view does not take stands for nothing sent.
    context = {name: value for name, value in given.items() if value is not None or name in required.nullable}
    for view in reading.plan.views:
        parts = [row.entity[name] for name in view.join_keys]
        where = f"request_rows[{place}].entity.{'+'.join(view.join_keys)}"
        view.plan.key_form.read(parts[0] if len(parts) == 1 else parts, where)
    return AskedRow(row.entity, context)


def _entity_of(row: RequestRow, place: int, keys: Sequence[str]) -> Any:
    """The entity's id: the value of its one join key, or a list of several."""
    where = f"request_rows[{place}].entity"
    strange = sorted(row.entity.keys() - set(keys))
    absent = [name for name in keys if row.entity.get(name) is None]
    if absent:
        raise InvalidRequest(f"{where}.{absent[0]}: the join key is missing or null; expected {', '.join(keys)}")
    if strange:
        raise InvalidRequest(f"{where}.{strange[0][:128]}: no join key; expected {', '.join(keys)}")
    parts = [row.entity[name] for name in keys]
    return parts[0] if len(parts) == 1 else parts


def _refuse_unknown(context: Mapping[str, Any], names: frozenset[str], place: int) -> None:
    strange = sorted(context.keys() - names)
    if strange:
        accepted = ", ".join(sorted(names)) or "none"
        text = f"request_rows[{place}].request_context.{strange[0][:128]}: nothing takes it; accepted: {accepted}"
        raise InvalidRequest(text)


def _by_missing(rows: Sequence[AskedRow], required: _Required) -> dict[frozenset[str], list[int]]:
    """The places of rows by what they lack: most requests are one group."""
    groups: dict[frozenset[str], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(required.needed.difference(row.context), []).append(place)
    return groups


def _status(featureset: str, name: str, snapshot: Snapshot, lost: Lost) -> ServingStatus | None:
    found = snapshot.definitions.featureset(featureset)
    return status_of(found, name, snapshot.definitions, lost) if lost and found is not None else None


def _kept(service: FeatureServiceDef, snapshot: Snapshot, lost: Lost) -> FeatureServiceDef | None:
    """The service with what can be had; ``None`` where that is nothing."""
    if not lost:
        return service
    views = []
    for view in service.views:
        names = [name for name in view.features if _status(view.featureset, name, snapshot, lost) is None]
        views += [view.model_copy(update={"features": tuple(names)})] if names else []
    return service.model_copy(update={"views": tuple(views)}) if views else None


def _spread(part: _Part, gone: Sequence[ServingStatus | None]) -> _Part:
    """What was read of a row among what could not be had."""
    values, statuses = iter(part[0]), iter(part[1])
    return (
        [None if status is not None else next(values) for status in gone],
        [status if status is not None else next(statuses) for status in gone],
    )


def _rows_of(answer: ServiceAnswer, types: Sequence[str], rows: int) -> list[_Part]:
    """Values as the wire shows them, and statuses, by row."""
    forms = [shown(each) for each in types]
    columns = [
        column if form is None else [None if value is None else form(value) for value in column]
        for column, form in zip(answer.values, forms, strict=True)
    ]
    return [
        ([column[row] for column in columns], [_STATUSES[each[row]] for each in answer.statuses]) for row in range(rows)
    ]


def _later(one: Instant | None, other: Instant | None) -> Instant | None:
    return max((instant for instant in (one, other) if instant is not None), default=None)
