"""Aggregates as users write them and as they are stored: the same frozen values.

``Sum(of="amount", window="7d", where=col("ok") == True)`` inside ``.aggregate(total=...)``. What an
aggregate computes lives in :mod:`featurelib.engine.aggregators`; here is only what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from featurelib.clock import SECOND, parse_duration
from featurelib.expr import Column, Expr, Named, Node, shown
from featurelib.types import Scalar, Value, decimal_scale, element_type
from featurelib.windows import AnyWindow, Lifetime, Window, parse_window


class Default(BaseModel):
    """The value an empty window gives instead of the aggregate's own (``None`` included).

    A decimal is held as its text, a list as a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Scalar | tuple[Scalar | None, ...] | None

    def as_value(self, type_name: str) -> Value:
        """The value as a column of that type holds it."""
        inner = element_type(type_name)
        if isinstance(self.value, tuple):
            return [_as_scalar(item, inner or type_name) for item in self.value]
        return _as_scalar(self.value, type_name)


def _as_scalar(value: Scalar | None, type_name: str) -> Value:
    if value is None:
        return None
    scale = decimal_scale(type_name)
    if scale is not None:
        return Decimal(str(value)).quantize(Decimal(1).scaleb(-scale))
    return float(value) if type_name == "float" else value


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()
"""Marks an argument nobody gave, where ``None`` is a value of its own."""


WindowLike = str | AnyWindow | dict[str, Any]


if TYPE_CHECKING:

    class _Stored:
        """What type checkers see of ``BaseModel``: not the constructor that they would make of each class's fields."""

        model_fields: ClassVar[dict[str, Any]]

        def __init__(self, **fields: Any) -> None: ...
        def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...
        def model_dump(self, *, mode: str = "python", exclude: set[str] | None = None) -> dict[str, Any]: ...
        def model_dump_json(self, *, exclude: set[str]) -> str: ...
else:
    _Stored = BaseModel


class _Aggregate(_Stored):
    """``of``: the column (empty for a bare count); ``window``: empty text is lifetime; ``where``: rows that count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = ""
    window: Window = Lifetime()
    where: Node | None = None
    default: Default | None = None

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        *,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        if "type" not in options:  # as a user writes it; the stored form is checked by its types alone
            _check_written(type(self), of, where, options)
        super().__init__(
            of=of.name if isinstance(of, Named) else of,
            window=parse_window(window) if not isinstance(window, dict) else window,
            where=where.node if isinstance(where, Expr) else where,
            # Only the stored form names its type; in it, null says that no default was given.
            default=None if default is None and "type" in options else _default(default),
            **options,
        )


def _check_written(kind: type[_Aggregate], of: Any, where: Any, options: Mapping[str, Any]) -> None:
    """Refuse what pydantic would refuse in words of its own.

    Raises:
        TypeError: a keyword that the aggregate does not take, or a value of the wrong kind.
    """
    name, unknown = kind.__name__, [option for option in options if option not in kind.model_fields]
    if unknown:
        offered = ", ".join(option.removesuffix("_us") for option in kind.model_fields if option != "type")
        message = f"{name}() takes no {unknown[0]}=; it takes {offered}"
    elif isinstance(of, Expr):
        message = f"{name}(of=…) takes a column's name; found an expression: assign it to a column first"
    elif not isinstance(of, str | Named):
        message = f"{name}(of=…) takes a column's name or reference; found {shown(of)}"
    elif where is not None and not isinstance(where, Expr | BaseModel):
        message = f'{name}(where=…) takes a condition such as col("paid"); found {shown(where)}'
    else:
        return
    raise TypeError(message)


def _default(given: Any) -> Any:
    if given is UNSET:
        return None
    if isinstance(given, Default | dict):
        return given
    if isinstance(given, list | tuple):
        return Default(value=tuple(_constant(item) for item in given))
    return Default(value=_constant(given))


def _constant(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return str(value)
    message = f"default= takes a value of the column's type, or None; found {shown(value)}"
    raise TypeError(message)


class Count(_Aggregate):
    """Number of rows; with ``of``, of rows where that column is not null. An int."""

    type: Literal["count"] = "count"


class Sum(_Aggregate):
    """Sum of the non-null values, of the column's type; exact for ``int`` and decimals."""

    type: Literal["sum"] = "sum"


class Avg(_Aggregate):
    """Mean of the non-null values, a float."""

    type: Literal["avg"] = "avg"


class Min(_Aggregate):
    """Smallest non-null value, of the column's type."""

    type: Literal["min"] = "min"


class Max(_Aggregate):
    """Largest non-null value, of the column's type."""

    type: Literal["max"] = "max"


class Variance(_Aggregate):
    """Population variance of the non-null values, a float; exact until it is rounded once."""

    type: Literal["variance"] = "variance"


class Stddev(_Aggregate):
    """Population standard deviation of the non-null values, a float."""

    type: Literal["stddev"] = "stddev"


class ApproxPercentile(_Aggregate):
    """Without ``pct``, the share of values strictly below the newest; with it, the value at that percentile.

    A float; exact up to 4,096 values a window, then within 0.01 of the rank. ``precision`` is the stock SDK's and
    changes nothing: the bound holds for every one.
    """

    type: Literal["approx_percentile"] = "approx_percentile"
    precision: PositiveInt = 100
    pct: Annotated[float, Field(ge=0, le=100)] | None = None

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        precision: int = 100,
        *,
        pct: float | None = None,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        super().__init__(of, window, where=where, default=default, precision=precision, pct=pct, **options)


