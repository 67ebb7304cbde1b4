"""Reads feature services: one question per part, asked of the query server as every other read is.

Knows no wire format. A part whose key is null is not read; one that is not done within the budget says so; parts
beyond the limit on bytes are left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from featurelib.clock import Instant
from featurelib.errors import NotFound, ReadTooLarge, TimedOut
from featurelib.stores.pipelined import METER, Meter
from featurelib.stores.questions import Question
from featurelib.types import Value
from serve_apps.messages import Call
from serve_apps.query_server import Reply
from serve_apps.run_log import RunLog
from serve_apps.service_plan import ServedView, ServicePlan
from serve_apps.services import Services
from serve_apps.time_limits import TimeLimits
from serve_apps.watching import Watch

Status = Literal["PRESENT", "MISSING_DATA", "TIME_OUT", "UNKNOWN_STATUS"]
_NO_INPUTS: Mapping[str, Any] = {}


class AskedRow(NamedTuple):
    """One row of a request: its join keys by name, ``None`` for null, and its request context."""

    keys: Mapping[str, Any]
    context: Mapping[str, Any]


class How(NamedTuple):
    """How a service is read.

    Attributes:
        at: the instant; ``None`` for now.
        clock: whose now: the server's, or the events'; ``None``: as each featureset says.
        limit_s: after this the read fails.
        budget_s: after this what is not there yet is left out; ``None``: no such budget.
        most_bytes: most bytes read from the store.
        partial: whether what lies beyond them is left out, or the read fails.
        effective: whether to look up the newest events too.
        bare: whether values are all that is asked for: neither statuses nor what extractors took is told.
        now: the server's clock, read once for all parts; ``None``: when the read begins.
    """

    at: Instant | None = None
    clock: Literal["wall", "event"] | None = None
    limit_s: float = 2.0
    budget_s: float | None = None
    most_bytes: int = 2 * 1024 * 1024
    partial: bool = False
    effective: bool = False
    bare: bool = False
    now: Instant | None = None


class Part(NamedTuple):
    """What was read of one view; lists are per feature, then per row.

    ``statuses`` is empty of a bare read. ``effective``: per feature the newest event of all rows; empty where that was
    not asked. ``run_id``: of its query run.
    """

    values: list[Sequence[Value]]
    statuses: list[list[Status]]
    effective: list[Instant | None]
    meter: Meter
    extract_s: float = 0.0
    run_id: str | None = None


class ServiceAnswer(NamedTuple):
    """What was read of a service; lists are per feature in the service's order, then per row.

    ``statuses`` and ``effective`` are whole where they were asked for, and else nothing to rely on.
    """

    values: list[Sequence[Value]]
    statuses: list[list[Status]]
    effective: list[Instant | None]
    meter: Meter
    extract_s: float
    is_partial: bool
    run_ids: tuple[str, ...]


class FreeValues(NamedTuple):
    """The values of a join key that was left out, what reading them took, and the query run of it."""

    values: list[Value]
    meter: Meter
    run_ids: tuple[str, ...] = ()


class ServiceReads:
    """Reads services with the stores of a replica.

    Args:
        services: of the replica.
        runs: records every read.
    """

    def __init__(self, services: Services, runs: RunLog) -> None:
        self._services = services
        self._runs = runs
        self._limits = TimeLimits()

    async def read(self, call: Call, plan: ServicePlan, rows: Sequence[AskedRow], how: How) -> ServiceAnswer:
        """The features of some rows.

        Raises:
            TimedOut: it took longer than the limit.
            ReadTooLarge: more bytes would be read than may be, and part of an answer is not asked for.
            InvalidRequest: a key or a value of the context does not fit.
            UserCodeError: an extractor failed.
            StoreUnavailable: the store does not answer.
        """
        if how.now is None and len(plan.views) > 1:
            how = how._replace(now=self._services.clock.now())
        try:
            with self._limits.within(how.limit_s):
                parts = await self._parts(call, plan, rows, how)
        except TimeoutError:
            raise TimedOut(f"Timed out: the features were not read within {how.limit_s:g} s") from None
        return _together(plan, parts, len(rows), how)

    async def free_values(self, call: Call, plan: ServicePlan, keys: Mapping[str, Any], how: How) -> FreeValues:
        """The values of the join key that was left out.

        Raises: as :meth:`read`; NotFound: the service has no such key.
        """
        wildcard = plan.definition.wildcard
        if wildcard is None:
            raise NotFound(f"the feature service {plan.definition.name!r} has no join key that can be left out")
        entity_id = _entity_id([keys.get(name) for name in wildcard.join_keys])
        meter = Meter()
        if entity_id is None:
            return FreeValues([], meter)
        features = (wildcard.feature,)
        question = Question(
            "features", wildcard.featureset, (entity_id,), at=how.at, clock=how.clock, features=features
        )
        token = METER.set(meter)
        try:
            with self._limits.within(how.limit_s):
                reply, run_id = await self._runs.read(call, question, by=plan.views[0].snapshot)
        except TimeoutError:
            raise TimedOut(f"Timed out: the join keys were not read within {how.limit_s:g} s") from None
        finally:
            METER.reset(token)
        there = [each for each in reply.body["features"][wildcard.feature] or () if each is not None]
        return FreeValues(list(dict.fromkeys(there)), meter, (run_id,))

    async def _parts(self, call: Call, plan: ServicePlan, rows: Sequence[AskedRow], how: How) -> list[Part | None]:
        """One per view; ``None`` where the budget ran out."""
        if len(plan.views) == 1 and how.budget_s is None:
            # Most services: no task is made for it.
            return [await self._part(call, plan.views[0], rows, how)]
        tasks = [asyncio.ensure_future(self._part(call, view, rows, how)) for view in plan.views]
        try:
            done, _ = await asyncio.wait(tasks, timeout=how.budget_s, return_when=asyncio.FIRST_EXCEPTION)
            for error in [task.exception() for task in done]:
                if error is not None:
                    raise error
            return [_done(task) for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    async def _part(self, call: Call, view: ServedView, rows: Sequence[AskedRow], how: How) -> Part:
        meter, ids = Meter(), [_entity_id([row.keys.get(name) for name in view.join_keys]) for row in rows]
        token = METER.set(meter)
        try:
            if None not in ids:
                return await self._known_keys(call, view, (ids, rows), (how, meter))
            places = [place for place, given in enumerate(ids) if given is not None]
            if not places:
                return _missing(view, len(rows), meter)
            asked = ([ids[place] for place in places], [rows[place] for place in places])
            whole = how._replace(bare=False)
            return _spread(await self._known_keys(call, view, asked, (whole, meter)), places, len(rows))
        finally:
            METER.reset(token)

    async def _known_keys(
        self, call: Call, view: ServedView, asked: tuple[Sequence[Any], Sequence[AskedRow]], way: tuple[How, Meter]
    ) -> Part:
        (ids, rows), (how, meter) = asked, way
        question = _question(view, ids, rows, how)
        watch = None if how.bare and how.now is None else Watch(how.now)
        reply, run_id = await self._runs.read(call, question, as_table=True, watch=watch, by=view.snapshot)
        part = Part(_values(view, reply), [], [], meter, run_id=run_id)
        if watch is None or how.bare:
            return part
        effective: list[Instant | None] = [None] * len(view.features)
        if how.effective:
            effective = await self._effective(view, watch)
        statuses = _statuses(view, watch.known, len(rows))
        return part._replace(statuses=statuses, effective=effective, extract_s=watch.extract_s)

    async def _effective(self, view: ServedView, watch: Watch) -> list[Instant | None]:
        newest = await self._newest(watch)
        width = len(view.plan.views)
        found = []
        for feature in view.features:
            instants = (newest[row + place] for row in range(0, len(newest), width or 1) for place in feature.views)
            found.append(max((instant for instant in instants if instant is not None), default=None))
        return found

    async def _newest(self, watch: Watch) -> list[Instant | None]:
        lookups, moment = watch.lookups, watch.moment
        if moment is None or not lookups:
            return []
        return await self._services.query_server.sources.newest(lookups, is_past=moment.is_past)


def _question(view: ServedView, ids: Sequence[Any], rows: Sequence[AskedRow], how: How) -> Question:
    featureset = view.plan.featureset
    if len(ids) == 1:
        inputs = _inputs(view, rows[0])
        nulls = None in inputs.values()
        asked = Question("features", featureset, tuple(ids), at=how.at, inputs=inputs, clock=how.clock, nulls=nulls)
        return asked._replace(features=view.chosen) if view.chosen else asked
    of_rows = tuple(_inputs(view, row) for row in rows)
    nulls = any(None in inputs.values() for inputs in of_rows)
    asked = Question("batch", featureset, tuple(ids), at=how.at, row_inputs=of_rows, clock=how.clock, nulls=nulls)
    return asked._replace(features=view.chosen) if view.chosen else asked


def _inputs(view: ServedView, row: AskedRow) -> Mapping[str, Any]:
    if not view.context:
        return _NO_INPUTS
    return {name: value for name, value in row.context.items() if name in view.context}


def _entity_id(parts: Sequence[Any]) -> Any:
    """What the query server takes as an id: one value, or a list of several; ``None`` when one of them is null."""
    if None in parts:
        return None
    return parts[0] if len(parts) == 1 else list(parts)


def _values(view: ServedView, reply: Reply) -> list[Sequence[Value]]:
    """The features in the engine's form."""
    if reply.table is not None:
        return [reply.table.columns[feature.slot] for feature in view.features]
    assert reply.walked is not None
    assert reply.walked.slots is not None
    slots = reply.walked.slots
    return [[slots[feature.slot]] for feature in view.features]


