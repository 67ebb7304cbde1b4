"""The steps of a pipeline before its fold, over a batch of records: filter, assign, as-of join."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
import polars.selectors as cs
import pyarrow as pa

from featurelib.definitions import AssignStep, DatasetDef, FilterStep, JoinStep, Step
from featurelib.engine.batch import expression
from featurelib.engine.records import ACCEPTED_AT, LATE, OFFSET, ORDER, PARTITION, TIME

_RIGHT_KEY, _RIGHT_TIME = "__right_key", "__right_time"
# Far above the rounding of a float of that size, far below 2^64.
_WRAPPED_BY = 2.0**60
_RIGHT_ORDER = [_RIGHT_TIME, ACCEPTED_AT, PARTITION, OFFSET]


class RightTable:
    """The right side of a join: every accepted, timely record seen so far, newest last.

    Immutable: :meth:`with_records` gives a new table, so that "before" and "after" can be compared.
    """

    def __init__(self, step: JoinStep, dataset: DatasetDef, frame: pl.DataFrame | None = None) -> None:
        self.step = step
        self._dataset = dataset
        self.frame = frame if frame is not None else self._select(_empty(dataset))

    def with_records(self, records: pa.Table) -> RightTable:
        """The table with more right records in it."""
        frame = pl.concat([self.frame, self._select(_frame(records))]).sort(_RIGHT_ORDER)
        return RightTable(self.step, self._dataset, frame)

    def latest(self) -> pl.DataFrame:
        """One row per key and event time: of records with the same time, the newest in the total order."""
        return self.frame.unique([_RIGHT_KEY, _RIGHT_TIME], keep="last", maintain_order=True)

    def join(self, left: pl.DataFrame) -> pl.DataFrame:
        """Each left row with the newest right row of its key whose event time is not after the left's."""
        kept = left.drop([name for name in self.step.fields if name in left.columns])
        right = self.latest().drop(ACCEPTED_AT, PARTITION, OFFSET)
        joined = kept.sort(TIME, maintain_order=True).join_asof(
            right,
            left_on=TIME,
            right_on=_RIGHT_TIME,
            by_left=self.step.on,
            by_right=_RIGHT_KEY,
            strategy="backward",
            check_sortedness=False,  # both sides are sorted just above; Polars cannot know it per group
        )
        return joined.drop(_RIGHT_TIME, strict=False)

    def _select(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(~pl.col(LATE)).select(
            pl.col(self._dataset.key.name).alias(_RIGHT_KEY),
            pl.col(TIME).alias(_RIGHT_TIME),
            *(ACCEPTED_AT, PARTITION, OFFSET),
            *self.step.fields,
        )


def run_steps(frame: pl.DataFrame, steps: tuple[Step, ...], rights: Mapping[str, RightTable]) -> pl.DataFrame:
    """Apply the steps before the fold, in declared order; ``rights`` by the right dataset's name."""
    for step in steps:
        match step:
            case FilterStep():
                frame = frame.filter(expression(step.predicate))
            case AssignStep():
                frame = frame.with_columns(_assigned(step, frame))
            case JoinStep():
                frame = rights[step.right].join(frame)
    return frame.sort(ORDER, maintain_order=True) if any(isinstance(s, JoinStep) for s in steps) else frame


def records_frame(records: pa.Table) -> pl.DataFrame:
    """Records as a Polars frame, late ones left out: they are stored and counted, not aggregated."""
    return _frame(records).filter(~pl.col(LATE)).drop(LATE)


def _frame(records: pa.Table) -> pl.DataFrame:
    frame: Any = pl.from_arrow(records)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _empty(dataset: DatasetDef) -> pl.DataFrame:
    from featurelib.engine.records import record_schema

    return _frame(record_schema(dataset).empty_table())


def _assigned(step: AssignStep, frame: pl.DataFrame) -> pl.Series:
    """The column a step computes; null where a float is not finite or an integer left 64 bits.

    No aggregate and no wire has a place for infinity, and an integer that wrapped round is a wrong number.
    """
    value = frame.select(expression(step.value)).to_series()
    if value.dtype.is_float():
        kept = value.is_finite()
    elif value.dtype.is_integer():
        # Polars wraps silently, by multiples of 2^64; the same expression over floats shows the true size.
        size = frame.with_columns(cs.integer().cast(pl.Float64)).select(expression(step.value)).to_series()
        kept = (size - value.cast(pl.Float64)).abs() < _WRAPPED_BY
    else:
        return value.alias(step.column)
    return value.zip_with(kept.fill_null(value=False), pl.Series([None], dtype=value.dtype)).alias(step.column)
