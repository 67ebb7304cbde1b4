"""Expressions over a batch: a stored expression node becomes a column of a frame.

One evaluator serves the stream, the backfill and the point-in-time read. Nodes are computed one after the other, each
over whole columns: a column's values then tell at once whether a result can leave its type, and the exact way is only
taken where it can. Every result is of the type that :mod:`featurelib.inference` gives, and by the null rules of
:data:`featurelib.expr.FUNCTIONS`; nothing wraps round, no float is ever NaN or infinite.

A decimal column holds at most 20 digits before the point (:data:`DECIMAL_LIMIT`), so that it can be given any scale.
"""

from __future__ import annotations

import decimal
import math
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any, TypeAlias

import polars as pl
from pydantic import BaseModel

from featurelib.clock import SECOND, parse_duration
from featurelib.definitions import FieldDef
from featurelib.engine.coerce import DECIMAL_LIMIT, EARLIEST, LATEST, read_column
from featurelib.engine.json_paths import values_at
from featurelib.expr import (
    ArithNode,
    CallNode,
    ColumnNode,
    CompareNode,
    FillNullNode,
    IsNullNode,
    JsonExtractNode,
    LiteralNode,
    LogicNode,
    columns_of,
)
from featurelib.types import INT_MAX, INT_MIN

_Call: TypeAlias = Callable[[CallNode, pl.DataFrame], pl.Series]

INSTANT = pl.Datetime("us", "UTC")
_PRECISION = 38
_EXACT = decimal.Context(prec=120)
# From this size on a float has no fraction that a rounding could take away.
_WHOLE_FLOATS = 2.0**52
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_ARITH: dict[str, Callable[[Any, Any], Any]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_DECIMAL_ARITH = {"add": _EXACT.add, "sub": _EXACT.subtract, "mul": _EXACT.multiply}


def evaluate(node: BaseModel, frame: pl.DataFrame) -> pl.Series:
    """The value of an expression in every row of the frame."""
    return _EVALUATORS[type(node)](node, frame)


def condition(node: BaseModel, frame: pl.DataFrame) -> pl.Series:
    """Whether a condition holds, in every row of the frame; a null does not hold."""
    return _held(evaluate(node, frame))


def expression(node: BaseModel) -> pl.Expr:
    """:func:`evaluate` as a part of a Polars query."""
    names = sorted(columns_of(node))
    if not names:
        constant = evaluate(node, pl.DataFrame({"": [0]}))
        return pl.lit(constant[0], dtype=constant.dtype)
    return pl.map_batches([pl.col(name) for name in names], lambda columns: evaluate(node, pl.DataFrame(columns)))


def decimal_dtype(scale: int) -> pl.Decimal:
    """The Polars type of a decimal column."""
    return pl.Decimal(_PRECISION, scale)


# The nodes that are no call.


def _column(node: ColumnNode, frame: pl.DataFrame) -> pl.Series:
    series = frame[node.name]
    dtype = series.dtype
    if dtype.is_integer() and dtype != pl.Int64:
        return series.cast(pl.Int64, strict=False)
    return series.cast(pl.Float64) if dtype == pl.Float32 else series


def _literal(node: LiteralNode, frame: pl.DataFrame) -> pl.Series:
    return pl.Series("", [node.value], dtype=_LITERALS[type(node.value)]).new_from_index(0, len(frame))


def _arith(node: ArithNode, frame: pl.DataFrame) -> pl.Series:
    left, right = evaluate(node.left, frame), evaluate(node.right, frame)
    if node.op == "div":
        return _finite(left.cast(pl.Float64) / right.cast(pl.Float64))
    return _computed(node.op, left, right)


def _compare(node: CompareNode, frame: pl.DataFrame) -> pl.Series:
    left, right = _aligned([evaluate(node.left, frame), evaluate(node.right, frame)])
    return _held(_COMPARE[node.op](left, right))


def _logic(node: LogicNode, frame: pl.DataFrame) -> pl.Series:
    operands = [condition(operand, frame) for operand in node.operands]
    if node.op == "not":
        return ~operands[0]
    return reduce(operator.and_ if node.op == "and" else operator.or_, operands)


def _is_null(node: IsNullNode, frame: pl.DataFrame) -> pl.Series:
    return evaluate(node.operand, frame).is_null()


def _fill_null(node: FillNullNode, frame: pl.DataFrame) -> pl.Series:
    return _first_valid([evaluate(node.operand, frame), _literal(LiteralNode(value=node.default), frame)])


def _json_text(node: JsonExtractNode, frame: pl.DataFrame) -> pl.Series:
    # Each key in brackets: nothing in it is read as an array index or a wildcard.
    path = "$" + "".join(f"['{key}']" for key in node.path.split("."))
    return evaluate(node.operand, frame).str.json_path_match(path)


_LITERALS: dict[type, Any] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}