def _statuses(view: ServedView, known: Sequence[bool], rows: int) -> list[list[Status]]:
    """A feature is there when the key of any row it is made of is known, or it is made of none."""
    # Most features of a view are made of the same rows.
    alike: dict[tuple[int, ...], list[Status]] = {}
    for feature in view.features:
        if feature.views not in alike:
            alike[feature.views] = _statuses_of_rows(feature.views, known, len(view.plan.views), rows)
    return [alike[feature.views] for feature in view.features]


def _statuses_of_rows(views: tuple[int, ...], known: Sequence[bool], width: int, rows: int) -> list[Status]:
    starts = range(0, rows * width, width) if width else [0] * rows
    return [
        "PRESENT" if not views or any(known[start + place] for place in views) else "MISSING_DATA" for start in starts
    ]


def _missing(view: ServedView, rows: int, meter: Meter) -> Part:
    return _blank(view, rows, "MISSING_DATA")._replace(meter=meter)


def _blank(view: ServedView, rows: int, status: Status) -> Part:
    count = len(view.features)
    values: list[Sequence[Value]] = [[None] * rows for _ in range(count)]
    return Part(values, [[status] * rows for _ in range(count)], [None] * count, Meter())


def _spread(part: Part, places: Sequence[int], rows: int) -> Part:
    """The part of some rows among all of them."""
    values: list[Sequence[Value]] = []
    statuses: list[list[Status]] = []
    for column, of_rows in zip(part.values, part.statuses, strict=True):
        given, told = dict(zip(places, column, strict=True)), dict(zip(places, of_rows, strict=True))
        values.append([given.get(row) for row in range(rows)])
        statuses.append([told.get(row, "MISSING_DATA") for row in range(rows)])
    return part._replace(values=values, statuses=statuses)


