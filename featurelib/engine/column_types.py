"""Column types and Polars types."""

from __future__ import annotations

from functools import lru_cache

import polars as pl

from featurelib.engine.batch import INSTANT
from featurelib.types import decimal_scale, element_type, members_of, value_type


def column_types(frame: pl.DataFrame) -> dict[str, str]:
    """Type names of a frame's columns."""
    return {name: _type_name(kind) for name, kind in frame.schema.items()}


def _type_name(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List):
        return f"list[{_type_name(kind.inner)}]"  # type: ignore[arg-type]
    if isinstance(kind, pl.Decimal):
        return f"decimal({kind.scale})"
    if kind.is_integer():
        return "int"
    if kind.is_float():
        return "float"
    if kind == pl.Boolean:
        return "bool"
    return "datetime" if kind.is_temporal() else "str"


@lru_cache(maxsize=64)
def polars_type(type_name: str) -> pl.DataType:
    """The Polars type of a column type; Polars has maps as lists of entries, as it reads those of Arrow."""
    inner, scale = element_type(type_name), decimal_scale(type_name)
    if inner is not None:
        return pl.List(polars_type(inner))
    value, members = value_type(type_name), members_of(type_name)
    if value is not None:
        return pl.List(pl.Struct({"key": pl.String(), "value": polars_type(value)}))
    if members is not None:
        return pl.Struct({name: polars_type(kind) for name, kind in members})
    return _SCALARS[type_name] if scale is None else pl.Decimal(38, scale)


_SCALARS: dict[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "str": pl.String(),
    "bool": pl.Boolean(),
    "datetime": INSTANT,
}
