"""The steps of a pipeline that need no memory of their own, over a frame of rows; and the right side of a join.

A row of a frame has the user's columns and five of the engine's:

    __time         event time, µs
    __accepted_at  when the log accepted the record, µs
    __place        log partition and offset in one integer
    __sub          what tells apart rows made of one record; empty for the record itself
    __until        from this instant on the row no longer counts; null: it counts for ever

The first four are its identity and its place in the total order (decision 8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

import polars as pl
import pyarrow as pa

from featurelib.definitions import (
    AssignStep,
    DatasetDef,
    DropStep,
    ExplodeStep,
    FilterCodeStep,
    FilterStep,
    JoinStep,
    PyCode,
    RenameStep,
    SelectStep,
    Step,
    TransformStep,
)
from featurelib.engine.batch import condition, evaluate
from featurelib.engine.frames import frame_of, where
from featurelib.engine.keys import key_texts
from featurelib.engine.records import ACCEPTED_AT, DELETED, ERASED, LATE, OFFSET, PARTITION, TIME, record_schema

if TYPE_CHECKING:
    from featurelib.engine.user_code import Guard, UserFunction

PLACE, SUB, UNTIL = "__place", "__sub", "__until"
IDENTITY = (TIME, ACCEPTED_AT, PLACE, SUB)
"""Identity of a row, and the total order of rows."""
ENGINE_COLUMNS = (*IDENTITY, UNTIL)
# A row's place is its log partition and offset in one integer: partitions stay below 2^15, offsets below 2^48.
PLACE_BITS = 48
# A function over a batch of some thousand rows is interrupted after the first, and never called again after the second.
_LIMITS_S = (5.0, 15.0)
_RIGHT_KEY, _RIGHT_TIME, _RIGHT_UNTIL = "__right_key", "__right_time", "__right_until"
_NOT_OF_ROWS = {LATE, PARTITION, OFFSET, ERASED, DELETED}
_NO_SUB = pl.Series(SUB, [""], dtype=pl.String)
_NO_END = pl.Series(UNTIL, [None], dtype=pl.Int64)
_RIGHT_ORDER = [_RIGHT_TIME, ACCEPTED_AT, PLACE, SUB]


def source_rows(records: pa.Table) -> pl.DataFrame:
    """Records as rows, tombstones included (column ``__deleted``); late ones are stored and counted, not aggregated."""
    flags = records[DELETED] if DELETED in records.column_names else pa.nulls(len(records), pa.bool_())
    return _rows(records, pl.Series(DELETED, flags).fill_null(value=False))


def left_rows(records: pa.Table) -> pl.DataFrame:
    """Records of an append-only dataset as rows."""
    return _rows(records)


def _rows(records: pa.Table, *more: pl.Series) -> pl.DataFrame:
    frame = frame_of(records)
    own = [frame[name] for name in frame.columns if name not in _NOT_OF_ROWS]
    place = frame[PARTITION].cast(pl.Int64) * (1 << PLACE_BITS) + frame[OFFSET]
    rows = len(frame)
    made = [place.alias(PLACE), _NO_SUB.new_from_index(0, rows), _NO_END.new_from_index(0, rows)]
    return where(pl.DataFrame([*own, *made, *more]), ~frame[LATE])


class UserFailure(NamedTuple):
    """A row that a user's function could not take: it is left out, and said."""

    function: str
    time: int
    place: int
    message: str


