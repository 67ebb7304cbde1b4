"""Reads features: one clock reading, one store read per look-up level, extractors, answer.

Knows no HTTP. A :class:`Question` is what a caller asked, in a form that is kept with the query run, so that
a replay asks it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol, TypeVar

from featurelib.clock import Clock, Instant
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.read_plan import Entity, KeyForm, ReadPlan, View
from featurelib.engine.table import Table
from featurelib.stores.online_reader import Lookup, Standing
from featurelib.stores.questions import Question, Seen
from featurelib.types import Value
from serve_apps.current import Snapshot
from serve_apps.explain import Explained, Explainer, Walked
from serve_apps.offline import OfflineReads, readings_of
from serve_apps.reading import Live, Moment, Online, Past, Reader, Served, Sources
from serve_apps.tabular import Form, as_json
from serve_apps.watching import Watch, Watched

_T = TypeVar("_T")
Requested = Sequence[tuple[int, Value]]
"""Request-time values of one entity, by slot."""

# Finishing and extracting 64 entities takes some 10 ms; between two chunks other requests get their turn.
_ENTITIES_PER_CHUNK = 64
MOST_ENTITIES = 10_000
"""Most ids of one batch."""
_ANY_KEY = KeyForm("str")


def _chunks(whole: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (whole[start : start + _ENTITIES_PER_CHUNK] for start in range(0, len(whole), _ENTITIES_PER_CHUNK))


class Reply(NamedTuple):
    """What was read: the answer's members, and what the query run says of it.

    ``table`` holds the rows of a batch or an offline read; ``body`` is empty when no JSON was asked for. ``seen`` is
    what it was read from, and ``values`` are the features in the engine's form: a value each, or a column each.
    ``walked`` is, of one entity's answer, how it came about; ``standing``, where any read of the same rows is answered
    alike, tells whether they are still the same.
    """

    body: dict[str, Any]
    entity_ids: tuple[str, ...]
    hits: int
    commit_id: str | None
    table: Table | None = None
    seen: Seen | None = None
    values: Sequence[Any] | None = None
    walked: Walked | None = None
    standing: Standing | None = None


class _Request(NamedTuple):
    """A question, the definitions it is read by, of a replay where its rows come from, and who watches."""

    question: Question
    snapshot: Snapshot
    served: Served | None = None
    watch: Watch | None = None


async def _reply(table: Table, request: _Request, seen: Seen, *, as_table: bool) -> Reply:
    form: Form = "positional" if request.question.shape == "batch" else "results"
    body = {} if as_table else await as_json(table, form)
    return Reply(body, tuple(table.keys), table.hits, request.snapshot.commit_id, table, seen, table.columns)


def _body(plan: ReadPlan, entity: Entity, values: Sequence[Any], moment: Moment) -> dict[str, Any]:
    """The answer's members, of one entity."""
    return {
        "entity_type": plan.entity_type,
        "entity_id": entity.key,
        "features": dict(zip(plan.feature_names, values, strict=True)),
        "mode": moment.mode,
        "metadata": moment.metadata(),
    }


class Threads(NamedTuple):
    """Where calls that block are waited for. ``extractors`` is ``None`` where they run inline."""

    history: Executor
    extractors: Executor | None = None


class Committed(Protocol):
    """What a query server reads by: :class:`serve_apps.current.Current`, or definitions that do not move."""

    @property
    def snapshot(self) -> Snapshot:
        """The definitions, compiled."""
        ...


