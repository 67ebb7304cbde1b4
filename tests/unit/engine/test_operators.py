"""Steps before the fold: null rules, and numbers that leave their type."""

from __future__ import annotations

import polars as pl
import pytest

from featurelib.definitions import AssignStep, FilterStep
from featurelib.engine.operators import run_steps
from featurelib.expr import Expr, Predicate, col, lit

FRAME = pl.DataFrame(
    {
        "i": [1, None, 2**40, -(2**62), 2**63 - 1],
        "f": [1.5, None, 1e308, -0.0, 2.0],
        "s": ["a", None, "{", '{"x": {"y": 3}}', ""],
    }
)


def assigned(expression: Expr, frame: pl.DataFrame = FRAME) -> list[object]:
    return run_steps(frame, (AssignStep(column="out", value=expression.node),), {})["out"].to_list()


CASES = [
    ("arithmetic with null is null", col("i") + 1, [2, None, 2**40 + 1, -(2**62) + 1, None]),
    ("an integer that leaves 64 bits is null", col("i") * col("i"), [1, None, None, None, None]),
    ("the largest integer stays itself", col("i") - 0, [1, None, 2**40, -(2**62), 2**63 - 1]),
    ("a float that is not finite is null", col("f") * col("f") * 10, [22.5, None, None, 0.0, 40.0]),
    ("division is true division", col("i") / 2, [0.5, None, 2**39, -(2**61), (2**63 - 1) / 2]),
    ("dividing by zero is null", lit(1) / (col("f") - 2.0), [-2.0, None, 1 / 1e308, -0.5, None]),
    ("a null is filled", col("i").fill_null(7), [1, 7, 2**40, -(2**62), 2**63 - 1]),
    ("a path is extracted, any miss is null", col("s").json_extract("x.y"), [None, None, None, "3", None]),
]


@pytest.mark.parametrize(("expression", "wanted"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_column_is_assigned(expression: Expr, wanted: list[object]) -> None:
    assert assigned(expression) == wanted


def test_a_later_assignment_sees_an_earlier_one_and_may_overwrite() -> None:
    steps = tuple(AssignStep(column="f", value=node) for node in ((col("f") + 1).node, (col("f") * 2).node))
    assert run_steps(FRAME.head(1), steps, {})["f"].to_list() == [5.0]


FILTERS = [
    ("comparing with null is false", col("i") > 0, [0, 2, 4]),
    ("also when not equal", col("i") != 1, [2, 3, 4]),
    ("not of a comparison with null is true", ~(col("i") > 0), [1, 3]),
    ("null is found", col("i").is_null(), [1]),
    ("or", (col("i") == 1) | (col("f") == 2.0), [0, 4]),
    ("and", (col("i") > 0) & (col("f") > 1.9), [2, 4]),
]


@pytest.mark.parametrize(("predicate", "kept"), [case[1:] for case in FILTERS], ids=[case[0] for case in FILTERS])
def test_rows_are_kept_where_the_predicate_holds(predicate: Predicate, kept: list[int]) -> None:
    frame = FRAME.with_row_index("row")
    assert run_steps(frame, (FilterStep(predicate=predicate.node),), {})["row"].to_list() == kept
