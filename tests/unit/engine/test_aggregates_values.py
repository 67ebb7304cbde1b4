"""What each aggregate makes of a few rows: null rules, empty windows, exactness, sessions and row caps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from featurelib.aggregates import (
    AGGREGATES,
    Aggregate,
    ApproxDistinct,
    ApproxPercentile,
    Avg,
    Count,
    Default,
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
    result_type,
)
from featurelib.clock import SECOND
from featurelib.engine.aggregators import aggregator_for
from featurelib.engine.partials import FIRST_VALUE, Input, Row
from featurelib.errors import ValueOverflow
from featurelib.expr import col
from featurelib.windows import Continuous, Lifetime, Session

AT = 60 * SECOND


def rows(*values: Any, at: list[int] | None = None, mask: list[int] | None = None) -> list[Row]:
    """One row per value, a second apart unless the seconds are given."""
    return [
        ((at or range(len(values)))[i] * SECOND, 0, i, "", None, value, (mask or [0] * len(values))[i])
        for i, value in enumerate(values)
    ]


def value_of(aggregate: Aggregate, kind: str | None, held: list[Row], *, bit: int | None = None) -> Any:
    """The aggregate's value over the rows at one minute."""
    algebra = aggregator_for(aggregate, Input(FIRST_VALUE if kind else None, kind, bit))
    return algebra.finish(algebra.fold(held), AT)


NULLS = rows(4, None, 2, 4, None)
OVER_NULLS: list[tuple[Aggregate, Any]] = [
    (Count("v"), 3),
    (Sum("v"), 10),
    (Avg("v"), 10 / 3),
    (Min("v"), 2),
    (Max("v"), 4),
    (Variance("v"), 8 / 9),
    (Stddev("v"), (8 / 9) ** 0.5),
    (Last("v"), None),
    (Last("v", dropnull=True), 4),
    (First("v"), 4),
    (LastK("v", k=3), [None, 4, 2]),
    (LastK("v", k=3, dedup=True), [None, 4, 2]),
    (LastK("v", dropnull=True), [4, 2, 4]),
    (LastK("v", dedup=True, dropnull=True), [4, 2]),
    (FirstK("v", k=2), [4, None]),
    (FirstK("v", dedup=True), [4, None, 2]),
    (FirstK("v", dedup=True, dropnull=True), [4, 2]),
    (Distinct("v"), [2, 4]),
    (ApproxDistinct("v"), 2),
    (TopK("v", k=1), [4]),
    (Quantile("v"), 4.0),
    (ApproxPercentile("v", pct=25), 3.0),
    (ApproxPercentile("v"), 1 / 3),
    (ExpDecaySum("v", half_life="10s"), (4 + 2 * 2**0.2 + 4 * 2**0.3) / 64),
]


@pytest.mark.parametrize(("aggregate", "value"), OVER_NULLS, ids=[type(made).__name__ for made, _ in OVER_NULLS])
def test_nulls_are_skipped_except_by_the_first_and_last_values(aggregate: Aggregate, value: Any) -> None:
    found = value_of(aggregate, "int", NULLS)
    assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_a_bare_count_counts_rows_whatever_they_hold() -> None:
    assert value_of(Count(), None, NULLS) == 5


EMPTY: list[tuple[Aggregate, str, Any]] = [
    (Count("v"), "int", 0),
    (Sum("v"), "int", 0),
    (Sum("v"), "float", 0.0),
    (Sum("v"), "decimal(2)", Decimal("0.00")),
    (Avg("v"), "int", 0.0),
    (Avg("v"), "decimal(2)", 0.0),
    (Min("v"), "float", 0.0),
    (Min("v"), "decimal(1)", Decimal("0.0")),
    (Max("v"), "int", 0),
    (Max("v"), "str", None),
    (Max("v"), "datetime", None),
    (Variance("v"), "int", 0.0),
    (Stddev("v"), "float", 0.0),
    (ApproxPercentile("v"), "int", 0.0),
    (ApproxPercentile("v", pct=50), "int", 0.0),
    (Quantile("v"), "float", 0.0),
    (Last("v"), "int", None),
    (First("v"), "str", None),
    (LastK("v"), "int", []),
    (FirstK("v"), "int", []),
    (Distinct("v"), "str", []),
    (TopK("v"), "str", []),
    (ApproxDistinct("v"), "str", 0),
    (ExpDecaySum("v"), "int", 0.0),
]
SHAPES = [Lifetime(), Continuous("1d", max_rows=3), Session("5s")]