class QueryServer:
    """Answers questions from whatever is committed now.

    Args:
        current: the read plans.
        online: the online store.
        history: point-in-time reads.
        clock: read once per request.
        threads: where ``history``, which blocks, runs, and extractors that do.

    Attributes:
        sources: the stores that rows are read from.
    """

    def __init__(self, current: Committed, online: Online, history: Past, clock: Clock, threads: Threads) -> None:
        self.sources = Sources(online, history, threads.history)
        self._current = current
        self._clock = clock
        self._threads = threads
        self._offline_reads = OfflineReads(history, threads.history, threads.extractors)
        self._explainer = Explainer(history, threads.history)

    async def answer(
        self,
        question: Question,
        *,
        as_table: bool = False,
        watch: Watch | None = None,
        by: Snapshot | None = None,
    ) -> Reply:
        """Answer a question.

        Args:
            question: what is asked.
            as_table: make no JSON of what was read.
            watch: is filled on the way.
            by: the definitions to read by; those of now, unless the caller has compiled something of others.

        Raises:
            NotFound: unknown featureset.
            InvalidRequest: an id, an input or the entity type does not fit.
            UserCodeError: an extractor failed.
            StoreUnavailable: the store does not answer.
        """
        return await self._answered(_Request(question, by or self._current.snapshot, None, watch), as_table=as_table)

    async def replay(self, question: Question, snapshot: Snapshot, served: Served) -> Reply:
        """Answer a question as it was answered before: by these definitions, of what was read then.

        Raises:
            NotFound: the featureset is not among the definitions.
            UserCodeError: an extractor failed.
            StoreUnavailable: the store does not answer.
        """
        return await self._answered(_Request(question, snapshot, served), as_table=False)

    async def explained(self, question: Question, reply: Reply) -> dict[str, Explained]:
        """Of every feature of a reply to a question of one entity, what its value is made of, or why it is null.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
        """
        assert reply.walked is not None
        assert reply.seen is not None
        return await self._explainer.explain(question, reply.walked, reply.seen, reply.body["features"])

    async def _answered(self, request: _Request, *, as_table: bool) -> Reply:
        question = request.question
        if question.shape == "lookup":
            return await self._lookup(request)
        plan = request.snapshot.plan(question.target, question.features)
        plan.check_entity_type(question.entity_type)
        if question.shape == "features":
            return await self._features(request, plan, as_table=as_table)
        read = self._batch if question.shape == "batch" else self._offline
        table, seen = await read(request, plan)
        return await _reply(table, request, seen, as_table=as_table)

    async def _features(self, request: _Request, plan: ReadPlan, *, as_table: bool) -> Reply:
        question = request.question
        entity = plan.key_form.read(question.entity_ids[0])
        requested = plan.requested(question.inputs, nulls=question.nulls)
        reader = await self._reader(request, plan)
        (slots,) = await self._filled(plan, [entity], [requested], reader)
        started = time.perf_counter()
        await self._extract(plan, slots, reader)
        if request.watch is not None:
            request.watch.ran(started)
        values = plan.answer(slots)
        body = {} if as_table else _body(plan, entity, values, reader.moment)
        hits, walked = int(None not in values), Walked(request.snapshot, plan, entity.key, slots)
        # An extractor is the user's code, and may give another value each time; an event clock moves by itself.
        lasts = plan.graph.is_idle and (question.clock or plan.clock) == "wall"
        standing = reader.standing() if lasts and isinstance(reader, Live) else None
        commit_id = request.snapshot.commit_id
        return Reply(body, (entity.key,), hits, commit_id, None, reader.seen, values, walked, standing)

    async def _batch(self, request: _Request, plan: ReadPlan) -> tuple[Table, Seen]:
        question = request.question
        entities = [plan.key_form.read(given, f"entity_ids[{i}]") for i, given in enumerate(question.entity_ids)]
        inputs = question.row_inputs or [question.inputs] * len(entities)
        requested = [plan.requested(each or {}, nulls=question.nulls) for each in inputs]
        reader = await self._reader(request, plan)
        slots: list[list[Value]] = []
        for chunk, chosen in zip(_chunks(entities), _chunks(requested), strict=True):
            slots += await self._filled(plan, chunk, chosen, reader)
        started = time.perf_counter()
        columns = await self._extract_all(plan, slots, reader)
        if request.watch is not None:
            request.watch.ran(started)
        return Table.of(plan, [entity.key for entity in entities], columns), reader.seen

    async def _offline(self, request: _Request, plan: ReadPlan) -> tuple[Table, Seen]:
        question, served = request.question, request.served
        # Thousands of ids are tens of milliseconds, in which others get their turn.
        readings = await self.sources.in_thread(readings_of, plan, question)
        seen = Seen(request.snapshot.version, None, "request", (), [], [], dict(served.seen.ends) if served else {})
        columns = await self._offline_reads.columns(plan, readings, question.knowledge, seen.ends)
        return Table.of(plan, [reading.entity.key for reading in readings], columns, question.instants), seen

    async def _lookup(self, request: _Request) -> Reply:
        question = request.question
        view = request.snapshot.views.get(question.target)
        entity = (view.key_form if view else _ANY_KEY).read(question.entity_ids[0])
        reader = await self._reader(request, view)
        # An unknown dataset is answered like an unknown entity: clients probe names this way.
        row = view.row(entity, await self._row(view, entity.key, reader)) if view else None
        body = {
            "entity_type": question.target,
            "entity_id": entity.key,
            "features": row,
            "mode": reader.moment.mode,
            "metadata": reader.moment.metadata(),
        }
        hits = int(row is not None and None not in row.values())
        values = [(row or {}).get(name) for name in view.columns] if view else None
        walked = Walked(request.snapshot, view, entity.key)
        return Reply(body, (entity.key,), hits, request.snapshot.commit_id, None, reader.seen, values, walked)

    async def _reader(self, request: _Request, read: ReadPlan | View | None) -> Reader:
        if request.served is not None:
            return request.served
        question = request.question
        now = None if request.watch is None else request.watch.now
        if isinstance(read, ReadPlan):
            moment = await self._moment(question, read, now)
        else:
            moment = self._wall(question.at, now)
        pipelines = read.pipelines if isinstance(read, ReadPlan) else () if read is None else (read.pipeline,)
        seen = Seen(request.snapshot.version, moment.at, moment.clock, pipelines, [], [], {})
        reader = Live(self.sources, moment, question.knowledge, seen)
        return reader if request.watch is None else Watched(reader, request.watch)

    async def _moment(self, question: Question, plan: ReadPlan, now: Instant | None) -> Moment:
        at = question.at
        if at is not None or (question.clock or plan.clock) == "wall":
            return self._wall(at, now)
        newest = await self.sources.online.clocks(plan.clock_pipelines)
        # A pipeline that has applied nothing has no clock of its own and nothing to read: the others decide. Where
        # none has applied anything there is no event clock, and the answer names the one that was read instead.
        known = [instant for instant in newest.values() if instant is not None]
        return Moment(min(known), "event", is_past=False) if known else self._wall(None, now)

    def _wall(self, at: Instant | None, now: Instant | None) -> Moment:
        if at is not None:
            return Moment(at, "request", is_past=True)
        return Moment(self._clock.now() if now is None else now, "wall", is_past=False)

    async def _filled(
        self, plan: ReadPlan, entities: Sequence[Entity], requested: Sequence[Requested], reader: Reader
    ) -> list[list[Value]]:
        """The slots of each entity, given what was sent for it, with everything in them that needs no extractor."""
        slots = [plan.values(entity, sent) for entity, sent in zip(entities, requested, strict=True)]
        at = reader.moment.at
        rows = await reader.rows([Lookup(v.program, e.key, at) for e in entities for v in plan.views])
        width = len(plan.views)
        for index, (entity, values) in enumerate(zip(entities, slots, strict=True)):
            plan.fill(values, entity, rows[index * width : (index + 1) * width])
        return slots

    async def _extract(self, plan: ReadPlan, values: list[Value], reader: Reader) -> None:
        graph, step = plan.graph, 0
        fetched: dict[Wanted, Row] = {}
        while True:
            arguments = (values, reader.moment.at, fetched, step)
            pause = await self._apart(graph.run, *arguments) if graph.blocks else graph.run(*arguments)
            if pause is None:
                return
            step = pause.step
            fetched |= await self._fetched(plan, [pause.wanted], reader)

    async def _extract_all(self, plan: ReadPlan, slots: list[list[Value]], reader: Reader) -> list[list[Value]]:
        """One list per slot, every one filled: column by column, so that a vectorized extractor runs once."""
        if not slots:
            return [[] for _ in plan.graph.slots]
        columns = [list(column) for column in zip(*slots, strict=True)]
        batch = plan.graph.batch(columns, [reader.moment.at] * len(slots))
        fetched: dict[Wanted, Row] = {}
        while True:
            wanted = await self._apart(batch.turn, fetched) if plan.graph.blocks else batch.turn(fetched)
            if wanted is None:
                return columns
            for chunk in _chunks(wanted):
                fetched |= await self._fetched(plan, chunk, reader)
            await asyncio.sleep(0)

    async def _fetched(self, plan: ReadPlan, wanted: Sequence[Wanted], reader: Reader) -> dict[Wanted, Row]:
        """The rows that extractors look up themselves."""
        lookups = [Lookup(plan.lookup_views[each.dataset].program, each.key, each.at) for each in wanted]
        return dict(zip(wanted, await reader.looked_up(wanted, lookups), strict=True))

    async def _apart(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.extractors, call, *arguments)

    async def _row(self, view: View, key: str, reader: Reader) -> Row:
        (row,) = await reader.rows([Lookup(view.program, key, reader.moment.at)])
        return row
