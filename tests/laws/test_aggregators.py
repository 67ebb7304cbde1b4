"""The laws every aggregate keeps: any cut of the rows, folded and merged, finishes to the same value."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurelib.aggregates import (
    AGGREGATES,
    INPUT_TYPES,
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
    accepts,
)
from featurelib.clock import SECOND
from featurelib.engine.aggregators import aggregator_for
from featurelib.engine.arithmetic import SumAggregator
from featurelib.engine.codec import decode, decode_rows, encode
from featurelib.engine.partials import FIRST_VALUE, Aggregator, Input, Partial, Row
from featurelib.errors import ValueOverflow
from featurelib.windows import AnyWindow, Continuous, Lifetime, Session
from tests.support.profiles import by_profile

AT = 100 * SECOND
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "int": st.one_of(st.integers(-3, 3), st.integers(-(2**53), 2**53)),
    "float": st.one_of(st.sampled_from((0.1, 0.2, 0.3)), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    "decimal(2)": st.decimals(-1000, 1000, places=2),
    "str": st.text(max_size=2),
    "bool": st.booleans(),
    "datetime": st.integers(0, 3),
    "list[int]": st.lists(st.integers(0, 2), max_size=2),
    "list[decimal(1)]": st.lists(st.decimals(0, 2, places=1), max_size=2),
}
WINDOWS: dict[str, AnyWindow] = {
    "lifetime": Lifetime(),
    "capped": Continuous("7d", max_rows=7),
    "session": Session("5s"),
}
MAKERS: dict[str, Callable[..., Aggregate]] = {
    "count": Count,
    "sum": Sum,
    "avg": Avg,
    "min": Min,
    "max": Max,
    "variance": Variance,
    "stddev": Stddev,
    "rank": ApproxPercentile,
    "percentile": lambda of, window: ApproxPercentile(of, window, pct=90),
    "quantile": lambda of, window: Quantile(of, window, q=0.3),
    "decayed": lambda of, window: ExpDecaySum(of, window, half_life="3s"),
    "last": Last,
    "last_present": lambda of, window: Last(of, window, dropnull=True),
    "first": First,
    "first_present": lambda of, window: First(of, window, dropnull=True),
    "last_3": lambda of, window: LastK(of, window, k=3),
    "last_2_distinct": lambda of, window: LastK(of, window, k=2, dedup=True),
    "first_3": lambda of, window: FirstK(of, window, k=3),
    "first_4_distinct": lambda of, window: FirstK(of, window, k=4, dedup=True, dropnull=True),
    "distinct": Distinct,
    "approx_distinct": ApproxDistinct,
    "top_2": lambda of, window: TopK(of, window, k=2),
}


class Case(NamedTuple):
    """An aggregate in a window over a column of a type, with or without a predicate."""

    name: str
    aggregate: Aggregate
    source: Input

    def algebra(self) -> Aggregator:
        """What is under test."""
        return aggregator_for(self.aggregate, self.source)


def cases() -> list[Case]:
    """Every aggregate over every type it takes, in every shape of state, with and without ``where``."""
    made = []
    for name, make in MAKERS.items():
        for kind in COLUMNS:
            for shape, window in WINDOWS.items():
                aggregate = make("v", window)
                if accepts(aggregate, kind):
                    bits = ((None, "all"), (0, "where"))
                    made += [
                        Case(f"{name}-{kind}-{shape}-{word}", aggregate, Input(FIRST_VALUE, kind, b))
                        for b, word in bits
                    ]
    bare = [(shape, Count(window=window), bit) for shape, window in WINDOWS.items() for bit in (None, 0)]
    return [*made, *(Case(f"bare_count-{shape}-{bit}", a, Input(None, None, bit)) for shape, a, bit in bare)]


CASES = cases()
NAMES = sorted({case.name.split("-")[0] for case in CASES})


def cases_where(holds: Callable[[Aggregator], bool]) -> dict[str, list[Case]]:
    """The cases of a kind, by the aggregate's name."""
    found = {name: [c for c in CASES if c.name.split("-")[0] == name and holds(c.algebra())] for name in NAMES}
    return {name: kept for name, kept in found.items() if kept}


