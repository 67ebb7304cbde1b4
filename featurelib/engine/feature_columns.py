"""The features of many rows column by column: for all rows at once what :meth:`ReadPlan.fill` does for one.

A column is a Series, as :func:`~featurelib.engine.asof.evaluate` makes it, as long as nobody needs its values one by
one; casts, defaults of another type and extractors do, and make it a list of values in the engine's form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from featurelib.clock import Instant
from featurelib.engine.asof import KNOWN
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.read_plan import Entity, Filled, ReadPlan, View
from featurelib.engine.slices import Bools, Ints
from featurelib.engine.spine import Rows, in_micros, looked_up
from featurelib.engine.table import arrow_column, arrow_series, feature_types
from featurelib.types import Value

Column = pl.Series | list[Value]

Frames = Callable[[View, pl.Series, Ints], pl.DataFrame]
"""Gives a view's rows of key texts, each at its instant: ``__known`` and the outputs, as ``evaluate`` does."""

# Rows whose values are held as Python objects at once, for extractors: of 50 features some 300 MB.
_ROWS_OF_VALUES = 50_000


class Asking(NamedTuple):
    """The rows of a spine.

    Attributes:
        entities: each once.
        code: per row, which of them.
        at: per row its instant, µs.
        requested: by slot the request features' values, one per row.
    """

    entities: Sequence[Entity]
    code: Ints
    at: Ints
    requested: Mapping[int, list[Value]]

    def keys(self) -> pl.Series:
        """Key texts, one per row."""
        return pl.Series([entity.key for entity in self.entities], dtype=pl.String).gather(pl.Series(self.code))


def feature_table(plan: ReadPlan, asking: Asking, frames: Frames, rows_looked_up: Rows) -> pa.Table:
    """The featureset's own features, an Arrow column each, in declared order.

    Args:
        plan: the featureset.
        asking: the spine.
        frames: gives the rows of the plan's views.
        rows_looked_up: gives those that extractors look up themselves.

    Raises:
        InvalidRequest: an id is not of the type a featureset this one depends on gives it.
        UserCodeError: an extractor failed, for whichever row.
    """
    columns = _filled(plan, asking, frames)
    if not plan.graph.touched:
        return _arrow(plan, columns)
    parts = [
        _extracted(plan, [column[start : start + _ROWS_OF_VALUES] for column in columns], at, rows_looked_up)
        for start in range(0, max(1, len(asking.at)), _ROWS_OF_VALUES)
        for at in [asking.at[start : start + _ROWS_OF_VALUES].tolist()]
    ]
    return pa.concat_tables(parts, promote_options="permissive")


def _filled(plan: ReadPlan, asking: Asking, frames: Frames) -> list[Column]:
    """One column per slot, with everything in them that needs no extractor."""
    columns: dict[int, Column] = dict(asking.requested)
    entities = [plan.values(entity, ()) for entity in asking.entities]
    for slot in plan.entity_slots:
        columns[slot] = _of_rows([values[slot] for values in entities], asking.code)
    keys = asking.keys()
    for view, fills in plan.fills():
        frame = frames(view, keys, asking.at)
        known = frame[KNOWN].to_numpy()
        for fill in fills:
            held = _held(fill, asking, frame)
            columns[fill.slot] = held if known.all() else _where(known, held, plan.default(fill.slot))
    count, slots = len(asking.at), range(len(plan.graph.slots))
    return [columns[slot] if slot in columns else list(repeat(plan.default(slot), count)) for slot in slots]


def _of_rows(values: Sequence[Value], code: Ints) -> Column:
    """The value of each row's entity."""
    kinds = {type(value) for value in values}
    if kinds <= {str} or kinds <= {int}:
        return pl.Series(values, dtype=pl.String if kinds == {str} else pl.Int64).gather(pl.Series(code))
    return [values[number] for number in code.tolist()]


def _held(fill: Filled, asking: Asking, frame: pl.DataFrame) -> Column:
    """What a known row gives for a feature."""
    if fill.column is None:
        return _of_rows([fill.value(entity.value) for entity in asking.entities], asking.code)
    column = frame[fill.column]
    return column if fill.cast is None else [fill.value(value) for value in _values(column)]


def _where(known: Bools, column: Column, default: Value) -> Column:
    """The column, and the default where a row is unknown."""
    if isinstance(column, pl.Series) and (default is None or _is_of(default, column.dtype)):
        other = pl.Series([default], dtype=column.dtype)
        return column.zip_with(pl.Series(known), other)
    pairs = zip(_values(column), known.tolist(), strict=True)
    return [value if had else default for value, had in pairs]


def _is_of(value: Value, kind: pl.DataType) -> bool:
    python = {pl.Int64: int, pl.Float64: float, pl.String: str, pl.Boolean: bool}.get(type(kind))
    return type(value) is python


def _values(column: Column) -> list[Value]:
    """The values in the engine's form."""
    if isinstance(column, list):
        return column
    values: list[Value] = in_micros(column.to_frame("held"))["held"].to_list()
    return values


def _extracted(plan: ReadPlan, columns: Sequence[Column], at: Sequence[Instant], rows: Rows) -> pa.Table:
    """Some rows with what extractors make of them."""
    values = [_values(column) if slot in plan.graph.touched else [] for slot, column in enumerate(columns)]
    batch = plan.graph.batch(values, at)
    fetched: Mapping[Wanted, Row] = {}
    while (wanted := batch.turn(fetched)) is not None:
        fetched = {**fetched, **looked_up(plan, wanted, rows)} if wanted else fetched
    made = [values[slot] if slot in plan.graph.touched else column for slot, column in enumerate(columns)]
    return _arrow(plan, made)


def _arrow(plan: ReadPlan, columns: Sequence[Column]) -> pa.Table:
    names = plan.feature_names
    arrays = [
        arrow_series(kind, column, _values) if isinstance(column, pl.Series) else arrow_column(kind, column)
        for kind, column in zip(feature_types(plan), columns[: len(names)], strict=True)
    ]
    return pa.table(arrays, names=list(names))


def complete_rows(features: pa.Table) -> int:
    """Rows with every feature non-null (decision 25)."""
    whole = np.ones(len(features), dtype=np.bool_)
    for column in features.columns:
        if column.null_count:
            whole &= column.is_valid().to_numpy()
    return int(whole.sum())