def _done(task: asyncio.Task[Part]) -> Part | None:
    return task.result() if task.done() else None


def _together(plan: ServicePlan, parts: Sequence[Part | None], rows: int, how: How) -> ServiceAnswer:
    alone = parts[0] if len(parts) == 1 else None
    if alone is not None and alone.meter.size <= how.most_bytes:
        ids = () if alone.run_id is None else (alone.run_id,)
        return ServiceAnswer(*alone[:5], is_partial=False, run_ids=ids)
    whole, is_partial = Meter(), False
    kept: list[Part] = []
    for view, part in zip(plan.views, parts, strict=True):
        if part is None:
            kept.append(_blank(view, rows, "TIME_OUT"))
            continue
        whole.add(part.meter)
        if whole.size > how.most_bytes:
            is_partial = True
            kept.append(_blank(view, rows, "UNKNOWN_STATUS"))
        else:
            kept.append(part)
    if is_partial and not how.partial:
        raise ReadTooLarge(f"{whole.size} bytes were read from the online store; at most {how.most_bytes} may be")
    return ServiceAnswer(
        values=[column for part in kept for column in part.values],
        statuses=[status for part in kept for status in part.statuses],
        effective=[instant for part in kept for instant in part.effective],
        meter=whole,
        extract_s=sum(part.extract_s for part in kept),
        is_partial=is_partial,
        run_ids=tuple(part.run_id for part in parts if part is not None and part.run_id is not None),
    )
