"""Summaries of columns and how far two are apart."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal

import pytest

from featurelib.engine.statistics import FEWEST_OF_A_TEXT, POINTS, Summary, drift, summary_of

CHOSEN = random.Random(11)
NAMES = [str(number) for number in range(600)]


def normal(mean: float, rows: int = 2_000, spread: float = 1.0) -> Summary:
    return summary_of("float", [CHOSEN.gauss(mean, spread) for _ in range(rows)])


def test_numbers_are_counted_spread_and_binned() -> None:
    found = summary_of("int", [*range(1, 101), None, None])
    assert (found.rows, found.nulls, found.distinct, found.numbers) == (102, 2, 100, 100)
    assert (found.mean, found.min, found.max) == (50.5, 1.0, 100.0)
    assert found.std == pytest.approx(28.866, abs=1e-3)
    assert (found.quantiles["0.01"], found.quantiles["0.5"], found.quantiles["0.99"]) == (1.0, 50.0, 99.0)
    assert found.histogram is not None
    assert found.histogram.counts == (5,) * 20
    assert (found.histogram.edges[0], found.histogram.edges[-1]) == (1.0, 100.0)


@pytest.mark.parametrize(
    ("type_name", "values", "numbers"),
    [
        ("decimal(2)", [Decimal("1.50"), None, Decimal("2.50")], (1.5, 2.5)),
        ("list[str]", [["a"], [], None, ["b", "c"]], (0.0, 1.0, 2.0)),
        ("float", [math.inf, -math.inf, math.nan, 3.0], (3.0,)),
        ("int", [2**62, -(2**62)], (-(2.0**62), 2.0**62)),
    ],
)
def test_what_is_a_number_of_a_column(type_name: str, values: list[object], numbers: tuple[float, ...]) -> None:
    found = summary_of(type_name, values)
    assert found.points == numbers
    assert found.rows == len(values)


@pytest.mark.parametrize("type_name", ["int", "float", "str", "bool", "datetime", "decimal(3)", "list[float]"])
@pytest.mark.parametrize("values", [[], [None], [None] * 30])
def test_a_column_without_values_has_counts_alone(type_name: str, values: list[None]) -> None:
    found = summary_of(type_name, values)
    assert (found.rows, found.nulls, found.mean, found.histogram) == (len(values), len(values), None, None)


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 0.0], [1.0, 1.0 + 2**-52], [7.0] * 3])
def test_the_widest_and_the_narrowest_ranges_are_summarised_as_json(values: list[float]) -> None:
    found = summary_of("float", values)
    assert json.loads(found.model_dump_json())["min"] == min(values)
    assert found.histogram is None or sum(found.histogram.counts) == len(values)


def test_a_text_that_few_have_is_not_shown_and_neither_is_a_key() -> None:
    values = ["Oslo"] * 12 + ["Bergen"] * FEWEST_OF_A_TEXT + [f"someone {number}" for number in range(9)]
    assert [text.value for text in summary_of("str", values).texts] == ["Oslo", "Bergen"]
    assert summary_of("str", values, identifies=True) == Summary(rows=31, distinct=11)
    assert summary_of("int", list(range(500)), identifies=True) == Summary(rows=500, distinct=500)
    assert summary_of("bool", [True, True, False]).texts[1].rows == 1


def test_a_summary_keeps_points_however_many_values_there_are() -> None:
    found = summary_of("int", list(range(100_000)))
    assert len(found.points) == POINTS
    assert found.points[POINTS // 2] == pytest.approx(50_000, rel=0.01)


@pytest.mark.parametrize(
    ("day", "least", "most"),
    [(normal(0), 0.0, 0.03), (normal(0.3), 0.05, 0.2), (normal(1.0), 0.7, 1.5), (normal(0, spread=3), 0.5, 3.0)],
    ids=["alike", "a little", "moved", "wider"],
)
def test_psi_grows_with_what_has_changed(day: Summary, least: float, most: float) -> None:
    found = drift(day, [normal(0) for _ in range(3)])
    assert found is not None
    assert least <= found.psi <= most
    assert 0.0 <= found.js <= 1.0
    assert (found.rows, found.reference_rows) == (2_000, 6_000)


def test_psi_of_known_shares_is_the_formula() -> None:
    found = drift(summary_of("bool", [True] * 25 + [False] * 75), [summary_of("bool", [True] * 50 + [False] * 50)])
    assert found is not None
    assert found.psi == pytest.approx(0.25 * math.log(1.5) + 0.25 * math.log(2), rel=1e-9)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (summary_of("int", [5] * 600), summary_of("int", [3] * 600)),
        (summary_of("int", [5] * 600), summary_of("int", [7] * 600)),
        (summary_of("int", [0, 1] * 300), summary_of("int", [0, 0, 0, 1] * 150)),
        (summary_of("float", [1.0] * 600), summary_of("float", [1.0] * 400 + [None] * 200)),
        (summary_of("float", [1.0] * 600), summary_of("float", [None] * 600)),
        (summary_of("str", ["a"] * 300 + ["b"] * 300), summary_of("str", ["a"] * 600)),
        (summary_of("str", ["a"] * 600), summary_of("str", ["b"] * 600)),
        (
            summary_of("str", [f"{n}" for n in range(600)]),
            summary_of("str", [None] * 300 + [f"{n}" for n in range(300)]),
        ),
    ],
    ids=["lower", "higher", "mix", "nulls", "all null", "a text gone", "another text", "nulls among texts"],
)
def test_a_change_that_has_no_width_is_drift_too(before: Summary, after: Summary) -> None:
    there, back = drift(after, [before]), drift(after, [after])
    assert there is not None
    assert there.psi > 0.25
    assert back is not None
    assert (back.psi, back.js) == (0.0, 0.0)


def test_days_count_by_their_rows() -> None:
    few, many = summary_of("int", [1] * 50), summary_of("int", [2] * 5_000)
    like_many = drift(summary_of("int", [2] * 500), [few, many])
    assert like_many is not None
    assert like_many.psi < 0.1


def test_nothing_is_compared_with_nothing() -> None:
    assert drift(summary_of("int", [1]), []) is None
    assert drift(summary_of("int", [1]), [summary_of("int", [])]) is None
    assert drift(summary_of("int", []), [summary_of("int", [1])]) is None
