"""Offline reads: many rows, each at an instant of its own, answered in the order asked.

Rows share one reading of history, cut once, and what each gets is what a point-in-time read of it alone would give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

from featurelib.clock import Instant
from featurelib.engine.asof import Knowledge
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.spine import Asked, Reading, filled, looked_up
from featurelib.errors import InvalidRequest
from featurelib.stores.online_reader import Lookup
from featurelib.stores.spine_reader import Cut, Evidence, programs_of
from featurelib.types import Value

_T = TypeVar("_T")


class Spine(Protocol):
    """Reads the rows of one spine; blocks."""

    @property
    def cut(self) -> Cut:
        """Per dataset where its log stops."""
        ...

    def rows(self, view: View, asked: Sequence[Asked]) -> list[Row]:
        """The rows of a view, in order; ``None`` for a key unknown at its instant."""
        ...

    def evidence(self, lookup: Lookup) -> Evidence:
        """The row of one key at an instant, and when it changed last."""
        ...


class Spines(Protocol):
    """Begins to read spines; blocks."""

    def spine(
        self,
        programs: Iterable[Program],
        knowledge: Knowledge = "latest",
        ends: dict[str, tuple[int, ...]] | None = None,
    ) -> Spine:
        """A spine's reader of what these pipelines read.

        ``ends``: per dataset where its log stops; what is not there yet is put there, as it is now.
        """
        ...

    def spine_below(self, lookup: Lookup, applied: Sequence[int]) -> Spine:
        """A reader of the records that the row of a look-up in the online store reflects."""
        ...


class OfflineQuestion(Protocol):
    """The part of a question that offline reads look at."""

    @property
    def entity_ids(self) -> tuple[Any, ...]:
        """Ids as they were sent."""
        ...

    @property
    def instants(self) -> tuple[Instant, ...]:
        """One per id."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Request-time inputs of every row."""
        ...

    @property
    def row_inputs(self) -> tuple[Mapping[str, Any] | None, ...]:
        """Those of each row on its own; empty where no row has any."""
        ...


def readings_of(plan: ReadPlan, question: OfflineQuestion) -> list[Reading]:
    """The rows of an offline question, read as the plan's types.

    Raises:
        InvalidRequest: an id or an input does not fit; names the row.
    """
    own = question.row_inputs or (None,) * len(question.entity_ids)
    shared = None if any(own) else plan.requested(question.inputs)
    readings = []
    for number, (given, at, inputs) in enumerate(zip(question.entity_ids, question.instants, own, strict=True)):
        entity = plan.key_form.read(given, f"queries[{number}].entity_id")
        requested = shared if shared is not None else _requested(plan, {**question.inputs, **(inputs or {})}, number)
        readings.append(Reading(entity, requested, at))
    return readings


def _requested(plan: ReadPlan, inputs: Mapping[str, Any], number: int) -> list[tuple[int, Value]]:
    try:
        return plan.requested(inputs)
    except InvalidRequest as error:
        raise InvalidRequest(f"queries[{number}].{error}") from None


class OfflineReads:
    """Reads features for many rows.

    Args:
        history: archive and log.
        threads: where history, which blocks, is waited for.
        extractors: where extractors that block are; ``None`` where none does.
    """

    def __init__(self, history: Spines, threads: Executor, extractors: Executor | None) -> None:
        self._history = history
        self._threads = threads
        self._extractors = extractors

    async def columns(
        self,
        plan: ReadPlan,
        readings: Sequence[Reading],
        knowledge: Knowledge = "latest",
        ends: dict[str, tuple[int, ...]] | None = None,
    ) -> list[list[Value]]:
        """One list per slot of the plan, with an element per row; ``ends`` is as in :meth:`Spines.spine`.

        Raises:
            InvalidRequest: an id is not of the type a featureset this one depends on gives it.
            UserCodeError: an extractor failed, for whichever row.
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: a sum left the range of its type.
        """
        if not readings:
            return [[] for _ in plan.graph.slots]
        spine = await self._in_thread(self._history.spine, programs_of(plan), knowledge, ends)
        columns = await self._in_thread(filled, plan, readings, spine.rows)
        batch = plan.graph.batch(columns, [reading.at for reading in readings])
        fetched: dict[Wanted, Row] = {}
        while True:
            # Extractors run where those of every other read run: on the event loop by turns, or in processes.
            wanted = await self._turn(batch.turn, fetched) if plan.graph.blocks else batch.turn(fetched)
            if wanted is None:
                return columns
            if wanted:
                fetched |= await self._in_thread(looked_up, plan, wanted, spine.rows)
            await asyncio.sleep(0)

    async def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    async def _turn(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._extractors, call, *arguments)
