"""What the values of a column are like, and how far two of them are apart.

A :class:`Summary` is small, and enough to compare days with days: its *points* are some 200 values that stand for equal
shares of all of them, so that the shares of any cut are known to half a percent, however the values are spread, and the
points of many days stand for all their values together.

Drift is measured over bins that follow the reference: its deciles, with a bin of its own for a value that alone makes
up a twentieth of it, and one for nulls; for texts, each text that is known, the others, and nulls. Between shares p of
the reference and q of the day,

    psi   the sum of (q - p) · ln(q / p), shares below 0.0001 counted as that; 0.1 is small, from 0.25 on people look
    js    the Jensen-Shannon divergence in bits, 0 to 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from featurelib.types import Value, decimal_scale, element_type, is_nested

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
POINTS = 200
BINS = 20
MOST_TEXTS = 50
FEWEST_OF_A_TEXT = 10
"""A text that fewer rows have is counted among the others: it may name a person."""

_LONGEST_TEXT = 100
_ATOM = 0.05
_SMALLEST_SHARE = 1e-4
Floats = npt.NDArray[np.float64]


class Histogram(BaseModel):
    """Values in bins of one width: bin ``i`` reaches from ``edges[i]`` to ``edges[i + 1]``, the last with its end."""

    model_config = ConfigDict(frozen=True)

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Text(BaseModel):
    """A text, and how many rows have it."""

    model_config = ConfigDict(frozen=True)

    value: str
    rows: int


class Summary(BaseModel):
    """What a column is like.

    Attributes:
        rows: how many there are.
        nulls: how many of them are null.
        distinct: different values, null aside.
        numbers: how many are finite numbers; of a list its length is the number.
        mean: of the numbers, as are ``std``, ``min``, ``max``, ``quantiles`` and ``histogram``.
        quantiles: by share, such as ``"0.5"``: the smallest number that at least so many are not above.
        points: numbers that each stand for the same share of all of them, ascending.
        texts: the most frequent texts.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    nulls: int = 0
    distinct: int | None = None
    numbers: int = 0
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    quantiles: dict[str, float] = Field(default_factory=dict)
    histogram: Histogram | None = None
    points: tuple[float, ...] = ()
    texts: tuple[Text, ...] = ()

    @property
    def filled(self) -> int:
        """Rows that are not null."""
        return self.rows - self.nulls


class Drift(NamedTuple):
    """How far a column is from its reference, and how many rows each of the two is of."""

    psi: float
    js: float
    rows: int
    reference_rows: int


def summary_of(type_name: str, values: Sequence[Value] | pl.Series, *, identifies: bool = False) -> Summary:
    """What a column is like.

    Args:
        type_name: of its values.
        values: in the engine's form, or a column of an archive.
        identifies: its values name entities: they are counted, and none of them is shown.
    """
    if is_nested(type_name):  # a map or a struct is counted, and told nothing more of
        return Summary(rows=len(values), nulls=sum(each is None for each in values), distinct=None)
    column = values if isinstance(values, pl.Series) else _series(type_name, values)
    nulls = column.null_count()
    counted = Summary(rows=len(column), nulls=nulls, distinct=_distinct(column))
    if identifies or nulls == len(column):
        return counted
    if element_type(type_name):
        return _with_numbers(counted, column.drop_nulls().list.len().cast(pl.Float64).to_numpy())
    if type_name in ("int", "float") or decimal_scale(type_name) is not None:
        return _with_numbers(counted, column.drop_nulls().cast(pl.Float64).to_numpy())
    if type_name in ("str", "bool"):
        fewest = 1 if type_name == "bool" else FEWEST_OF_A_TEXT
        return counted.model_copy(update={"texts": _texts(column, fewest)})
    return counted  # instants: what they are like follows from the day they are of


def drift(day: Summary, reference: Sequence[Summary]) -> Drift | None:
    """How far a column is from what it was like on other days; ``None`` where there is nothing to compare."""
    before = [each for each in reference if each.rows]
    if not day.rows or not before:
        return None
    shares = _shares_of_numbers if any(each.points for each in (day, *before)) else _shares_of_texts
    of_day, of_reference = shares(day, before)
    rows = sum(each.rows for each in before)
    return Drift(_psi(of_reference, of_day), _js(of_reference, of_day), day.rows, rows)


def _series(type_name: str, values: Sequence[Value]) -> pl.Series:
    numbers = decimal_scale(type_name) is not None
    return pl.Series([None if each is None else float(each) for each in values] if numbers else values, strict=False)


def _distinct(column: pl.Series) -> int | None:
    if isinstance(column.dtype, pl.List):
        return None
    return column.drop_nulls().n_unique()


def _with_numbers(counted: Summary, numbers: Floats) -> Summary:
    finite = np.sort(numbers[np.isfinite(numbers)])
    if not len(finite):
        return counted
    # As wide as their range may be, so may the numbers: the bins of a range of 1e308 have no width that is finite.
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(finite.mean()), float(finite.std())
    return counted.model_copy(
        update={
            "numbers": len(finite),
            "mean": mean if np.isfinite(mean) else None,
            "std": std if np.isfinite(std) else None,
            "min": float(finite[0]),
            "max": float(finite[-1]),
            "quantiles": {str(share): _at(finite, share) for share in QUANTILES},
            "histogram": _histogram(finite),
            "points": _points(finite),
        }
    )


