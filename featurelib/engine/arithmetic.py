"""Counts, sums and what follows from them, and extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from featurelib.clock import Duration, Instant
from featurelib.engine import totals
from featurelib.engine.partials import Aggregator, Input, Partial, Row, plain, scale_of, shown
from featurelib.engine.slices import Answers, Part, Slices, decimals
from featurelib.errors import ValueOverflow
from featurelib.types import INT_MAX, INT_MIN, Value

_DECIMAL_LIMIT = 10**38
_TOO_LARGE = "the sum of the window's values is beyond what a float holds"


class CountAggregator(Aggregator):
    """Partial: the number of rows, or of rows with a non-null value."""

    invertible = True

    def fold_values(self, values: list[Any]) -> Partial:
        """How many there are."""
        return len(values) or None

    def both(self, older: Partial, newer: Partial) -> Partial:
        """Add two."""
        return older + newer if older and newer else older or newer

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """Add."""
        return sum(partials)

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

    def both(self, older: Partial, newer: Partial) -> Partial:
        """Add both members of two."""
        if older is None or newer is None:
            return newer if older is None else older
        if not self._floats:
            return [older[0] + newer[0], older[1] + newer[1]]
        return [older[0] + newer[0], *totals.plus(older[1:], newer[1:])]

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """Add both members."""
        size = sum(partial[0] for partial in partials)
        if not self._floats:
            return [size, sum(partial[1] for partial in partials)]
        return [size, *totals.merged(partial[1:] for partial in partials)]

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
        if scale_of(self.source.type) is None:
            if not INT_MIN <= total <= INT_MAX:
                raise ValueOverflow(f"the sum {total} does not fit 64 bits")
        elif abs(total) >= _DECIMAL_LIMIT:
            raise ValueOverflow(f"the sum {total} has more than 38 digits")
        return shown(total, self.source.type)

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
        self._unit = 100**source.scale

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

    def both(self, older: Partial, newer: Partial) -> Partial:
        """Add all three of two."""
        if older is None or newer is None:
            return newer if older is None else older
        if not self._floats:
            return [older[0] + newer[0], older[1] + newer[1], older[2] + newer[2]]
        plus = totals.plus
        return [older[0] + newer[0], plus(older[1], newer[1]), plus(older[2], newer[2])]

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """Add all three."""
        sizes, sums, squares = zip(*partials, strict=True)
        if self._floats:
            return [sum(sizes), totals.merged(sums), totals.merged(squares)]
        return [sum(sizes), sum(sums), sum(squares)]

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract all three."""
        if total[0] == part[0]:
            return None
        taken = map(totals.negated, part[1:]) if self._floats else (-member for member in part[1:])
        return self.merge((total, [-part[0], *taken]))

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The population variance; 0.0 when empty.

        Raises:
            ValueOverflow: it is beyond what a float holds.
        """
        if partial is None:
            return 0.0
        size, total, squares = partial
        shift = 0
        if self._floats:
            (total, bits), (squares, square_bits) = totals.exact(total), totals.exact(squares)
            # Both over the square's power of two, which may be less than that of the sum squared.
            shift = max(2 * bits, square_bits)
            squares <<= shift - square_bits
            spread = size * squares - (total * total << (shift - 2 * bits))
        else:
            spread = size * squares - total * total
        try:
            # A quotient of integers is rounded once.
            return float(spread / ((size * size << shift) * self._unit))
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
            partial = 0.0 if kind == "float" else 0 if kind == "int" or scale_of(kind) is not None else None
        return shown(partial, kind)

    def over(self, slices: Slices) -> Answers | None:
        """From a tree of extremes."""
        part = self._part(slices)
        found = part.extremes(largest=self.largest)
        if found is None:
            return None
        kind = self.source.type or ""
        zero = kind in ("int", "float") or scale_of(kind) is not None
        return Answers(_column(found.fill_null(0) if zero else found, kind), part.empty)


class MinAggregator(_ExtremeAggregator):
    """The smallest value."""

    def fold_values(self, values: list[Any]) -> Partial:
        """Smallest of them."""
        return min(values, default=None)

    def both(self, older: Partial, newer: Partial) -> Partial:
        """The smaller of two, of equal ones the older."""
        if older is None or newer is None:
            return newer if older is None else older
        return min(older, newer)

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The smallest."""
        return min(partials)


class MaxAggregator(_ExtremeAggregator):
    """The largest value."""

    largest = True

    def fold_values(self, values: list[Any]) -> Partial:
        """Largest of them."""
        return max(values, default=None)

    def both(self, older: Partial, newer: Partial) -> Partial:
        """The larger of two, of equal ones the older."""
        if older is None or newer is None:
            return newer if older is None else older
        return max(older, newer)

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The largest."""
        return max(partials)


class ExpDecaySumAggregator(Aggregator):
    """Partial: ``[cell, *total]``, the sum as of the end of a half-life cell.

    Time is cut into cells of one half-life. A value counts as of the end of its own cell; from there on only whole
    half-lives pass, and dividing by powers of two is exact.
    """

    needs = "rows"
    invertible = True
    ages = True

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
        terms = [self._term(row[0], plain(row[column], kind) / unit, cell) for row in passed]
        return [cell, *totals.total_of(terms)]

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """All as of the newest cell."""
        cell = max(partial[0] for partial in partials)
        return [cell, *totals.merged(totals.halved(partial[1:], cell - partial[0]) for partial in partials)]

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract it; what is left of nothing is a sum of zero."""
        return self.merge((total, [part[0], *totals.negated(part[1:])]))

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


def _finite(total: float) -> float:
    if not math.isfinite(total):
        raise ValueOverflow(_TOO_LARGE)
    return total


def _finite_answers(found: npt.NDArray[np.float64], part: Part) -> Answers | None:
    # Folding says which value overflows, and how.
    return Answers(pl.Series(found), part.empty) if np.isfinite(found).all() else None


def _column(found: pl.Series, kind: str | None) -> pl.Series:
    scale = scale_of(kind)
    return found if scale is None else decimals(found, scale)