def law(holds: Callable[[Aggregator], bool] = lambda _: True) -> Callable[[Any], Any]:
    """A property of every aggregate: its column's type, window and predicate are drawn with the rows."""
    chosen = cases_where(holds)

    def check(test: Any) -> Any:
        drawn = settings(max_examples=by_profile(ci=10, soak=250), deadline=None)(given(data=st.data())(test))
        return pytest.mark.parametrize("cases", list(chosen.values()), ids=list(chosen))(drawn)

    return check


def drawn(data: Any, cases: list[Case]) -> tuple[Case, Aggregator, list[Row]]:
    """One of the cases, its algebra, and rows for it."""
    case = data.draw(st.sampled_from(cases))
    return case, case.algebra(), data.draw(rows_of(case.source.type))


def cut(data: Any, algebra: Aggregator, rows: list[Row], *, most: int = 4, least: int = 0) -> list[Partial]:
    """The partials of consecutive slices of the rows."""
    return folded(algebra, rows, data.draw(st.lists(st.integers(0, 24), min_size=least, max_size=most)))


@st.composite
def rows_of(draw: Any, kind: str | None) -> list[Row]:
    """Rows of one key in total order, some at the same instant, some null."""
    value = st.one_of(st.none(), COLUMNS[kind or "int"], COLUMNS[kind or "int"])
    given_rows = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), value, st.booleans()), max_size=24))
    rows = [
        (seconds * SECOND, accepted, place, "", None, value, int(flag))
        for place, (seconds, accepted, value, flag) in enumerate(given_rows)
    ]
    return sorted(rows, key=lambda row: row[:4])


def same(left: Any, right: Any, scale: float = 0.0) -> bool:
    """Equal; floats within 1e-9 of each other, or of what they are a sum of."""
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-9 * scale)
    return type(left) is type(right) and bool(left == right)


def folded(algebra: Aggregator, rows: list[Row], cuts: list[int]) -> list[Partial]:
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [algebra.fold(rows[low:high]) for low, high in pairwise(edges)]


