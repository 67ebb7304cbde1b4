"""What each aggregate computes: an algebra of partials.

An aggregator folds the rows of one pane into a *partial*, merges partials (older pane first) and
finishes one into a value. Laws, tested for every class: merging ``None`` (the empty partial) changes
nothing; merging is associative; any cut of the rows gives the same finish.

A row is a tuple ``(time, accepted_at, place, value…, mask)``; the first three are its total order
(decision 8) and its identity. ``mask`` has one bit per distinct ``where`` predicate of the pipeline.
Partials are plain values (numbers, lists), so that the codec needs to know none of these classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from featurelib.aggregates import Aggregate, Avg, Count, Last, LastK, Max, Min, Sum
from featurelib.errors import ValueOverflow
from featurelib.types import INT_MAX, INT_MIN, Value

Row = tuple[Any, ...]
Partial = Any
"""A folded pane; ``None`` is empty."""


class Input(NamedTuple):
    """Where a row carries an aggregator's input: index of the value (``None``: none) and bit of its predicate."""

    column: int | None
    type: str | None
    bit: int | None

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows its predicate lets through."""
        if self.bit is None:
            return rows if isinstance(rows, list) else list(rows)
        flag = 1 << self.bit
        return [row for row in rows if row[-1] & flag]

    def values(self, rows: Iterable[Row]) -> list[Value]:
        """The non-null values its predicate lets through."""
        column = self.column
        assert column is not None
        if self.bit is None:
            return [row[column] for row in rows if row[column] is not None]
        flag = 1 << self.bit
        return [row[column] for row in rows if row[-1] & flag and row[column] is not None]


class Aggregator:
    """One accumulator. Windows share it: a window only chooses which partials are merged."""

    def __init__(self, source: Input) -> None:
        self.source = source

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The partial of some rows; ``None`` when none of them counts."""
        raise NotImplementedError

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Join two non-empty partials."""
        raise NotImplementedError

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """Join partials, oldest first, skipping empty ones."""
        total = None
        for partial in partials:
            if partial is not None:
                total = partial if total is None else self.merge(total, partial)
        return total

    def finish(self, partial: Partial) -> Value:
        """The value of a partial; of ``None``, the aggregate's value over an empty window (decision 9)."""
        raise NotImplementedError


class CountAggregator(Aggregator):
    """Partial: the number of rows, or of rows with a non-null value."""

    def fold(self, rows: Sequence[Row]) -> Partial:
        """Count the rows that pass."""
        source = self.source
        passed = source.rows(rows) if source.column is None else source.values(rows)
        return len(passed) or None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add."""
        return older + newer

    def finish(self, partial: Partial) -> Value:
        """The count; 0 when empty."""
        return partial or 0


class SumAggregator(Aggregator):
    """Partial: ``[n, total]``. Integers are unbounded until the finish; floats add exactly within a pane."""

    def fold(self, rows: Sequence[Row]) -> Partial:
        """Sum the non-null values."""
        values = self.source.values(rows)
        if not values:
            return None
        return [len(values), _float_sum(values) if self.source.type == "float" else sum(values)]

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add both members."""
        return [older[0] + newer[0], older[1] + newer[1]]

    def finish(self, partial: Partial) -> Value:
        """The sum; 0 when empty.

        Raises:
            ValueOverflow: an integer sum outside 64 bits.
        """
        if partial is None:
            return 0.0 if self.source.type == "float" else 0
        total = partial[1]
        if isinstance(total, int):
            if not INT_MIN <= total <= INT_MAX:
                raise ValueOverflow(f"the sum {total} does not fit 64 bits")
        elif not math.isfinite(total):
            raise ValueOverflow("the sum of the window's values is beyond what a float holds")
        return total


class AvgAggregator(SumAggregator):
    """Partial: ``[n, total]``, as for the sum."""

    def finish(self, partial: Partial) -> Value:
        """Total over count; 0.0 when empty.

        Raises:
            ValueOverflow: the total is beyond what a float holds.
        """
        if partial is None:
            return 0.0
        mean = partial[1] / partial[0]
        if not math.isfinite(mean):
            raise ValueOverflow("the sum of the window's values is beyond what a float holds")
        return mean


