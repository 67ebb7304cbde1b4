"""Reads features: one clock reading, one store read per look-up level, extractors, answer.

Knows no HTTP. A :class:`Question` is what a caller asked, in a form that is kept with the query run, so that
a replay asks it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

from featurelib.clock import Clock, Instant, format_instant
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.read_plan import Entity, KeyForm, ReadPlan, View
from featurelib.stores.online_reader import SEALED, Found, Lookup
from featurelib.types import Value
from serve_apps.current import Current, Snapshot

_T = TypeVar("_T")
Shape = Literal["features", "batch", "lookup"]
Kind = Literal["online", "batch", "offline", "lookup"]

# Finishing and extracting 64 entities takes some 10 ms; between two chunks other requests get their turn.
_ENTITIES_PER_CHUNK = 64
MOST_ENTITIES = 10_000
"""Most ids of one batch."""
_ANY_KEY = KeyForm("str")


class Online(Protocol):
    """Reads the newest state."""

    async def rows(self, lookups: Sequence[Lookup]) -> list[Found]:
        """Rows in order, from one round trip."""
        ...

    async def clocks(self, pipelines: Sequence[str]) -> dict[str, Instant | None]:
        """Newest applied event time of each pipeline."""
        ...


class Past(Protocol):
    """Reads as of a past instant; blocks."""

    def rows(self, lookups: Sequence[Lookup]) -> list[Row]:
        """Rows in order; ``None`` for a key unknown at its instant."""
        ...


class Question(NamedTuple):
    """What a caller asked.

    ``target`` is the featureset, or the dataset of a look-up; ``at`` is ``None`` for "now"; ``entity_ids`` are as
    they were sent.
    """

    shape: Shape
    target: str
    entity_ids: tuple[Any, ...]
    entity_type: str | None = None
    at: Instant | None = None
    inputs: Mapping[str, Any] = {}

    @property
    def kind(self) -> Kind:
        """The query run's kind (decision 25)."""
        if self.shape == "features":
            return "online" if self.at is None else "offline"
        return self.shape

    def recorded(self) -> dict[str, Any]:
        """JSON that :meth:`from_recorded` reads back, together with the ids the run itself holds."""
        # The run's ids are key texts, which read as the same keys; kept twice only where they would not.
        ids = self.entity_ids if any(map(_is_not_its_text, self.entity_ids)) else None
        return {**self._asdict(), "entity_ids": ids, "inputs": dict(self.inputs)}

    @classmethod
    def from_recorded(cls, stored: Mapping[str, Any], entity_ids: Sequence[str]) -> Question:
        """The question a query run was recorded with; ``entity_ids`` are the run's."""
        ids = entity_ids if stored["entity_ids"] is None else stored["entity_ids"]
        return cls(**{**stored, "entity_ids": tuple(ids)})


