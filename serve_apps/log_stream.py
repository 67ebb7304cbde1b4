"""A body whose records are taken while it comes: block by block, each appended before the next is read.

So a body may be larger than memory, and its sender is held back by what the log can take: between two blocks nobody
reads the connection. What was taken stays taken when something fails further on; the error says how much that is.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from featurelib.definitions import ExpectationDef
from featurelib.engine.expect import Violation
from featurelib.errors import IdempotencyConflict, InvalidRequest, LogFull, MaybeTaken, StoreUnavailable, ThymeError
from featurelib.stores.intake import Taken
from serve_apps.intake_service import IntakeService, Problem
from serve_apps.log_blocks import Block, BlockReader

MOST_PROBLEMS = 100
"""Most rejected records an answer tells of one by one."""
MOST_RUNS = 10_000
"""Most runs of records with one outcome; what comes after them is one more."""
MIXED = 255
"""The outcome of records that are not told apart any more."""
# The archive copies every two seconds; a log that has no room for this long will not have it soon.
_ROOM_PATIENCE_S, _ROOM_LOOK_S = 30.0, 0.25
# A block holds the interpreter for milliseconds: more at once would be felt by the reads of this replica.
_AT_ONCE = 2

_T = TypeVar("_T")


class Run(NamedTuple):
    """So many records in a row with one outcome."""

    outcome: int
    records: int


class Total:
    """What became of all records until now."""

    def __init__(self) -> None:
        self.records = 0
        self.taken = Taken(0, 0, 0, 0, [], [])
        self.problems: list[Problem] = []
        self.runs: list[Run] = []

    def add(self, taken: Taken, problems: Iterable[Problem], outcomes: npt.NDArray[np.uint8]) -> None:
        """Count some more."""
        self.records += len(outcomes)
        self.taken = _sum(self.taken, taken)
        self.problems += list(problems)[: MOST_PROBLEMS - len(self.problems)]
        for run in runs_of(outcomes):
            self._continue(run)

    def _continue(self, run: Run) -> None:
        last = self.runs[-1] if self.runs else None
        if last is not None and (last.outcome == run.outcome or len(self.runs) > MOST_RUNS):
            outcome = run.outcome if last.outcome == run.outcome else MIXED
            self.runs[-1] = Run(outcome, last.records + run.records)
        else:
            self.runs.append(run)


class LogStream:
    """One request.

    Args:
        service: takes the blocks.
        dataset: whose records they are.
        key: the idempotency key of the body; empty: none.
        reader: cuts it.
    """

    def __init__(self, service: IntakeService, dataset: str, key: str, reader: BlockReader) -> None:
        self._service = service
        self._dataset = dataset
        self._key = key
        self._reader = reader
        self._left: list[Block] = []
        self._total = Total()

    async def take(self, pieces: AsyncIterator[bytes], threads: anyio.CapacityLimiter) -> Total:
        """Take the whole body.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the body is not of its form; what stood before that is taken.
            IdempotencyConflict: the key came before with another body.
            MaybeTaken: there is no key, and the log failed after some records were taken, or may have been.
            StoreUnavailable: nothing was taken, or there is a key: send the body again.
        """
        await _in_thread(threads, lambda: self._service.check(self._dataset))
        try:
            async for piece in pieces:
                self._reader.feed(piece)
                if self._reader.is_ready:
                    await self._take_ready(threads, final=False)
            await self._take_ready(threads, final=True)
        except IdempotencyConflict:
            raise
        except ThymeError as error:
            raise self._cut_short(error) from error
        finally:
            if self._total.records:
                await _in_thread(threads, lambda: self._service.report(self._dataset, self._total.taken))
        return self._total

    async def _take_ready(self, threads: anyio.CapacityLimiter, *, final: bool) -> None:
        blocks = self._reader.blocks(final=final)
        gives_up_at = time.monotonic() + _ROOM_PATIENCE_S
        while True:
            try:
                return await _in_thread(threads, lambda: self._take_all(blocks))
            except LogFull:
                # A body that has just begun is refused as any other is: its sender has lost nothing.
                if not self._total.records or time.monotonic() > gives_up_at:
                    raise
            await anyio.sleep(_ROOM_LOOK_S)

    def _take_all(self, blocks: Iterator[Block]) -> None:
        while block := self._left.pop() if self._left else next(blocks, None):
            try:
                found = self._service.take(self._dataset, block, self._key, self._total.records)
            except LogFull:
                self._left.append(block)
                raise
            self._total.add(*found)

    def _cut_short(self, error: ThymeError) -> ThymeError:
        """The error, with what was taken before it."""
        done = self._total.records
        if not done:
            return error
        text = f"{error}; the first {done} records were taken before"
        if isinstance(error, MaybeTaken):
            return MaybeTaken(f"{text}: see which of those behind them were, and send only the others")
        if isinstance(error, StoreUnavailable):
            again = "sent again under its key, the body goes on from there" if self._key else "send only the others"
            return (type(error) if self._key else MaybeTaken)(f"{text}: {again}")
        return InvalidRequest(text) if isinstance(error, InvalidRequest) else type(error)(text)


def limiter() -> anyio.CapacityLimiter:
    """For the threads of all requests of a replica."""
    return anyio.CapacityLimiter(_AT_ONCE)


def runs_of(outcomes: npt.NDArray[np.uint8]) -> Iterator[Run]:
    """The outcomes, those in a row that are the same together."""
    if not len(outcomes):
        return
    starts = np.concatenate(([0], np.flatnonzero(np.diff(outcomes)) + 1))
    lengths = np.diff(np.append(starts, len(outcomes)))
    yield from map(Run, outcomes[starts].tolist(), lengths.tolist())


def _sum(before: Taken, more: Taken) -> Taken:
    """Both together; of the rejected records only one, for its text."""
    return before._replace(
        accepted=before.accepted + more.accepted,
        duplicates=before.duplicates + more.duplicates,
        late=before.late + more.late,
        dead=before.dead + more.dead,
        rejected=before.rejected or more.rejected[:1],
        violations=_violations([*before.violations, *more.violations]),
        lettered=before.lettered + more.lettered,
        dropped=before.dropped + more.dropped,
        drift=before.drift or more.drift,
        erased=before.erased + more.erased,
    )


def _violations(found: list[Violation]) -> list[Violation]:
    """One for each expectation."""
    rules: list[ExpectationDef] = []
    for each in found:
        if each.expectation not in rules:
            rules.append(each.expectation)
    return [_together([each for each in found if each.expectation == rule]) for rule in rules]


def _together(found: list[Violation]) -> Violation:
    failed, total = sum(each.failed for each in found), sum(each.total for each in found)
    return found[0]._replace(failed=failed, total=total)


async def _in_thread(threads: anyio.CapacityLimiter, work: Callable[[], _T]) -> _T:
    return await anyio.to_thread.run_sync(work, limiter=threads)