def _at(ordered: Floats, share: float) -> float:
    return float(ordered[max(0, int(np.ceil(share * len(ordered))) - 1)])


def _points(ordered: Floats) -> tuple[float, ...]:
    if len(ordered) <= POINTS:
        return tuple(ordered.tolist())
    return tuple(_at(ordered, (place + 0.5) / POINTS) for place in range(POINTS))


def _histogram(ordered: Floats) -> Histogram | None:
    low, high = float(ordered[0]), float(ordered[-1])
    if not np.isfinite(high - low):
        return None
    if low == high:
        return Histogram(edges=(low, high), counts=(len(ordered),))
    edges = np.linspace(low, high, BINS + 1)
    if len(np.unique(edges)) != len(edges):  # neighbours of that size: no number lies between them
        return Histogram(edges=(low, high), counts=(len(ordered),))
    counts, _ = np.histogram(ordered, edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _texts(column: pl.Series, fewest: int) -> tuple[Text, ...]:
    found = column.drop_nulls().cast(pl.String).alias("text").value_counts(name="rows")
    kept = found.filter((pl.col("rows") >= fewest) & (pl.col("text").str.len_chars() <= _LONGEST_TEXT))
    top = kept.sort(["rows", "text"], descending=[True, False]).head(MOST_TEXTS)
    return tuple(Text(value=value, rows=rows) for value, rows in top.iter_rows())


def _shares_of_texts(day: Summary, reference: Sequence[Summary]) -> tuple[Floats, Floats]:
    counts = _counts_of_texts([day]), _counts_of_texts(reference)
    known = sorted({text for each in counts for text in each})
    return _shares_of_each([day], counts[0], known), _shares_of_each(reference, counts[1], known)


def _shares_of_each(summaries: Sequence[Summary], counts: Mapping[str, int], known: Sequence[str]) -> Floats:
    """Shares of the texts, then of the others, then of nulls."""
    rows, nulls = sum(each.rows for each in summaries), sum(each.nulls for each in summaries)
    return np.array([*(counts.get(text, 0) for text in known), rows - nulls - sum(counts.values()), nulls]) / rows


def _counts_of_texts(summaries: Sequence[Summary]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for each in summaries:
        for text in each.texts:
            counts[text.value] = counts.get(text.value, 0) + text.rows
    return counts


def _shares_of_numbers(day: Summary, reference: Sequence[Summary]) -> tuple[Floats, Floats]:
    before = _Weighted.of(reference)
    cuts = before.cuts() if before is not None else []
    return _shares([day], _Weighted.of([day]), cuts), _shares(reference, before, cuts)


def _shares(summaries: Sequence[Summary], numbers: _Weighted | None, cuts: Sequence[_Cut]) -> Floats:
    """Shares of the bins between the cuts, then of what is null or no number."""
    rows = sum(each.rows for each in summaries)
    counted = sum(each.numbers for each in summaries)
    below = [0.0, *(numbers.below(cut) if numbers is not None else 0.0 for cut in cuts), 1.0 if counted else 0.0]
    return np.array([*(np.diff(below) * counted / rows), 1 - counted / rows])


class _Cut(NamedTuple):
    """Between two bins: at a number, which belongs to the lower one if ``with_it``."""

    at: float
    with_it: bool


class _Weighted(NamedTuple):
    """Points of one or more days, ascending, with the share that each of them stands for, added up."""

    points: Floats
    added: Floats

    @classmethod
    def of(cls, summaries: Sequence[Summary]) -> _Weighted | None:
        kept = [each for each in summaries if each.points]
        if not kept:
            return None
        points = np.concatenate([np.array(each.points) for each in kept])
        weights = np.concatenate([np.full(len(each.points), each.numbers / len(each.points)) for each in kept])
        order = np.argsort(points, kind="stable")
        return cls(points[order], np.cumsum(weights[order]) / weights.sum())

    def below(self, cut: _Cut) -> float:
        """The share on the lower side."""
        place = int(np.searchsorted(self.points, cut.at, "right" if cut.with_it else "left"))
        return float(self.added[place - 1]) if place else 0.0

    def cuts(self) -> list[_Cut]:
        """At the deciles, and on both sides of a number that many are equal to."""
        found: list[_Cut] = []
        for share in np.linspace(0.1, 0.9, 9):
            at = float(self.points[min(int(np.searchsorted(self.added, share - 1e-9)), len(self.points) - 1)])
            if self.below(_Cut(at, with_it=True)) - self.below(_Cut(at, with_it=False)) >= _ATOM:
                found.append(_Cut(at, with_it=False))
            found.append(_Cut(at, with_it=True))
        return sorted(set(found))


def _psi(reference: Floats, day: Floats) -> float:
    p, q = np.maximum(reference, _SMALLEST_SHARE), np.maximum(day, _SMALLEST_SHARE)
    return float(np.sum((q - p) * np.log(q / p)))


def _js(reference: Floats, day: Floats) -> float:
    middle = (reference + day) / 2
    return max(0.0, (_entropy_from(reference, middle) + _entropy_from(day, middle)) / 2)


def _entropy_from(shares: Floats, middle: Floats) -> float:
    there = shares > 0
    return float(np.sum(shares[there] * np.log2(shares[there] / middle[there])))


def shown_summary(summary: Summary) -> dict[str, Any]:
    """The summary as people are shown it: without what only comparing needs."""
    return summary.model_dump(mode="json", exclude={"points"})