class Quantile(_Aggregate):
    """The value below which a share ``q`` of the values lies, interpolated linearly; a float, exact to 4,096 values."""

    type: Literal["quantile"] = "quantile"
    q: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        q: float = 0.5,
        *,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        super().__init__(of, window, where=where, default=default, q=q, **options)


class ExpDecaySum(_Aggregate):
    """Sum of the values, each halved once per ``half_life`` of its age at the read; a float."""

    type: Literal["exp_decay_sum"] = "exp_decay_sum"
    half_life_us: Annotated[PositiveInt, Field(multiple_of=SECOND)]

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        half_life: str = "7d",
        *,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        options.setdefault("half_life_us", parse_duration(half_life))
        super().__init__(of, window, where=where, default=default, **options)


class Last(_Aggregate):
    """The newest value in the total order of records (decision 8); ``dropnull`` skips nulls."""

    type: Literal["last"] = "last"
    dropnull: bool = False


class First(_Aggregate):
    """The oldest value in the total order of records (decision 8); ``dropnull`` skips nulls."""

    type: Literal["first"] = "first"
    dropnull: bool = False


class _Several(_Aggregate):
    """Up to ``k`` values as a list."""

    k: PositiveInt = 100
    dedup: bool = False
    dropnull: bool = False

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        k: int = 100,
        *,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        super().__init__(of, window, where=where, default=default, k=k, **options)


class LastK(_Several):
    """The ``k`` newest values, newest first; ``dedup`` keeps the newest occurrence of each value."""

    type: Literal["last_k"] = "last_k"


class FirstK(_Several):
    """The ``k`` oldest values, oldest first; ``dedup`` keeps the earliest occurrence of each value."""

    type: Literal["first_k"] = "first_k"


class Distinct(_Aggregate):
    """The distinct non-null values, a sorted list. Its state grows with them: one entry per distinct value."""

    type: Literal["distinct"] = "distinct"


class ApproxDistinct(_Aggregate):
    """Number of distinct non-null values, an int: exact up to 400, then with a standard error of 1.6 %."""

    type: Literal["approx_distinct"] = "approx_distinct"


class TopK(_Aggregate):
    """The ``k`` most frequent non-null values, most frequent first, equal ones by value; counts are exact.

    Its state grows with the distinct values.
    """

    type: Literal["top_k"] = "top_k"
    k: PositiveInt = 10

    def __init__(
        self,
        of: Column = "",
        window: WindowLike = "",
        k: int = 10,
        *,
        where: Expr | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        super().__init__(of, window, where=where, default=default, k=k, **options)


Aggregate = Annotated[
    Count
    | Sum
    | Avg
    | Min
    | Max
    | ApproxPercentile
    | Last
    | LastK
    | FirstK
    | First
    | Stddev
    | Variance
    | Distinct
    | ApproxDistinct
    | Quantile
    | ExpDecaySum
    | TopK,
    Field(discriminator="type"),
]
AGGREGATES: tuple[type[_Aggregate], ...] = (
    Count,
    Sum,
    Avg,
    Min,
    Max,
    ApproxPercentile,
    Last,
    LastK,
    FirstK,
    First,
    Stddev,
    Variance,
    Distinct,
    ApproxDistinct,
    Quantile,
    ExpDecaySum,
    TopK,
)

_NUMBERS = frozenset({"int", "float", "decimal"})
_ORDERED = _NUMBERS | {"datetime", "str"}
_SCALARS = _ORDERED | {"bool"}
_ANY = _SCALARS | {"list"}

INPUT_TYPES: Mapping[type[_Aggregate], frozenset[str]] = {
    Count: _ANY,
    Sum: _NUMBERS,
    Avg: _NUMBERS,
    Min: _ORDERED,
    Max: _ORDERED,
    ApproxPercentile: _NUMBERS,
    Last: _ANY,
    LastK: _SCALARS,
    FirstK: _SCALARS,
    First: _ANY,
    Stddev: _NUMBERS,
    Variance: _NUMBERS,
    Distinct: _SCALARS,
    ApproxDistinct: _SCALARS,
    Quantile: _NUMBERS,
    ExpDecaySum: _NUMBERS,
    TopK: _SCALARS,
}
"""The column types each aggregate takes; ``decimal`` stands for every scale, ``list`` for every element type."""


def accepts(aggregate: _Aggregate | type[_Aggregate], type_name: str) -> bool:
    """Whether the aggregate takes a column of that type."""
    kind = aggregate if isinstance(aggregate, type) else type(aggregate)
    if element_type(type_name) is not None:
        return "list" in INPUT_TYPES[kind]
    return ("decimal" if decimal_scale(type_name) is not None else type_name) in INPUT_TYPES[kind]


_RESULTS: Mapping[type[_Aggregate], str] = {
    **dict.fromkeys((Count, ApproxDistinct), "int"),
    **dict.fromkeys((Avg, Stddev, Variance, ApproxPercentile, Quantile, ExpDecaySum), "float"),
    **dict.fromkeys((LastK, FirstK, Distinct, TopK), "list[{}]"),
}


def result_type(aggregate: _Aggregate, input_type: str | None) -> str:
    """The column type an aggregate yields for an input column of ``input_type`` (``None`` for a bare count).

    Counts are ``int``; means, spreads, percentiles and decayed sums are ``float``, of decimals too; ``LastK FirstK
    Distinct TopK`` are lists; all others keep the column's type.
    """
    return _RESULTS.get(type(aggregate), "{}").format(input_type)