def _chunks(whole: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (whole[start : start + _ENTITIES_PER_CHUNK] for start in range(0, len(whole), _ENTITIES_PER_CHUNK))


def _is_not_its_text(given: object) -> bool:
    return isinstance(given, list | float) or (isinstance(given, str) and given.startswith("["))


class Reply(NamedTuple):
    """What was read: the answer's members, and what the query run says of it."""

    body: dict[str, Any]
    entity_ids: tuple[str, ...]
    hits: int
    commit_id: str | None


class _Moment(NamedTuple):
    at: Instant
    clock: str
    is_past: bool

    @property
    def mode(self) -> str:
        return "point_in_time" if self.is_past else "online"

    def metadata(self) -> dict[str, str]:
        return {"timestamp": format_instant(self.at), "clock": self.clock}


class Threads(NamedTuple):
    """Where calls that block are waited for. ``extractors`` is ``None`` where they run inline."""

    history: Executor
    extractors: Executor | None = None


class QueryServer:
    """Answers questions from whatever is committed now.

    Args:
        current: the read plans.
        online: the online store.
        history: point-in-time reads.
        clock: read once per request.
        threads: where ``history``, which blocks, runs, and extractors that do.
    """

    def __init__(self, current: Current, online: Online, history: Past, clock: Clock, threads: Threads) -> None:
        self._current = current
        self._online = online
        self._history = history
        self._clock = clock
        self._threads = threads

    async def answer(self, question: Question) -> Reply:
        """Answer a question.

        Raises:
            NotFound: unknown featureset.
            InvalidRequest: an id, an input or the entity type does not fit.
            UserCodeError: an extractor failed.
            StoreUnavailable: the store does not answer.
        """
        snapshot = self._current.snapshot
        if question.shape == "lookup":
            return await self._lookup(question, snapshot)
        plan = snapshot.plan(question.target)
        plan.check_entity_type(question.entity_type)
        if question.shape == "batch":
            return await self._batch(question, plan, snapshot)
        return await self._features(question, plan, snapshot)

    async def _features(self, question: Question, plan: ReadPlan, snapshot: Snapshot) -> Reply:
        entity = plan.key_form.read(question.entity_ids[0])
        requested = plan.requested(question.inputs)
        moment = await self._moment(question.at, plan)
        (slots,) = await self._filled(plan, [entity], requested, moment)
        await self._extract(plan, slots, moment)
        values = plan.answer(slots)
        body = {
            "entity_type": plan.entity_type,
            "entity_id": entity.key,
            "features": dict(zip(plan.feature_names, values, strict=True)),
            "mode": moment.mode,
            "metadata": moment.metadata(),
        }
        return Reply(body, (entity.key,), int(None not in values), snapshot.commit_id)

    async def _batch(self, question: Question, plan: ReadPlan, snapshot: Snapshot) -> Reply:
        entities = [plan.key_form.read(given, f"entity_ids[{i}]") for i, given in enumerate(question.entity_ids)]
        requested = plan.requested(question.inputs)
        moment = await self._moment(question.at, plan)
        slots: list[list[Value]] = []
        for chunk in _chunks(entities):
            slots += await self._filled(plan, chunk, requested, moment)
        slots = await self._extract_all(plan, slots, moment)
        rows: list[list[Any]] = []
        for part in _chunks(slots):
            rows += [plan.answer(values) for values in part]
            await asyncio.sleep(0)
        ids = tuple(entity.key for entity in entities)
        body = {
            "features": ["entity_id", *plan.feature_names],
            "values": [[key, *values] for key, values in zip(ids, rows, strict=True)],
        }
        return Reply(body, ids, sum(None not in values for values in rows), snapshot.commit_id)

    async def _lookup(self, question: Question, snapshot: Snapshot) -> Reply:
        view = snapshot.views.get(question.target)
        entity = (view.key_form if view else _ANY_KEY).read(question.entity_ids[0])
        moment = self._wall(question.at)
        # An unknown dataset is answered like an unknown entity: clients probe names this way.
        row = view.row(entity, await self._row(view, entity.key, moment)) if view else None
        body = {
            "entity_type": question.target,
            "entity_id": entity.key,
            "features": row,
            "mode": moment.mode,
            "metadata": moment.metadata(),
        }
        return Reply(body, (entity.key,), int(row is not None and None not in row.values()), snapshot.commit_id)

    async def _moment(self, at: Instant | None, plan: ReadPlan) -> _Moment:
        if at is not None or plan.clock == "wall":
            return self._wall(at)
        newest = await self._online.clocks(plan.clock_pipelines)
        # A pipeline that has applied nothing has no clock of its own and nothing to read: the others decide. Where
        # none has applied anything there is no event clock, and the answer names the one that was read instead.
        known = [instant for instant in newest.values() if instant is not None]
        return _Moment(min(known), "event", is_past=False) if known else self._wall(None)

    def _wall(self, at: Instant | None) -> _Moment:
        if at is not None:
            return _Moment(at, "request", is_past=True)
        return _Moment(self._clock.now(), "wall", is_past=False)

    async def _filled(
        self, plan: ReadPlan, entities: Sequence[Entity], requested: Sequence[tuple[int, Value]], moment: _Moment
    ) -> list[list[Value]]:
        """The slots of each entity with everything in them that needs no extractor."""
        slots = [plan.values(entity, requested) for entity in entities]
        rows = await self._rows([Lookup(v.program, e.key, moment.at) for e in entities for v in plan.views], moment)
        width = len(plan.views)
        for index, (entity, values) in enumerate(zip(entities, slots, strict=True)):
            plan.fill(values, entity, rows[index * width : (index + 1) * width])
        return slots

    async def _extract(self, plan: ReadPlan, values: list[Value], moment: _Moment) -> None:
        graph, step = plan.graph, 0
        fetched: dict[Wanted, Row] = {}
        while True:
            arguments = (values, moment.at, fetched, step)
            pause = await self._apart(graph.run, *arguments) if graph.blocks else graph.run(*arguments)
            if pause is None:
                return
            step = pause.step
            fetched |= await self._fetched(plan, [pause.wanted], moment)

    async def _extract_all(self, plan: ReadPlan, slots: list[list[Value]], moment: _Moment) -> list[list[Value]]:
        """The slots of each entity, every one filled: column by column, so that a vectorized extractor runs once."""
        columns = [list(column) for column in zip(*slots, strict=True)]
        batch = plan.graph.batch(columns, [moment.at] * len(slots))
        fetched: dict[Wanted, Row] = {}
        while True:
            wanted = await self._apart(batch.turn, fetched) if plan.graph.blocks else batch.turn(fetched)
            if wanted is None:
                return [list(values) for values in zip(*columns, strict=True)]
            for chunk in _chunks(wanted):
                fetched |= await self._fetched(plan, chunk, moment)
            await asyncio.sleep(0)

    async def _fetched(self, plan: ReadPlan, wanted: Sequence[Wanted], moment: _Moment) -> dict[Wanted, Row]:
        """The rows that extractors look up themselves: those of another instant than the request's lie in the past."""
        found: dict[Wanted, Row] = {}
        for past in (False, True):
            these = [each for each in wanted if (moment.is_past or each.at != moment.at) == past]
            lookups = [Lookup(plan.lookup_views[each.dataset].program, each.key, each.at) for each in these]
            if lookups:
                rows = await self._rows(lookups, moment._replace(is_past=past))
                found |= zip(these, rows, strict=True)
        return found

    async def _apart(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.extractors, call, *arguments)

    async def _row(self, view: View, key: str, moment: _Moment) -> Row:
        (row,) = await self._rows([Lookup(view.program, key, moment.at)], moment)
        return row

    async def _rows(self, lookups: Sequence[Lookup], moment: _Moment) -> list[Row]:
        if moment.is_past:
            return await self._past(lookups)
        rows = [found.row for found in await self._online.rows(lookups)]
        sealed = [index for index, row in enumerate(rows) if row is SEALED]
        if sealed:
            # An event clock far behind the wall's: right, and as slow as any read of the past.
            found = dict(zip(sealed, await self._past([lookups[index] for index in sealed]), strict=True))
            rows = [found.get(index, row) for index, row in enumerate(rows)]
        return cast("list[Row]", rows)

    async def _past(self, lookups: Sequence[Lookup]) -> list[Row]:
        return await asyncio.get_running_loop().run_in_executor(self._threads.history, self._history.rows, lookups)
