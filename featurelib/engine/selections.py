"""Which values a key had: the newest and the oldest, the distinct and the frequent ones, and those at a rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from featurelib.clock import Instant
from featurelib.engine.partials import IDENTITY, Aggregator, Input, Partial, Row, plain, shown
from featurelib.engine.sketches import (
    count_distinct,
    digest_of,
    distinct_of,
    merge_digests,
    merge_distinct,
    share_below,
    value_at,
)
from featurelib.engine.slices import Answers, Slices
from featurelib.types import Value

_entry_order = itemgetter(*range(IDENTITY))


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
            value = plain(row[column], kind)
            if self._takes(value, seen):
                found.append([*row[:IDENTITY], value])
                if len(found) == self.k:
                    break
        return found or None

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The first ``k`` of all, in one pass."""
        if self.k == 1:
            return max(partials, key=_order) if self.newest else min(partials, key=_order)
        found = []
        seen: set[Any] = set()
        for entry in sorted(chain.from_iterable(partials), key=_entry_order, reverse=self.newest):
            if self._takes(entry[-1], seen):
                found.append(entry)
                if len(found) == self.k:
                    break
        return found

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The value, or the list of values; null, or an empty list, when empty."""
        values = [shown(entry[-1], self.source.type) for entry in partial or ()]
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

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """Add the counts."""
        counts: Counter[Any] = Counter()
        for partial in partials:
            counts.update(dict(zip(*partial, strict=True)))
        return _frequencies(counts)

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Subtract the counts."""
        counts = Counter(dict(zip(*total, strict=True)))
        counts.subtract(dict(zip(*part, strict=True)))
        return _frequencies(+counts)

    def _shown(self, values: Iterable[Any]) -> list[Value]:
        return [shown(value, self.source.type) for value in values]


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

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """The union."""
        return merge_distinct(partials)

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

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """One digest of all, compressed once."""
        return merge_digests(partials)

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
        values = [plain(row[column], self.source.type) for row in passed]
        return [digest_of(values), [*passed[-1][:IDENTITY], values[-1]]]

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """One digest of all, and the newest entry."""
        digests, entries = zip(*partials, strict=True)
        return [merge_digests(digests), max(entries, key=_entry_order)]

    def finish(self, partial: Partial, at: Instant) -> Value:  # noqa: ARG002
        """The share of values strictly below the newest; 0.5 for one value, 0.0 when empty (decision 12)."""
        if partial is None:
            return 0.0
        digest, newest = partial
        return 0.5 if digest[0] == 1 else share_below(digest, newest[-1])


def _frequencies(counts: Counter[Any]) -> Partial:
    if not counts:
        return None
    values = sorted(counts)
    return [values, [counts[value] for value in values]]


def _order(partial: list[list[Any]]) -> list[Any]:
    return partial[0][:-1]
