"""`/api/v1/ingest` and `/api/v1/query`: the API of Snowflake's online feature store.

Hot routes: handlers take a :class:`Call` and give an :class:`Answer`. Their failures have a body of their own
(:func:`serve_apps.snowflake_wire.snowflake_body`), which the boundary writes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
import msgspec

from featurelib.clock import format_instant
from featurelib.errors import InvalidRequest, PayloadTooLarge
from featurelib.stores.orders import Orders
from serve_apps.applying import Applying, Inputs
from serve_apps.intake_service import IntakeService
from serve_apps.messages import Answer, Call, Handler, encode
from serve_apps.services import Services
from serve_apps.snowflake_ingest import StreamIngest
from serve_apps.snowflake_outcomes import Outcomes
from serve_apps.snowflake_query import Answered, FeatureQueries
from serve_apps.snowflake_views import FeaturesetRevisions
from serve_apps.snowflake_wire import (
    FeatureMetadata,
    IngestAnswer,
    QueryAnswer,
    QueryMetadata,
    QueryOptions,
    QueryResult,
    Timings,
    data_type_of,
    read_ingest,
    read_query,
)

_WHOLE, _PARTIAL = 200, 207


class SnowflakeRoutes:
    """The handlers, over the services of a replica."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.snowflake
        stores = services.stores
        self._revisions = FeaturesetRevisions(stores.registry)
        self._ingest = StreamIngest(
            IntakeService(stores.registry, stores.log, services.shapes, services.settings),
            Inputs(stores.log),
            Outcomes(
                Applying(stores.online),
                Orders(stores.registry.database, services.clock),
                stores.registry,
                stores.log.refused,
                self._settings,
            ),
            self._settings,
        )
        self._queries = FeatureQueries(services, self._revisions)
        self.table: Mapping[str, Mapping[str, Handler]] = {
            "/api/v1/ingest": {"POST": self.ingest},
            "/api/v1/query": {"POST": self.query},
        }

    async def ingest(self, call: Call) -> Answer:
        """Records for stream sources, answered when every feature view has applied them."""
        call.caller.require("writer")
        self._check(call)
        request = read_ingest(call.body)
        snapshot = self._services.current.snapshot
        taken = await anyio.to_thread.run_sync(
            lambda: self._ingest.take(request, snapshot, self._revisions.of(snapshot.definitions))
        )
        begun = time.perf_counter()
        found = await asyncio.gather(*(self._ingest.applied(part) for part in taken.parts.values()))
        sources = dict(zip(taken.parts, found, strict=True))
        whole = all(each.records.failed == 0 and each.feature_views.failed == 0 for each in found)
        answer = IngestAnswer(call.correlation_id, "success" if whole else "partial_success", sources)
        if request.include_diagnostics:
            answer.diagnostics = _diagnostics(call, {**taken.steps_ms, "apply": _ms(begun)})
        return _answer(answer, whole=whole)

    async def query(self, call: Call) -> Answer:
        """Features of a view or a group, for up to ten entities."""
        call.caller.require("reader")
        self._check(call)
        request = read_query(call.body)
        options = request.metadata_options or QueryOptions()
        begun = time.perf_counter()
        found = await self._queries.read(call, request, effective=options.include_effective_times)
        answer = QueryAnswer(
            call.correlation_id, "success" if found.is_whole else "partial_success", _results(found, options)
        )
        if options.any_metadata:
            is_group = request.object_type == "feature_group"
            answer.metadata = QueryMetadata(_metadata(found, options, provenance=is_group))
        if request.include_diagnostics:
            answer.diagnostics = _diagnostics(call, {"read": _ms(begun)})
        return _answer(answer, whole=found.is_whole)

    def _check(self, call: Call) -> None:
        kind = call.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise InvalidRequest("Content-Type: expected application/json")
        if len(call.body) > self._settings.max_body_bytes:
            raise PayloadTooLarge(f"the body is larger than {self._settings.max_body_bytes} bytes")


def _results(found: Answered, options: QueryOptions) -> list[QueryResult]:
    if not options.include_serving_status:
        return [QueryResult(values) for values in found.values]
    return [QueryResult(values, statuses) for values, statuses in zip(found.values, found.statuses, strict=True)]


def _metadata(found: Answered, options: QueryOptions, *, provenance: bool) -> list[FeatureMetadata]:
    told = []
    for feature, effective in zip(found.features, found.effective, strict=True):
        members: dict[str, Any] = {}
        if options.include_names:
            members["name"] = feature.name
            if provenance:
                members |= {"feature_view": feature.view, "feature_view_version": feature.version}
        if options.include_data_types:
            members |= data_type_of(feature.type)
        if options.include_effective_times:
            members["effective_time"] = None if effective is None else format_instant(effective)
        told.append(FeatureMetadata(**members))
    return told


def _answer(answer: msgspec.Struct, *, whole: bool) -> Answer:
    return Answer(_WHOLE if whole else _PARTIAL, encode(answer))


def _diagnostics(call: Call, steps_ms: dict[str, float]) -> Timings:
    return Timings(_ms(call.started), steps_ms)


def _ms(since: float) -> float:
    return round((time.perf_counter() - since) * 1_000, 3)
