"""User functions over Polars frames: the ``transform`` and ``filter`` steps of a pipeline.

A function gets a copy of the user's columns and :data:`ROW_ID`, an integer per row, and is expected to treat each row
on its own: batches are cut wherever records happen to arrive. Rows that make it fail are found by halving the frame
and given back apart, so that one bad record costs itself and nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from featurelib.definitions import FilterCodeStep, TransformStep
from featurelib.engine.column_types import polars_type
from featurelib.engine.user_code import TimeLimit, UserFunction
from featurelib.errors import UserCodeError

ROW_ID = "__thyme_row_id"
_HIDDEN = "__"
# Halving for a row that hangs costs a time limit per call: after so many failures in a frame, what is left of it fails
# whole. A function that fails for every row of 8,192 is still told row by row.
_MOST_FAILURES = 20_000
_MOST_INTERRUPTIONS = 32

_Attempt = Callable[[pl.DataFrame], pl.DataFrame]


class UdfResult(NamedTuple):
    """The frame after the step, and the rows left out of it: their place in the frame before, and why."""

    frame: pl.DataFrame
    failed: list[tuple[int, str]]


def transform(frame: pl.DataFrame, step: TransformStep, function: UserFunction) -> UdfResult:
    """Add the step's columns, and take over changes to those there are; hidden columns (``__…``) stay as they were.

    The function returns as many rows as it got. Rows are matched by :data:`ROW_ID` where the result still has it, so
    sorting does no harm, else by place. A declared column has the declared type, any other keeps its own; columns
    that are neither are left out.
    """
    declared = {name: polars_type(kind) for name, kind in step.columns}

    def attempt(part: pl.DataFrame) -> pl.DataFrame:
        given = _given(part)
        result = _in_order(_called(function, given), part[ROW_ID], function)
        kinds = {n: kind for n, kind in given.schema.items() if n in result.columns and n != ROW_ID} | declared
        return part.with_columns(_typed(result, name, kind, function) for name, kind in kinds.items())

    empty = frame.clear().with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in declared.items())
    return _run(frame, empty, attempt, function)


def keep(frame: pl.DataFrame, step: FilterCodeStep, function: UserFunction) -> UdfResult:  # noqa: ARG001  # as transform
    """Keep the rows whose :data:`ROW_ID` the function gives back; changes to other columns are ignored."""

    def attempt(part: pl.DataFrame) -> pl.DataFrame:
        result = _called(function, _given(part))
        if ROW_ID not in result.columns:
            raise function.wrong(f"dropped the column {ROW_ID}; a filter gives back whole rows")
        ids = result[ROW_ID]
        if ids.dtype != pl.Int64 or ids.n_unique() != len(ids) or not ids.is_in(part[ROW_ID].implode()).all():
            raise function.wrong(f"changed the column {ROW_ID}; it names the rows to keep, each once")
        return part.filter(pl.col(ROW_ID).is_in(ids.implode()))

    return _run(frame, frame.clear(), attempt, function)


def _run(frame: pl.DataFrame, empty: pl.DataFrame, attempt: _Attempt, function: UserFunction) -> UdfResult:
    numbered = frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(ROW_ID))
    search = _Search(attempt, function)
    parts = [part.drop(ROW_ID).select(empty.columns) for part in search.run(numbered)]
    return UdfResult(pl.concat([empty, *parts]), search.failed)


class _Search:
    """Runs a frame, and halves of it where it fails, down to the rows at fault."""

    def __init__(self, attempt: _Attempt, function: UserFunction) -> None:
        self.failed: list[tuple[int, str]] = []
        self._attempt = attempt
        self._function = function
        self._failures = 0
        self._interruptions = 0

    def run(self, part: pl.DataFrame) -> list[pl.DataFrame]:
        """What the rows that do not fail become, in order; those that do are noted."""
        if part.is_empty():
            return []
        try:
            return [self._attempt(part)]
        except UserCodeError as error:
            raised = error
            self._failures += 1
            self._interruptions += isinstance(error.__cause__, TimeLimit)
            if len(part) == 1 or self._is_enough():
                self.failed += [(row, str(error)) for row in part[ROW_ID].to_list()]
                return []
        before, middle = len(self.failed), len(part) // 2
        found = self.run(part[:middle]) + self.run(part[middle:])
        if len(self.failed) > before or isinstance(raised.__cause__, TimeLimit):
            return found
        # No row is at fault: what the function makes of a row depends on the rows beside it, which are accidental.
        self.failed += [(row, str(raised)) for row in part[ROW_ID].to_list()]
        return []

    def _is_enough(self) -> bool:
        given_up = self._function.given_up is not None
        return given_up or self._failures >= _MOST_FAILURES or self._interruptions >= _MOST_INTERRUPTIONS


def _given(part: pl.DataFrame) -> pl.DataFrame:
    # A new frame over shared columns: Polars copies a column when it is written to, so the engine's stays.
    return part.select(name for name in part.columns if name == ROW_ID or not name.startswith(_HIDDEN))


def _called(function: UserFunction, given: pl.DataFrame) -> pl.DataFrame:
    result = function.call(given)
    if not isinstance(result, pl.DataFrame):
        raise function.wrong(f"returned a {type(result).__name__}; expected a polars.DataFrame")
    return result


def _in_order(result: pl.DataFrame, ids: pl.Series, function: UserFunction) -> pl.DataFrame:
    if len(result) != len(ids):
        text = f"returned {len(result)} rows for {len(ids)}; a transform keeps rows, a filter drops them"
        raise function.wrong(text)
    if ROW_ID not in result.columns:
        return result
    result = result.sort(ROW_ID)
    if not result[ROW_ID].equals(ids):
        raise function.wrong(f"changed the column {ROW_ID}, which tells rows apart")
    return result


def _typed(result: pl.DataFrame, name: str, kind: pl.DataType, function: UserFunction) -> pl.Series:
    if name not in result.columns:
        raise function.wrong(f"returned no column {name!r}, which output_columns declares")
    found = result[name]
    if found.dtype != kind:
        found = _cast(found, kind, function)
    # Neither NaN nor infinity has a place in a feature: both are "no number".
    return found.set(~found.is_finite(), None) if kind == pl.Float64 else found


def _cast(found: pl.Series, kind: pl.DataType, function: UserFunction) -> pl.Series:
    """The column in another type of its family, where no value changes by it."""
    if found.dtype == pl.Null:
        return found.cast(kind)
    try:
        cast = found.cast(kind) if _family(found.dtype) == _family(kind) else None
        same = cast is not None and cast.cast(found.dtype).equals(found, null_equal=True)
    except pl.exceptions.PolarsError:
        same = False
    if cast is None or not same:
        text = f"column {found.name!r} is {found.dtype}; expected {kind}, or what becomes it without loss"
        raise function.wrong(text)
    return cast


def _family(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List | pl.Array):
        return f"list of {_family(kind.inner)}"  # type: ignore[arg-type]  # a type's class stands for the type here
    if kind.is_numeric():
        return "number"
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return "text"
    return type(kind).__name__