# What every result goes through.


def _only(series: pl.Series, keep: pl.Series) -> pl.Series:
    """The series with null where ``keep`` is not true."""
    return series.zip_with(keep, pl.Series([None], dtype=series.dtype).new_from_index(0, len(series)))


def _held(verdicts: pl.Series) -> pl.Series:
    # Asked first: filling takes Polars ten times as long as counting, and a column rarely has a null.
    return verdicts.fill_null(value=False) if verdicts.null_count() else verdicts


def _finite(series: pl.Series) -> pl.Series:
    # One sum tells of the whole column, since NaN and infinity stay in it.
    return series if math.isfinite(series.sum()) else _only(series, series.is_finite())


def _instants(micros: pl.Series) -> pl.Series:
    return _only(micros, micros.is_between(EARLIEST, LATEST)).cast(INSTANT)


def _within_limit(series: pl.Series) -> pl.Series:
    """The decimals with null for those of more than 20 digits before the point."""
    if all(abs(bound) < DECIMAL_LIMIT for bound in (series.min(), series.max()) if isinstance(bound, Decimal)):
        return series
    return _decimals([v if v is None or abs(v) < DECIMAL_LIMIT else None for v in series], _scale(series))


def _decimals(values: list[Decimal | None], scale: int) -> pl.Series:
    return pl.Series("", values, dtype=decimal_dtype(scale))


def _scale(series: pl.Series) -> int:
    return series.dtype.scale if isinstance(series.dtype, pl.Decimal) else 0


def _aligned(columns: Sequence[pl.Series]) -> list[pl.Series]:
    """The columns in their common type (:func:`featurelib.inference.common_type`)."""
    kinds = {column.dtype for column in columns}
    if len(kinds) == 1:
        return list(columns)
    if pl.Float64 in kinds:
        return [column.cast(pl.Float64) for column in columns]
    return [column.cast(decimal_dtype(max(map(_scale, columns)))) for column in columns]


def _computed(op: str, left: pl.Series, right: pl.Series) -> pl.Series:
    """``+ - *`` in the common type; null where the result leaves it."""
    scale = _scale(left) + _scale(right)
    left, right = _aligned([left, right])
    if left.dtype == pl.Float64:
        return _finite(_ARITH[op](left, right))
    corners = _corners(op, left, right)
    if left.dtype == pl.Int64:
        if all(INT_MIN <= corner <= INT_MAX for corner in corners):
            return _ARITH[op](left, right)  # type: ignore[no-any-return]
        return _ARITH[op](left.cast(pl.Int128), right.cast(pl.Int128)).cast(pl.Int64, strict=False)  # type: ignore[no-any-return]
    target = decimal_dtype(scale if op == "mul" else _scale(left))
    if all(abs(corner) < DECIMAL_LIMIT for corner in corners):
        return _ARITH[op](left.cast(target), right.cast(target))  # type: ignore[no-any-return]
    exact = _DECIMAL_ARITH[op]
    values = [None if a is None or b is None else exact(a, b) for a, b in zip(left, right, strict=True)]
    return _decimals([v if v is None or abs(v) < DECIMAL_LIMIT else None for v in values], target.scale)


