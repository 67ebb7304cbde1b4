"""What each aggregate computes: an algebra of partials.

An aggregator folds the rows of one pane into a *partial*, merges partials (older pane first) and
finishes one into a value. Laws, tested for every class: merging ``None`` (the empty partial) changes
nothing; merging is associative; any cut of the rows gives the same finish; ``remove`` inverts the merge.
A digest of more than 4,096 values keeps them within its error of the rank.

A row is a tuple ``(time, accepted_at, place, sub, until, value…, mask)``; the first four are its total
order (decision 8) and its identity. ``mask`` has one bit per distinct ``where`` predicate of the pipeline.
Partials are plain values (numbers, text, bytes, lists) and are never changed in place, so that the codec needs
to know none of these classes. A decimal is an integer in them, scaled up by its column's digits; in a row it is a
Decimal, or its text, as the codec stores it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Context, Decimal
from fractions import Fraction
from itertools import chain
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

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
from featurelib.engine import totals
from featurelib.engine.sketches import (
    count_distinct,
    digest_of,
    distinct_of,
    merge_digests,
    merge_distinct,
    share_below,
    value_at,
)
from featurelib.engine.slices import Answers, Part, Slices, decimals
from featurelib.errors import ValueOverflow
from featurelib.types import INT_MAX, INT_MIN, Value, decimal_scale, element_type
from featurelib.windows import Session

Row = tuple[Any, ...]
Partial = Any
"""A folded pane; ``None`` is empty."""

FIRST_VALUE = 5
"""Index of a row's first value."""
_IDENTITY = 4
_DECIMAL_LIMIT = 10**38
_entry_order = itemgetter(*range(_IDENTITY))
_EXACT = Context(prec=2 * 38)
_TOO_LARGE = "the sum of the window's values is beyond what a float holds"


class Input(NamedTuple):
    """Where a row carries an aggregator's input: index of the value (``None``: none) and bit of its predicate."""

    column: int | None
    type: str | None
    bit: int | None

    @property
    def scale(self) -> int:
        """Digits behind a decimal column's point; 0 for every other type."""
        return decimal_scale(self.type or "") or 0

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows its predicate lets through."""
        if self.bit is None:
            return rows if isinstance(rows, list) else list(rows)
        flag = 1 << self.bit
        return [row for row in rows if row[-1] & flag]

    def values(self, rows: Iterable[Row]) -> list[Any]:
        """The non-null values its predicate lets through, decimals as integers; without a column, the rows."""
        column = self.column
        if column is None:
            return self.rows(rows)
        if self.bit is None:
            found = [row[column] for row in rows if row[column] is not None]
        else:
            flag = 1 << self.bit
            found = [row[column] for row in rows if row[-1] & flag and row[column] is not None]
        scale = decimal_scale(self.type) if self.type else None
        return found if scale is None else [_unscaled(value, scale) for value in found]


class Aggregator:
    """One accumulator. Windows share it: a window only chooses which partials are merged."""

    needs: Literal["values", "rows"] = "values"
    """Whether :meth:`fold_values` of its input's values is enough, so that equal inputs are read once."""
    invertible = False
    """Whether :meth:`remove` takes a part back out exactly."""
    chronological = False
    """Whether partials must be merged strictly by time, oldest first, none overlapping another."""

    def __init__(self, source: Input) -> None:
        self.source = source

    @property
    def state(self) -> tuple[Any, ...]:
        """Equal for aggregators whose partials are equal, so that they may share one."""
        return (type(self).__name__, self.source)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The partial of some rows in total order; ``None`` when none of them counts."""
        return self.fold_values(self.source.values(rows))

    def fold_values(self, values: list[Any]) -> Partial:
        """The partial of what ``source.values(rows)`` gives; only where ``needs`` says so."""
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

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Take a non-empty part out of a total that holds it; ``None`` when nothing is left."""
        raise NotImplementedError

    def holds(self, partial: Partial) -> bool:
        """Whether anything was aggregated; if not, the declared default is the value."""
        return partial is not None

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The value of a partial at the end of its window; of ``None``, that of an empty window (decision 9)."""
        raise NotImplementedError

    def over(self, slices: Slices) -> Answers | None:  # noqa: ARG002
        """What :meth:`finish` gives for the rows of every slice at once; ``None``: not for such rows, fold them."""
        return None

    def _part(self, slices: Slices, *, dropnull: bool = True) -> Part:
        return slices.part(self.source.column, self.source.bit, dropnull=dropnull)


class CountAggregator(Aggregator):
    """Partial: the number of rows, or of rows with a non-null value."""

    invertible = True

    def fold_values(self, values: list[Any]) -> Partial:
        """How many there are."""
        return len(values) or None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add."""
        return older + newer

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract."""
        return total - part or None

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The count; 0 when empty."""
        return partial or 0

    def over(self, slices: Slices) -> Answers | None:
        """The lengths of the slices."""
        part = self._part(slices)
        return Answers(pl.Series(part.counts), part.empty)


