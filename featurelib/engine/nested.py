"""Maps and structs as columns of Arrow, from values in the engine's form and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa

from featurelib.clock import parse_instant
from featurelib.engine.column_types import polars_type
from featurelib.engine.records import arrow_type
from featurelib.types import Value, element_type, members_of, value_type


def nested_array(type_name: str, values: Sequence[Value]) -> pa.Array:
    """A column of a nested type, from values that were cast to it."""
    return pa.array([_entered(type_name, value) for value in values], arrow_type(type_name))


def nested_series(name: str, type_name: str, values: Sequence[Value]) -> pl.Series:
    """The same as a Series; its maps are lists of entries, of ``key`` and ``value``."""
    column: Any = pl.from_arrow(nested_array(type_name, values))
    return pl.Series(name, column, polars_type(type_name))


def holds_nested(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are, or are lists of, maps, structs or lists."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_nested(kind.value_type))
    return bool(pa.types.is_struct(kind) or pa.types.is_map(kind))


def nested_values(column: pa.ChunkedArray) -> list[Value]:
    """The values of a column that :func:`nested_array` made, in the engine's form."""
    return [_left(value) for value in column.to_pylist(maps_as_pydicts="strict")]


def _entered(type_name: str, value: Value) -> Any:
    """A value as Arrow builds it: it takes maps as pairs."""
    if value is None:
        return None
    element, inner, members = element_type(type_name), value_type(type_name), members_of(type_name)
    if element is not None:
        return [_entered(element, each) for each in value]
    if inner is not None:
        return [(name, _entered(inner, each)) for name, each in value.items()]
    return {name: _entered(kind, value.get(name)) for name, kind in members} if members else value


def _left(value: Any) -> Value:
    if isinstance(value, dict):
        return {name: _left(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_left(each) for each in value]
    return parse_instant(value) if isinstance(value, datetime) else value