def _corners(op: str, left: pl.Series, right: pl.Series) -> list[Any]:
    """The values between which every result lies: of sums, differences and products, those of the operands' bounds."""
    bounds: list[list[Any]] = [[side.min(), side.max()] for side in (left, right)]
    if bounds[0][0] is None or bounds[1][0] is None:
        return []
    compute = _ARITH[op] if left.dtype == pl.Int64 else _DECIMAL_ARITH[op]
    return [compute(a, b) for a in bounds[0] for b in bounds[1]]


def _first_valid(columns: Sequence[pl.Series]) -> pl.Series:
    return reduce(lambda above, below: above.zip_with(above.is_not_null(), below), _aligned(columns))


# Calls.


def _call(node: CallNode, frame: pl.DataFrame) -> pl.Series:
    return _CALLS[node.function](node, frame)


def _of_values(function: Callable[..., pl.Series]) -> _Call:
    """A call whose arguments are all columns."""
    return lambda node, frame: function(*(evaluate(each, frame) for each in node.args))


def _with_options(function: Callable[..., pl.Series]) -> _Call:
    """A call over one column; its further arguments are constants."""
    return lambda node, frame: function(evaluate(node.args[0], frame), *(each.value for each in node.args[1:]))  # type: ignore[union-attr]


def _with_text(function: Callable[[pl.Series, Any], pl.Series]) -> _Call:
    """A question about a text and another one, which is a constant or a column."""

    def call(node: CallNode, frame: pl.DataFrame) -> pl.Series:
        text, other = node.args
        return _held(
            function(evaluate(text, frame), other.value if isinstance(other, LiteralNode) else evaluate(other, frame))
        )

    return call


def _neg(series: pl.Series) -> pl.Series:
    zeros = pl.Series("", [0]).cast(series.dtype).new_from_index(0, len(series))
    return _computed("sub", zeros, series)


def _abs(series: pl.Series) -> pl.Series:
    return _only(series, series != INT_MIN).abs() if series.dtype == pl.Int64 else series.abs()


def _floor_div(left: pl.Series, right: pl.Series) -> pl.Series:
    left, right = _aligned([left, right])
    if left.dtype == pl.Float64:
        return _finite((left / right).floor())
    # The one quotient that 64 bits do not hold.
    fits = (left != INT_MIN) | (right != -1)
    return _only(left, fits) // right


def _mod(left: pl.Series, right: pl.Series) -> pl.Series:
    left, right = _aligned([left, right])
    if left.dtype == pl.Float64:
        return _finite(left - (left / right).floor() * right)
    return left % right


def _pow(left: pl.Series, right: pl.Series) -> pl.Series:
    return _finite(left.cast(pl.Float64).pow(right.cast(pl.Float64)))


def _round(series: pl.Series, digits: int) -> pl.Series:
    if series.dtype == pl.Int64:
        return series
    if isinstance(series.dtype, pl.Decimal):
        return _within_limit(series.round(digits).cast(decimal_dtype(min(digits, _scale(series)))))
    scaled = series * 10.0**digits
    return (scaled.round(0, mode="half_to_even") / 10.0**digits).zip_with(scaled.abs() < _WHOLE_FLOATS, series)


