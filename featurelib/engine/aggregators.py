"""The aggregator of every aggregate, and the two that wrap another: sessions and row caps.

What an aggregator is stands in :mod:`featurelib.engine.partials`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import chain
from typing import Any

from featurelib.aggregates import (
    Aggregate,
    ApproxDistinct,
    ApproxPercentile,
    Avg,
    Count,
    Distinct,
    ExpDecaySum,
    First,
    FirstK,
    Last,
    LastK,
    Max,
    Min,
    Quantile,
    Stddev,
    Sum,
    TopK,
    Variance,
)
from featurelib.clock import Duration, Instant
from featurelib.engine.arithmetic import (
    AvgAggregator,
    CountAggregator,
    ExpDecaySumAggregator,
    MaxAggregator,
    MinAggregator,
    StddevAggregator,
    SumAggregator,
    VarianceAggregator,
)
from featurelib.engine.partials import FIRST_VALUE, IDENTITY, Aggregator, Input, Partial, Row, plain
from featurelib.engine.selections import (
    ApproxDistinctAggregator,
    DistinctAggregator,
    FirstAggregator,
    LastAggregator,
    QuantileAggregator,
    RankAggregator,
    TopKAggregator,
)
from featurelib.engine.slices import Answers, Slices
from featurelib.types import Value
from featurelib.windows import Session


class SessionAggregator(Aggregator):
    """Partial: ``[first time, last time, broken, inner partial of the newest session]`` of all rows.

    ``broken``: a pause longer than the gap lies between the first row and the newest session. Sessions are made of
    all rows; the aggregate's predicate picks among those of the newest (decision 3).
    """

    needs = "rows"
    chronological = True

    def __init__(self, inner: Aggregator, gap_us: Duration) -> None:
        super().__init__(inner.source)
        self.inner = inner
        self.gap_us = gap_us
        self.ages = inner.ages

    @property
    def state(self) -> tuple[Any, ...]:
        """The gap and what is aggregated."""
        return ("session", self.gap_us, self.inner.state)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The newest session among the rows."""
        if not rows:
            return None
        start = len(rows) - 1
        while start > 0 and rows[start][0] - rows[start - 1][0] <= self.gap_us:
            start -= 1
        return [rows[0][0], rows[-1][0], start > 0, self.inner.fold(rows[start:])]

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The newest session, with older ones as long as no longer pause parts them."""
        return reduce(self._continued, partials)

    def _continued(self, older: Partial, newer: Partial) -> Partial:
        first, end, broken, session = older
        start, last, newly_broken, newest = newer
        if newly_broken or start - end > self.gap_us:
            return [first, last, True, newest]
        return [first, last, broken, self.inner.merge((session, newest))]

    def holds(self, partial: Partial) -> bool:
        """Whether the newest session has anything for the aggregate."""
        return partial is not None and self.inner.holds(partial[3])

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The aggregate of the newest session."""
        return self.inner.finish(partial[3] if partial else None, at)


class CappedAggregator(Aggregator):
    """Partial: the newest rows, ``[time, accepted_at, place, sub, value, mask]``, at most ``max_rows``, oldest first.

    Of the window's rows the newest count; the aggregate's predicate picks among those.
    """

    needs = "rows"

    def __init__(self, aggregate: Aggregate, source: Input, max_rows: int) -> None:
        super().__init__(source)
        self.max_rows = max_rows
        column = None if source.column is None else FIRST_VALUE
        self.inner = _algebra(aggregate, Input(column, source.type, None if source.bit is None else 0))
        self._uncapped = _algebra(aggregate, source)
        self.ages = self.inner.ages

    @property
    def state(self) -> tuple[Any, ...]:
        """The newest rows, whatever is made of them."""
        return ("newest", self.max_rows, self.source)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The newest rows."""
        column, kind, bit = self.source
        return [
            [
                *row[:IDENTITY],
                None if column is None else plain(row[column], kind),
                0 if bit is None else row[-1] >> bit & 1,
            ]
            for row in rows[-self.max_rows :]
        ] or None

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The newest of all."""
        return sorted(chain.from_iterable(partials), key=_row_order)[-self.max_rows :]

    def holds(self, partial: Partial) -> bool:
        """Whether the newest rows have anything for the aggregate."""
        return partial is not None and self.inner.holds(self._folded(partial))

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The aggregate of the newest rows."""
        return self.inner.finish(self._folded(partial) if partial else None, at)

    def over(self, slices: Slices) -> Answers | None:
        """The aggregate over the newest rows of each slice."""
        return self._uncapped.over(slices.newest(self.max_rows))

    def _folded(self, partial: Partial) -> Partial:
        return self.inner.fold([(*row[:IDENTITY], None, *row[IDENTITY:]) for row in partial])


def aggregator_for(aggregate: Aggregate, source: Input) -> Aggregator:
    """The algebra of an aggregate over an input, in its window."""
    window = aggregate.window
    if isinstance(window, Session):
        return SessionAggregator(_algebra(aggregate, source), window.gap_us)
    max_rows = getattr(window, "max_rows", None)  # only some kinds of window have one
    return _algebra(aggregate, source) if max_rows is None else CappedAggregator(aggregate, source, max_rows)


_PLAIN: dict[type, Callable[[Input], Aggregator]] = {
    Count: CountAggregator,
    Sum: SumAggregator,
    Avg: AvgAggregator,
    Min: MinAggregator,
    Max: MaxAggregator,
    Variance: VarianceAggregator,
    Stddev: StddevAggregator,
    Distinct: DistinctAggregator,
    ApproxDistinct: ApproxDistinctAggregator,
}


def _algebra(aggregate: Aggregate, source: Input) -> Aggregator:  # noqa: PLR0911  # a table
    match aggregate:
        case Last() | First():
            kind = LastAggregator if isinstance(aggregate, Last) else FirstAggregator
            return kind(source, k=1, dedup=False, dropnull=aggregate.dropnull, scalar=True)
        case LastK() | FirstK():
            kind = LastAggregator if isinstance(aggregate, LastK) else FirstAggregator
            return kind(source, k=aggregate.k, dedup=aggregate.dedup, dropnull=aggregate.dropnull, scalar=False)
        case ApproxPercentile():
            return RankAggregator(source) if aggregate.pct is None else QuantileAggregator(source, aggregate.pct / 100)
        case Quantile():
            return QuantileAggregator(source, aggregate.q)
        case ExpDecaySum():
            return ExpDecaySumAggregator(source, aggregate.half_life_us)
        case TopK():
            return TopKAggregator(source, aggregate.k)
    return _PLAIN[type(aggregate)](source)


def _row_order(row: list[Any]) -> list[Any]:
    return row[:IDENTITY]