class SumAggregator(Aggregator):
    """Partial: ``[n, total]``, of floats ``[n, *total]``, an exact total (:mod:`featurelib.engine.totals`)."""

    invertible = True

    def __init__(self, source: Input) -> None:
        super().__init__(source)
        self._floats = source.type == "float"

    @property
    def state(self) -> tuple[Any, ...]:
        """Sum and mean have the same partial."""
        return ("sum", self.source)

    def fold_values(self, values: list[Any]) -> Partial:
        """Count and sum."""
        if not values:
            return None
        return [len(values), *(totals.total_of(values) if self._floats else (sum(values),))]

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add both members."""
        if not self._floats:
            return [older[0] + newer[0], older[1] + newer[1]]
        return [older[0] + newer[0], *totals.merged((older[1:], newer[1:]))]

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """Add all at once."""
        present = [partial for partial in partials if partial is not None]
        if len(present) <= 1:
            return present[0] if present else None
        size = sum(partial[0] for partial in present)
        if not self._floats:
            return [size, sum(partial[1] for partial in present)]
        return [size, *totals.merged(partial[1:] for partial in present)]

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract both members."""
        if total[0] == part[0]:
            return None
        if not self._floats:
            return [total[0] - part[0], total[1] - part[1]]
        return [total[0] - part[0], *totals.merged((total[1:], totals.negated(part[1:])))]

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The sum, of the column's type; 0 when empty.

        Raises:
            ValueOverflow: an integer sum outside 64 bits, a decimal one of more than 38 digits, an infinite float.
        """
        total = partial[1] if partial else 0
        if self._floats:
            return _finite(totals.rounded(partial[1:])) if partial else 0.0
        if decimal_scale(self.source.type or "") is None:
            if not INT_MIN <= total <= INT_MAX:
                raise ValueOverflow(f"the sum {total} does not fit 64 bits")
        elif abs(total) >= _DECIMAL_LIMIT:
            raise ValueOverflow(f"the sum {total} has more than 38 digits")
        return _shown(total, self.source.type)

    def over(self, slices: Slices) -> Answers | None:
        """Differences of exact prefix sums."""
        part = self._part(slices)
        sums = part.selection.sums
        if sums is None:
            return None
        if self._floats:
            return _finite_answers(sums.floats(part.low, part.high), part)
        found, fits = sums.ints(part.low, part.high)
        return Answers(_column(pl.Series(found), self.source.type), part.empty) if fits.all() else None


class AvgAggregator(SumAggregator):
    """Partial: as for the sum."""

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """Total over count, a float; 0.0 when empty.

        Raises:
            ValueOverflow: the total is beyond what a float holds.
        """
        if partial is None:
            return 0.0
        if self._floats:
            return _finite(totals.rounded(partial[1:])) / partial[0]
        return partial[1] / (partial[0] * 10**self.source.scale)

    def over(self, slices: Slices) -> Answers | None:
        """Differences of exact prefix sums, divided."""
        part = self._part(slices)
        found = part.totals()
        return None if found is None else _finite_answers(found / self._divisors(part), part)

    def _divisors(self, part: Part) -> npt.NDArray[np.float64]:
        return np.maximum(part.counts, 1) * 10.0**self.source.scale


class VarianceAggregator(Aggregator):
    """Partial: ``[n, sum, sum of squares]``, both exact, so that nothing cancels before the one rounding."""

    invertible = True

    def __init__(self, source: Input) -> None:
        super().__init__(source)
        self._floats = source.type == "float"

    @property
    def state(self) -> tuple[Any, ...]:
        """Variance and standard deviation have the same partial."""
        return ("variance", self.source)

    def fold_values(self, values: list[Any]) -> Partial:
        """Count, sum and sum of squares."""
        if not values:
            return None
        if self._floats:
            return [len(values), totals.total_of(values), totals.total_of_squares(values)]
        return [len(values), sum(values), sum(value * value for value in values)]

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add all three."""
        return self.merge_all((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """Add all at once."""
        present = [partial for partial in partials if partial is not None]
        if len(present) <= 1:
            return present[0] if present else None
        sizes, sums, squares = zip(*present, strict=True)
        if self._floats:
            return [sum(sizes), totals.merged(sums), totals.merged(squares)]
        return [sum(sizes), sum(sums), sum(squares)]

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract all three."""
        if total[0] == part[0]:
            return None
        taken = map(totals.negated, part[1:]) if self._floats else (-member for member in part[1:])
        return self.merge_all((total, [-part[0], *taken]))

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The population variance; 0.0 when empty.

        Raises:
            ValueOverflow: it is beyond what a float holds.
        """
        if partial is None:
            return 0.0
        size, total, squares = partial
        if self._floats:
            total, squares = totals.exact(total), totals.exact(squares)
        try:
            return float(Fraction(size * squares - total * total, size * size * 100**self.source.scale))
        except OverflowError as error:
            raise ValueOverflow("the variance of the window's values is beyond what a float holds") from error

    def over(self, slices: Slices) -> Answers | None:
        """From exact prefix sums of the values and their squares."""
        part = self._part(slices)
        try:
            found = part.variances(100**self.source.scale)
        except OverflowError:
            return None
        return None if found is None else _finite_answers(found, part)


class StddevAggregator(VarianceAggregator):
    """Partial: as for the variance."""

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The population standard deviation; 0.0 when empty."""
        return math.sqrt(super().finish(partial, at))

    def over(self, slices: Slices) -> Answers | None:
        """The roots of the variances."""
        found = super().over(slices)
        return None if found is None else Answers(found.values.sqrt(), found.empty)


class _ExtremeAggregator(Aggregator):
    """Partial: the extreme value itself."""

    largest = False

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The value; zero of a number's type when empty, null where there is no zero."""
        kind = self.source.type or ""
        if partial is None:
            partial = 0.0 if kind == "float" else 0 if kind == "int" or decimal_scale(kind) is not None else None
        return _shown(partial, kind)

    def over(self, slices: Slices) -> Answers | None:
        """From a tree of extremes."""
        part = self._part(slices)
        found = part.extremes(largest=self.largest)
        if found is None:
            return None
        kind = self.source.type or ""
        zero = kind in ("int", "float") or decimal_scale(kind) is not None
        return Answers(_column(found.fill_null(0) if zero else found, kind), part.empty)


class MinAggregator(_ExtremeAggregator):
    """The smallest value."""

    def fold_values(self, values: list[Any]) -> Partial:
        """Smallest of them."""
        return min(values, default=None)

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The smaller."""
        return min(older, newer)


class MaxAggregator(_ExtremeAggregator):
    """The largest value."""

    largest = True

    def fold_values(self, values: list[Any]) -> Partial:
        """Largest of them."""
        return max(values, default=None)

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The larger."""
        return max(older, newer)


class LastAggregator(Aggregator):
    """Partial: up to ``k`` entries ``[time, accepted_at, place, sub, value]``, newest first.

    The order travels with each entry, so partials of overlapping time ranges merge too.
    """

    needs = "rows"
    newest = True

    def __init__(self, source: Input, *, k: int, dedup: bool, dropnull: bool, scalar: bool) -> None:
        super().__init__(source)
        self.k = k
        self.dedup = dedup
        self.dropnull = dropnull
        self.scalar = scalar

    @property
    def state(self) -> tuple[Any, ...]:
        """Its options count too."""
        return (*super().state, self.k, self.dedup, self.dropnull)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The first entries, from its own end of the rows."""
        column, kind = self.source.column, self.source.type
        assert column is not None
        passed = self.source.rows(rows)
        found = []
        seen: set[Any] = set()
        for row in reversed(passed) if self.newest else passed:
            # Plain before it is compared: a decimal is a text in stored rows and a number in those that come.
            value = _plain(row[column], kind)
            if self._takes(value, seen):
                found.append([*row[:_IDENTITY], value])
                if len(found) == self.k:
                    break
        return found or None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The first ``k`` of both."""
        return self.merge_all((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """The first ``k`` of all, in one pass."""
        present = [partial for partial in partials if partial is not None]
        if len(present) <= 1:
            return present[0] if present else None
        if self.k == 1:
            return max(present, key=_order) if self.newest else min(present, key=_order)
        found = []
        seen: set[Any] = set()
        for entry in sorted(chain.from_iterable(present), key=_entry_order, reverse=self.newest):
            if self._takes(entry[-1], seen):
                found.append(entry)
                if len(found) == self.k:
                    break
        return found

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The value, or the list of values; null, or an empty list, when empty."""
        values = [_shown(entry[-1], self.source.type) for entry in partial or ()]
        if self.scalar:
            return values[0] if values else None
        return values

    def over(self, slices: Slices) -> Answers | None:
        """The ends of the slices."""
        if self.dedup:
            return None
        part = self._part(slices, dropnull=self.dropnull)
        found = part.ends(newest=self.newest) if self.scalar else part.runs(self.k, newest=self.newest)
        return Answers(found, part.empty)

    def _takes(self, value: Value, seen: set[Any]) -> bool:
        if value is None and self.dropnull:
            return False
        if self.dedup:
            # 1, 1.0 and True are equal in Python and are three values here.
            mark = (type(value), value)
            if mark in seen:
                return False
            seen.add(mark)
        return True


class FirstAggregator(LastAggregator):
    """Partial: up to ``k`` entries ``[time, accepted_at, place, sub, value]``, oldest first."""

    newest = False


class _FrequencyAggregator(Aggregator):
    """Partial: ``[values, counts]``, by value. It grows with the distinct values."""

    invertible = True

    @property
    def state(self) -> tuple[Any, ...]:
        """Distinct and TopK have the same partial."""
        return ("frequencies", self.source)

    def fold_values(self, values: list[Any]) -> Partial:
        """Count each value."""
        return _frequencies(Counter(values))

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Add the counts."""
        return self.merge_all((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """Add all at once."""
        counts: Counter[Any] = Counter()
        for partial in partials:
            if partial is not None:
                counts.update(dict(zip(*partial, strict=True)))
        return _frequencies(counts)

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract the counts."""
        counts = Counter(dict(zip(*total, strict=True)))
        counts.subtract(dict(zip(*part, strict=True)))
        return _frequencies(+counts)

    def _shown(self, values: Iterable[Any]) -> list[Value]:
        return [_shown(value, self.source.type) for value in values]


class DistinctAggregator(_FrequencyAggregator):
    """The distinct values."""

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """They, sorted."""
        return self._shown(partial[0]) if partial else []


class TopKAggregator(_FrequencyAggregator):
    """The most frequent values."""

    def __init__(self, source: Input, k: int) -> None:
        super().__init__(source)
        self.k = k

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """They, most frequent first, equally frequent ones by value."""
        if partial is None:
            return []
        # The sort is stable and the values stand in order.
        ordered = sorted(zip(*partial, strict=True), key=lambda pair: -pair[1])
        return self._shown(value for value, _ in ordered[: self.k])


class ApproxDistinctAggregator(Aggregator):
    """Partial: the distinct summary of :mod:`featurelib.engine.sketches`."""

    def fold_values(self, values: list[Any]) -> Partial:
        """Summarize them."""
        return distinct_of(values) if values else None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The union."""
        return merge_distinct((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """One union of all."""
        present = [partial for partial in partials if partial is not None]
        return merge_distinct(present) if len(present) > 1 else next(iter(present), None)

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """How many there are; 0 when empty."""
        return count_distinct(partial) if partial else 0


class QuantileAggregator(Aggregator):
    """Partial: a digest of :mod:`featurelib.engine.sketches`."""

    chronological = True

    def __init__(self, source: Input, share: float) -> None:
        super().__init__(source)
        self.share = share

    @property
    def state(self) -> tuple[Any, ...]:
        """The same whatever share is read."""
        return ("digest", self.source)

    def fold_values(self, values: list[Any]) -> Partial:
        """Digest them."""
        return digest_of(values) if values else None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The digest of both."""
        return merge_digests((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """One digest of all, compressed once."""
        present = [partial for partial in partials if partial is not None]
        return merge_digests(present) if present else None

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The value at the share; 0.0 when empty."""
        return value_at(partial, self.share) / 10**self.source.scale if partial else 0.0


class RankAggregator(Aggregator):
    """Partial: a digest and the newest entry, ``[digest, [time, accepted_at, place, sub, value]]``."""

    needs = "rows"
    chronological = True

    def fold(self, rows: Sequence[Row]) -> Partial:
        """Digest the non-null values and keep the newest."""
        column = self.source.column
        assert column is not None
        passed = [row for row in self.source.rows(rows) if row[column] is not None]
        if not passed:
            return None
        values = [_plain(row[column], self.source.type) for row in passed]
        return [digest_of(values), [*passed[-1][:_IDENTITY], values[-1]]]

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The digest of both, and the newer entry."""
        return self.merge_all((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """One digest of all, and the newest entry."""
        present = [partial for partial in partials if partial is not None]
        if not present:
            return None
        digests, entries = zip(*present, strict=True)
        return [merge_digests(digests), max(entries, key=_entry_order)]

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The share of values strictly below the newest; 0.5 for one value, 0.0 when empty (decision 12)."""
        if partial is None:
            return 0.0
        digest, newest = partial
        return 0.5 if digest[0] == 1 else share_below(digest, newest[-1])


class ExpDecaySumAggregator(Aggregator):
    """Partial: ``[cell, *total]``, the sum as of the end of a half-life cell.

    Time is cut into cells of one half-life. A value counts as of the end of its own cell; from there on only whole
    half-lives pass, and dividing by powers of two is exact.
    """

    needs = "rows"
    invertible = True

    def __init__(self, source: Input, half_life: Duration) -> None:
        super().__init__(source)
        self.half_life = half_life

    @property
    def state(self) -> tuple[Any, ...]:
        """The half-life counts too."""
        return (*super().state, self.half_life)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The non-null values as of the newest cell."""
        column, kind = self.source.column, self.source.type
        assert column is not None
        passed = [row for row in self.source.rows(rows) if row[column] is not None]
        if not passed:
            return None
        cell = max(self._cell(row[0]) for row in passed)
        unit = 10**self.source.scale
        terms = [self._term(row[0], _plain(row[column], kind) / unit, cell) for row in passed]
        return [cell, *totals.total_of(terms)]

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """Both as of the newer cell."""
        return self.merge_all((older, newer))

    def merge_all(self, partials: Iterable[Partial]) -> Partial:
        """All as of the newest cell."""
        present = [partial for partial in partials if partial is not None]
        if len(present) <= 1:
            return present[0] if present else None
        cell = max(partial[0] for partial in present)
        return [cell, *totals.merged(totals.halved(partial[1:], cell - partial[0]) for partial in present)]

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract it; what is left of nothing is a sum of zero."""
        return self.merge_all((total, [part[0], *totals.negated(part[1:])]))

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The sum as of ``at``; 0.0 when empty.

        Raises:
            ValueOverflow: it is beyond what a float holds.
        """
        if partial is None:
            return 0.0
        lives, rest = divmod(partial[0] * self.half_life - at, self.half_life)
        total = _finite(totals.rounded(partial[1:]))
        try:
            return math.ldexp(total * 2.0 ** (rest / self.half_life - 1), lives + 1)
        except OverflowError as error:
            raise ValueOverflow(_TOO_LARGE) from error

    def over(self, slices: Slices) -> Answers | None:
        """From a tree of sums as of the newer cell."""
        part = self._part(slices)
        found = part.decayed(self.half_life, 10**self.source.scale)
        return None if found is None else _finite_answers(found, part)

    def _cell(self, time: Instant) -> int:
        return -(-time // self.half_life)

    def _term(self, time: Instant, value: float, cell: int) -> float:
        own = self._cell(time)
        return math.ldexp(value * 2.0 ** ((time - own * self.half_life) / self.half_life), own - cell)


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

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The newer session, with the older one when no longer pause parts them."""
        first, end, broken, session = older
        start, last, newly_broken, newest = newer
        if newly_broken or start - end > self.gap_us:
            return [first, last, True, newest]
        return [first, last, broken, self.inner.merge_all((session, newest))]

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

    @property
    def state(self) -> tuple[Any, ...]:
        """The newest rows, whatever is made of them."""
        return ("newest", self.max_rows, self.source)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The newest rows."""
        column, kind, bit = self.source
        return [
            [
                *row[:_IDENTITY],
                None if column is None else _plain(row[column], kind),
                0 if bit is None else row[-1] >> bit & 1,
            ]
            for row in rows[-self.max_rows :]
        ] or None

    def merge(self, older: Partial, newer: Partial) -> Partial:
        """The newest of both."""
        return sorted([*older, *newer], key=_row_order)[-self.max_rows :]

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
        return self.inner.fold([(*row[:_IDENTITY], None, *row[_IDENTITY:]) for row in partial])


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


def _frequencies(counts: Counter[Any]) -> Partial:
    if not counts:
        return None
    values = sorted(counts)
    return [values, [counts[value] for value in values]]


def _finite(total: float) -> float:
    if not math.isfinite(total):
        raise ValueOverflow(_TOO_LARGE)
    return total


def _finite_answers(found: npt.NDArray[np.float64], part: Part) -> Answers | None:
    # Folding says which value overflows, and how.
    return Answers(pl.Series(found), part.empty) if np.isfinite(found).all() else None


def _column(found: pl.Series, kind: str | None) -> pl.Series:
    scale = decimal_scale(kind or "")
    return found if scale is None else decimals(found, scale)


def _plain(value: Any, kind: str | None) -> Any:
    """A row's value as a partial holds it: decimals as integers, in lists too."""
    if kind is None or value is None or "decimal" not in kind:
        return value
    inner = element_type(kind)
    if inner is not None:
        return [_plain(item, inner) for item in value]
    return _unscaled(value, decimal_scale(kind) or 0)


def _unscaled(value: Decimal | str | int, scale: int) -> int:
    if isinstance(value, int):
        return value
    return int(Decimal(value).scaleb(scale, _EXACT))


def _shown(value: Any, kind: str | None) -> Value:
    """The value of what a partial holds."""
    if kind is None or value is None or "decimal" not in kind:
        return value
    inner = element_type(kind)
    if inner is not None:
        return [_shown(item, inner) for item in value]
    # From text, so that no context rounds it.
    return Decimal(f"{value}e-{decimal_scale(kind)}")


def _order(partial: list[list[Any]]) -> list[Any]:
    return partial[0][:-1]


def _row_order(row: list[Any]) -> list[Any]:
    return row[:_IDENTITY]