@pytest.mark.parametrize("window", SHAPES, ids=["lifetime", "capped", "session"])
@pytest.mark.parametrize(("aggregate", "kind", "value"), EMPTY, ids=[f"{type(a).__name__}-{k}" for a, k, _ in EMPTY])
def test_an_empty_window_has_the_documented_value(aggregate: Aggregate, kind: str, value: Any, window: Any) -> None:
    algebra = aggregator_for(aggregate.model_copy(update={"window": window}), Input(FIRST_VALUE, kind, 0))
    outside = algebra.fold(rows(None, None))
    for partial in (None, outside):
        found = algebra.finish(partial, AT)
        assert (type(found), found) == (type(value), value)
        assert not algebra.holds(partial)


def test_every_aggregate_has_a_documented_empty_value() -> None:
    assert {type(aggregate) for aggregate, _, _ in EMPTY} == set(AGGREGATES)


def test_a_predicate_picks_the_rows_that_count() -> None:
    held = rows(1, 2, 3, mask=[0b10, 0b01, 0b10])
    assert value_of(Sum("v"), "int", held, bit=1) == 4
    assert value_of(Last("v"), "int", held, bit=0) == 2


def test_decimals_stay_exact_and_means_of_them_are_floats() -> None:
    held = rows(Decimal("0.10"), Decimal("0.20"), Decimal("0.30"))
    assert str(value_of(Sum("v"), "decimal(2)", held)) == "0.60"
    assert str(value_of(Min("v"), "decimal(2)", held)) == "0.10"
    assert str(value_of(LastK("v", k=2), "decimal(2)", held)) == "[Decimal('0.30'), Decimal('0.20')]"
    assert value_of(Avg("v"), "decimal(2)", held) == 0.2
    assert value_of(Variance("v"), "decimal(2)", held) == pytest.approx(0.02 / 3, rel=1e-15)
    assert value_of(ExpDecaySum("v", half_life="60s"), "decimal(2)", held[:1]) == 0.05


@pytest.mark.parametrize(("kind", "newest"), [(LastK, ["2.50", "1.50", "9.00"]), (FirstK, ["9.00", "1.50", "2.50"])])
def test_a_decimal_that_was_stored_is_the_one_that_comes(kind: Any, newest: list[str]) -> None:
    stored, fresh = ["9.00", "1.50", "2.50"], [Decimal("1.50"), Decimal("2.50")]
    assert value_of(kind("v", k=3, dedup=True), "decimal(2)", rows(*stored, *fresh)) == list(map(Decimal, newest))


def test_a_decimal_of_38_digits_is_not_rounded() -> None:
    held = rows(Decimal("123456789012345678901234567890123456.78"), Decimal("0.01"))
    assert str(value_of(Sum("v"), "decimal(2)", held)) == "123456789012345678901234567890123456.79"
    assert str(value_of(Max("v"), "decimal(2)", held)) == "123456789012345678901234567890123456.78"


def test_a_decimal_sum_of_more_than_38_digits_is_an_overflow() -> None:
    large = Decimal(6 * 10**37).scaleb(-2)
    with pytest.raises(ValueOverflow, match="more than 38 digits"):
        value_of(Sum("v"), "decimal(2)", rows(large, large))


def test_variance_does_not_cancel_next_to_a_large_mean() -> None:
    assert value_of(Variance("v"), "float", rows(1e9 + 0.5, 1e9 + 1.5, 1e9 + 2.5)) == pytest.approx(2 / 3, rel=1e-15)
    assert value_of(Stddev("v"), "float", rows(0.1, 0.1, 0.1)) == 0.0
    assert value_of(Variance("v"), "int", rows(2**62, 2**62 + 3)) == 2.25


def test_sums_of_floats_cancel_exactly() -> None:
    assert value_of(Sum("v"), "float", rows(1e16, 1.0, -1e16)) == 1.0
    assert value_of(Sum("v"), "float", rows(1e308, 1e308, -1e308)) == 1e308
    with pytest.raises(ValueOverflow, match="beyond what a float holds"):
        value_of(Sum("v"), "float", rows(1e308, 1e308))


def test_the_percentile_rank_is_the_share_strictly_below_the_newest() -> None:
    assert value_of(ApproxPercentile("v"), "int", rows(7)) == 0.5
    assert value_of(ApproxPercentile("v"), "int", rows(10, 30, 20, 5, 20)) == 0.4
    assert value_of(ApproxPercentile("v"), "int", rows(3, 3, 3)) == 0.0
    assert value_of(ApproxPercentile("v"), "int", rows(1, 2, None)) == 0.5


def test_quantiles_lie_between_their_neighbours() -> None:
    held = rows(10, 20, 30, 40)
    assert [value_of(Quantile("v", q=q), "int", held) for q in (0.0, 0.5, 0.75, 1.0)] == [10.0, 25.0, 32.5, 40.0]
    assert value_of(ApproxPercentile("v", pct=50), "int", held) == 25.0


