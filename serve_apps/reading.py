"""Where the rows of one answer come from: the stores as they are now, or as a recorded query run found them.

A reader lives for one answer. It notes what it saw, so that the answer can be given again: up to where each row read
online reflects the inputs of its pipeline, and where the reading of each log stopped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from featurelib.clock import Instant, format_instant
from featurelib.definitions import ref
from featurelib.engine.asof import Knowledge
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.program import Program
from featurelib.stores.online_reader import SEALED, Found, Lookup, SealedRow, Standing
from featurelib.stores.questions import Applied, Seen
from serve_apps.offline import Spines

_T = TypeVar("_T")


class Online(Protocol):
    """Reads the newest state."""

    async def rows(self, lookups: Sequence[Lookup]) -> list[Found]:
        """Rows in order."""
        ...

    def standing(self, lookups: Sequence[Lookup], found: Sequence[Found]) -> Standing | None:
        """What tells whether rows that were just read stay what they are; ``None`` where nothing would."""
        ...

    async def clocks(self, pipelines: Sequence[str]) -> dict[str, Instant | None]:
        """Newest applied event time of each pipeline."""
        ...

    async def newest(self, lookups: Sequence[Lookup]) -> list[Instant | SealedRow | None]:
        """Of each key the newest event at or before the instant; ``SEALED`` where only history knows."""
        ...


class Past(Spines, Protocol):
    """Reads archive and log; blocks."""

    def rows(
        self,
        lookups: Sequence[Lookup],
        ends: dict[str, tuple[int, ...]] | None = None,
        known_by: Instant | None = None,
    ) -> list[Row]:
        """Rows in order; ``None`` for a key unknown at its instant.

        Args:
            lookups: keys and instants.
            ends: per dataset where its log stops; what is not there yet is put there, as it is now.
            known_by: only what was accepted at or before this instant.
        """
        ...

    def newest(self, lookups: Sequence[Lookup]) -> list[Instant | None]:
        """Of each key the newest event at or before the instant."""
        ...

    def rows_below(self, lookups: Sequence[Lookup], applied: Sequence[Sequence[int]]) -> list[Row]:
        """Rows in order, each of the records below offsets of its own, in the order of the pipeline's inputs."""
        ...


class Moment(NamedTuple):
    """The instant R of an answer and whose clock it is of."""

    at: Instant
    clock: str
    is_past: bool

    @property
    def mode(self) -> str:
        """How the answer calls it."""
        return "point_in_time" if self.is_past else "online"

    def metadata(self) -> dict[str, str]:
        """What the answer says of it."""
        return {"timestamp": format_instant(self.at), "clock": self.clock}


class Reader(Protocol):
    """Gives one answer its rows."""

    @property
    def moment(self) -> Moment:
        """The instant R."""
        ...

    @property
    def seen(self) -> Seen:
        """What has been read so far."""
        ...

    async def rows(self, lookups: Sequence[Lookup]) -> list[Row]:
        """The views' rows, in order, at the instant R."""
        ...

    async def looked_up(self, wanted: Sequence[Wanted], lookups: Sequence[Lookup]) -> list[Row]:
        """The rows extractors look up; ``lookups`` are the same, by pipeline."""
        ...


class Sources(NamedTuple):
    """What readers read through; ``threads`` is where the past, which blocks, is waited for."""

    online: Online
    past: Past
    threads: Executor

    async def in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Call something that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    async def newest(self, lookups: Sequence[Lookup], *, is_past: bool) -> list[Instant | None]:
        """Of each key the newest event at or before the instant, of what is applied; ``is_past``: of history."""
        if is_past:
            return await self.in_thread(self.past.newest, lookups)
        found = await self.online.newest(lookups)
        sealed = [place for place, each in enumerate(found) if isinstance(each, SealedRow)]
        if sealed:
            past = await self.in_thread(self.past.newest, [lookups[place] for place in sealed])
            for place, instant in zip(sealed, past, strict=True):
                found[place] = instant
        return cast("list[Instant | None]", found)