@law()
def test_any_cut_of_the_rows_finishes_the_same(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    merged, whole = algebra.merge(cut(data, algebra, rows)), algebra.fold(rows)
    assert algebra.holds(merged) is algebra.holds(whole)
    assert same(algebra.finish(merged, AT), algebra.finish(whole, AT))


@law()
def test_merging_is_associative(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    a, b, c = cut(data, algebra, rows, least=2, most=2)
    left = algebra.merge([algebra.merge([a, b]), c])
    right = algebra.merge([a, algebra.merge([b, c])])
    assert same(algebra.finish(left, AT), algebra.finish(right, AT))


@law()
def test_a_partial_survives_storage(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    partial = algebra.fold(rows)
    stored = decode(encode(partial))
    assert stored == partial
    assert same(algebra.finish(stored, AT), algebra.finish(partial, AT))


@law()
def test_rows_survive_storage_before_they_are_folded(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    assert algebra.fold(decode_rows(encode(rows))) == algebra.fold(rows)


@law()
def test_the_empty_partial_changes_nothing(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    partial = algebra.fold(rows)
    assert algebra.merge([None, partial, algebra.fold([])]) == partial


@law()
def test_merging_and_removing_leave_their_parts_as_they_were(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    parts = cut(data, algebra, rows)
    before = [encode(part) for part in parts]
    total = algebra.merge(parts)
    if algebra.invertible and parts[-1] is not None:
        algebra.remove(total, parts[-1])
    assert [encode(part) for part in parts] == before


@law(lambda algebra: not algebra.chronological)
def test_parts_in_any_order_finish_the_same(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    shuffled = data.draw(st.permutations(cut(data, algebra, rows)))
    assert same(algebra.finish(algebra.merge(shuffled), AT), algebra.finish(algebra.fold(rows), AT))


@law(lambda algebra: algebra.invertible)
def test_removing_a_part_undoes_its_merge(cases: list[Case], data: Any) -> None:
    _, algebra, rows = drawn(data, cases)
    kept, gone = cut(data, algebra, rows, least=1, most=1)
    if gone is not None:
        rest = algebra.remove(algebra.merge([kept, gone]), gone)
        assert algebra.finish(rest, AT) == algebra.finish(kept, AT)


@law(lambda algebra: algebra.needs == "values")
def test_what_needs_only_values_folds_from_them(cases: list[Case], data: Any) -> None:
    case, algebra, rows = drawn(data, cases)
    assert algebra.fold_values(case.source.values(rows)) == algebra.fold(rows)


@law()
def test_aggregators_of_one_state_have_one_partial(cases: list[Case], data: Any) -> None:
    case, algebra, rows = drawn(data, cases)
    twins = [other.algebra() for other in CASES if other.source == case.source]
    for twin in twins:
        if twin.state == algebra.state:
            assert twin.fold(rows) == algebra.fold(rows)


def test_every_aggregate_has_a_row_in_these_tables() -> None:
    assert {type(case.aggregate) for case in CASES} == set(AGGREGATES) == set(INPUT_TYPES)


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40), seed=st.integers())
@pytest.mark.parametrize("make", [Sum, Avg, Variance], ids=["sum", "avg", "variance"])
def test_floats_of_any_size_and_order_give_the_same_bits(make: Any, values: list[float], seed: int) -> None:
    algebra = aggregator_for(make("v"), Input(FIRST_VALUE, "float", None))
    rows = [(place, 0, place, "", None, value, 0) for place, value in enumerate(values)]
    shuffled = random.Random(seed).sample(rows, len(rows))
    parts = folded(algebra, shuffled, [seed % 7, seed % 31])

    def outcome(partial: Partial) -> Any:
        try:
            return algebra.finish(decode(encode(partial)), AT)
        except ValueOverflow:
            return "overflow"

    assert outcome(algebra.merge(parts)) == outcome(algebra.fold(rows))


@given(values=st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=60))
def test_a_sum_of_floats_is_rounded_once(values: list[float]) -> None:
    algebra = SumAggregator(Input(FIRST_VALUE, "float", None))
    rows = [(place, 0, place, "", None, value, 0) for place, value in enumerate(values)]
    assert algebra.finish(algebra.merge(folded(algebra, rows, [20, 40])), AT) == math.fsum(values)


def test_an_integer_sum_may_leave_64_bits_on_the_way_but_not_at_the_end() -> None:
    algebra = SumAggregator(Input(FIRST_VALUE, "int", None))
    high = algebra.fold_values([2**63 - 1, 2**63 - 1])
    total = algebra.merge([decode(encode(high)), algebra.fold_values([-(2**63 - 1)])])
    assert algebra.finish(total, AT) == 2**63 - 1
    with pytest.raises(ValueOverflow, match="does not fit 64 bits"):
        algebra.finish(high, AT)


def test_values_that_compare_equal_but_differ_in_type_stay_apart_under_dedup() -> None:
    algebra = aggregator_for(LastK("v", k=5, dedup=True), Input(FIRST_VALUE, "int", None))
    rows = [(time, 0, time, "", None, value, 0) for time, value in enumerate([1, True, 1.0, 1])]
    assert [(type(v), v) for v in algebra.finish(algebra.fold(rows), AT)] == [(int, 1), (float, 1.0), (bool, True)]


@given(data=st.data())
def test_a_decimal_sum_is_that_of_its_decimals(data: Any) -> None:
    rows = data.draw(rows_of("decimal(2)"))
    algebra = aggregator_for(Sum("v"), Input(FIRST_VALUE, "decimal(2)", None))
    assert algebra.finish(algebra.fold(rows), AT) == sum(
        (row[5] for row in rows if row[5] is not None), Decimal("0.00")
    )
