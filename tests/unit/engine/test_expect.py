"""Expectations observe raw batches (contract section 5)."""

import pyarrow as pa
import pytest

from featurelib.definitions import DatasetDef, ExpectationDef, FieldDef
from featurelib.engine.coerce import coerce
from featurelib.engine.expect import evaluate


def dataset(*expectations: ExpectationDef, x: str = "float") -> DatasetDef:
    return DatasetDef(
        name="Sample",
        fields=(
            FieldDef(name="id", type="str", key=True),
            FieldDef(name="at", type="datetime", timestamp=True),
            FieldDef(name="x", type=x, optional=True),
        ),
        expectations=expectations,
    )


def failing(expectation: ExpectationDef, values: list, x: str = "float") -> list:
    records = [{"id": "a", "at": 0, "x": value} for value in values]
    return [value for violation in evaluate(records, dataset(expectation, x=x)) for value in violation.sample]


BETWEEN = ExpectationDef(type="column_values_between", column="x", min_value=0, max_value=10)
NOT_NULL = ExpectationDef(type="column_values_not_null", column="x")


def in_set(*values) -> ExpectationDef:
    return ExpectationDef(type="column_values_in_set", column="x", values=values)


def of_type(name: str) -> ExpectationDef:
    return ExpectationDef(type="column_values_of_type", column="x", type_name=name)


@pytest.mark.parametrize(
    ("expectation", "passing", "failed"),
    [
        (BETWEEN, [0, 10, 5.5], [-1, 10.5, None]),
        (BETWEEN, [1], ["five", True, None]),
        (ExpectationDef(type="column_values_between", column="x", min_value=3), [3, 1e300], [2.9]),
        (NOT_NULL, [0, ""], [None]),
        (in_set("a", "b"), ["a", "b"], ["c", None]),
        (in_set(1, 2), [1, 2.0], [3, True]),
        (in_set("1", "2"), [1, "2"], [3]),
        (in_set(True), [True], [1, False]),
        (of_type("int"), [1], [1.5, "1", True, None]),
        (of_type("float"), [1, 1.5], ["1", False, None]),
        (of_type("str"), ["a"], [1]),
        (of_type("bool"), [True], [1, "true"]),
        (of_type("uuid"), [1, "a", None], []),
    ],
)
def test_every_rule_fails_exactly_the_values_it_must(expectation, passing, failed):
    assert failing(expectation, passing) == []
    for value in failed:
        assert failing(expectation, [*passing, value]) == [value]


def test_a_column_that_is_not_there_counts_as_null():
    (violation,) = evaluate([{"id": "a", "at": 0}], dataset(NOT_NULL))
    assert (violation.failed, violation.total) == (1, 1)


@pytest.mark.parametrize(("mostly", "violated"), [(1.0, True), (0.76, True), (0.75, False), (0.0, False)])
def test_mostly_is_the_share_of_the_batch_that_must_pass(mostly, violated):
    expectation = BETWEEN.model_copy(update={"mostly": mostly})
    assert bool(failing(expectation, [1, 2, 3, 99])) is violated


def test_text_cells_of_a_csv_are_judged_as_the_numbers_they_stand_for():
    table = pa.table({"id": ["a"] * 4, "at": ["0"] * 4, "x": ["5", "11", "many", None]})
    between, typed = evaluate(table, dataset(BETWEEN, of_type("int"), x="int"))
    assert (between.failed, between.total, between.sample) == (3, 4, ("11", "many", None))
    assert (typed.failed, typed.sample) == (2, ("many", None))


def test_a_record_that_is_rejected_is_judged_too_and_a_judged_one_is_not_rejected():
    records = [{"id": "a", "at": 0, "x": "word"}, {"id": "a", "at": 0, "x": 99}]
    (violation,) = evaluate(records, dataset(BETWEEN))
    assert violation.failed == 2
    assert len(coerce(records, dataset(BETWEEN)).table) == 1


def test_an_empty_batch_violates_nothing():
    assert evaluate([], dataset(NOT_NULL, BETWEEN)) == []
