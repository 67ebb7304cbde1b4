"""Expectations: rules that observe a batch of raw records and never reject one (decision 23).

A cell is judged as it came. Only where a whole column is text though the dataset declares another type (CSV
has no types) is a cell judged as the value its text stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurelib.definitions import DatasetDef, ExpectationDef, FieldDef
from featurelib.engine.coerce import RawRecords, coerce_value, raw_column
from featurelib.errors import RecordError

_SAMPLE = 3


class Violation(NamedTuple):
    """An expectation that fewer than ``mostly`` of a batch met; ``sample`` holds the first values that failed."""

    expectation: ExpectationDef
    failed: int
    total: int
    sample: tuple[Any, ...]


def evaluate(records: RawRecords, dataset: DatasetDef) -> list[Violation]:
    """Judge a batch by every expectation of its dataset."""
    total = len(records)
    if not total:
        return []
    judged = (_judge(records, dataset, expectation) for expectation in dataset.expectations)
    return [violation for violation in judged if violation.failed > 0 and _violated(violation)]


def failures(records: RawRecords, dataset: DatasetDef) -> list[tuple[ExpectationDef, list[int]]]:
    """The rows that do not meet each expectation, however many: ``mostly`` has no say."""
    rules = dataset.expectations if len(records) else ()
    return [(expectation, _failed_rows(records, dataset, expectation).tolist()) for expectation in rules]


def _violated(violation: Violation) -> bool:
    passed = violation.total - violation.failed
    return passed < violation.expectation.mostly * violation.total


def _judge(records: RawRecords, dataset: DatasetDef, expectation: ExpectationDef) -> Violation:
    failed = _failed_rows(records, dataset, expectation)
    cell = raw_column(records, expectation.column)[1]
    sample = tuple(cell(row) for row in failed[:_SAMPLE].tolist())
    return Violation(expectation, len(failed), len(records), sample)


def _failed_rows(records: RawRecords, dataset: DatasetDef, expectation: ExpectationDef) -> npt.NDArray[np.int64]:
    array, cell = raw_column(records, expectation.column)
    read = _reader(array, dataset.field(expectation.column))
    rule = _RULES[expectation.type]
    return _failed(array, cell, len(records), lambda value: rule(expectation, read(value)))


def _failed(
    array: pa.Array | None, cell: Callable[[int], Any], count: int, passes: Callable[[Any], bool]
) -> npt.NDArray[np.int64]:
    """Rows that do not pass; each distinct value is judged once."""
    if array is None or pa.types.is_nested(array.type):
        return np.array([row for row in range(count) if not passes(cell(row))], dtype=np.int64)
    encoded = array.dictionary_encode(null_encoding="encode")
    verdicts = np.array([passes(value) for value in encoded.dictionary.to_pylist()], dtype=bool)
    return np.flatnonzero(~verdicts[encoded.indices.to_numpy(zero_copy_only=False)])


def _reader(array: pa.Array | None, field: FieldDef | None) -> Callable[[Any], Any]:
    if array is None or field is None or field.type == "str" or not pa.types.is_string(array.type):
        return lambda value: value
    lenient = field.model_copy(update={"key": False, "timestamp": False, "optional": True})

    def read(value: Any) -> Any:
        try:
            return coerce_value(value, lenient)
        except RecordError:
            return value

    return read


def _between(expectation: ExpectationDef, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = expectation.min_value, expectation.max_value
    # Not "value < low": NaN is in no interval, so each bound must be met, and without bounds it equals itself.
    return value == value and (low is None or value >= low) and (high is None or value <= high)  # noqa: PLR0124


def _not_null(_expectation: ExpectationDef, value: Any) -> bool:
    return value is not None


def _in_set(expectation: ExpectationDef, value: Any) -> bool:
    # A commit in protobuf form carries the set as text, so a number also matches its text.
    return any(type(value) is type(member) and value == member for member in expectation.values) or (
        isinstance(value, int | float) and not isinstance(value, bool) and _number_in(expectation, value)
    )


def _number_in(expectation: ExpectationDef, value: float) -> bool:
    return any(
        value == member if isinstance(member, int | float) and not isinstance(member, bool) else str(value) == member
        for member in expectation.values
    )


def _of_type(expectation: ExpectationDef, value: Any) -> bool:
    accepted = _TYPES.get(expectation.type_name or "")
    if accepted is None:
        return True
    return isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))


_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}

_RULES: dict[str, Callable[[ExpectationDef, Any], bool]] = {
    "column_values_between": _between,
    "column_values_not_null": _not_null,
    "column_values_in_set": _in_set,
    "column_values_of_type": _of_type,
}