def test_the_most_frequent_values_come_first_and_ties_by_value() -> None:
    held = rows("b", "a", "c", "b", "a", "d")
    assert value_of(TopK("v", k=3), "str", held) == ["a", "b", "c"]


def test_a_decayed_sum_halves_each_half_life_and_stays_finite() -> None:
    held = rows(8.0, 8.0, at=[0, 60])
    assert value_of(ExpDecaySum("v", half_life="20s"), "float", held) == 9.0
    algebra = aggregator_for(ExpDecaySum("v", half_life="1s"), Input(FIRST_VALUE, "float", None))
    assert algebra.finish(algebra.fold(held), 10**15) == 0.0
    far_apart = algebra.merge([algebra.fold(rows(1e300)), algebra.fold(rows(3.0, at=[10**7]))])
    assert algebra.finish(far_apart, 10**13) == 3.0


def test_a_pause_of_exactly_the_gap_keeps_a_session_open() -> None:
    held = rows(1, 2, 4, 8, at=[0, 10, 15, 20])
    assert value_of(Sum("v", Session("5s")), "int", held) == 14
    assert value_of(Sum("v", Session("10s")), "int", held) == 15
    assert value_of(Sum("v", Session("4s")), "int", held) == 8


def test_a_session_is_made_of_all_rows_and_the_predicate_picks_among_them() -> None:
    held = rows(1, 2, 4, 8, at=[0, 10, 14, 18], mask=[1, 1, 0, 1])
    assert value_of(Sum("v", Session("5s")), "int", held, bit=0) == 10


def test_a_row_that_closes_a_pause_joins_two_sessions_into_one() -> None:
    algebra = aggregator_for(Count(window=Session("30s")), Input(None, None, None))
    parts = [algebra.fold(rows(*[0] * len(at), at=at)) for at in ([0, 20], [50], [75, 90])]
    assert algebra.finish(algebra.merge([parts[0], parts[2]]), AT) == 2
    assert algebra.finish(algebra.merge(parts), AT) == 5


def test_of_a_capped_window_the_newest_rows_count_before_the_predicate() -> None:
    window = Continuous("1d", max_rows=3)
    held = rows(1, 2, 4, 8, mask=[1, 1, 0, 1])
    assert value_of(Sum("v", window), "int", held) == 14
    assert value_of(Sum("v", window), "int", held, bit=0) == 10
    assert value_of(FirstK("v", window, k=2), "int", held) == [2, 4]
    assert value_of(Sum("v", window), "decimal(1)", rows(*map(Decimal, "1234"))) == Decimal("9.0")


def test_a_default_is_read_in_the_type_of_the_column() -> None:
    assert Sum("v", default=Decimal("1.5")).default == Default(value="1.5")
    assert str(Default(value="1.5").as_value("decimal(2)")) == "1.50"
    assert Default(value=1).as_value("float") == 1.0
    assert LastK("v", default=[1, None]).default.as_value("list[int]") == [1, None]  # type: ignore[union-attr]
    assert Sum("v", default=None).default == Default(value=None)
    assert Sum("v").default is None


def test_result_types_follow_the_table() -> None:
    made: dict[str, set[Any]] = {}
    for kind in AGGREGATES:
        made.setdefault(result_type(kind("v"), "decimal(2)"), set()).add(kind)
    assert made == {
        "int": {Count, ApproxDistinct},
        "float": {Avg, Stddev, Variance, ApproxPercentile, Quantile, ExpDecaySum},
        "list[decimal(2)]": {LastK, FirstK, Distinct, TopK},
        "decimal(2)": {Sum, Min, Max, Last, First},
    }


@pytest.mark.parametrize(
    ("kind", "type_name", "taken"),
    [
        (Sum, "decimal(3)", True),
        (Sum, "str", False),
        (Sum, "bool", False),
        (Max, "datetime", True),
        (Max, "bool", False),
        (Last, "list[int]", True),
        (LastK, "list[int]", False),
        (Distinct, "bool", True),
        (Count, "list[str]", True),
    ],
)
def test_aggregates_take_the_columns_of_their_table(kind: Any, type_name: str, taken: bool) -> None:
    assert accepts(kind, type_name) is taken


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LastK("v", k=0), "greater than 0"),
        (lambda: TopK("v", k=0), "greater than 0"),
        (lambda: Quantile("v", q=1.5), "less than or equal to 1"),
        (lambda: ApproxPercentile("v", pct=101), "less than or equal to 100"),
        (lambda: ExpDecaySum("v", half_life="1mo"), "is not a duration"),
        (lambda: Sum("v", "5min"), "is not a duration"),
    ],
)
def test_an_option_outside_its_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_column_may_be_named_by_its_reference() -> None:
    class Reference:
        name = "amount"

    assert Sum(of=Reference(), where=col("ok") == True) == Sum(of="amount", where=col("ok") == True)  # noqa: E712
