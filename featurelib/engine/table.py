"""Features of many rows as a table: columns in the engine's form, as the wire shows them, and as Arrow.

Arrow types are those of the values behind the features: the declared ones, except where a column of a pipeline gives
lists though its dataset declares a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from featurelib.clock import Instant
from featurelib.engine.extract import Slot
from featurelib.engine.nested import holds_nested, nested_array, nested_values
from featurelib.engine.read_plan import ReadPlan
from featurelib.engine.records import arrow_type
from featurelib.engine.values import shown
from featurelib.types import Value, element_type, is_nested

ENTITY_ID, TIMESTAMP = "entity_id", "timestamp"
_INSTANT = pa.timestamp("us", tz="UTC")
_STORED = {_INSTANT: pa.int64(), pa.list_(_INSTANT): pa.list_(pa.int64())}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows read for many entities, in the order asked.

    ``columns`` are of the features, in the engine's form. ``instants`` is ``None`` where all rows are of one instant,
    which then no column says.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    keys: Sequence[str]
    instants: Sequence[Instant] | None
    columns: Sequence[Sequence[Value]]

    @classmethod
    def of(
        cls,
        plan: ReadPlan,
        keys: Sequence[str],
        columns: Sequence[Sequence[Value]],
        instants: Sequence[Instant] | None = None,
    ) -> Table:
        """A table of a plan's own features; ``columns`` may be all of its slots."""
        names = plan.feature_names
        return cls(names, feature_types(plan), keys, instants, columns[: len(names)])

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    @property
    def hits(self) -> int:
        """Rows with every feature non-null (decision 25)."""
        return sum(None not in row for row in zip(*self.columns, strict=True)) if self.columns else len(self.keys)

    def rows(self, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
        """The features of some rows, as the wire shows them."""
        parts = [_shown(kind, column[start:stop]) for kind, column in zip(self.types, self.columns, strict=True)]
        return zip(*parts, strict=True) if parts else iter([()] * len(self.keys[start:stop]))

    def features(self) -> pa.Table:
        """The features as an Arrow table."""
        columns = [arrow_column(kind, column) for kind, column in zip(self.types, self.columns, strict=True)]
        return pa.table(columns, names=list(self.names))

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table: ``entity_id``, ``timestamp`` where rows differ in it, and the features."""
        instants = None if self.instants is None else pa.array(self.instants, pa.int64())
        return with_rows_named(self.features(), pa.array(self.keys, pa.string()), instants)


def with_rows_named(features: pa.Table, keys: pa.Array, instants: pa.Array | None) -> pa.Table:
    """Features behind ``entity_id`` and ``timestamp``; a feature of one of these names stands for itself.

    Args:
        features: an Arrow column each.
        keys: key texts.
        instants: µs; ``None``: without a ``timestamp``.
    """
    leading = {ENTITY_ID: keys} if instants is None else {ENTITY_ID: keys, TIMESTAMP: instants.cast(_INSTANT)}
    own = {name: column for name, column in leading.items() if name not in features.column_names}
    return pa.table({**own, **dict(zip(features.column_names, features.columns, strict=True))})


def in_engine_form(column: pa.ChunkedArray) -> list[Value]:
    """The values of an Arrow column that :func:`arrow_column` made."""
    if holds_nested(column.type):
        return nested_values(column)
    stored = _STORED.get(column.type)
    values: list[Value] = (column if stored is None else column.cast(stored)).to_pylist()
    return values


def feature_types(plan: ReadPlan) -> tuple[str, ...]:
    """The types of the values of a plan's own features."""
    return tuple(_held_type(slot, plan) for slot in plan.graph.slots[: len(plan.feature_names)])


def _held_type(slot: Slot, plan: ReadPlan) -> str:
    lookup, declared = slot.feature.lookup, slot.feature.type
    if lookup is None:
        return declared
    view = next(view for view in plan.views if view.dataset.name == lookup.dataset)
    made = view.program.fold.output_types.get(lookup.field, declared)
    return made if element_type(made) and not element_type(declared) else declared


def arrow_column(type_name: str, values: Sequence[Value]) -> pa.Array:
    """A column of a declared type, from values in the engine's form."""
    if is_nested(type_name):
        return nested_array(type_name, values)
    kind = arrow_type(type_name)
    # Built first and cast then: Arrow builds an int of 3.5 without a word, and refuses to cast it.
    try:
        return pa.array(values).cast(_STORED.get(kind, kind)).cast(kind)
    except (pa.ArrowException, OverflowError):
        return _undeclared(values)


def arrow_series(type_name: str, column: pl.Series, values: Callable[[pl.Series], Sequence[Value]]) -> pa.Array:
    """As :func:`arrow_column`, from a column of the engine; ``values`` gives it in the engine's form where need be."""
    if is_nested(type_name):
        return arrow_column(type_name, values(column))
    kind = arrow_type(type_name)
    try:
        return column.to_arrow().cast(_STORED.get(kind, kind)).cast(kind)
    except (pa.ArrowException, OverflowError):
        return arrow_column(type_name, values(column))


def _undeclared(values: Sequence[Value]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _shown(type_name: str, values: Sequence[Value]) -> Sequence[Value]:
    form = shown(type_name)
    return values if form is None else [form(value) for value in values]