class Live:
    """Reads the stores as they are: the online store for now, archive and log for then."""

    def __init__(self, sources: Sources, moment: Moment, knowledge: Knowledge, seen: Seen) -> None:
        self.moment = moment
        self.seen = seen
        self._sources = sources
        self._known_by = moment.at if moment.is_past and knowledge == "as_served" else None
        self._last: tuple[Sequence[Lookup], Sequence[Found]] = ((), ())

    def standing(self) -> Standing | None:
        """What tells whether the views' rows, read last, are those of any read; ``None`` where nothing would."""
        return None if self.moment.is_past else self._sources.online.standing(*self._last)

    async def rows(self, lookups: Sequence[Lookup]) -> list[Row]:
        """The views' rows."""
        if self.moment.is_past:
            return await self._then(lookups)
        found = await self._sources.online.rows(lookups)
        self._last = lookups, found
        self.seen.applied.extend([each.applied for each in found])
        return await self._unsealed(lookups, found)

    async def looked_up(self, wanted: Sequence[Wanted], lookups: Sequence[Lookup]) -> list[Row]:
        """The rows extractors look up: those of another instant than R lie in the past."""
        now = [place for place, each in enumerate(wanted) if not self.moment.is_past and each.at == self.moment.at]
        rows: dict[int, Row] = {}
        if now:
            asked = [lookups[place] for place in now]
            found = await self._sources.online.rows(asked)
            self.seen.looked_up.extend((*wanted[at], each.applied) for at, each in zip(now, found, strict=True))
            rows |= zip(now, await self._unsealed(asked, found), strict=True)
        then = [place for place in range(len(wanted)) if place not in rows]
        if then:
            rows |= zip(then, await self._then([lookups[place] for place in then]), strict=True)
        return [rows[place] for place in range(len(wanted))]

    async def _then(self, lookups: Sequence[Lookup]) -> list[Row]:
        return await self._sources.in_thread(self._sources.past.rows, lookups, self.seen.ends, self._known_by)

    async def _unsealed(self, lookups: Sequence[Lookup], found: Sequence[Found]) -> list[Row]:
        rows = [each.row for each in found]
        sealed = [place for place, row in enumerate(rows) if row is SEALED]
        if sealed:
            # An event clock far behind the wall's: right, and as slow as any read of the past.
            below = [found[place].applied or () for place in sealed]
            past = await self._sources.in_thread(
                self._sources.past.rows_below, [lookups[place] for place in sealed], below
            )
            for place, row in zip(sealed, past, strict=True):
                rows[place] = row
        return cast("list[Row]", rows)


class Served:
    """Reads what a recorded run read: every row of the very records it was made of.

    Args:
        sources: where from.
        moment: the run's.
        seen: the run's; extractors' look-ups are in ``marks``.
        marks: where each row that an extractor looked up stops, by ``mark_of`` of the look-up.
        mark_of: what stands for a look-up in the record.
        recorded_at: when the run was recorded. What the run did not read, such as a row that an extractor looks up by
            chance, is read as it was known then.
        knowledge: the run's own.
    """

    def __init__(
        self,
        sources: Sources,
        moment: Moment,
        seen: Seen,
        *,
        marks: Mapping[str, Applied],
        mark_of: Callable[[Wanted], str],
        recorded_at: Instant,
        knowledge: Knowledge,
    ) -> None:
        self.moment = moment
        self.seen = seen
        self._sources = sources
        self._marks = marks
        self._mark_of = mark_of
        self._recorded_at = recorded_at
        self._known_by = moment.at if moment.is_past and knowledge == "as_served" else None
        self._applied = _by_pipeline(seen)

    async def rows(self, lookups: Sequence[Lookup]) -> list[Row]:
        """The views' rows, in the order they were read first."""
        if self.moment.is_past:
            return await self._then(lookups)
        return await self._below(lookups, [self._applied[lookup.program.ref].popleft() for lookup in lookups])

    async def looked_up(self, wanted: Sequence[Wanted], lookups: Sequence[Lookup]) -> list[Row]:
        """The rows extractors look up."""
        marks = [self._mark_of(each) for each in wanted]
        now = [place for place, mark in enumerate(marks) if mark in self._marks]
        found = await self._below([lookups[place] for place in now], [self._marks[marks[place]] for place in now])
        rows: dict[int, Row] = dict(zip(now, found, strict=True))
        then = [place for place in range(len(wanted)) if place not in rows]
        rows |= zip(then, await self._then([lookups[place] for place in then]), strict=True)
        return [rows[place] for place in range(len(wanted))]

    async def _below(self, lookups: Sequence[Lookup], applied: Sequence[Applied]) -> list[Row]:
        rows: list[Row] = [None] * len(lookups)
        known = [place for place, offsets in enumerate(applied) if offsets is not None]
        if known:
            below = [applied[place] or () for place in known]
            past = await self._sources.in_thread(
                self._sources.past.rows_below, [lookups[place] for place in known], below
            )
            for place, row in zip(known, past, strict=True):
                rows[place] = row
        return rows

    async def _then(self, lookups: Sequence[Lookup]) -> list[Row]:
        """Rows of the past: of the logs up to where the run read them, of others what was accepted by then."""
        rows: dict[int, Row] = {}
        for seen in (True, False):
            places = [place for place, each in enumerate(lookups) if self._saw(each.program) == seen]
            if places:
                known_by = self._known_by if seen else min(self._known_by or self._recorded_at, self._recorded_at)
                asked = [lookups[place] for place in places]
                ends = dict(self.seen.ends)
                rows |= zip(
                    places,
                    await self._sources.in_thread(self._sources.past.rows, asked, ends, known_by),
                    strict=True,
                )
        return [rows[place] for place in range(len(lookups))]

    def _saw(self, program: Program) -> bool:
        return all(ref(dataset) in self.seen.ends for dataset in program.sources)


def _by_pipeline(seen: Seen) -> dict[str, deque[Applied]]:
    # By pipeline, not by place: the order of a plan's views is the code's, and may be another one by now.
    width = len(seen.pipelines)
    queues: dict[str, deque[Applied]] = {
        name: deque(seen.applied[place::width]) for place, name in enumerate(seen.pipelines)
    }
    return queues