class RightTable:
    """The right side of a join: every row seen so far, newest last.

    Immutable: :meth:`changed` gives a new table, so that "before" and "after" can be compared.
    """

    def __init__(self, step: JoinStep, key: str, frame: pl.DataFrame) -> None:
        self.step = step
        self._key = key
        self.frame = frame

    @classmethod
    def empty(cls, step: JoinStep, dataset: DatasetDef) -> RightTable:
        """The right side before any record of the dataset."""
        table = cls(step, dataset.key.name, pl.DataFrame())
        table.frame = table.select(source_rows(record_schema(dataset).empty_table()))
        return table

    def with_records(self, records: pa.Table) -> RightTable:
        """The table with more right records in it."""
        return self.changed(None, source_rows(records))

    def changed(self, removed: pl.DataFrame | None, added: pl.DataFrame) -> RightTable:
        """The table without some rows and with others."""
        frame = self.frame
        if removed is not None and len(removed):
            frame = frame.join(self.select(removed), on=_RIGHT_ORDER, how="anti")
        if len(added):
            frame = pl.concat([frame, self.select(added)]).sort(_RIGHT_ORDER)
        return RightTable(self.step, self._key, frame)

    def without(self, keys: Sequence[str], partition: int, below: int) -> tuple[RightTable, int | None]:
        """The table without what a log partition holds of some keys below an offset, and its earliest event time.

        ``None``: there is nothing of theirs.
        """
        first = partition << PLACE_BITS
        erased = key_texts([self.frame[_RIGHT_KEY]]).is_in(list(keys))
        erased &= self.frame[PLACE].is_between(first, first + below, closed="left")
        earliest = self.frame.filter(erased)[_RIGHT_TIME].min()
        return RightTable(self.step, self._key, self.frame.filter(~erased)), cast("int | None", earliest)

    def differs_since(self, other: RightTable) -> int | None:
        """Earliest event time of a row that only one of the two tables has; ``None``: they are alike."""
        ours, theirs = self.frame, other.frame
        apart = [ours.join(theirs, on=_RIGHT_ORDER, how="anti"), theirs.join(ours, on=_RIGHT_ORDER, how="anti")]
        return cast("int | None", pl.concat([rows[_RIGHT_TIME] for rows in apart]).min())

    def select(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What the table keeps of right rows."""
        # A tombstone is a version that gives nothing: it ends as it begins.
        until = pl.col(UNTIL)
        if DELETED in rows.columns:
            until = pl.when(pl.col(DELETED)).then(pl.col(TIME)).otherwise(until)
        return rows.select(
            pl.col(self._key).alias(_RIGHT_KEY),
            pl.col(TIME).alias(_RIGHT_TIME),
            *(ACCEPTED_AT, PLACE, SUB),
            until.alias(_RIGHT_UNTIL),
            *self.step.fields,
        )

    def join(self, left: pl.DataFrame) -> pl.DataFrame:
        """Each left row with the newest right row of its key whose event time is not after the left's."""
        fields = self.step.fields
        kept = left.drop([name for name in fields if name in left.columns])
        # Of right rows with the same time, the newest in the total order.
        right = self.frame.unique([_RIGHT_KEY, _RIGHT_TIME], keep="last", maintain_order=True)
        joined = kept.sort(TIME, maintain_order=True).join_asof(
            right.drop(ACCEPTED_AT, PLACE, SUB).with_columns(pl.col(_RIGHT_TIME).alias("__matched_time")),
            left_on=TIME,
            right_on=_RIGHT_TIME,
            by_left=self.step.on,
            by_right=_RIGHT_KEY,
            strategy="backward",
            check_sortedness=False,  # both sides are sorted just above; Polars cannot know it per group
        )
        holds = pl.col(_RIGHT_UNTIL).is_null() | (pl.col(_RIGHT_UNTIL) > pl.col(TIME))
        if self.step.within_us is not None:
            holds &= pl.col(TIME) - pl.col("__matched_time") <= self.step.within_us
        given = [pl.when(holds).then(pl.col(name)).alias(name) for name in fields]
        return joined.with_columns(given).drop(_RIGHT_TIME, _RIGHT_UNTIL, "__matched_time", strict=False)

    def touched_since(self, changed: pl.DataFrame, left: pl.DataFrame) -> pl.DataFrame:
        """The left rows whose right side may differ once these right rows come or go."""
        since = changed.group_by(pl.col(self._key).alias(self.step.on)).agg(pl.col(TIME).min().alias("__since"))
        return left.join(since, on=self.step.on, how="inner").filter(pl.col(TIME) >= pl.col("__since")).drop("__since")


def run_steps(
    frame: pl.DataFrame,
    steps: tuple[Step, ...],
    rights: Mapping[str, RightTable],
    failures: list[UserFailure] | None = None,
) -> pl.DataFrame:
    """Apply steps without memory, in declared order; ``rights`` by the right dataset's name."""
    for step in steps:
        frame = rights[step.right].join(frame) if isinstance(step, JoinStep) else run_step(frame, step, failures)
    joined = any(isinstance(step, JoinStep) for step in steps)
    return frame.sort(IDENTITY, maintain_order=True) if joined else frame


def run_step(  # noqa: PLR0911  # a table
    frame: pl.DataFrame, step: Step, failures: list[UserFailure] | None = None
) -> pl.DataFrame:
    """One step that needs neither memory nor another dataset.

    Args:
        frame: rows.
        step: the step.
        failures: gets the rows that a user's function could not take; they are left out of the result.
    """
    match step:
        case FilterStep():
            return frame.filter(condition(step.predicate, frame))
        case AssignStep():
            return frame.with_columns(evaluate(step.value, frame).alias(step.column))
        case RenameStep():
            return frame.rename(dict(step.columns))
        case SelectStep():
            return frame.select(*step.columns, *(c for c in ENGINE_COLUMNS if c not in step.columns))
        case DropStep():
            return frame.drop(step.columns)
        case ExplodeStep():
            return _exploded(frame, step.column)
        case FilterCodeStep() | TransformStep():
            return _user_step(frame, step, failures)
        case _:
            message = f"{step.op} is not a step without memory"
            raise TypeError(message)


def is_stateless(step: Step) -> bool:
    """Whether :func:`run_step` takes the step."""
    kinds = (FilterStep, AssignStep, RenameStep, SelectStep, DropStep, ExplodeStep, FilterCodeStep, TransformStep)
    return isinstance(step, kinds)


def _user_step(
    frame: pl.DataFrame, step: FilterCodeStep | TransformStep, failures: list[UserFailure] | None
) -> pl.DataFrame:
    from featurelib.engine.user_frames import keep, transform

    function = _loaded(step.code)
    result = keep(frame, step, function) if isinstance(step, FilterCodeStep) else transform(frame, step, function)
    if failures is not None:
        failures.extend(
            UserFailure(step.code.entry_point, frame[TIME][row], frame[PLACE][row], message)
            for row, message in result.failed
        )
    return result.frame


@lru_cache(maxsize=256)
def _loaded(code: PyCode) -> UserFunction:
    # Worker and backfill run a function for every batch; its module is executed once.
    from featurelib.engine.user_code import load

    return load(code, code.entry_point, guard=_guard())


@lru_cache(maxsize=1)
def _guard() -> Guard:
    from featurelib.engine.user_code import Guard, Limits

    return Guard(Limits(*_LIMITS_S))


def _exploded(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    # An element's position tells it from its siblings; it goes on what told the row from its own.
    filled = frame.filter(pl.col(column).list.len() > 0)
    numbered = filled.with_columns(pl.int_ranges(pl.col(column).list.len()).alias("__element"))
    rows = numbered.explode([column, "__element"])
    # Padded: as text, element 10 comes after element 9 too.
    sub = pl.concat_str(pl.col(SUB), pl.lit("."), pl.col("__element").cast(pl.String).str.zfill(6))
    return rows.with_columns(sub.alias(SUB)).drop("__element")
