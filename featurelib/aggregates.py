"""Aggregates as users write them and as they are stored: the same frozen values.

``Sum(of="amount", window="7d", where=col("ok") == True)`` inside ``.aggregate(total=...)``. What an
aggregate computes lives in :mod:`featurelib.engine.aggregators`; here is only what it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from featurelib.expr import Node, Predicate
from featurelib.types import Scalar
from featurelib.windows import Continuous, Lifetime, Window, parse_window


class Default(BaseModel):
    """The value an empty window gives instead of the aggregate's own (``None`` included)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Scalar | None


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Any = _Unset()
"""Marks an argument nobody gave, where ``None`` is a value of its own."""


class _Aggregate(BaseModel):
    """``of``: the column (empty for a bare count); ``window``: empty text is lifetime; ``where``: rows that count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: str = ""
    window: Window = Lifetime()
    where: Node | None = None
    default: Default | None = None

    def __init__(
        self,
        of: str = "",
        window: str | Continuous | Lifetime | dict[str, Any] = "",
        *,
        where: Predicate | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        # Only the stored form names its type; in it, null says that no default was given.
        if default is UNSET or (default is None and "type" in options):
            default = None
        elif not isinstance(default, Default | dict):
            default = Default(value=default)
        super().__init__(
            of=of,
            window=parse_window(window) if not isinstance(window, dict) else window,
            where=where.node if isinstance(where, Predicate) else where,
            default=default,
            **options,
        )


class Count(_Aggregate):
    """Number of rows; with ``of``, of rows where that column is not null."""

    type: Literal["count"] = "count"


class Sum(_Aggregate):
    """Sum of the non-null values; exact for ``int``."""

    type: Literal["sum"] = "sum"


class Avg(_Aggregate):
    """Mean of the non-null values, a float."""

    type: Literal["avg"] = "avg"


class Min(_Aggregate):
    """Smallest non-null value."""

    type: Literal["min"] = "min"


class Max(_Aggregate):
    """Largest non-null value."""

    type: Literal["max"] = "max"


class Last(_Aggregate):
    """The newest value in the total order of records (decision 8); ``dropnull`` skips nulls."""

    type: Literal["last"] = "last"
    dropnull: bool = False


class LastK(_Aggregate):
    """The ``k`` newest values, newest first; ``dedup`` keeps the newest occurrence of each value."""

    type: Literal["last_k"] = "last_k"
    k: PositiveInt = 100
    dedup: bool = False
    dropnull: bool = False

    def __init__(
        self,
        of: str = "",
        window: str | Continuous | Lifetime | dict[str, Any] = "",
        k: int = 100,
        *,
        where: Predicate | None = None,
        default: Any = UNSET,
        **options: Any,
    ) -> None:
        super().__init__(of, window, where=where, default=default, k=k, **options)


Aggregate = Annotated[Count | Sum | Avg | Min | Max | Last | LastK, Field(discriminator="type")]
AGGREGATES: tuple[type[_Aggregate], ...] = (Count, Sum, Avg, Min, Max, Last, LastK)


def result_type(aggregate: _Aggregate, input_type: str | None) -> str:
    """The column type an aggregate yields for an input column of ``input_type`` (``None`` for a bare count)."""
    if isinstance(aggregate, Count):
        return "int"
    if isinstance(aggregate, Avg):
        return "float"
    if isinstance(aggregate, LastK):
        return f"list[{input_type}]"
    return str(input_type)