class _ExtremeAggregator(Aggregator):
    """Partial: the extreme value itself."""

    def finish(self, partial: Partial) -> Value:
        """The value; zero of the column's type when empty, null where there is no zero."""
        if partial is not None:
            return partial
        return {"int": 0, "float": 0.0}.get(str(self.source.type))


class MinAggregator(_ExtremeAggregator):
    """The smallest value."""

    def fold(self, rows: Sequence[Row]) -> Partial:
        """Smallest of the non-null values."""
        return min(self.source.values(rows), default=None)

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The smaller."""
        return min(older, newer)


class MaxAggregator(_ExtremeAggregator):
    """The largest value."""

    def fold(self, rows: Sequence[Row]) -> Partial:
        """Largest of the non-null values."""
        return max(self.source.values(rows), default=None)

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The larger."""
        return max(older, newer)


class LastAggregator(Aggregator):
    """Partial: up to ``k`` entries ``[time, accepted_at, place, value]``, newest first.

    The order travels with each entry, so partials of overlapping time ranges merge too.
    """

    def __init__(self, source: Input, *, k: int, dedup: bool, dropnull: bool, scalar: bool) -> None:
        super().__init__(source)
        self._k = k
        self._dedup = dedup
        self._dropnull = dropnull
        self._scalar = scalar

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The newest entries among the rows."""
        column = self.source.column
        assert column is not None
        passed = self.source.rows(rows)
        if self._dropnull:
            passed = [row for row in passed if row[column] is not None]
        if self._k == 1:
            newest = max(passed, key=_order, default=None)
            return None if newest is None else [[newest[0], newest[1], newest[2], newest[column]]]
        ordered = sorted(passed, key=_order, reverse=True)
        return self._newest([row[0], row[1], row[2], row[column]] for row in ordered) or None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The newest ``k`` of both."""
        if self._k == 1:
            return newer if _order(newer[0]) >= _order(older[0]) else older
        return self._newest(sorted([*older, *newer], key=_order, reverse=True))

    def finish(self, partial: Partial) -> Value:
        """The value, or the list of values; null, or an empty list, when empty."""
        values = [entry[3] for entry in partial or ()]
        if self._scalar:
            return values[0] if values else None
        return values

    def _newest(self, entries: Iterable[list[Any]]) -> list[list[Any]]:
        kept: list[list[Any]] = []
        seen: set[tuple[type, Value]] = set()
        for entry in entries:
            if self._dedup:
                # 1, 1.0 and True are equal in Python and are three values here.
                mark = (type(entry[3]), entry[3])
                if mark in seen:
                    continue
                seen.add(mark)
            kept.append(entry)
            if len(kept) == self._k:
                break
        return kept


def _float_sum(values: Sequence[float]) -> float:
    try:
        # fsum rounds once, so a pane's total does not depend on the order of its values.
        return math.fsum(values)
    except OverflowError:
        return math.inf  # finished as an overflow: a partial must not stop the stream


def _order(entry: Sequence[Any]) -> tuple[Any, ...]:
    return (entry[0], entry[1], entry[2])


def aggregator_for(aggregate: Aggregate, source: Input) -> Aggregator:  # noqa: PLR0911  # a table
    """The algebra of an aggregate over an input."""
    match aggregate:
        case Count():
            return CountAggregator(source)
        case Avg():
            return AvgAggregator(source)
        case Sum():
            return SumAggregator(source)
        case Min():
            return MinAggregator(source)
        case Max():
            return MaxAggregator(source)
        case Last():
            return LastAggregator(source, k=1, dedup=False, dropnull=aggregate.dropnull, scalar=True)
        case LastK():
            return LastAggregator(
                source, k=aggregate.k, dedup=aggregate.dedup, dropnull=aggregate.dropnull, scalar=False
            )
