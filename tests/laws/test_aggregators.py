"""The laws every aggregate keeps: any cut of the rows, folded and merged, finishes to the same value."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurelib.aggregates import AGGREGATES, Aggregate, Avg, Count, Last, LastK, Max, Min, Sum
from featurelib.engine.aggregators import Input, Row, SumAggregator, aggregator_for
from featurelib.engine.codec import decode, encode
from featurelib.errors import ValueOverflow

VALUE, TEXT = 3, 4
INTS = st.one_of(st.none(), st.integers(-(2**40), 2**40))
ROWS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 3), INTS, st.sampled_from("abc"), st.booleans()), max_size=40
)

CASES: list[tuple[Aggregate, Input]] = [
    (Count(), Input(None, None, None)),
    (Count(of="value"), Input(VALUE, "int", None)),
    (Count(), Input(None, None, 0)),
    (Sum("value"), Input(VALUE, "int", None)),
    (Sum("value"), Input(VALUE, "int", 0)),
    (Avg("value"), Input(VALUE, "int", None)),
    (Min("value"), Input(VALUE, "int", None)),
    (Max("text"), Input(TEXT, "str", 0)),
    (Last("value"), Input(VALUE, "int", None)),
    (Last("value", dropnull=True), Input(VALUE, "int", 0)),
    (LastK("value", k=3), Input(VALUE, "int", None)),
    (LastK("text", k=2, dedup=True), Input(TEXT, "str", None)),
    (LastK("value", k=4, dedup=True, dropnull=True), Input(VALUE, "int", 0)),
]
IDS = [f"{type(a).__name__}-{i.column}-{'where' if i.bit is not None else 'all'}-{n}" for n, (a, i) in enumerate(CASES)]


def rows_of(drawn: list[tuple[Any, ...]]) -> list[Row]:
    """Rows with distinct places, in total order."""
    rows = [
        (time, accepted, place, value, text, int(flag))
        for place, (time, accepted, value, text, flag) in enumerate(drawn)
    ]
    return sorted(rows, key=lambda row: row[:3])


@pytest.mark.parametrize(("aggregate", "source"), CASES, ids=IDS)
@given(drawn=ROWS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_any_cut_of_the_rows_finishes_the_same(
    aggregate: Aggregate, source: Input, drawn: list, cuts: list[int]
) -> None:
    algebra, rows = aggregator_for(aggregate, source), rows_of(drawn)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [algebra.fold(rows[low:high]) for low, high in pairwise(edges)]
    assert algebra.finish(algebra.merge_all(parts)) == algebra.finish(algebra.fold(rows))


@pytest.mark.parametrize(("aggregate", "source"), CASES, ids=IDS)
@given(drawn=ROWS, cut=st.integers(0, 40), second=st.integers(0, 40))
def test_merging_is_associative(aggregate: Aggregate, source: Input, drawn: list, cut: int, second: int) -> None:
    algebra, rows = aggregator_for(aggregate, source), rows_of(drawn)
    low, high = sorted((min(cut, len(rows)), min(second, len(rows))))
    a, b, c = (algebra.fold(part) for part in (rows[:low], rows[low:high], rows[high:]))
    left = algebra.merge_all([algebra.merge_all([a, b]), c])
    right = algebra.merge_all([a, algebra.merge_all([b, c])])
    assert algebra.finish(left) == algebra.finish(right)


@pytest.mark.parametrize(("aggregate", "source"), CASES, ids=IDS)
@given(drawn=ROWS)
def test_a_partial_survives_storage(aggregate: Aggregate, source: Input, drawn: list) -> None:
    algebra = aggregator_for(aggregate, source)
    partial = algebra.fold(rows_of(drawn))
    assert algebra.finish(decode(encode(partial))) == algebra.finish(partial)


@pytest.mark.parametrize(("aggregate", "source"), CASES, ids=IDS)
@given(drawn=ROWS)
def test_the_empty_partial_changes_nothing(aggregate: Aggregate, source: Input, drawn: list) -> None:
    algebra = aggregator_for(aggregate, source)
    partial = algebra.fold(rows_of(drawn))
    assert algebra.merge_all([None, partial, algebra.fold([])]) == partial


def test_every_aggregate_has_a_row_in_these_tables() -> None:
    assert {type(aggregate) for aggregate, _ in CASES} == set(AGGREGATES)


EMPTY = [
    (Count(), Input(None, None, None), 0),
    (Sum("v"), Input(VALUE, "int", None), 0),
    (Sum("v"), Input(VALUE, "float", None), 0.0),
    (Avg("v"), Input(VALUE, "int", None), 0.0),
    (Min("v"), Input(VALUE, "float", None), 0.0),
    (Max("v"), Input(VALUE, "int", None), 0),
    (Max("v"), Input(TEXT, "str", None), None),
    (Last("v"), Input(VALUE, "int", None), None),
    (LastK("v"), Input(VALUE, "int", None), []),
]


@pytest.mark.parametrize(
    ("aggregate", "source", "value"), EMPTY, ids=[f"{type(a).__name__}-{i.type}" for a, i, _ in EMPTY]
)
def test_an_empty_window_has_the_documented_value(aggregate: Aggregate, source: Input, value: object) -> None:
    assert aggregator_for(aggregate, source).finish(None) == value


def test_an_integer_sum_may_leave_64_bits_on_the_way_but_not_at_the_end() -> None:
    algebra = SumAggregator(Input(VALUE, "int", None))
    high = algebra.fold([(0, 0, 0, 2**63 - 1, 0), (1, 0, 1, 2**63 - 1, 0)])
    assert algebra.finish(algebra.merge(decode(encode(high)), algebra.fold([(2, 0, 2, -(2**63 - 1), 0)]))) == 2**63 - 1
    with pytest.raises(ValueOverflow, match="does not fit 64 bits"):
        algebra.finish(high)


@given(values=st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=60), seed=st.randoms())
def test_a_pane_of_floats_sums_to_the_same_bits_in_any_order(values: list[float], seed: Any) -> None:
    algebra = SumAggregator(Input(VALUE, "float", None))
    rows = [(0, 0, place, value, 0) for place, value in enumerate(values)]
    shuffled = list(rows)
    seed.shuffle(shuffled)
    assert algebra.finish(algebra.fold(shuffled)) == algebra.finish(algebra.fold(rows)) == math.fsum(values)


def test_values_that_compare_equal_but_differ_in_type_stay_apart_under_dedup() -> None:
    algebra = aggregator_for(LastK("v", k=5, dedup=True), Input(VALUE, "int", None))
    rows = [(time, 0, time, value, 0) for time, value in enumerate([1, True, 1.0, 1])]
    assert [(type(v), v) for v in algebra.finish(algebra.fold(rows))] == [(int, 1), (float, 1.0), (bool, True)]