def _floor(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Float64:
        return series.floor().cast(pl.Int64, strict=False)
    return _stepped(series, operator.gt, -1)


def _ceil(series: pl.Series) -> pl.Series:
    if series.dtype == pl.Float64:
        return series.ceil().cast(pl.Int64, strict=False)
    return _stepped(series, operator.lt, 1)


def _stepped(series: pl.Series, beyond: Callable[[Any, Any], Any], step: int) -> pl.Series:
    """Whole numbers of an int or decimal column; where cutting the fraction went the wrong way, one step further."""
    if series.dtype == pl.Int64:
        return series
    whole = series.cast(pl.Int64, strict=False)
    off = _held(beyond(whole.cast(series.dtype), series))
    return _computed("add", whole, off.cast(pl.Int64) * step)


def _float_function(name: str) -> _Call:
    return _of_values(lambda series: _finite(getattr(series.cast(pl.Float64), name)()))


def _clip(series: pl.Series, low: pl.Series, high: pl.Series) -> pl.Series:
    return _chosen(operator.le)(_chosen(operator.ge)(series, low), high)


def _chosen(better: Callable[[Any, Any], Any]) -> Callable[..., pl.Series]:
    def pair(left: pl.Series, right: pl.Series) -> pl.Series:
        return _only(left.zip_with(better(left, right), right), left.is_not_null() & right.is_not_null())

    return lambda *columns: reduce(pair, _aligned(columns))


def _to_int(series: pl.Series) -> pl.Series:
    return _read(series, "int") if series.dtype == pl.String else series.cast(pl.Int64, strict=False)


def _to_float(series: pl.Series) -> pl.Series:
    return _read(series, "float") if series.dtype == pl.String else series.cast(pl.Float64)


def _to_decimal(series: pl.Series, scale: int) -> pl.Series:
    if series.dtype in {pl.String, pl.Float64}:
        return _read(series, f"decimal({scale})")
    cast = series.cast(decimal_dtype(scale))
    return cast if scale >= _scale(series) else _only(cast, cast.cast(series.dtype) == series)


def _to_str(series: pl.Series) -> pl.Series:
    if series.dtype != INSTANT:
        return series.cast(pl.String)
    whole = series.dt.to_string("%Y-%m-%dT%H:%M:%SZ")
    return whole.zip_with(_held(series.dt.microsecond() == 0), series.dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ"))


def _to_datetime(series: pl.Series) -> pl.Series:
    return series if series.dtype == INSTANT else _read(series, "datetime")


def _read(series: pl.Series, type_name: str) -> pl.Series:
    """The values as the door of a dataset would read them; null where it would refuse."""
    made: Any = pl.from_arrow(read_column(series.to_arrow(), FieldDef(name="x", type=type_name, optional=True)))
    return made  # type: ignore[no-any-return]


def _length(series: pl.Series) -> pl.Series:
    return (series.str.len_chars() if series.dtype == pl.String else series.list.len()).cast(pl.Int64)


def _matches(series: pl.Series, pattern: str) -> pl.Series:
    # Not strict: a pattern that only this library refuses matches nothing, rather than to end the batch.
    return _held(series.str.contains(rf"\A(?:{pattern})\z", strict=False))


def _replace(series: pl.Series, old: str, new: str) -> pl.Series:
    return series.str.replace_all(old, new, literal=True)


def _part_of_time(name: str) -> _Call:
    return _of_values(lambda series: getattr(series.dt, name)().cast(pl.Int64))


def _truncate(series: pl.Series, every: str) -> pl.Series:
    size = parse_duration(every)
    return _instants(series.cast(pl.Int64) // size * size)


def _plus(series: pl.Series, duration: str) -> pl.Series:
    return _instants(series.cast(pl.Int64) + parse_duration(duration))


def _minus(series: pl.Series, duration: str) -> pl.Series:
    return _instants(series.cast(pl.Int64) - parse_duration(duration))


def _seconds_since(later: pl.Series, earlier: pl.Series) -> pl.Series:
    return (later.cast(pl.Int64) - earlier.cast(pl.Int64)) / SECOND


def _epoch_seconds(series: pl.Series) -> pl.Series:
    return series.cast(pl.Int64) / SECOND


def _when(node: CallNode, frame: pl.DataFrame) -> pl.Series:
    pairs = len(node.args) // 2
    conditions = [condition(node.args[2 * n], frame) for n in range(pairs)]
    values = _aligned([evaluate(node.args[2 * n + 1], frame) for n in range(pairs)] + _otherwise(node, frame))
    if len(values) == pairs:
        values.append(pl.Series([None], dtype=values[0].dtype).new_from_index(0, len(frame)))
    result = values[-1]
    for holds, value in zip(reversed(conditions), reversed(values[:-1]), strict=True):
        result = value.zip_with(holds, result)
    return result


def _otherwise(node: CallNode, frame: pl.DataFrame) -> list[pl.Series]:
    return [evaluate(node.args[-1], frame)] if len(node.args) % 2 else []


def _is_in(node: CallNode, frame: pl.DataFrame) -> pl.Series:
    one_row = pl.DataFrame({"": [0]})
    constants = pl.concat(_aligned([evaluate(each, one_row) for each in node.args[1:]]))
    value, constants = _aligned([evaluate(node.args[0], frame), constants])
    return _held(value.is_in(constants.drop_nulls().implode()))


def _between(value: pl.Series, low: pl.Series, high: pl.Series) -> pl.Series:
    value, low, high = _aligned([value, low, high])
    return _held((value >= low) & (value <= high))


def _json_typed(series: pl.Series, path: str, type_name: str) -> pl.Series:
    return pl.Series("", values_at(series, path.split("."), type_name), dtype=_JSON[type_name])


_JSON: dict[str, Any] = {"str": pl.String, "int": pl.Int64, "float": pl.Float64, "bool": pl.Boolean}

_CALLS: dict[str, _Call] = {
    "neg": _of_values(_neg),
    "floor_div": _of_values(_floor_div),
    "mod": _of_values(_mod),
    "pow": _of_values(_pow),
    "abs": _of_values(_abs),
    "round": _with_options(_round),
    "floor": _of_values(_floor),
    "ceil": _of_values(_ceil),
    "sqrt": _float_function("sqrt"),
    "log": _float_function("log"),
    "exp": _float_function("exp"),
    "clip": _of_values(_clip),
    "least": _of_values(_chosen(operator.le)),
    "greatest": _of_values(_chosen(operator.ge)),
    "to_int": _of_values(_to_int),
    "to_float": _of_values(_to_float),
    "to_decimal": _with_options(_to_decimal),
    "to_str": _of_values(_to_str),
    "to_datetime": _of_values(_to_datetime),
    "lower": _of_values(lambda series: series.str.to_lowercase()),
    "upper": _of_values(lambda series: series.str.to_uppercase()),
    "strip": _of_values(lambda series: series.str.strip_chars()),
    "length": _of_values(_length),
    "contains": _with_text(lambda series, other: series.str.contains(other, literal=True)),
    "starts_with": _with_text(lambda series, other: series.str.starts_with(other)),
    "ends_with": _with_text(lambda series, other: series.str.ends_with(other)),
    "matches": _with_options(_matches),
    "replace": _with_options(_replace),
    "slice": _with_options(lambda series, offset, length=None: series.str.slice(offset, length)),
    "concat": _of_values(lambda *texts: reduce(operator.add, texts)),
    "split": _with_options(lambda series, by: series.str.split(by)),
    **{name: _part_of_time(name) for name in ("year", "month", "day", "hour", "minute", "second", "weekday")},
    "truncate": _with_options(_truncate),
    "seconds_since": _of_values(_seconds_since),
    "epoch_seconds": _of_values(_epoch_seconds),
    "plus": _with_options(_plus),
    "minus": _with_options(_minus),
    "when": _when,
    "coalesce": _of_values(lambda *columns: _first_valid(columns)),
    "is_in": _is_in,
    "between": _of_values(_between),
    "json_extract": _with_options(_json_typed),
}

_EVALUATORS: dict[type[BaseModel], Callable[[Any, pl.DataFrame], pl.Series]] = {
    ColumnNode: _column,
    LiteralNode: _literal,
    ArithNode: _arith,
    CompareNode: _compare,
    LogicNode: _logic,
    IsNullNode: _is_null,
    FillNullNode: _fill_null,
    JsonExtractNode: _json_text,
    CallNode: _call,
}
